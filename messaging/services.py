"""The verbs: send, send_batch, mark_read, mark_unread, delete. Only they, and history.py, write messages and mailboxes.

Every change locks its mailboxes first, in the order of their recipients, so that writers of one mailbox queue and no
two writers can deadlock; then it changes messages, and moves version and counts by the rows really changed.
"""

import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from msgspec import Struct

from messaging.access import Caller
from messaging.database import change, fetch, in_transaction
from messaging.errors import NotFoundError
from messaging.models import uuid7
from messaging.queries import MAILBOX, MESSAGE, rfc3339
from messaging.records import (
    BulkOutcome,
    BulkResult,
    MailboxRecord,
    MessageRecord,
    NewMessage,
    UpToOutcome,
    raw_json,
    to_json,
)

# As text in lower case, or as the ORM has it.
MessageId = str | uuid.UUID

UP_TO_STEP = 10_000  # messages that one `up_to` call works through at most
TURN_MESSAGES = 100  # from which size on batches take turns
TURN_SECONDS = 1.0  # how long one waits for its turn, then it goes on without

turn = threading.Lock()

# The upsert takes the mailbox's lock; the clock is read by the outer INSERT, so under that lock.
SEND = f"""
WITH box AS (
    INSERT INTO {MAILBOX} AS b (recipient, version, total, unread) VALUES (%s, 1, 1, 1)
    ON CONFLICT (recipient) DO UPDATE SET version = b.version + 1, total = b.total + 1, unread = b.unread + 1
    RETURNING id, version
)
INSERT INTO {MESSAGE} AS m (id, mailbox_id, seq, sender, content, metadata, created_at)
SELECT %s, box.id, box.version, %s, %s, %s::json, clock_timestamp() FROM box
RETURNING m.seq, {rfc3339("m.created_at")}"""

# The same for many: each mailbox's version rises by its number of messages, and each message takes the next of the
# versions in between, in the order given.
SEND_BATCH = f"""
WITH arriving AS (
    SELECT * FROM ROWS FROM (
        jsonb_to_recordset(convert_from(%s, 'UTF8')::jsonb)
            AS (id uuid, recipient text, sender text, content text, metadata text)
    ) WITH ORDINALITY AS a (id, recipient, sender, content, metadata, place)
), box AS (
    INSERT INTO {MAILBOX} AS b (recipient, version, total, unread)
    SELECT recipient COLLATE "C", count(*), count(*), count(*) FROM arriving
    GROUP BY 1 ORDER BY 1
    ON CONFLICT (recipient) DO UPDATE SET version = b.version + excluded.version,
        total = b.total + excluded.total, unread = b.unread + excluded.unread
    RETURNING id, recipient, version
), placed AS (
    SELECT a.*, box.id AS mailbox_id,
        box.version - count(*) OVER everyone + row_number() OVER (everyone ORDER BY a.place) AS seq
    FROM arriving a JOIN box ON box.recipient = a.recipient COLLATE "C"
    WINDOW everyone AS (PARTITION BY box.id)
)
INSERT INTO {MESSAGE} AS m (id, mailbox_id, seq, sender, content, metadata, created_at)
SELECT id, mailbox_id, seq, sender, content, metadata::json, clock_timestamp() FROM placed ORDER BY mailbox_id, seq
RETURNING m.id::text, m.seq, {rfc3339("m.created_at")}"""

# The mailboxes of a change to messages that exist, locked before anything is changed. Of a mailbox that another writer
# has changed meanwhile this returns, and the changes below see, what that one has left (READ COMMITTED re-reads rows
# that it had to wait for).
_LOCKED = f"""
WITH locked AS MATERIALIZED (
    SELECT id, recipient, version, total, unread FROM {MAILBOX}
    WHERE id = ANY(ARRAY(SELECT mailbox_id FROM {MESSAGE} WHERE id = ANY(%(ids)s::uuid[])))
        AND recipient = coalesce(%(only)s, recipient)
    ORDER BY recipient FOR NO KEY UPDATE
), """

LOCK_BY_RECIPIENT = f"SELECT id, version, total, unread FROM {MAILBOX} WHERE recipient = %s FOR NO KEY UPDATE"

SEQ_IN_MAILBOX = f"SELECT seq FROM {MESSAGE} WHERE id = %s AND mailbox_id = %s"

# {rows} says which messages are addressed.
_READ = f"UPDATE {MESSAGE} m SET read_at = clock_timestamp() {{rows}} AND m.read_at IS NULL"
_UNREAD = f"UPDATE {MESSAGE} m SET read_at = NULL {{rows}} AND m.read_at IS NOT NULL"
_DELETE = f"DELETE FROM {MESSAGE} m {{rows}}"

