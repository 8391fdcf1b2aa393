"""Deletes rows that have expired or are too old, in small batches, and counts those that are left.

Each batch is a transaction of its own and skips rows that another transaction has locked (SKIP LOCKED). So several
processes may run upkeep at once, and it waits neither for them nor for a request. messages_project/upkeep.py,
`manage.py upkeep` and `manage.py purge` run it.
"""

import uuid
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, cast

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from messaging import metrics
from messaging.changes import purge_changes
from messaging.database import change, in_transaction, read
from messaging.hints import mailboxes_changed
from messaging.ids import CLOCK_SKEW, bucket_of, buckets_in_ids, first_id
from messaging.metrics import count_after_commit
from messaging.models import Change, Message, MessageQuerySet, Observation, Outcome, RateWindow
from messaging.statements import DISCARD

BATCH = 1_000
MESSAGES_BATCH = 200  # smaller, since it locks their mailboxes
COUNTED = 10_001  # the largest number of rows that is counted of each kind

PURGE_OUTCOMES = """
DELETE FROM messaging_outcome WHERE (caller, key, bucket) IN (
    SELECT caller, key, bucket FROM messaging_outcome WHERE expires_at <= statement_timestamp()
        AND bucket IN (%(buckets)s) -- if on Citus
    ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
    AND bucket IN (%(buckets)s) -- if on Citus
RETURNING 1"""


class Batch(NamedTuple):
    """The result of `discard`: messages selected and deleted, and the id of the last one selected."""

    selected: int
    deleted: int
    last_id: uuid.UUID | None


def expired_messages() -> MessageQuerySet:
    """The messages that have expired, in order of expiry."""
    return Message.objects.filter(expires_at__lte=Now()).order_by("expires_at")


def older_messages(before: datetime, *, recipient: str | None = None, only_read: bool = False) -> MessageQuerySet:
    """The messages that arrived before an instant, oldest first: of one mailbox or of all, all or those marked as read.

    Found by their ids, which begin with the time, so that no index of all messages by time is needed.
    """
    messages = Message.objects.filter(pk__lt=first_id(before, CLOCK_SKEW), created_at__lt=before).order_by("pk")
    if recipient is not None:
        messages = messages.filter(mailbox__recipient=recipient, mailbox__bucket=bucket_of(recipient))
    return messages.already_read() if only_read else messages


def discard(messages: MessageQuerySet, *, limit: int, only_read: bool = False) -> Batch:
    """Delete the first of these messages, except in mailboxes that another transaction has locked.

    With `only_read`, a message that was marked as unread since it was selected is not deleted either.
    """
    ids = list(messages.values_list("pk", flat=True)[:limit])
    if not ids:
        return Batch(0, 0, None)
    buckets = buckets_in_ids(map(str, ids))
    [(deleted, recipients)] = change(DISCARD, {"ids": ids, "buckets": buckets, "only_read": only_read})
    count_after_commit(metrics.deleted, deleted)
    mailboxes_changed(recipients)
    return Batch(len(ids), deleted, ids[-1])


def _changes_before() -> datetime:
    return timezone.now() - timedelta(days=settings.MESSAGES_CHANGES_DAYS)


def _expired() -> dict[str, QuerySet[Any]]:
    """The rows of each kind that have expired."""
    rows: dict[str, QuerySet[Any]] = {
        "messages": expired_messages(),
        "changes": Change.objects.filter(created_at__lt=_changes_before()),
        "outcomes": Outcome.objects.filter(expires_at__lte=Now()),
        "rate_windows": RateWindow.objects.filter(ends_at__lte=Now()).order_by("ends_at"),
        "sessions": Session.objects.filter(expire_date__lte=Now()).order_by("expire_date"),
    }
    if days := settings.MESSAGES_RETENTION_DAYS:
        rows["old_messages"] = older_messages(timezone.now() - timedelta(days=days))
    return rows


def _delete_batch(kind: str, rows: QuerySet[Any]) -> int:
    """Delete a batch of the expired rows of a kind; returns how many."""
    match kind:
        case "changes":
            return purge_changes(_changes_before(), limit=BATCH)
        case "outcomes":
            return len(change(PURGE_OUTCOMES, {"limit": BATCH}))
        case "rate_windows" | "sessions":
            return in_transaction(partial(_delete_rows, rows))
    return discard(cast("MessageQuerySet", rows), limit=MESSAGES_BATCH).deleted


def _delete_rows(rows: QuerySet[Any]) -> int:
    keys = list(rows.select_for_update(skip_locked=True).values_list("pk", flat=True)[:BATCH])
    deleted, _ = rows.model.objects.filter(pk__in=keys).delete()
    return int(deleted)


def run_once() -> dict[str, int]:
    """Delete everything that has expired; returns the number of rows of each kind.

    Messages in a mailbox that another transaction has locked are left for the next run. If the database is lost, the
    batches before stay deleted.
    """
    deleted = {}
    for kind, rows in _expired().items():
        deleted[kind] = 0
        while count := _delete_batch(kind, rows):
            deleted[kind] += count
    in_transaction(partial(Observation.record, "upkeep", sum(deleted.values())))
    return deleted


def backlog() -> dict[str, int]:
    """The number of rows of each kind that have expired and are not deleted yet, at most COUNTED."""
    return {kind: read(rows[:COUNTED].count) for kind, rows in _expired().items()}
