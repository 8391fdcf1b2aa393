"""API keys: issue, verify, revoke, list. The only writer of the table of keys.

How a key arrives in a request stands in authentication.py; what its holder may do, in access.py.
"""

import logging
import re
import secrets
import string
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from hashlib import sha256
from hmac import compare_digest
from typing import NamedTuple

from django.db import Error
from django.db.models import QuerySet
from django.utils import timezone

from messaging.access import Caller, Scope
from messaging.database import fetch, read
from messaging.errors import Fault, InvalidInputError, NotFoundError
from messaging.models import ApiKey
from messaging.recent import Recent
from messaging.validation import name_fault

KEY_START = "msg_"
# Neither part may hold the separator. 43 characters out of 62 are 256 random bits.
_PREFIX_ALPHABET, _PREFIX_LENGTH = string.ascii_lowercase + string.digits, 10
_SECRET_ALPHABET, _SECRET_LENGTH = string.ascii_letters + string.digits, 43
_PREFIX = re.compile(r"[a-z0-9]{8,12}", re.ASCII)

# How long a key's row is believed: with the time of a request, revocation takes effect within 5 s.
BELIEVED_SECONDS = 4.0
# An unknown prefix is looked up again sooner, since nothing but the flood of one wrong key needs remembering.
_UNKNOWN_SECONDS = 1.0
_CACHED_KEYS = 10_000
_CACHED_UNKNOWN = 1_000
_NOTE_PAUSE_SECONDS = 60.0

logger = logging.getLogger(__name__)

_TABLE = ApiKey._meta.db_table

# All clocks are the database's, so that servers whose clocks differ agree on when a key ends.
_ROW = f"""
SELECT secret_sha256, scopes, recipient, sender,
    revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp()),
    extract(epoch FROM expires_at - clock_timestamp())::float8,
    last_used_at IS NULL OR last_used_at < clock_timestamp() - interval '1 minute'
FROM {_TABLE} WHERE prefix = %s"""

# Of several processes that find it due, one writes it; none waits for a row that somebody else holds.
_NOTE_USE = f"""
UPDATE {_TABLE} SET last_used_at = clock_timestamp()
WHERE id = (SELECT id FROM {_TABLE}
            WHERE prefix = %s AND (last_used_at IS NULL OR last_used_at < clock_timestamp() - interval '1 minute')
            FOR NO KEY UPDATE SKIP LOCKED)
RETURNING true"""


class _Known(NamedTuple):
    """What is believed of a prefix until the clock shows `until`. `caller` is None for a key that no longer works."""

    digest: bytes
    caller: Caller | None
    until: float


def faults_of(
    *,
    name: object,
    scopes: Iterable[str],
    recipient: object = None,
    sender: object = None,
    expires_at: datetime | None = None,
) -> list[Fault]:
    """What is wrong with the description of a key to be made."""
    wanted = list(scopes)
    faults = [name_fault(name, "/name")]
    if not wanted:
        faults.append(Fault("/scopes", "blank", f"A key needs a scope. There are: {', '.join(Scope)}."))
    faults += [
        Fault("/scopes", "unknown_scope", f"There is no scope {scope!r}. There are: {', '.join(Scope)}.")
        for scope in wanted
        if scope not in set(Scope)
    ]
    if recipient is not None:
        faults.append(name_fault(recipient, "/recipient"))
    if sender is not None:
        faults.append(name_fault(sender, "/sender"))
    if expires_at is not None and expires_at <= timezone.now():
        faults.append(Fault("/expires_at", "in_the_past", "This has already passed. Choose a later instant."))
    return [fault for fault in faults if fault is not None]


