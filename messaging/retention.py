"""Deletes messages that have expired or are too old, and outcomes that have expired.

Each call deletes one small batch in its own transaction and waits for no lock, so several processes may run it.
"""

import uuid
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db.models.functions import Now

from messaging import metrics
from messaging.database import change
from messaging.hints import mailboxes_changed
from messaging.ids import bucket_of, buckets_in_ids
from messaging.metrics import count_after_commit
from messaging.models import Message, MessageQuerySet
from messaging.statements import DISCARD

_CLOCK_SKEW = timedelta(minutes=5)  # between the servers, which make ids, and the database, which sets created_at

# SKIP LOCKED: an outcome whose key a request is using is skipped.
PURGE_OUTCOMES = """
DELETE FROM messaging_outcome WHERE (caller, key, bucket) IN (
    SELECT caller, key, bucket FROM messaging_outcome WHERE expires_at <= statement_timestamp()
        AND bucket IN (%(buckets)s) -- if on Citus
    ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
    AND bucket IN (%(buckets)s) -- if on Citus
RETURNING 1"""


class Batch(NamedTuple):
    """The result of a call: messages selected and deleted, and the id of the last one selected."""

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
    bound = uuid.UUID(int=int((before + _CLOCK_SKEW).timestamp() * 1000) << 80)
    messages = Message.objects.filter(pk__lt=bound, created_at__lt=before).order_by("pk")
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


def purge_outcomes(*, limit: int) -> int:
    """Delete at most `limit` outcomes that have expired; returns how many."""
    return len(change(PURGE_OUTCOMES, {"limit": limit}))