# Plus nothing, or the planner would take a mailbox's own index for a help, and read all of the mailbox in it.
_BY_IDS = "WHERE m.id = ANY(%(ids)s::uuid[]) AND m.mailbox_id + 0 = ANY(ARRAY(SELECT id FROM locked))"
_UP_TO = f"""
    SELECT id FROM {MESSAGE} WHERE mailbox_id = %(mailbox)s AND seq <= %(seq)s AND read_at IS {{state}}
    ORDER BY seq LIMIT {{limit}}"""

# Counts move by the rows really changed; a mailbox without any keeps its version. They move from what
# the lock has found, {now}. In a statement that locks as well, `b` is first the row of the statement's snapshot, and
# PostgreSQL checks the constraints on that one before it notices that there is a newer. So every count is set, also one
# that stays the same: an old total beside a new number of unread ones would be refused.
_MOVED = f"""changed AS ({{change}} RETURNING m.id, m.mailbox_id, m.read_at),
moved AS (
    UPDATE {MAILBOX} b SET version = {{now}}.version + 1, {{counts}}
    FROM (SELECT mailbox_id, count(*) AS rows, count(*) FILTER (WHERE read_at IS NULL) AS unread_rows
          FROM changed GROUP BY mailbox_id) c {{lock}}
    WHERE b.id = c.mailbox_id
    RETURNING b.*, c.*
)"""

# A row for each mailbox as it now stands; and, unless all ids were changed, a last one with those that were.
_OUTCOME = """
SELECT recipient, version, total, unread, NULL::text[] FROM moved
UNION ALL
SELECT recipient, version, total, unread, NULL FROM locked WHERE id <> ALL(ARRAY(SELECT id FROM moved))
UNION ALL
SELECT NULL, NULL, NULL, NULL, coalesce(array_agg(id::text), '{}') FROM changed
HAVING count(*) < cardinality(%(ids)s::uuid[])
ORDER BY 1"""  # which puts nulls last

_COUNT = "SELECT rows, version, total, unread FROM moved"

PRESENT = f"""
SELECT m.id::text FROM {MESSAGE} m JOIN {MAILBOX} b ON b.id = m.mailbox_id
WHERE m.id = ANY(%s::uuid[]) AND b.recipient = coalesce(%s, b.recipient)"""


class _Verb(NamedTuple):
    """The statements of one change to messages that exist: by ids, and for everything up to a message."""

    by_ids: str
    up_to: str = ""
    remaining: str = ""  # finds a message that `up_to` has left


def _verb(statement: str, counts: str, *, state: str | None = None) -> _Verb:
    def moving(rows: str, now: str, **parts: str) -> str:
        shape = {"change": statement.format(rows=rows), "counts": counts.format(now=now), "lock": ""}
        return _MOVED.format(now=now, **shape | parts)

    join = "JOIN locked ON locked.id = c.mailbox_id"
    by_ids = _LOCKED + moving(_BY_IDS, "locked", lock=join) + _OUTCOME
    if state is None:
        return _Verb(by_ids)
    up_to = _UP_TO.format(state=state, limit=UP_TO_STEP)
    return _Verb(
        by_ids,
        "WITH " + moving(f"WHERE m.id = ANY(ARRAY({up_to}))", "b") + _COUNT,
        _UP_TO.format(state=state, limit=1),
    )


MARK_READ = _verb(_READ, "total = {now}.total, unread = {now}.unread - c.rows", state="NULL")
MARK_UNREAD = _verb(_UNREAD, "total = {now}.total, unread = {now}.unread + c.rows", state="NOT NULL")
# A deleted row is returned as it was, so `read_at` says whether it counted as unread.
DELETE = _verb(_DELETE, "total = {now}.total - c.rows, unread = {now}.unread - c.unread_rows")


def send(*, message: NewMessage, caller: Caller) -> MessageRecord:
    """Send one message.

    Raises:
        NotFoundError: the caller may not reach the recipient's mailbox.
    """
    if not caller.reaches(message.recipient):
        raise NotFoundError
    message_id = uuid7()
    [(seq, created_at)] = change(
        SEND, (message.recipient, message_id, message.sender, message.content, message.metadata)
    )
    return _sent(message, str(message_id), seq, created_at)


def send_batch(*, messages: Sequence[NewMessage], caller: Caller) -> list[MessageRecord]:
    """Send all of the messages or none of them; returned in the order given.

    Raises:
        NotFoundError: one of the mailboxes is not the caller's to reach.
    """
    if not all(caller.reaches(message.recipient) for message in messages):
        raise NotFoundError
    arriving = [_Arriving(str(uuid7()), d.recipient, d.sender, d.content, d.metadata) for d in messages]
    # As one JSON text in bytes: psycopg would convert and copy each string by itself, several times.
    text = to_json(arriving)
    with _in_turn(len(messages)):
        rows = change(SEND_BATCH, (text,))
    placed = {row[0]: row[1:] for row in rows}
    return [_sent(message, new.id, *placed[new.id]) for message, new in zip(messages, arriving, strict=True)]


