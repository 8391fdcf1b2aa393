"""The progress of `manage.py load`, stored in the transaction of each batch, so that no line is sent twice.

It is a row of the table of outcomes, with a caller that no request can have.
"""

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from django.db.models.functions import Now

from messaging.database import in_transaction
from messaging.ids import bucket_of
from messaging.models import Outcome
from messaging.records import to_json

_CALLER = "manage.py load"
_LIFETIME = timedelta(hours=24)
_DIGEST_BYTES = 32


class LoadOvertakenError(Exception):
    """The progress of a load is not what it was."""

    def __str__(self) -> str:
        return "Another run has continued this load, or its progress has been deleted after 24 hours."


class LoadProgress(NamedTuple):
    """The lines that a load has read: those that it refused, and a digest of the others, which are done."""

    run: str
    first_line: int
    last_line: int
    refused: frozenset[int]
    digest: int

    def has_done(self, number: int) -> bool:
        """Whether a line was sent, or is empty."""
        return self.first_line <= number <= self.last_line and number not in self.refused

    def after(self, done: Mapping[int, bytes], refused: Sequence[int]) -> "LoadProgress":
        """The progress after a batch of lines: the text of each that is done, by its number, and those refused."""
        newly_done = [_digest_of(text) for number, text in done.items() if not self.has_done(number)]
        return self._replace(
            last_line=max(self.last_line, *done, *refused),
            refused=self.refused.difference(done).union(refused),
            digest=_sum([self.digest, *newly_done]),
        )

    @property
    def without_refused(self) -> "LoadProgress":
        """The same progress in the file without the refused lines."""
        return self._replace(last_line=self.last_line - len(self.refused), refused=frozenset())

    def up_to(self, number: int) -> "LoadProgress":
        """The same progress in a file that ends at that line."""
        refused = frozenset(line for line in self.refused if line <= number)
        return self._replace(last_line=min(self.last_line, number), refused=refused)


def _digest_of(line: bytes) -> int:
    """The digest of a line; 0 of an empty one, since editors add and remove those at the end."""
    return int.from_bytes(hashlib.blake2b(line, digest_size=_DIGEST_BYTES).digest(), "big") if line.strip() else 0


def _sum(digests: Iterable[int]) -> int:
    # Of any order, since a line that was refused first is done after those that follow it.
    return sum(digests) % (1 << 8 * _DIGEST_BYTES)


def new_load(first_line: int) -> LoadProgress:
    """The progress of a load that has done nothing yet."""
    return LoadProgress(uuid.uuid4().hex, first_line, first_line - 1, frozenset(), 0)


def unfinished_loads() -> list[LoadProgress]:
    """The unfinished loads, which are kept for 24 hours or longer."""
    rows = Outcome.objects.filter(caller=_CALLER).values_list("key", "body", "fingerprint")
    return [_progress_of(*row) for row in rows]


def _progress_of(run: str, body: bytes | memoryview, fingerprint: bytes | memoryview) -> LoadProgress:
    first_line, last_line, refused = json.loads(bytes(body))
    return LoadProgress(run, first_line, last_line, frozenset(refused), int.from_bytes(fingerprint, "big"))


def loads_of(lines: Iterable[tuple[int, bytes]], loads: Sequence[LoadProgress]) -> list[LoadProgress]:
    """Those of the loads that have read the file with these lines, numbered from 1.

    Of the lines that a load has refused, each may have been corrected since, or all may have been removed.
    """
    candidates = [*(load.without_refused for load in loads), *loads]
    asked = {number for load in loads for number in load.refused}
    ends = {number for load in candidates for number in (load.first_line - 1, load.last_line)}
    last_end = max(ends)
    digests: dict[int, int] = {}
    sums = {0: 0}  # of all lines up to this one
    total = number = 0
    for number, text in lines:
        digest = _digest_of(text)
        total += digest
        if number in asked:
            digests[number] = digest
        if number in ends:
            sums[number] = total
        if number >= last_end:
            break

    def digest_in_file(load: LoadProgress) -> int:
        read = sums.get(load.last_line, total) - sums.get(load.first_line - 1, total)
        return _sum([read, *(-digests.get(number, 0) for number in load.refused)])

    # If both are found, refused lines are the last: then they are still to be read.
    found = {load.run: load for load in candidates if digest_in_file(load) == load.digest}
    return [load.up_to(number) for load in found.values()]


def advance_load(before: LoadProgress, after: LoadProgress) -> None:
    """Store the progress of a load after a batch, in the transaction that sends it. `before` is what is stored, if any.

    A load that has done nothing is not stored: it has no digest by which it could be told from others.

    Raises LoadOvertakenError if another run has continued from the same place, or ended the load.
    """
    if not before.digest:
        Outcome.objects.create(caller=_CALLER, key=after.run, bucket=bucket_of(after.run), **_values(after))
        return
    same = Outcome.objects.filter(caller=_CALLER, key=before.run, fingerprint=_values(before)["fingerprint"])
    if not same.update(**_values(after)):
        raise LoadOvertakenError


def end_load(progress: LoadProgress) -> None:
    """Delete the progress of a load, so that its file may be loaded again."""
    in_transaction(Outcome.objects.filter(caller=_CALLER, key=progress.run).delete)


def _values(progress: LoadProgress) -> dict[str, Any]:
    return {
        "fingerprint": progress.digest.to_bytes(_DIGEST_BYTES, "big"),
        "body": to_json([progress.first_line, progress.last_line, sorted(progress.refused)]),
        "expires_at": Now() + _LIFETIME,
    }
