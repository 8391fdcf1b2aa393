"""Deletes rows that have expired or are too old, in small batches, and counts those that are left.

Each batch is a transaction of its own and skips rows that another transaction has locked (SKIP LOCKED), so several
processes may run upkeep at once. In the end it waits for the mailboxes that were locked, since one in which messages
arrive all the time is hardly ever free. messages_project/upkeep.py, `manage.py upkeep` and `manage.py purge` run it.
"""

import math
import random
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, cast

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db.models import QuerySet
from django.db.models.expressions import RawSQL

from messaging.access import EVERYONE
from messaging.changes import purge_changes
from messaging.database import change, database_now, fetch, in_transaction, read
from messaging.errors import DatabaseUnavailableError
from messaging.ids import CLOCK_SKEW, bucket_of, buckets_in_ids, first_id
from messaging.models import Change, Message, MessageQuerySet, Observation, Outcome, RateWindow
from messaging.services import delete
from messaging.statements import LOCK_FREE_MAILBOXES, LOCK_MAILBOX

BATCH = 1_000
MESSAGES_BATCH = 200  # smaller, since it locks their mailboxes
LOCK_SECONDS = 0.5  # the first wait for a mailbox: enough to come to one's turn where many others wait for it
COUNTED = 10_001  # the largest number of rows that is counted of each kind

PURGE_OUTCOMES = """
DELETE FROM messaging_outcome WHERE (caller, key, bucket) IN (
    SELECT caller, key, bucket FROM messaging_outcome WHERE expires_at <= %(now)s
        AND bucket IN (%(buckets)s) -- if on Citus
    ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
    AND bucket IN (%(buckets)s) -- if on Citus
RETURNING 1"""


class Batch(NamedTuple):
    """The result of `discard`: the messages selected, in their order, and how many of them were deleted."""

    ids: list[uuid.UUID]
    deleted: int


def expired_messages(now: datetime) -> MessageQuerySet:
    """The messages that have expired at an instant, in order of expiry."""
    return Message.objects.filter(expires_at__lte=now).order_by("expires_at")


def older_messages(before: datetime, *, recipient: str | None = None, only_read: bool = False) -> MessageQuerySet:
    """The messages that arrived before an instant, oldest first: of one mailbox or of all, all or those marked as read.

    Found by their ids, which begin with the time, so that no index of all messages by time is needed.
    """
    # As subqueries, whose values the planner does not know: by statistics of before a load it would expect none so old,
    # and read and sort all of them, instead of the first in the order of their ids.
    messages = Message.objects.filter(
        pk__lt=RawSQL("SELECT %s::uuid", (first_id(before, CLOCK_SKEW),)),
        created_at__lt=RawSQL("SELECT %s::timestamptz", (before,)),
    ).order_by("pk")
    if recipient is not None:
        messages = messages.of(recipient)
    return messages.filter(read_at__isnull=False) if only_read else messages


def discard(messages: MessageQuerySet, *, limit: int, only_read: bool = False) -> Batch:
    """Delete the first of these messages, except in mailboxes that another transaction has locked.

    With `only_read`, a message that was marked as unread since it was selected is not deleted either.
    """
    ids = read(lambda: list(messages.values_list("pk", flat=True)[:limit]))
    if not ids:
        return Batch([], 0)

    def work() -> int:
        free = fetch(LOCK_FREE_MAILBOXES, {"ids": ids, "buckets": buckets_in_ids(map(str, ids))})
        # Read under the lock, since a message may have been marked as unread meanwhile.
        found = Message.objects.filter(pk__in=ids, mailbox__in=[pk for (pk,) in free])
        due = found.filter(read_at__isnull=False) if only_read else found
        return delete(ids=list(due.values_list("pk", flat=True)), caller=EVERYONE).changed

    return Batch(ids, in_transaction(work))


