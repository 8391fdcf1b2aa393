"""The services that change messages: send, send_batch, mark_read, mark_unread, delete.

Each locks its mailboxes, changes messages, and changes version and counts by the rows really changed: see
statements.py. CONTRIBUTING.md names the few other modules that write these tables.
"""

import uuid
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from msgspec.structs import asdict

from messaging import metrics
from messaging.access import Caller
from messaging.database import change, fetch, in_transaction
from messaging.errors import NotFoundError
from messaging.hints import mailboxes_changed
from messaging.ids import bucket_of, buckets_in_ids, new_message_id
from messaging.metrics import count_after_commit
from messaging.postgresql.waiting import in_turn
from messaging.records import (
    BulkOutcome,
    BulkResult,
    MailboxRecord,
    MarkOutcome,
    MessageRecord,
    NewMessage,
    raw_json,
    to_json,
)
from messaging.statements import DELETE, LOCK_MAILBOX, MARK, READ_UP_TO, SEND, SEND_BATCH, UNREAD_UP_TO

# As text in lower case, or as the ORM has it.
MessageId = str | uuid.UUID

LARGE_BATCH = 100  # messages of a batch that waits for its turn
UP_TO_STEP = 10_000  # messages that one `up_to` call changes at most


def send(*, message: NewMessage, caller: Caller) -> MessageRecord:
    """Send one message. Raises NotFoundError if the caller may not reach the recipient's mailbox."""
    caller.require_reach(message.recipient)
    parameters = send_parameters(message)
    [row] = change(SEND, parameters)
    note_sent([message])
    return sent_record(message, parameters["id"], *row)


def send_parameters(message: NewMessage) -> dict[str, Any]:
    """The parameters of SEND for a message, with a new id."""
    bucket = bucket_of(message.recipient)
    return {"id": str(new_message_id(bucket)), "bucket": bucket, **asdict(message)}


def send_batch(*, messages: Sequence[NewMessage], caller: Caller) -> list[MessageRecord]:
    """Send all of the messages or none of them; returned in the order given.

    Raises NotFoundError if the caller may not reach one of the mailboxes.
    """
    for message in messages:
        caller.require_reach(message.recipient)
    arriving = [send_parameters(message) for message in messages]
    with in_turn() if len(messages) >= LARGE_BATCH else nullcontext():
        rows = change(SEND_BATCH, {"messages": to_json(arriving)})
    note_sent(messages)
    placed = {row[0]: row[1:] for row in rows}
    return [
        sent_record(message, new["id"], *placed[new["id"]]) for message, new in zip(messages, arriving, strict=True)
    ]


def note_sent(messages: Sequence[NewMessage]) -> None:
    """Count messages that were sent, and publish hints of them, after the commit."""
    count_after_commit(metrics.sent, len(messages))
    mailboxes_changed({message.recipient for message in messages})


def sent_record(message: NewMessage, message_id: str, seq: int, created_at: str) -> MessageRecord:
    """A message in its state directly after it was sent."""
    given = {**asdict(message), "metadata": raw_json(message.metadata)}
    return MessageRecord(**given, id=message_id, seq=seq, created_at=created_at, read_at=None, is_read=False)


def mark_read(*, ids: Sequence[MessageId], caller: Caller) -> BulkOutcome:
    """Mark messages as read. One that already was keeps its first `read_at`."""
    return _mark(ids, caller, read=True)


def mark_unread(*, ids: Sequence[MessageId], caller: Caller) -> BulkOutcome:
    """Mark messages as unread: `read_at` becomes null."""
    return _mark(ids, caller, read=False)


def _mark(ids: Sequence[MessageId], caller: Caller, *, read: bool) -> BulkOutcome:
    outcome = _change_by_ids(MARK, ids, caller, read=read)
    count_after_commit(metrics.marked.labels("read" if read else "unread"), outcome.changed)
    return outcome


def delete(*, ids: Sequence[MessageId], caller: Caller) -> BulkOutcome:
    """Delete messages permanently, from stored outcomes too."""
    outcome = _change_by_ids(DELETE, ids, caller)
    count_after_commit(metrics.deleted, outcome.changed)
    return outcome


def _change_by_ids(statement: str, ids: Sequence[MessageId], caller: Caller, **parameters: bool) -> BulkOutcome:
    names = list(dict.fromkeys(map(str, ids)))
    array = f"{{{','.join(names)}}}"  # PostgreSQL's text form of uuid[]
    *rows, last = change(
        statement, {"ids": array, "buckets": buckets_in_ids(names), "only_recipient": caller.recipient, **parameters}
    )
    changed, unchanged = set(last[4]), set(last[5])
    if changed:
        mailboxes_changed(row[0] for row in rows)
    return BulkOutcome(
        results=[
            BulkResult(name, "changed" if name in changed else "unchanged" if name in unchanged else "not_found")
            for name in names
        ],
        changed=len(changed),
        unchanged=len(unchanged),
        not_found=len(names) - len(changed) - len(unchanged),
        mailboxes=[MailboxRecord(*row[:4]) for row in rows],
    )


def mark_read_up_to(*, recipient: str, message_id: MessageId, caller: Caller) -> MarkOutcome:
    """Mark the messages of a mailbox as read up to one of them; nothing that arrived after it.

    Oldest first, at most UP_TO_STEP messages a call: `complete` says whether none is left.

    Raises NotFoundError if the message is not in that mailbox, or the caller may not reach the mailbox.
    """
    return _mark_up_to(UNREAD_UP_TO, recipient, message_id, caller, read=True)


def mark_unread_up_to(*, recipient: str, message_id: MessageId, caller: Caller) -> MarkOutcome:
    """Mark the messages of a mailbox as unread up to one of them; otherwise as `mark_read_up_to`."""
    return _mark_up_to(READ_UP_TO, recipient, message_id, caller, read=False)


def _mark_up_to(selection: str, recipient: str, message_id: MessageId, caller: Caller, *, read: bool) -> MarkOutcome:
    caller.require_reach(recipient)

    def work() -> MarkOutcome:
        bucket = bucket_of(recipient)
        locked = fetch(LOCK_MAILBOX, {"recipient": recipient, "bucket": bucket})
        if not locked:
            raise NotFoundError
        mailbox_id, *state = locked[0]
        # One more than a call changes shows whether more are left.
        selected = fetch(
            selection, {"id": message_id, "bucket": bucket, "mailbox_id": mailbox_id, "limit": UP_TO_STEP + 1}
        )
        if not selected:
            raise NotFoundError
        ids = selected[0][0]
        if not ids:
            return MarkOutcome(changed=0, mailboxes=[MailboxRecord(recipient, *state)], complete=True)
        outcome = _mark(ids[:UP_TO_STEP], caller, read=read)
        return MarkOutcome(changed=outcome.changed, mailboxes=outcome.mailboxes, complete=len(ids) <= UP_TO_STEP)

    return in_transaction(work)
