"""Reads JSON Lines from a file or standard input, plain or gzip, and recognises files in other forms of JSON."""

import hashlib
import io
import json
import re
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
_HEAD_LINES = 100  # read of a pretty-printed file, to recognise its contents
_FIRST_KEY = re.compile(r'"(results|messages|content)"\s*:')
# Fields of a message in a response that are not accepted in a request.
_ONLY_IN_ANSWERS = "del(.id, .seq, .created_at, .read_at, .is_read)"


class NotJsonLinesError(Exception):
    """The file is not JSON Lines; the message says what it is, and how to convert it."""


class Line(NamedTuple):
    """One line. `raw` is truncated one byte above the limit; `digest` covers the input up to the end of the line."""

    number: int
    size_bytes: int
    raw: bytes
    digest: bytes


class Source(NamedTuple):
    """An open file. `size_bytes` is None if it is unknown: for a pipe, or compressed data."""

    stream: IO[bytes]
    size_bytes: int | None


@contextmanager
def opened(name: str, *, seekable: bool) -> Iterator[Source]:
    """The named file, or standard input for `-`, decompressed. A pipe is copied to a temporary file if `seekable`.

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
            yield Source(cast("IO[bytes]", stack.enter_context(GzipFile(fileobj=stream))), None)
            return
        size = stream.seek(0, io.SEEK_END) if stream.seekable() else None
        if size is not None:
            stream.seek(0)
        yield Source(stream, size)


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
    """Check the first lines, and return them. More than one is read only if the first looks pretty-printed.

    Raises:
        NotJsonLinesError: the file is UTF-16, a JSON array, pretty-printed JSON, or a page of the API.
    """
    head: list[Line] = []
    first = ""
    while not first and (line := next(lines, None)):
        head.append(line)
        if line.raw.startswith(_UTF16_BOMS) or b"\x00" in line.raw[:4]:
            quoted = "" if name == STANDARD_INPUT else f" {shlex.quote(name)}"
            raise NotJsonLinesError(
                f"This is UTF-16 or UTF-32, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8{quoted} | manage.py load -"
            )
        first = line.raw.decode(errors="replace").strip()
    if first.startswith("["):
        form, filters = "a JSON array", [".[]"]
    elif first.startswith("{") and first[-1] in "{[,:":
        head += (line for _, line in zip(range(_HEAD_LINES), lines, strict=False))
        found = _FIRST_KEY.search(_text(head))
        is_page = found is not None and found[1] != "content"
        form, filters = "pretty-printed JSON", [f".{found[1]}[]" if found and is_page else "."]
    elif listed := _list_in(first):
        form, filters = "an answer of the API", [f".{listed}[]"]
    else:
        return head
    if '"seq"' in _text(head):
        filters.append(_ONLY_IN_ANSWERS)
    file = "" if name == STANDARD_INPUT else f" {shlex.quote(name)}"
    command = f"jq -c '{' | '.join(filters)}'{file} | manage.py load -"
    raise NotJsonLinesError(f"This is {form}, not one JSON object on each line. Load it by: {command}")


def _text(lines: list[Line]) -> str:
    return b"".join(line.raw for line in lines).decode(errors="replace")


def _list_in(line: str) -> str | None:
    """The name of the list of messages in a page, or in the body of a batch."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    names = ("results", "messages") if isinstance(value, dict) and "content" not in value else ()
    return next((name for name in names if isinstance(value.get(name), list)), None)
