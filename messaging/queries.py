"""The reads of the hot path, one statement each.

The models' QuerySets select the messages, and are compiled once for each shape of page. Only what Django cannot express
is SQL here: the lateral join that reads a mailbox and a page from one snapshot, and the formatting of instants by
PostgreSQL, which takes a fifth of the time that Python needs.
"""

from functools import cache
from typing import Any

from django.db.models.expressions import RawSQL

from messaging.access import Caller
from messaging.database import fetch
from messaging.errors import NotFoundError
from messaging.ids import bucket_of, buckets_in_ids
from messaging.models import Message, MessageQuerySet
from messaging.records import MailboxRecord, MessageRecord, Page, raw_json
from messaging.sharding import PARTITIONED, PARTITIONED_BY_ID


def rfc3339(column: str) -> str:
    """SQL for an instant as RFC 3339 text in UTC with microseconds."""
    return f"""to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""


def record_columns(message: str) -> str:
    """SQL for the columns of a MessageRecord, in its order, of a message of this alias and its mailbox b."""
    return (
        f"{message}.id::text, {message}.seq, b.recipient, {message}.sender, {message}.content,"
        f" {message}.metadata::text, {rfc3339(f'{message}.created_at')}, {rfc3339(f'{message}.read_at')},"
        f" {message}.read_at IS NOT NULL, {rfc3339(f'{message}.expires_at')}"
    )


def record(row: Any) -> MessageRecord:
    id_, seq, recipient, sender, content, metadata, *rest = row
    return MessageRecord(id_, seq, recipient, sender, content, raw_json(metadata), *rest)


# One index lookup, whatever the mailbox's size.
_MAILBOX = "SELECT id, recipient, version, total, unread FROM messaging_mailbox WHERE recipient = %s AND bucket = %s"

# One index lookup for each mailbox; returns those that have changed. A mailbox without a row is at version 0.
CHANGED_MAILBOXES = """
SELECT known.recipient, coalesce(b.version, 0), coalesce(b.total, 0), coalesce(b.unread, 0)
FROM unnest(%s::text[], %s::smallint[], %s::bigint[]) AS known (recipient, bucket, version)
LEFT JOIN messaging_mailbox b ON b.recipient = known.recipient COLLATE "C" AND b.bucket = known.bucket
WHERE coalesce(b.version, 0) <> known.version"""

# The recipient that the caller is bound to is part of the condition, so foreign and missing messages look the same.
# The LIMIT tells the planner that an id is unique, which it does not know without statistics, as after an import: it
# would look for the message in each mailbox.
_MESSAGE = f"""
SELECT b.version, {record_columns("m")}
FROM (
    SELECT * FROM messaging_message WHERE id = %(id)s
        AND bucket = %(bucket)s {PARTITIONED_BY_ID}
    LIMIT 1
) m JOIN messaging_mailbox b ON b.id = m.mailbox_id
    AND b.bucket = m.bucket {PARTITIONED}
WHERE b.recipient = coalesce(%(only_recipient)s, b.recipient)
    AND b.bucket = %(bucket)s {PARTITIONED_BY_ID}"""

# The LEFT JOIN keeps the mailbox when the page is empty. The limit is a parameter: of one that it does not know the
# planner expects a tenth of the rows. A number it may take for all there are; then, across partitions, it reads and
# sorts the whole mailbox instead of following the index.
_PAGE = f"""
SELECT b.id, b.version, b.total, b.unread, {record_columns("page")}
FROM messaging_mailbox b LEFT JOIN LATERAL ({{page}} LIMIT %(rows)s) page ON true
WHERE b.recipient = %(recipient)s AND b.bucket = %(bucket)s"""

# What a MessageRecord is made of, but for the recipient, which is in the mailbox's row.
_MESSAGE_COLUMNS = [name for name in MessageRecord.__struct_fields__ if name not in {"recipient", "is_read"}]
# How Django writes the column that RawSQL names, and what follows it.
_OF_MAILBOX = "(b.id)"
_OF_BUCKET = f"""{_OF_MAILBOX}
    AND messaging_message.bucket = %(bucket)s {PARTITIONED}
