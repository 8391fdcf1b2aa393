"""`manage.py load`: sends the messages of a JSON Lines file, by the rules of the API, without HTTP."""

import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DataError, IntegrityError
from tqdm import tqdm

from messaging import services
from messaging.access import EVERYONE
from messaging.api.parsers import parse_json
from messaging.errors import Fault, InvalidInputError, MessagingError, OutcomeUnknownError
from messaging.management.arguments import whole_number
from messaging.management.interruption import Interruption
from messaging.records import NewMessage
from messaging.validation import draft_from

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class Line(NamedTuple):
    """One line of the file, and the draft it holds, or the reason for which it is refused."""

    number: int
    size_bytes: int
    draft: NewMessage | None
    reason: str = ""


@contextmanager
def opened(name: str) -> Iterator[tuple[IO[bytes], int | None]]:
    """The file, and its size in bytes where it has one; standard input for `-`."""
    if name == "-":
        yield sys.stdin.buffer, None
        return
    with Path(name).open("rb") as stream:
        status = os.fstat(stream.fileno())
        yield stream, status.st_size if stat.S_ISREG(status.st_mode) else None


def lines_of(stream: IO[bytes], limit: int) -> Iterator[tuple[int, bytes]]:
    """Each line with its size in bytes; no more than `limit` bytes of it and one are ever held."""
    while raw := stream.readline(limit + 1):
        size, ended = len(raw), raw.endswith(b"\n")
        while not ended and (rest := stream.readline(limit)):
            size, ended = size + len(rest), rest.endswith(b"\n")
        yield size, raw


def reason_of(faults: list[Fault] | tuple[Fault, ...]) -> str:
    """What is wrong with a line, fit for a terminal."""
    text = " ".join(f"{fault.pointer}: {fault.detail}" if fault.pointer else fault.detail for fault in faults)
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def read_line(number: int, size: int, raw: bytes, limit: int) -> Line:
    """A line read as the body of `POST /messages/` is; an empty one holds nothing, and nothing is wrong with it."""
    if not raw.strip():
        return Line(number, size, None)
    if len(raw) > limit:
        return Line(number, size, None, f"The line is longer than {limit:,} bytes. Send less in one message.")
    try:
        draft = draft_from(parse_json(raw), caller=EVERYONE)
    except InvalidInputError as error:
        return Line(number, size, None, reason_of(error.faults))
    return Line(number, size, draft) if isinstance(draft, NewMessage) else Line(number, size, None, reason_of(draft))


class Command(BaseCommand):
    """See `help`."""

    help = (
        "Sends the messages of a JSON Lines file: on each line an object as POST /messages/ takes it; empty lines are "
        "passed over. A line that is refused is reported on standard error with its number and takes no other with it. "
        "Lines are sent in their order, a batch in one transaction. Exit status 1 if any line was refused."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", metavar="FILE", help="The file; - for standard input.")
        parser.add_argument(
            "--batch",
            type=whole_number(1, settings.MESSAGES_MAX_BULK),
            default=min(500, settings.MESSAGES_MAX_BULK),
            metavar="N",
            help="Messages sent in one transaction (500).",
        )
        parser.add_argument(
            "--start-line",
            type=whole_number(1, 2**63 - 1),
            default=1,
            metavar="L",
            help="Pass over the lines before this one, to go on after a run that was stopped.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        self._sent = self._refused = 0
        self._done = options["start_line"] - 1  # the last line that needs nothing more
        try:
            with (
                opened(options["file"]) as (stream, size),
                # Bytes, since nobody knows the number of lines before the end.
                tqdm(total=size, unit="B", unit_scale=True, disable=options["verbosity"] == 0) as self._bar,
                Interruption() as self._interruption,
            ):
                self._load(stream, options["batch"])
        except KeyboardInterrupt:
            raise CommandError(f"Stopped. {self._progress()}", returncode=130) from None
        except OutcomeUnknownError as error:
            raise CommandError(f"{error} {self._progress()} Look first whether that line was sent.") from error
        except MessagingError as error:
            raise CommandError(f"{error} {self._progress()}") from error
        except OSError as error:
            raise CommandError(f"{options['file']} cannot be read: {error.strerror}. {self._progress()}") from error
        self.stdout.write(f"Sent {self._sent:,} messages, refused {self._refused:,} lines.")
        if self._refused:
            raise CommandError("Correct the lines named above and load these alone.")

    def _progress(self) -> str:
        return (
            f"Sent {self._sent:,} messages and refused {self._refused:,} lines, up to line {self._done:,} of the file."
            f" Go on with --start-line {self._done + 1}."
        )

    def _load(self, stream: IO[bytes], batch: int) -> None:
        limit = settings.MESSAGES_MAX_BODY_BYTES
        first = self._done + 1
        waiting: list[Line] = []
        for number, (size, raw) in enumerate(lines_of(stream, limit), start=1):
            if number < first:
                self._bar.update(size)
                continue
            waiting.append(read_line(number, size, raw, limit))
            if len(waiting) == batch:
                self._finish(waiting)
                waiting = []
        self._finish(waiting)

    def _finish(self, lines: list[Line]) -> None:
        """Send what these lines hold, in one transaction, and report what is refused."""
        with self._interruption.held_back():
            try:
                self._send(lines)
            except (DataError, IntegrityError):
                # A limit of the database's own. One by one, what it refuses takes nothing with it.
                for line in lines:
                    try:
                        self._send([line])
                    except (DataError, IntegrityError) as error:
                        self._count(line._replace(draft=None, reason=reason_of([Fault("", "", str(error))])))
            # Shown after every batch: whoever kills the command sees how far it came.
            self._bar.set_postfix_str(f"line {self._done:,}")

    def _send(self, lines: list[Line]) -> None:
        drafts = [line.draft for line in lines if line.draft]
        if drafts:
            services.send_batch(messages=drafts, caller=EVERYONE)
        for line in lines:
            self._count(line)

    def _count(self, line: Line) -> None:
        self._done = line.number
        self._bar.update(line.size_bytes)
        if line.draft:
            self._sent += 1
        elif line.reason:
            self._refused += 1
            with self._bar.external_write_mode():
                self.stderr.write(f"line {line.number}: {line.reason}")