def create(
    *,
    name: str,
    scopes: Iterable[str],
    recipient: str | None = None,
    sender: str | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key: its row, and its text `msg_<prefix>_<secret>`, which is kept nowhere and can never be shown again.

    Raises:
        InvalidInputError: as `faults_of` says.
    """
    wanted = list(scopes)
    if faults := faults_of(name=name, scopes=wanted, recipient=recipient, sender=sender, expires_at=expires_at):
        raise InvalidInputError(faults)
    prefix = "".join(secrets.choice(_PREFIX_ALPHABET) for _ in range(_PREFIX_LENGTH))
    secret = "".join(secrets.choice(_SECRET_ALPHABET) for _ in range(_SECRET_LENGTH))
    key = ApiKey.objects.create(
        name=name,
        prefix=prefix,
        secret_sha256=_digest(secret),
        scopes=[scope.value for scope in Scope if scope in wanted],
        recipient=recipient,
        sender=sender,
        expires_at=expires_at,
    )
    return key, f"{KEY_START}{prefix}_{secret}"


def revoke(*, prefix: str) -> ApiKey:
    """Revoke a key for good, within 5 s in every process. A key revoked before keeps its first `revoked_at`.

    Raises:
        NotFoundError: there is no key with this prefix.
    """
    ApiKey.objects.filter(prefix=prefix, revoked_at=None).update(revoked_at=timezone.now())
    key = ApiKey.objects.filter(prefix=prefix).first()
    if key is None:
        raise NotFoundError(f"There is no key with the prefix {prefix!r}. list_api_keys shows those that there are.")
    return key


def all_keys() -> QuerySet[ApiKey]:
    """Every key, the newest first."""
    return ApiKey.objects.order_by("-created_at", "-id")


def state_of(key: ApiKey) -> str:
    """`active`, `expired` or `revoked`."""
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= timezone.now() else "active"


class Verifier:
    """Tells whose key a text is. One per process: it reads a key's row at most every BELIEVED_SECONDS.

    `clock` is monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Apart, so that made-up prefixes cannot push out the keys that are in use.
        self._known: Recent[str, _Known] = Recent(_CACHED_KEYS)
        self._unknown: Recent[str, float] = Recent(_CACHED_UNKNOWN)
        # Compared with where there is no key, so that a miss does the work of a hit.
        self._nobody = _Known(secrets.token_bytes(32), None, 0.0)
        self._note_after = 0.0

    def caller_of(self, text: str) -> Caller | None:
        """The caller whose key `text` is; None for one that is malformed, unknown, expired or revoked.

        Raises:
            DatabaseUnavailableError: the key is not cached and the database cannot be asked.
        """
        prefix, _, secret = text.removeprefix(KEY_START).partition("_")
        digest = _digest(secret)
        known = self._known.get(prefix)
        if known is None or self._clock() >= known.until:
            known = self._look_up(prefix, digest)
        return known.caller if compare_digest(digest, known.digest) else None

    def _look_up(self, prefix: str, digest: bytes) -> _Known:
        # Taken before the row is read: what is revoked after this instant is believed for BELIEVED_SECONDS at most.
        now = self._clock()
        if not _PREFIX.fullmatch(prefix) or now < (self._unknown.get(prefix) or now):
            return self._nobody
        rows = read(lambda: fetch(_ROW, (prefix,)))
        if not rows:
            self._unknown.put(prefix, now + _UNKNOWN_SECONDS)
            return self._nobody
        [(expected, scopes, recipient, sender, works, seconds_left, use_is_due)] = rows
        caller = Caller(f"key:{prefix}", frozenset(map(Scope, scopes)), recipient, sender) if works else None
        believed = BELIEVED_SECONDS if seconds_left is None or not works else min(BELIEVED_SECONDS, seconds_left)
        known = _Known(bytes(expected), caller, now + believed)
        self._known.put(prefix, known)
        if works and use_is_due and compare_digest(digest, known.digest):
            self._note_use(prefix, now)
        return known

    def _note_use(self, prefix: str, now: float) -> None:
        """Write `last_used_at`. The row itself says that it is due, so this happens once a minute for all processes.

        Bookkeeping must not fail a request that can be answered (from a standby, say): a failure is logged, and the
        next attempt waits a minute.
        """
        if now < self._note_after:
            return
        try:
            fetch(_NOTE_USE, (prefix,))
        except Error as error:
            self._note_after = now + _NOTE_PAUSE_SECONDS
            logger.warning(
                "last_used_at of API keys cannot be written (%s); trying again in a minute", type(error).__name__
            )


def _digest(secret: str) -> bytes:
    return sha256(secret.encode(errors="replace")).digest()


verifier = Verifier()