@contextmanager
def _in_turn(messages: int) -> Iterator[None]:
    """One large batch of this process at a time, unless the one before takes too long.

    Batches that have mailboxes in common wait for each other at each of these again, and one may be overtaken at every
    one of them until its time is over. It is a matter of being quick and fair; what may not happen, locks prevent.
    """
    has_turn = messages >= TURN_MESSAGES and turn.acquire(timeout=TURN_SECONDS)
    try:
        yield
    finally:
        if has_turn:
            turn.release()


class _Arriving(Struct):
    """A message on its way into SEND_BATCH, whose columns these are."""

    id: str
    recipient: str
    sender: str
    content: str
    metadata: str


def _sent(message: NewMessage, message_id: str, seq: int, created_at: str) -> MessageRecord:
    return MessageRecord(
        id=message_id,
        seq=seq,
        recipient=message.recipient,
        sender=message.sender,
        content=message.content,
        metadata=raw_json(message.metadata),
        created_at=created_at,
        read_at=None,
        is_read=False,
    )


def mark_read(*, ids: Sequence[MessageId], caller: Caller) -> BulkOutcome:
    """Mark messages as read. One that already was keeps its first `read_at`."""
    return _change_by_ids(MARK_READ, ids, caller)


def mark_unread(*, ids: Sequence[MessageId], caller: Caller) -> BulkOutcome:
    """Mark messages as unread."""
    return _change_by_ids(MARK_UNREAD, ids, caller)


def delete(*, ids: Sequence[MessageId], caller: Caller) -> BulkOutcome:
    """Delete messages for good."""
    return _change_by_ids(DELETE, ids, caller)


def mark_read_up_to(*, recipient: str, message_id: MessageId, caller: Caller) -> UpToOutcome:
    """Mark the messages of a mailbox as read up to one of them; nothing that arrived after it.

    Oldest first, at most UP_TO_STEP messages a call: `complete` says whether any remain.

    Raises:
        NotFoundError: the message is not in that mailbox, or the mailbox not the caller's to reach.
    """
    return _change_up_to(MARK_READ, recipient, message_id, caller)


def mark_unread_up_to(*, recipient: str, message_id: MessageId, caller: Caller) -> UpToOutcome:
    """Mark the messages of a mailbox as unread up to one of them; otherwise as `mark_read_up_to`."""
    return _change_up_to(MARK_UNREAD, recipient, message_id, caller)


def _change_by_ids(verb: _Verb, ids: Sequence[MessageId], caller: Caller) -> BulkOutcome:
    names = list(dict.fromkeys(map(str, ids)))
    array = f"{{{','.join(names)}}}"  # PostgreSQL's text form of uuid[]
    rows = change(verb.by_ids, {"ids": array, "only": caller.recipient})
    mailboxes = [MailboxRecord(*row[:4]) for row in rows if row[0] is not None]
    if len(mailboxes) == len(rows):
        results = [BulkResult(name, "changed") for name in names]
        return BulkOutcome(results, changed=len(names), unchanged=0, not_found=0, mailboxes=mailboxes)
    changed = set(rows[-1][4])
    # What was not changed is in that state already, or gone. Asked only now, since a message may have been deleted by
    # the writer that this one waited for; a deletion leaves nothing to ask.
    present = set() if verb is DELETE else {row[0] for row in fetch(PRESENT, (array, caller.recipient))}
    unchanged = present - changed
    return BulkOutcome(
        results=[
            BulkResult(name, "changed" if name in changed else "unchanged" if name in unchanged else "not_found")
            for name in names
        ],
        changed=len(changed),
        unchanged=len(unchanged),
        not_found=len(names) - len(changed) - len(unchanged),
        mailboxes=mailboxes,
    )


def _change_up_to(verb: _Verb, recipient: str, message_id: MessageId, caller: Caller) -> UpToOutcome:
    if not caller.reaches(recipient):
        raise NotFoundError

    def work() -> UpToOutcome:
        locked = fetch(LOCK_BY_RECIPIENT, (recipient,))
        bound = locked and fetch(SEQ_IN_MAILBOX, (message_id, locked[0][0]))
        if not bound:
            raise NotFoundError
        parameters = {"mailbox": locked[0][0], "seq": bound[0][0]}
        rows = fetch(verb.up_to, parameters)
        changed, *state = rows[0] if rows else (0, *locked[0][1:])
        complete = changed < UP_TO_STEP or not fetch(verb.remaining, parameters)
        return UpToOutcome(changed, MailboxRecord(recipient, *state), complete)

    return in_transaction(work)
