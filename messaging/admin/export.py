"""Streams messages as a file: CSV for spreadsheets, or JSON Lines for `manage.py load`."""

import csv
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from uuid import UUID

from django.db import Error
from django.db.models import QuerySet
from django.http import StreamingHttpResponse
from django.utils import timezone
from msgspec import Raw

from messaging.database import fetch, read
from messaging.errors import MessagingError
from messaging.models import Message
from messaging.queries import record, record_columns
from messaging.records import MessageRecord, loadable
from messaging.sharding import PARTITIONED

MAX_EXPORTED = 100_000
# Messages read by one statement: a short one stays below the statement timeout, holds little in memory, and needs no
# server-side cursor, which PgBouncer would lose.
_BATCH = 100

_MESSAGES = f"""
SELECT {record_columns("m")} FROM messaging_message m JOIN messaging_mailbox b ON b.id = m.mailbox_id
    AND b.bucket = m.bucket {PARTITIONED}
WHERE m.id = ANY(%s::uuid[])"""
# The last line of a file that lacks messages, since Granian ends a response that fails as if it were whole. `load`
# refuses it.
_CUT_OFF = b"CUT OFF: the database could not be read to the end. Export again.\r\n"
_COLUMNS = [name for name in MessageRecord.__struct_fields__ if name != "is_read"]
# Characters that begin a formula in a spreadsheet (OWASP, "CSV Injection"). The last four are their full-width forms.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def csv_response(messages: QuerySet[Message]) -> StreamingHttpResponse:
    """Every column, in UTF-8 with a byte order mark, which spreadsheets need, and the line ends of RFC 4180."""
    return _response(messages, _csv_lines, "text/csv; charset=utf-8", "csv")


def json_lines_response(messages: QuerySet[Message]) -> StreamingHttpResponse:
    """One JSON object for each message, oldest first. Loading the file sends the messages again in that order."""
    return _response(messages.reverse(), partial(map, loadable), "application/jsonl", "jsonl")


def _response(
    messages: QuerySet[Message],
    lines_of: Callable[[Iterator[MessageRecord]], Iterator[bytes]],
    media_type: str,
    ending: str,
) -> StreamingHttpResponse:
    # All ids are read first, so that concurrent changes neither repeat nor skip a message.
    ids = list(messages.values_list("pk", flat=True)[:MAX_EXPORTED])
    name = f"messages-{timezone.now():%Y%m%d-%H%M%S}.{ending}"
    return StreamingHttpResponse(
        _marked_if_cut_off(lines_of(_records(ids))),
        content_type=media_type,
        headers={"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"},
    )


def _marked_if_cut_off(lines: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from lines
    except (MessagingError, Error):
        yield _CUT_OFF
        raise


def _records(ids: Sequence[UUID]) -> Iterator[MessageRecord]:
    """The messages in the order of `ids`, without those that have been deleted meanwhile."""
    for start in range(0, len(ids), _BATCH):
        batch = [str(pk) for pk in ids[start : start + _BATCH]]
        found = {row[0]: record(row) for row in read(partial(fetch, _MESSAGES, (batch,)))}
        yield from (found[pk] for pk in batch if pk in found)


class _Echo:
    """A file for csv.writer: `writerow` returns what `write` returns."""

    def write(self, line: str) -> bytes:
        return line.encode()


def _csv_lines(messages: Iterator[MessageRecord]) -> Iterator[bytes]:
    writer = csv.writer(_Echo())
    yield "\N{ZERO WIDTH NO-BREAK SPACE}".encode()
    yield writer.writerow(_COLUMNS)
    for message in messages:
        yield writer.writerow([_cell(getattr(message, name)) for name in _COLUMNS])


def _cell(value: Any) -> str:
    """The value as text, with an apostrophe before what a spreadsheet would evaluate. A spreadsheet hides it."""
    text = bytes(value).decode() if isinstance(value, Raw) else "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
