"""Reads JSON Lines from a file or standard input, plain or gzip, and recognises files in other forms of JSON."""

import hashlib
import io
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from gzip import GzipFile
from pathlib import Path
from typing import IO, NamedTuple, cast

STANDARD_INPUT = "-"

_GZIP_MAGIC = b"\x1f\x8b"
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
# The messages of an array, of pretty-printed JSON, of a page of the API or of the body of a batch, without the fields
# that only answers have.
_JQ_FILTER = (
    'if type == "array" then .[] else (.results // .messages // [.])[] end'
    " | del(.id, .seq, .created_at, .read_at, .is_read)"
)


class NotJsonLinesError(Exception):
    """The file is not JSON Lines; the message says how to convert it."""


class Line(NamedTuple):
    """One line. `raw` is truncated one byte above the limit; `digest` covers the input up to the end of the line."""

    number: int
    size_bytes: int
    raw: bytes
    digest: bytes


@contextmanager
def opened(name: str, *, seekable: bool) -> Iterator[tuple[IO[bytes], int | None]]:
    """The named file, or standard input for `-`, decompressed. A pipe is copied to a temporary file if `seekable`.

    The second value is its size in bytes, None if it is unknown: for a pipe, or compressed data.

    Raises:
        OSError: it cannot be opened.
    """
    with ExitStack() as stack:
        if name == STANDARD_INPUT:
            stream = cast("io.BufferedReader", sys.stdin.buffer)
        else:
            stream = stack.enter_context(Path(name).open("rb"))
        if seekable and not stream.seekable():
            copy = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stream, copy)
            copy.seek(0)
            stream = copy  # type: ignore[assignment]  # both can be peeked into
        if stream.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC):
            yield cast("IO[bytes]", stack.enter_context(GzipFile(fileobj=stream))), None
            return
        size = stream.seek(0, io.SEEK_END) if stream.seekable() else None
        if size is not None:
            stream.seek(0)
        yield stream, size


def lines_of(stream: IO[bytes], limit: int) -> Iterator[Line]:
    """The lines of a stream, without a byte order mark. At most `limit` + 1 bytes of a line are kept."""
    digest = hashlib.blake2b(digest_size=32)
    number = 0
    while piece := stream.readline(limit + 1):
        number += 1
        raw = piece.removeprefix(_UTF8_BOM) if number == 1 else piece
        size = 0
        while piece:
            digest.update(piece)
            size += len(piece)
            piece = b"" if piece.endswith(b"\n") else stream.readline(limit)
        yield Line(number, size, raw, digest.digest())


def require_json_lines(lines: Iterator[Line], name: str) -> list[Line]:
    """Check the first line that is not empty; return the lines up to it.

    Raises:
        NotJsonLinesError: the file is UTF-16, a JSON array, pretty-printed JSON, or a page of the API.
    """
    head: list[Line] = []
    first = ""
    file = "" if name == STANDARD_INPUT else f" {shlex.quote(name)}"
    while not first and (line := next(lines, None)):
        head.append(line)
        if line.raw.startswith(_UTF16_BOMS) or b"\x00" in line.raw[:4]:
            raise NotJsonLinesError(
                f"This is UTF-16 or UTF-32, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8{file} | manage.py load -"
            )
        first = line.raw.decode(errors="replace").strip()
    is_part_of_object = first.startswith("{") and first[-1] in "{[,:"
    if first.startswith("[") or is_part_of_object or _holds_messages(first):
        raise NotJsonLinesError(
            "This is another form of JSON, not one message on each line. Load it by:"
            f" jq -c '{_JQ_FILTER}'{file} | manage.py load -"
        )
    return head


def _holds_messages(line: str) -> bool:
    """Whether it is a page of the API, or the body of a batch."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "content" not in value and not value.keys().isdisjoint({"results", "messages"})
