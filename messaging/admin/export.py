"""Messages as a file, streamed: CSV for spreadsheets, and JSON Lines as `manage.py load` takes it."""

import csv
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import F, QuerySet, TextField
from django.db.models.functions import Cast
from django.http import StreamingHttpResponse
from django.utils import timezone

from messaging.models import Message
from messaging.records import raw_json, to_json

MAX_EXPORTED = 100_000
# Read by one statement each: short ones reach no time limit, and need no cursor that a connection pooler would lose.
_BATCH = 500

_COLUMNS = ("id", "seq", "recipient", "sender", "content", "metadata", "created_at", "read_at", "expires_at")
# What a spreadsheet takes for the beginning of a formula (OWASP, "CSV Injection"); the last four are of full width.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")

Row = dict[str, Any]


def csv_response(messages: QuerySet[Message]) -> StreamingHttpResponse:
    """All columns, in UTF-8 with the byte order mark that spreadsheets go by; lines end as RFC 4180 says."""
    return _response(messages, _csv_lines, "text/csv; charset=utf-8", "csv")


def json_lines_response(messages: QuerySet[Message]) -> StreamingHttpResponse:
    """An object for each message, the fields as `POST /messages/` takes them: loading them sends the messages anew.

    The oldest first, so that they arrive in their order.
    """
    return _response(messages.reverse(), _json_lines, "application/jsonl", "jsonl")


def _response(
    messages: QuerySet[Message], lines_of: Callable[[Iterator[Row]], Iterator[bytes]], media_type: str, ending: str
) -> StreamingHttpResponse:
    # The ids at once, so that what arrives or changes meanwhile moves no message into a second batch, or out of all.
    ids = list(messages.values_list("pk", flat=True)[:MAX_EXPORTED])
    name = f"messages-{timezone.now():%Y%m%d-%H%M%S}.{ending}"
    return StreamingHttpResponse(
        lines_of(_rows(ids)),
        content_type=media_type,
        headers={"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"},
    )


def _rows(ids: Sequence[UUID]) -> Iterator[Row]:
    """The messages, in this order; those deleted meanwhile are left out."""
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        # The metadata as the text that it is: a number may not change on its way through Python.
        selected = Message.objects.filter(pk__in=batch).values(
            *(name for name in _COLUMNS if name not in {"recipient", "metadata"}),
            recipient=F("mailbox__recipient"),
            text=Cast("metadata", TextField()),
        )
        found = {row["id"]: row for row in selected}
        yield from (found[pk] for pk in batch if pk in found)


class _Echo:
    """Where csv writes to: the line is what its writer returns."""

    def write(self, line: str) -> bytes:
        return line.encode()


def _csv_lines(rows: Iterator[Row]) -> Iterator[bytes]:
    writer = csv.DictWriter(_Echo(), _COLUMNS)
    yield "\N{ZERO WIDTH NO-BREAK SPACE}".encode()
    yield writer.writeheader()
    for row in rows:
        instants = {name: _rfc3339(row[name]) for name in ("created_at", "read_at", "expires_at")}
        cells = row | instants | {"metadata": row["text"]}
        yield writer.writerow({name: _harmless(str(cells[name])) for name in _COLUMNS})


def _rfc3339(instant: datetime | None) -> str:
    return f"{instant:%Y-%m-%dT%H:%M:%S.%fZ}" if instant else ""


def _harmless(cell: str) -> str:
    """The cell as text: an apostrophe before what a spreadsheet would compute, which it then hides."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def _json_lines(rows: Iterator[Row]) -> Iterator[bytes]:
    for row in rows:
        fields = {name: row[name] for name in ("recipient", "content", "sender")}
        if row["expires_at"]:
            fields["expires_at"] = _rfc3339(row["expires_at"])
        yield to_json(fields | {"metadata": raw_json(row["text"])}) + b"\n"