def discard_all(messages: MessageQuerySet, *, limit: int, only_read: bool = False) -> Iterator[int]:
    """Delete these messages, in batches of `limit`; yields how many were deleted by each.

    Those in locked mailboxes come last. Messages in a mailbox that stays locked are left for the next time.
    """
    locked: set[str] = set()
    while (batch := discard(messages.exclude(mailbox__recipient__in=locked), limit=limit, only_read=only_read)).ids:
        if batch.deleted < len(batch.ids):
            locked.update(Message.objects.filter(pk__in=batch.ids).values_list("mailbox__recipient", flat=True))
        yield batch.deleted
    # In random order, so that those that stay locked do not always take the time of the others.
    for recipient in random.sample(sorted(locked), len(locked)):
        try:
            while deleted := _discard_of(recipient, messages.of(recipient), limit=limit, only_read=only_read):
                yield deleted
        except DatabaseUnavailableError:
            yield 0


def _discard_of(recipient: str, own: MessageQuerySet, *, limit: int, only_read: bool) -> int:
    """Wait for a mailbox, and delete the first of its messages. No other mailbox is locked meanwhile."""

    def work() -> int:
        fetch(LOCK_MAILBOX, {"recipient": recipient, "bucket": bucket_of(recipient)})
        return discard(own, limit=limit, only_read=only_read).deleted

    return in_transaction(work, lock_seconds=LOCK_SECONDS)  # commands have no lock timeout of their own


def _changes_before(now: datetime) -> datetime:
    return now - timedelta(days=settings.MESSAGES_CHANGES_DAYS)


def _expired(now: datetime) -> dict[str, QuerySet[Any]]:
    """The rows of each kind that have expired at an instant."""
    rows: dict[str, QuerySet[Any]] = {
        "messages": expired_messages(now),
        "changes": Change.objects.filter(created_at__lt=_changes_before(now)),
        "outcomes": Outcome.objects.filter(expires_at__lte=now),
        "rate_windows": RateWindow.objects.filter(ends_at__lte=now).order_by("ends_at"),
        "sessions": Session.objects.filter(expire_date__lte=now).order_by("expire_date"),
    }
    if days := settings.MESSAGES_RETENTION_DAYS:
        rows["old_messages"] = older_messages(now - timedelta(days=days))
    return rows


def _batches(kind: str, rows: QuerySet[Any], now: datetime) -> Iterator[int]:
    """Delete the expired rows of a kind, in batches; yields how many were deleted by each."""
    match kind:
        case "messages" | "old_messages":
            return discard_all(cast("MessageQuerySet", rows), limit=MESSAGES_BATCH)
        case "changes":
            return iter(partial(purge_changes, _changes_before(now), limit=BATCH), 0)
        case "outcomes":
            return iter(partial(_purge_outcomes, now), 0)
        case _:
            return iter(partial(in_transaction, partial(_delete_rows, rows)), 0)


def _purge_outcomes(now: datetime) -> int:
    return len(change(PURGE_OUTCOMES, {"now": now, "limit": BATCH}))


def _delete_rows(rows: QuerySet[Any]) -> int:
    keys = list(rows.select_for_update(skip_locked=True).values_list("pk", flat=True)[:BATCH])
    deleted, _ = rows.model.objects.filter(pk__in=keys).delete()
    return int(deleted)


def run_once(*, seconds: float = math.inf) -> dict[str, int]:
    """Delete everything that has expired by now; returns the number of rows of each kind.

    What expires meanwhile is left for the next run, and so is the rest of a kind that takes longer than `seconds`. If
    the database is lost, the batches before stay deleted.
    """
    now = database_now()
    deleted = {}
    for kind, rows in _expired(now).items():
        started_at, deleted[kind] = time.monotonic(), 0
        for count in _batches(kind, rows, now):
            deleted[kind] += count
            if time.monotonic() - started_at >= seconds:
                break
    in_transaction(partial(Observation.record, "upkeep", sum(deleted.values())))
    return deleted


def backlog() -> dict[str, int]:
    """The number of rows of each kind that have expired and are not deleted yet, at most COUNTED."""
    return {kind: read(rows[:COUNTED].count) for kind, rows in _expired(database_now()).items()}
