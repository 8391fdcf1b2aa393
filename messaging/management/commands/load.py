"""`manage.py load`: sends the messages of a JSON Lines file, by the rules of the API, without HTTP."""

import zlib
from collections.abc import Iterable
from gzip import BadGzipFile, GzipFile
from itertools import chain
from typing import IO, Any, NamedTuple

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DataError, IntegrityError
from rest_framework.exceptions import ValidationError
from tqdm import tqdm

from messaging import services
from messaging.access import EVERYONE
from messaging.api.parsers import parse_json
from messaging.api.problems import faults_of
from messaging.api.serializers import NewMessageSerializer, serializer
from messaging.database import in_transaction
from messaging.errors import Fault, InvalidInputError, MessagingError
from messaging.loads import (
    LoadOvertakenError,
    LoadProgress,
    advance_load,
    end_load,
    loads_of,
    new_load,
    unfinished_loads,
)
from messaging.management.arguments import whole_number
from messaging.management.interruption import ignore_signals, interruptible
from messaging.management.json_lines import Line, lines_of, opened, require_json_lines
from messaging.postgresql.sqlstates import with_cause
from messaging.records import NewMessage
from messaging.validation import CONTROL


class Reading(NamedTuple):
    """A line, with its message or the reason why it is refused. One that is empty, or was sent before, has neither."""

    line: Line
    message: NewMessage | None = None
    reason: str = ""


def reason_of(faults: Iterable[Fault]) -> str:
    """The faults of a line as one text, without control characters."""
    text = " ".join(f"{fault.pointer}: {fault.detail}" if fault.pointer else fault.detail for fault in faults)
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def read(line: Line, limit: int) -> Reading:
    """Parse and validate a line like the body of `POST /messages/`."""
    if not line.raw.strip():
        return Reading(line)
    if len(line.raw) > limit:
        return Reading(line, reason=f"The line is longer than {limit:,} bytes. Send less in one message.")
    try:
        return Reading(line, serializer(NewMessageSerializer, EVERYONE).run_validation(parse_json(line.raw)))
    except InvalidInputError as error:
        return Reading(line, reason=reason_of(error.faults))
    except ValidationError as error:
        return Reading(line, reason=reason_of(faults_of(error.detail)))


