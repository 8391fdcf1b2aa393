"""The reads of the hot path, one statement each.

What is selected is said by the models' QuerySets, compiled once for each shape of page; only what Django cannot
express stands here as SQL: the lateral join that reads a mailbox and a page of it from one snapshot, and PostgreSQL's
own formatting of instants, which costs a fifth of building them in Python.
"""

from functools import lru_cache
from typing import Any

from django.db.models.expressions import RawSQL

from messaging.access import Caller
from messaging.database import fetch
from messaging.errors import NotFoundError
from messaging.ids import bucket_of
from messaging.models import Mailbox, Message, MessageQuerySet
from messaging.records import MailboxRecord, MessageRecord, Page, raw_json

MAILBOX = Mailbox._meta.db_table
MESSAGE = Message._meta.db_table


def rfc3339(column: str) -> str:
    """SQL for an instant as RFC 3339 text in UTC with microseconds."""
    return f"""to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""


def record_columns(message: str, mailbox: str) -> str:
    """SQL for the columns of a MessageRecord, in its order, given the aliases of the two tables."""
    return (
        f"{message}.id::text, {message}.seq, {mailbox}.recipient, {message}.sender, {message}.content,"
        f" {message}.metadata::text, {rfc3339(f'{message}.created_at')}, {rfc3339(f'{message}.read_at')},"
        f" {message}.read_at IS NOT NULL, {rfc3339(f'{message}.expires_at')}"
    )


def record(row: Any) -> MessageRecord:
    """The MessageRecord of a row of `record_columns`."""
    id_, seq, recipient, sender, content, metadata, *rest = row
    return MessageRecord(id_, seq, recipient, sender, content, raw_json(metadata), *rest)


# One primary-key-like read, whatever the mailbox's size.
_MAILBOX = f"SELECT id, recipient, version, total, unread FROM {MAILBOX} WHERE recipient = %s AND bucket = %s"

# One index look-up for each mailbox; only those that changed are returned. A mailbox without a row is at version 0.
_CHANGED_MAILBOXES = f"""
SELECT known.recipient, coalesce(b.version, 0), coalesce(b.total, 0), coalesce(b.unread, 0)
FROM unnest(%s::text[], %s::bigint[]) AS known (recipient, version)
LEFT JOIN {MAILBOX} b ON b.recipient = known.recipient COLLATE "C"
WHERE coalesce(b.version, 0) <> known.version"""

# The caller's own recipient, where it is bound to one, is part of the condition: foreign and missing look the same.
_MESSAGE = f"""
SELECT b.version, {record_columns("m", "b")}
FROM {MESSAGE} m JOIN {MAILBOX} b ON b.id = m.mailbox_id
WHERE m.id = %s AND b.recipient = coalesce(%s, b.recipient)"""

# The LEFT JOIN keeps the mailbox when the page is empty.
_PAGE = f"""
SELECT b.id, b.version, b.total, b.unread, {record_columns("page", "b")}
FROM {MAILBOX} b LEFT JOIN LATERAL ({{page}}) page ON true
WHERE b.recipient = %s AND b.bucket = %s"""


def mailbox_of(recipient: str) -> MailboxRecord:
    """The mailbox of a recipient; an empty one at version 0 where nothing was ever sent."""
    return mailbox_and_id(recipient)[1]


def mailbox_and_id(recipient: str) -> tuple[int, MailboxRecord]:
    """As `mailbox_of`, after the key of its row; 0 where there is none."""
    rows = fetch(_MAILBOX, (recipient, bucket_of(recipient)))
    return (rows[0][0], MailboxRecord(*rows[0][1:])) if rows else (0, MailboxRecord(recipient))


def changed_mailboxes(versions: dict[str, int]) -> list[MailboxRecord]:
    """Of these recipients' mailboxes those that are not at the version given."""
    return [MailboxRecord(*row) for row in fetch(_CHANGED_MAILBOXES, (list(versions), list(versions.values())))]


def message(message_id: str, *, caller: Caller) -> tuple[MessageRecord, MailboxRecord]:
    """One message, and its mailbox for the entity tag (the mailbox's counts are not read).

    Raises:
        NotFoundError: there is none, or none that the caller may reach.
    """
    rows = fetch(_MESSAGE, (message_id, caller.recipient))
    if not rows:
        raise NotFoundError
    version, *columns = rows[0]
    found = record(columns)
    return found, MailboxRecord(found.recipient, version)


def _compiled(selected: MessageQuerySet, *, limit: int) -> tuple[str, tuple[Any, ...]]:
    """The page statement for a QuerySet of messages: its text and the parameters that come before the recipient."""
    inner = selected.filter(mailbox_id=RawSQL("b.id", ())).values_list(
        "id", "seq", "sender", "content", "metadata", "created_at", "read_at", "expires_at"
    )[: limit + 1]
    sql, parameters = inner.query.sql_with_params()
    return _PAGE.format(page=sql), tuple(parameters)


@lru_cache(maxsize=1024)
def _plain_page(*, unread: bool, newest_first: bool, positioned: bool, limit: int) -> str:
    """The statement of a page without filters, compiled once: it is what nearly all requests ask for."""
    selected = _selected(
        Message.objects.all(), unread=unread, newest_first=newest_first, position=0 if positioned else None
    )
    sql, _ = _compiled(selected, limit=limit)
    return sql


def _selected(messages: MessageQuerySet, *, unread: bool, newest_first: bool, position: int | None) -> MessageQuerySet:
    """Those of the messages that a page may show, in its order."""
    selected = messages.unread() if unread else messages
    selected = selected.in_arrival_order(newest_first=newest_first)
    return selected if position is None else selected.beyond(position, newest_first=newest_first)


def page(
    recipient: str,
    *,
    newest_first: bool,
    limit: int,
    position: int | None = None,
    unread: bool = False,
    filtered: MessageQuerySet | None = None,
) -> Page:
    """Up to `limit` messages of a mailbox beyond `position` (a `seq`), and the mailbox, from one snapshot.

    `filtered` restricts the page to a QuerySet of messages; such a page is planned for its values each time.
    """
    mailbox = (recipient, bucket_of(recipient))
    if filtered is None:
        statement = _plain_page(unread=unread, newest_first=newest_first, positioned=position is not None, limit=limit)
        rows = fetch(statement, mailbox if position is None else (position, *mailbox))
    else:
        selected = _selected(filtered, unread=unread, newest_first=newest_first, position=position)
        statement, parameters = _compiled(selected, limit=limit)
        rows = fetch(statement, (*parameters, *mailbox), prepare=False)
    if not rows:
        return Page(0, MailboxRecord(recipient), [], more=False)
    mailbox_id, version, total, count_unread = rows[0][:4]
    # An empty page still has one row, the mailbox's own, with nulls for a message.
    messages = [record(row[4:]) for row in rows[:limit]] if rows[0][4] is not None else []
    return Page(mailbox_id, MailboxRecord(recipient, version, total, count_unread), messages, more=len(rows) > limit)
