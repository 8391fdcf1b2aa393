"""The progress of `manage.py load`, stored in the transaction of each batch, so that no line is sent twice.

It is a row of the table of outcomes, with a caller that no request can have.
"""

import uuid
from datetime import timedelta
from typing import Any, NamedTuple

from django.db.models.functions import Now

from messaging.database import in_transaction
from messaging.ids import bucket_of
from messaging.models import Outcome

_CALLER = "load"
_LIFETIME = timedelta(hours=24)


class LoadOvertakenError(Exception):
    """Another run has continued the same load."""


class LoadProgress(NamedTuple):
    """The lines that a load has sent, and the digest of the input up to the last of them."""

    run: str
    first_line: int
    last_line: int
    digest: bytes


def unfinished_loads() -> list[LoadProgress]:
    """The unfinished loads, which are kept for 24 hours or longer; those with most lines first."""
    records = Outcome.objects.filter(caller=_CALLER).values_list("key", "body", "fingerprint")
    found = []
    for key, body, digest in records:
        first_line, last_line = bytes(body).split(b"-")
        found.append(LoadProgress(key, int(first_line), int(last_line), bytes(digest)))
    return sorted(found, key=lambda progress: -progress.last_line)


def begin_load(first_line: int, last_line: int, digest: bytes) -> LoadProgress:
    """Store the first batch of a load, in the transaction that sends it."""
    progress = LoadProgress(uuid.uuid4().hex, first_line, last_line, digest)
    Outcome.objects.create(caller=_CALLER, key=progress.run, bucket=bucket_of(progress.run), **_values(progress))
    return progress


def advance_load(progress: LoadProgress, last_line: int, digest: bytes) -> LoadProgress:
    """Store a further batch of a load, in the transaction that sends it.

    Raises LoadOvertakenError if another run has continued from the same line.
    """
    advanced = progress._replace(last_line=last_line, digest=digest)
    same = Outcome.objects.filter(caller=_CALLER, key=progress.run, fingerprint=progress.digest)
    if not same.update(**_values(advanced)):
        raise LoadOvertakenError
    return advanced


def end_load(progress: LoadProgress) -> None:
    """Delete the progress of a load, so that its file may be loaded again."""
    in_transaction(Outcome.objects.filter(caller=_CALLER, key=progress.run).delete)


def _values(progress: LoadProgress) -> dict[str, Any]:
    return {
        "fingerprint": progress.digest,
        "body": b"%d-%d" % (progress.first_line, progress.last_line),
        "expires_at": Now() + _LIFETIME,
    }
