"""Erasing a person: everything that the database holds about one recipient."""

from typing import NamedTuple

from django.contrib.admin.models import LogEntry
from django.db.models import QuerySet

from messaging import services
from messaging.access import EVERYONE
from messaging.database import change
from messaging.models import Mailbox, Message
from messaging.records import to_json

BATCH = 500

# Outcomes of changes name the mailboxes that they touched; those of messages sent hold ids alone. The name is searched
# as it is written in an answer, a JSON string.
_ERASE_OUTCOMES = """
DELETE FROM messaging_outcome
WHERE position(convert_to(%(name)s, 'UTF8') IN body) > 0 OR caller = ANY(%(callers)s)
RETURNING 1"""

# A bucket is policy:rate:caller, and a caller key:prefix or token:hash.
_ERASE_WINDOWS = """
DELETE FROM messaging_ratewindow
WHERE split_part(bucket, ':', 3) || ':' || split_part(bucket, ':', 4) = ANY(%(callers)s)
RETURNING 1"""


class MailboxState(NamedTuple):
    """What is left of the mailbox: its name and its version, without messages."""

    recipient: str
    version: int


def erase_some_messages(recipient: str) -> int:
    """Delete a batch of the messages of a mailbox; returns how many, 0 once there are none."""
    ids = list(Message.objects.filter(mailbox__recipient=recipient).values_list("pk", flat=True)[:BATCH])
    if not ids:
        return 0
    return services.delete(ids=ids, caller=EVERYONE).changed


def erase_traces(recipient: str, *, callers: list[str]) -> dict[str, int]:
    """Delete outcomes that name the recipient or are those of `callers`, their windows, and entries of the admin log.

    An outcome that sent messages stays, with ids of messages that are gone: without it a retry would send them again.
    """
    name = to_json(recipient).decode()
    return {
        "outcomes": len(change(_ERASE_OUTCOMES, {"name": name, "callers": callers})),
        "rate_windows": len(change(_ERASE_WINDOWS, {"callers": callers})),
        "admin_log_entries": _log_entries(recipient).delete()[0],
    }


def mailbox_state(recipient: str) -> MailboxState | None:
    """The mailbox's row, None if there is none."""
    version = Mailbox.objects.filter(recipient=recipient).values_list("version", flat=True).first()
    return None if version is None else MailboxState(recipient, version)


def forget_mailbox(recipient: str) -> int:
    """Delete the row of a mailbox without messages; returns how many rows that were."""
    deleted, _ = Mailbox.objects.filter(recipient=recipient, total=0).delete()
    return deleted


def _log_entries(recipient: str) -> QuerySet[LogEntry]:
    return LogEntry.objects.filter(object_repr=recipient) | LogEntry.objects.filter(change_message__contains=recipient)