"""


def mailbox_of(recipient: str) -> MailboxRecord:
    """The mailbox of a recipient; an empty one at version 0 if no message was ever sent."""
    return mailbox_and_id(recipient)[1]


def mailbox_and_id(recipient: str) -> tuple[int, MailboxRecord]:
    """The primary key of the mailbox, 0 if it has no row; and the mailbox, as `mailbox_of`."""
    rows = fetch(_MAILBOX, (recipient, bucket_of(recipient)))
    return (rows[0][0], MailboxRecord(*rows[0][1:])) if rows else (0, MailboxRecord(recipient))


def changed_mailboxes(versions: dict[str, int]) -> list[MailboxRecord]:
    """The mailboxes of these recipients that are not at the given version."""
    parameters = (list(versions), list(map(bucket_of, versions)), list(versions.values()))
    return [MailboxRecord(*row) for row in fetch(CHANGED_MAILBOXES, parameters)]


def message(message_id: str, *, caller: Caller) -> tuple[MessageRecord, MailboxRecord]:
    """One message, and its mailbox for the entity tag (the mailbox's counts are not read).

    Raises:
        NotFoundError: it does not exist, or the caller may not access it.
    """
    [bucket] = buckets_in_ids([message_id])
    parameters = {"id": message_id, "bucket": bucket, "only_recipient": caller.recipient}
    rows = fetch(_MESSAGE, parameters)
    if not rows:
        raise NotFoundError
    version, *columns = rows[0]
    found = record(columns)
    return found, MailboxRecord(found.recipient, version)


def _compiled(selected: MessageQuerySet) -> tuple[str, tuple[Any, ...]]:
    """The page statement for a QuerySet of messages, and the values of its parameters p0, p1, ..."""
    inner = selected.filter(mailbox_id=RawSQL("b.id", ())).values_list(*_MESSAGE_COLUMNS)
    sql, parameters = inner.query.sql_with_params()
    sql %= tuple(f"%(p{place})s" for place in range(len(parameters)))
    return _PAGE.format(page=sql.replace(_OF_MAILBOX, _OF_BUCKET, 1)), tuple(parameters)


@cache
def _plain_page(*, unread: bool, newest_first: bool, positioned: bool) -> str:
    """The statement of a page without filters, compiled once: it is what nearly all requests ask for."""
    position = 0 if positioned else None
    return _compiled(_selected(Message.objects.all(), unread=unread, newest_first=newest_first, position=position))[0]


def _selected(messages: MessageQuerySet, *, unread: bool, newest_first: bool, position: int | None) -> MessageQuerySet:
    """Those of the messages that a page may show, in its order."""
    selected = (messages.unread() if unread else messages).order_by("-seq" if newest_first else "seq")
    if position is None:
        return selected
    return selected.filter(seq__lt=position) if newest_first else selected.filter(seq__gt=position)


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
    # One row more than the page has tells whether any follow.
    parameters: dict[str, Any] = {"recipient": recipient, "bucket": bucket_of(recipient), "rows": limit + 1}
    if filtered is None:
        statement = _plain_page(unread=unread, newest_first=newest_first, positioned=position is not None)
        rows = fetch(statement, parameters | {"p0": position})
    else:
        selected = _selected(filtered, unread=unread, newest_first=newest_first, position=position)
        statement, values = _compiled(selected)
        parameters |= {f"p{place}": value for place, value in enumerate(values)}
        rows = fetch(statement, parameters, prepare=False)
    if not rows:
        return Page(0, MailboxRecord(recipient), [], more=False)
    mailbox_id, version, total, count_unread = rows[0][:4]
    # An empty page has one row, the mailbox, with nulls for the message.
    messages = [record(row[4:]) for row in rows[:limit]] if rows[0][4] is not None else []
    return Page(mailbox_id, MailboxRecord(recipient, version, total, count_unread), messages, more=len(rows) > limit)