class Command(BaseCommand):
    help = (
        "Sends the messages of a JSON Lines file, plain or compressed by gzip: on each line an object as "
        "POST /messages/ takes it; empty lines are ignored. A line that is refused is reported on standard error "
        "with its number, and the other lines are sent. Lines are sent in order, a batch in one transaction. A run "
        "that was stopped, even by kill -9, or that refused lines, is continued by the same command within 24 hours: "
        "it sends what is missing, also refused lines that were corrected in the file, and no line twice. Exit status "
        "1 if any line is refused."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.epilog = "Example: manage.py load messages.jsonl"
        parser.add_argument(
            "file",
            metavar="FILE",
            help="The file; - for standard input, copied to TMPDIR while there is a run to be continued.",
        )
        parser.add_argument(
            "--batch",
            type=whole_number(settings.MESSAGES_MAX_BULK),
            default=min(500, settings.MESSAGES_MAX_BULK),
            metavar="N",
            help="Messages sent in one transaction (500).",
        )
        parser.add_argument(
            "--start-line",
            type=whole_number(2**63 - 1),
            default=1,
            metavar="L",
            help="Skip the lines before this one.",
        )
        parser.add_argument(
            "--again",
            action="store_true",
            help="Send the whole file, including lines that an earlier run has sent. After a stop, go on without it.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        self._sent = self._refused = 0
        self._start = options["start_line"]
        self._done = self._start - 1  # the last line that is finished
        self._progress = new_load(self._start)
        try:
            earlier = unfinished_loads()
            with opened(options["file"], seekable=bool(earlier)) as (stream, size_bytes):
                already = self._already_sent(stream, earlier, again=options["again"])
                with (
                    # In bytes, since the number of lines is unknown.
                    tqdm(total=size_bytes, unit="B", unit_scale=True, disable=options["verbosity"] == 0) as self._bar,
                    interruptible() as self._interruption,
                ):
                    finished = self._load(stream, options["file"], options["batch"], already)
        except KeyboardInterrupt:
            raise CommandError(f"Stopped. {self._how_far()}", returncode=130) from None
        except LoadOvertakenError as error:
            raise CommandError(str(error)) from error
        except MessagingError as error:
            raise CommandError(f"{with_cause(error)} {self._how_far()}") from error
        except (BadGzipFile, EOFError, zlib.error) as error:
            raise CommandError(f"{options['file']}: its gzip data is damaged or cut off. {self._how_far()}") from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise CommandError(f"{options['file']} cannot be read: {reason}. {self._how_far()}") from error
        self.stdout.write(f"Sent {self._sent:,} messages, refused {self._refused:,} lines.")
        self.stdout.flush()
        if self._refused:
            # Its progress stays: whatever repeats a command that fails would send the other lines again.
            raise CommandError(
                "Correct or empty the lines named above, each in its place, and load the file again: no other line is"
                " sent twice."
            )
        self._end(finished)

    def _end(self, finished: list[LoadProgress]) -> None:
        """Let the file be loaded again. If the command fails before, running it again sends nothing twice."""
        if self._called_from_command_line:  # type: ignore[attr-defined] # not in the stubs of BaseCommand
            ignore_signals()
        try:
            for run in finished:
                end_load(run)
        except MessagingError:
            self.stderr.write(
                "All lines are sent. For 24 hours another run may pass over lines of the same file, as if this one had"
                " been stopped: --again sends them once more."
            )

    def _how_far(self) -> str:
        return (
            f"Sent {self._sent:,} messages and refused {self._refused:,} lines, up to line {self._done:,} of the file."
            f" Go on with --start-line {self._done + 1}; what was sent is not sent again."
        )

    def _already_sent(self, stream: IO[bytes], earlier: list[LoadProgress], *, again: bool) -> list[LoadProgress]:
        """The unfinished runs that have read this file."""
        if not earlier:
            return []
        lines = lines_of(stream, settings.MESSAGES_MAX_BODY_BYTES)
        found = loads_of(((line.number, line.raw) for line in lines), earlier)
        stream.seek(0)
        if again:
            for progress in found:
                end_load(progress)
            return []
        for progress in found:
            # Not if lines between the two are skipped: they would count as sent.
            if progress.first_line <= self._start <= progress.last_line + 1:
                self._progress = progress
            self.stderr.write(
                f"Lines {progress.first_line:,} to {progress.last_line:,} were loaded by a run that was stopped or"
                " refused some. What it has sent is passed over; to send it once more, use --again."
            )
        return found

    def _load(self, stream: IO[bytes], name: str, batch: int, already: list[LoadProgress]) -> list[LoadProgress]:
        """Send the lines; returns the progress of the runs that have sent them, this one and earlier ones."""
        limit = settings.MESSAGES_MAX_BODY_BYTES
        lines = lines_of(stream, limit)
        number = 0
        waiting: list[Reading] = []
        for line in chain(require_json_lines(lines, name, is_gzip=isinstance(stream, GzipFile)), lines):
            number = line.number
            if number < self._start:
                self._done = number
                self._bar.update(line.size_bytes)
                continue
            is_sent = any(run.has_done(number) for run in already)
            waiting.append(Reading(line) if is_sent else read(line, limit))
            if len(waiting) == batch:
                self._finish(waiting)
                waiting = []
        # A run that was stopped after the last line is continued at one more.
        if self._start > number + 1:
            raise CommandError(f"{name} has {number:,} lines: there is no line {self._start:,}.")
        self._finish(waiting)
        # What ends before the start line, or refused lines before it, stays: for a later run of the whole file.
        return [
            run
            for run in [*already, self._progress]
            if run.last_line >= self._start - 1 and min(run.refused, default=self._start) >= self._start
        ]

    def _finish(self, readings: list[Reading]) -> None:
        """Send the messages of these lines in one transaction, and report refused lines."""
        with self._interruption.held_back():
            try:
                self._send(readings)
            except (DataError, IntegrityError):
                # The database refuses a value. Sent one by one, only the line with that value fails.
                for reading in readings:
                    try:
                        self._send([reading])
                    except (DataError, IntegrityError) as error:
                        self._send([Reading(reading.line, reason=reason_of([Fault("", "", str(error))]))])
            # Shown after every batch, so that it is visible if the command is killed.
            self._bar.set_postfix_str(f"line {self._done:,}")

    def _send(self, readings: list[Reading]) -> None:
        if not readings:
            return
        messages = [reading.message for reading in readings if reading.message]
        done = {reading.line.number: reading.line.raw for reading in readings if not reading.reason}
        refused = [reading.line.number for reading in readings if reading.reason]
        progress = self._progress.after(done, refused)

        def work() -> None:
            if messages:
                services.send_batch(messages=messages, caller=EVERYONE)
            advance_load(self._progress, progress)

        # Not if all of these lines are passed over, or no line has been sent yet.
        if progress != self._progress and progress.digest:
            in_transaction(work)
        self._progress = progress
        for reading in readings:
            self._done = reading.line.number
            self._bar.update(reading.line.size_bytes)
            if reading.message:
                self._sent += 1
            elif reading.reason:
                self._refused += 1
                with self._bar.external_write_mode():
                    self.stderr.write(f"line {reading.line.number}: {reading.reason}")
