"""Erases a recipient: deletes everything that the database holds about it."""

import re
from collections.abc import Iterator
from functools import partial

from django.contrib.admin.models import LogEntry

from messaging import services
from messaging.access import EVERYONE
from messaging.database import change, fetch, in_transaction, read
from messaging.ids import bucket_of
from messaging.models import Change, Mailbox, Message
from messaging.records import to_json
from messaging.statements import LOCK_MAILBOX

BATCH = 500

# Outcomes of changes contain the names of their mailboxes; those of sends contain only ids. The name is searched in its
# form in a response, with its key: a name may be a word of every response. A ticket contains the name in an encoded
# form, so outcomes of tickets are deleted for all mailboxes: a retry makes a new ticket.
_ERASE_OUTCOMES = """
DELETE FROM messaging_outcome
WHERE position(convert_to(%(name)s, 'UTF8') IN body) > 0 OR caller = ANY(%(callers)s)
    OR substring(body FOR 11) = convert_to('{"ticket":"', 'UTF8')
RETURNING 1"""

# A bucket is policy:rate:caller, and a caller key:prefix or token:hash.
_ERASE_WINDOWS = """
DELETE FROM messaging_ratewindow
WHERE split_part(bucket, ':', 3) || ':' || split_part(bucket, ':', 4) = ANY(%(callers)s)
RETURNING 1"""


# With log_from at the current version, clients with an older copy of the mailbox must start again.
_ERASE_CHANGES = """
WITH box AS (
    UPDATE messaging_mailbox SET log_from = version WHERE recipient = %(recipient)s RETURNING id
)
DELETE FROM messaging_change WHERE mailbox_id = (SELECT id FROM box) RETURNING 1"""


def erase_messages(recipient: str) -> Iterator[int]:
    """Delete the messages of a mailbox, in batches; yields how many were deleted by each."""
    messages = Message.objects.filter(mailbox__recipient=recipient).order_by("seq").values_list("seq", "pk")
    last = 0
    while batch := read(partial(list, messages.filter(seq__gt=last)[:BATCH])):  # type: ignore[var-annotated] # of tuples
        last = batch[-1][0]
        yield services.delete(ids=[pk for _, pk in batch], caller=EVERYONE).changed


def erase_traces(recipient: str, *, callers: list[str]) -> dict[str, int]:
    """Delete the log of changes, outcomes that name the recipient, outcomes of tickets, outcomes and rate limit windows
    of `callers`; remove the recipient from the admin log.

    Outcomes of sends by other callers stay: without them, a retry would send the messages again. They hold only ids.
    """
    name = f'"recipient":{to_json(recipient).decode()}'
    return {
        "changes": len(change(_ERASE_CHANGES, {"recipient": recipient})),
        "outcomes": len(change(_ERASE_OUTCOMES, {"name": name, "callers": callers})),
        "rate_windows": len(change(_ERASE_WINDOWS, {"callers": callers})),
        "admin_log_entries": in_transaction(partial(_redact_log, recipient)),
    }


def forget_mailbox(recipient: str) -> None:
    """Delete the row of a mailbox and what its log has by now, if it has no messages."""

    def work() -> None:
        for pk, _version, total, _unread in fetch(
            LOCK_MAILBOX, {"recipient": recipient, "bucket": bucket_of(recipient)}
        ):
            if not total:
                Change.objects.filter(mailbox_id=pk).delete()
                Mailbox.objects.filter(pk=pk).delete()

    in_transaction(work)


def _redact_log(recipient: str) -> int:
    """Replace the recipient in entries of the admin log, which name several; returns how many entries that were."""
    name = re.compile(rf"(?:^|(?<= to )|(?<=, )){re.escape(recipient)}(?=, | and |$)")
    redacted = 0
    for entry in LogEntry.objects.filter(object_repr__contains=recipient):
        entry.object_repr, count = name.subn("(erased)", entry.object_repr)
        if count:
            entry.save(update_fields=["object_repr"])
            redacted += 1
    return redacted
