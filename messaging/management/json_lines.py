"""Reads JSON Lines from a file or standard input, plain or gzip, and recognises files in other forms of JSON."""

import fcntl
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
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from django.core.management.base import CommandError

STANDARD_INPUT = "-"

_GZIP_MAGIC = b"\x1f\x8b"
_UTF8_BOM = b"\xef\xbb\xbf"
_JSON_SPACE = " \t\r\n"
# What no text has, as decoded with replacements: other compressed files, gzip in gzip, archives. JSON text sequences
# have U+001E (RFC 7464).
_BINARY = re.compile("[\0-\x08\x0e-\x1d\x1f\ufffd]")
_ONLY_IN_ANSWERS = ("id", "seq", "created_at", "read_at", "is_read")
# The messages of an array, of pretty-printed JSON, of a page of the API or of the body of a batch, without the fields
# that only answers have. The sort, which is stable, puts those of a page into the order of their arrival.
_JQ_FILTER = (
    'if type == "array" then . else .results // .messages // [.] end | sort_by(.seq)[]'
    f" | del({', '.join(f'.{name}' for name in _ONLY_IN_ANSWERS)})"
)

_HEAD_LINES = 100  # read to see whether any of them is an object


class Line(NamedTuple):
    """One line, without its end. `raw` is truncated above the limit."""

    number: int
    size_bytes: int
    raw: bytes


@contextmanager
def opened(name: str, *, seekable: bool) -> Iterator[tuple[IO[bytes], int | None]]:
    """The named file, or standard input for `-`, decompressed. A pipe is copied to a temporary file if `seekable`.

    The second value is its size in bytes, None if it is unknown: for a pipe, or compressed data.

    Raises CommandError if another run has opened the same file.
    """
    with ExitStack() as stack:
        if name == STANDARD_INPUT:
            stream = cast("io.BufferedReader", sys.stdin.buffer)
        else:
            stream = stack.enter_context(Path(name).open("rb"))
        _lock(stream, name)
        # Of standard input, something else may have read the beginning.
        is_at_start = stream.seekable() and not stream.tell()
        if seekable and not is_at_start:
            copy = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stream, copy)
            copy.seek(0)
            stream, is_at_start = copy, True  # type: ignore[assignment]  # both can be peeked into
        if stream.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC):
            yield cast("IO[bytes]", stack.enter_context(GzipFile(fileobj=stream))), None
            return
        size = stream.seek(0, io.SEEK_END) if is_at_start else None
        if size is not None:
            stream.seek(0)
        yield stream, size


def _lock(stream: io.BufferedReader, name: str) -> None:
    """Lock a file until it is closed, which the end of the process does too. Each pipe is one of its own."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CommandError(f"{name} is locked by another process, as by another run. Let that end.") from error
    except OSError:
        return  # some file systems have no locks, and standard input may be no file


def lines_of(stream: IO[bytes], limit: int) -> Iterator[Line]:
    """The lines of a stream, without their ends and a byte order mark. The rest of a longer line is not kept."""
    number = 0
    while piece := stream.readline(len(_UTF8_BOM) + limit + len("\r\n") + 1):
        number += 1
        raw = piece.removesuffix(b"\n").removesuffix(b"\r")
        raw = raw.removeprefix(_UTF8_BOM) if number == 1 else raw
        size = len(piece)
        while piece and not piece.endswith(b"\n"):
            piece = stream.readline(limit)
            size += len(piece)
        yield Line(number, size, raw)


def require_json_lines(lines: Iterator[Line], name: str, *, is_gzip: bool = False) -> list[Line]:
    """Check the first line that is not empty, and return the lines read.

    Raises CommandError, which says how to convert a file of another form.
    """

    def piped(command: str) -> str:
        file = "" if name == STANDARD_INPUT else f" {shlex.quote(name)}"
        return f"zcat{file} | {command} | manage.py load -" if is_gzip else f"{command}{file} | manage.py load -"

    head: list[Line] = []
    first = ""
    while not first and (line := next(lines, None)):
        head.append(line)
        encoding = json.detect_encoding(line.raw[:4]).upper()
        if not encoding.startswith("UTF-8"):
            # iconv knows UTF-16LE, and not Python's utf-16-le.
            iconv = f"iconv -f {encoding.replace('-LE', 'LE').replace('-BE', 'BE')} -t UTF-8"
            raise CommandError(f"{name}: This is UTF-16 or UTF-32, not UTF-8. Convert it: {piped(iconv)}")
        first = line.raw.decode(errors="replace").strip(_JSON_SPACE)
    if not first.startswith("{") and _BINARY.search(first):
        raise CommandError(
            f"{name}: This is compressed other than by gzip once, an archive, or no text. Unpack it first."
        )
    if first.endswith(",") and _object_in(first[:-1]) is not None:
        raise CommandError(f"{name}: Its lines end in commas. Remove them: " + piped("sed -E 's/,[[:space:]]*$//'"))
    is_part_of_object = first.startswith("{") and first[-1] in "{[,:"
    if first.startswith("[") or is_part_of_object or _is_of_answers(first):
        raise CommandError(
            f"{name}: This is another form of JSON, not one message to send on each line. "
            "jq before 1.7 rounds large numbers. Load it by: " + piped(f"jq -c '{_JQ_FILTER}'")
        )
    if first and _object_in(first) is None:
        head += islice(lines, _HEAD_LINES)
        if len(head) > 1 and all(_object_in(line.raw.decode(errors="replace")) is None for line in head):
            raise CommandError(f"{name}: None of its first {len(head)} lines is a JSON object, as each should be.")
    return head


def _is_of_answers(line: str) -> bool:
    """Whether it is a page or a message as the API answers them, or the body of a batch."""
    value = _object_in(line) or {}
    return not value.keys().isdisjoint(_ONLY_IN_ANSWERS if "content" in value else ("results", "messages"))


def _object_in(line: str) -> dict[str, Any] | None:
    """The JSON object of a line; None if it is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
