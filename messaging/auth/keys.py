"""API keys: create, verify, revoke, list. The only module that writes the table of keys, except the command `erase`."""

import logging
import re
import secrets
import string
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from hashlib import sha256
from hmac import compare_digest
from itertools import islice
from typing import NamedTuple

from cachetools import LRUCache, TTLCache, cached
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.crypto import get_random_string

from messaging.access import Caller, Scope
from messaging.database import fetch, read, try_change
from messaging.errors import Fault, InvalidInputError, NotFoundError
from messaging.models import ApiKey
from messaging.postgresql.sqlstates import reason_of
from messaging.validation import name_fault

KEY_START = "msg_"
_PREFIX = re.compile(r"[a-z0-9]{8,12}", re.ASCII)

# How long a key's row is cached. A revocation takes effect within 5 s, including the time of a request.
CACHE_SECONDS = 4.0
# A missing prefix is cached for a shorter time, so that a new key works soon.
_UNKNOWN_SECONDS = 1.0
_PREFIXES_SECONDS = 0.25
_CACHED_KEYS = 10_000
_CACHED_UNKNOWN = 1_000
_RENEWED_KEYS = 2_000  # that one query reads again at most
_RENEW_PAUSE_SECONDS = 1.0
_NOTE_PAUSE_SECONDS = 60.0

logger = logging.getLogger(__name__)

# Compared with the clock of the database, so that all servers agree on when a key expires.
_ROWS = """
SELECT prefix, secret_sha256, scopes, recipient, sender,
    revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp()),
    extract(epoch FROM expires_at - clock_timestamp())::float8,
    last_used_at IS NULL OR last_used_at NOT BETWEEN clock_timestamp() - interval '1 minute' AND clock_timestamp()
FROM messaging_apikey WHERE prefix = ANY(%s)"""

_PREFIXES = "SELECT prefix FROM messaging_apikey WHERE revoked_at IS NULL"

_ENDED = """
SELECT known.prefix FROM unnest(%s::text[]) AS known (prefix)
LEFT JOIN messaging_apikey k ON k.prefix = known.prefix COLLATE "C"
WHERE k.id IS NULL OR k.revoked_at IS NOT NULL OR k.expires_at <= clock_timestamp()"""

# If several processes find it due, one writes it. SKIP LOCKED, so that none waits; and this commit is asynchronous, so
# that a read does not wait for a disk or a standby. A last use in the future was noted before PostgreSQL's clock was
# set back.
_NOTE_USE = """
UPDATE messaging_apikey SET last_used_at = clock_timestamp()
WHERE id IN (SELECT id FROM messaging_apikey
             WHERE prefix = ANY(%s) AND (last_used_at IS NULL OR last_used_at
                 NOT BETWEEN clock_timestamp() - interval '1 minute' AND clock_timestamp())
             FOR NO KEY UPDATE SKIP LOCKED)
RETURNING set_config('synchronous_commit', 'off', true)"""


class _CachedKey(NamedTuple):
    """A row, cached until the clock shows `until`. `caller` is None for a revoked or expired key."""

    digest: bytes
    caller: Caller | None
    until: float


def faults_of(
    *,
    name: object,
    scopes: Sequence[str],
    recipient: object = None,
    sender: object = None,
    expires_at: datetime | None = None,
) -> list[Fault]:
    faults = [name_fault(name, "/name")]
    if not scopes:
        faults.append(Fault("/scopes", "blank", f"A key needs a scope. There are: {', '.join(Scope)}."))
    faults += [
        Fault("/scopes", "unknown_scope", f"There is no scope {scope!r}. There are: {', '.join(Scope)}.")
        for scope in scopes
        if scope not in set(Scope)
    ]
    if Scope.METRICS in scopes and (recipient, sender) != (None, None):
        detail = "The metrics are those of all mailboxes. Make a key of its own for them, without recipient and sender."
        faults.append(Fault("/scopes", "scope_not_bound", detail))
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
    scopes: Sequence[str],
    recipient: str | None = None,
    sender: str | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Create a key. Returns its row and its text `msg_<prefix>_<secret>`, which is not stored.

    Raises InvalidInputError with the faults of `faults_of`.
    """
    if faults := faults_of(name=name, scopes=scopes, recipient=recipient, sender=sender, expires_at=expires_at):
        raise InvalidInputError(faults)
    # Neither part contains the separator. 43 letters and digits have 256 random bits.
    prefix, secret = get_random_string(10, string.ascii_lowercase + string.digits), get_random_string(43)
    key = ApiKey.objects.create(
        name=name,
        prefix=prefix,
        secret_sha256=_digest(secret),
        scopes=[scope.value for scope in Scope if scope in scopes],
        recipient=recipient,
        sender=sender,
        expires_at=expires_at,
    )
    return key, f"{KEY_START}{prefix}_{secret}"


def revoke(*, prefix: str) -> ApiKey:
    """Revoke a key permanently, within 5 s in every process. A key that is revoked already keeps its `revoked_at`.

    The whole key may be given instead of its prefix. Raises NotFoundError, without its secret part, if there is none.
    """
    prefix = prefix.removeprefix(KEY_START).partition("_")[0]
    ApiKey.objects.filter(prefix=prefix, revoked_at=None).update(revoked_at=timezone.now())
    key = ApiKey.objects.filter(prefix=prefix).first()
    if key is None:
        raise NotFoundError(f"There is no key with the prefix {prefix!r}. list_api_keys shows those that there are.")
    return key


def all_keys() -> QuerySet[ApiKey]:
    return ApiKey.objects.order_by("-created_at", "-id")


def bound_to(recipient: str) -> QuerySet[ApiKey]:
    return ApiKey.objects.filter(recipient=recipient)


def state_of(key: ApiKey) -> str:
    """`active`, `expired` or `revoked`."""
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= timezone.now() else "active"


@cached(TTLCache(1, _PREFIXES_SECONDS), condition=threading.Condition())
def existing_prefixes() -> frozenset[str]:
    """The prefixes of all keys that are not revoked, at most _PREFIXES_SECONDS old."""
    return frozenset(prefix for (prefix,) in read(lambda: fetch(_PREFIXES)))


def prefix_of(caller: Caller) -> str | None:
    """The prefix of a caller's key; None for a caller without a key."""
    kind, _, prefix = caller.identity.partition(":")
    return prefix if kind == "key" else None


def ended(prefixes: Sequence[str]) -> list[str]:
    """Those of the keys that are revoked, expired or deleted."""
    return [prefix for (prefix,) in read(lambda: fetch(_ENDED, (list(prefixes),)))]


class Verifier:
    """Finds the caller of a key. One for each process, which caches a key's row for CACHE_SECONDS.

    `clock` is monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # Two caches, so that made-up prefixes cannot evict the keys that are in use.
        self._keys: LRUCache[str, _CachedKey] = LRUCache(_CACHED_KEYS)
        self._unknown: TTLCache[str, None] = TTLCache(_CACHED_UNKNOWN, _UNKNOWN_SECONDS, timer=clock)
        # The keys that a request has used since their rows were read. A query for one reads those of the others again
        # too, once a second at most, so that many active keys do not cost a query each every CACHE_SECONDS.
        self._used: set[str] = set()
        self._renew_after = 0.0
        # Compared with if there is no such key, so that a miss takes as long as a hit.
        self._nobody = _CachedKey(secrets.token_bytes(32), None, 0.0)
        self._note_after = 0.0

    def caller_of(self, text: str, *, is_suspect: bool = False) -> Caller | None:
        """The caller of a key; None if the key is malformed, unknown, expired or revoked.

        `is_suspect`: the client has sent many invalid keys, so the prefix is looked up in a cached list of all prefixes
        (at most four queries a second) before a query for the key. A key newer than the list counts as unknown.
        """
        prefix, _, secret = text.removeprefix(KEY_START).partition("_")
        digest = _digest(secret)
        with self._lock:
            key = self._keys.get(prefix)
        if key is None or self._clock() >= key.until:
            key = self._look_up(prefix, digest, is_suspect=is_suspect)
        if not compare_digest(digest, key.digest):
            return None
        if key.caller is not None and prefix not in self._used:
            with self._lock:
                self._used.add(prefix)
        return key.caller

    def _look_up(self, prefix: str, digest: bytes, *, is_suspect: bool) -> _CachedKey:
        # Before the query, so that a key revoked after it is cached for at most CACHE_SECONDS.
        now = self._clock()
        if not _PREFIX.fullmatch(prefix) or (is_suspect and prefix not in existing_prefixes()):
            return self._nobody
        with self._lock:
            if prefix in self._unknown:
                return self._nobody
        wanted = [prefix, *self._to_renew(prefix, now)]
        rows = {row[0]: row[1:] for row in read(lambda: fetch(_ROWS, (wanted,)))}
        due = []
        with self._lock:
            self._used.difference_update(wanted)
            for name in wanted:
                if name not in rows:
                    self._keys.pop(name, None)
                    self._unknown[name] = None
            for name, (expected, scopes, recipient, sender, is_valid, seconds_left, use_is_due) in rows.items():
                caller = Caller(f"key:{name}", frozenset(map(Scope, scopes)), recipient, sender) if is_valid else None
                lifetime = CACHE_SECONDS if seconds_left is None or not is_valid else min(CACHE_SECONDS, seconds_left)
                key = self._keys[name] = _CachedKey(bytes(expected), caller, now + lifetime)
                if is_valid and use_is_due and (name != prefix or compare_digest(digest, key.digest)):
                    due.append(name)
            found = self._keys.get(prefix, self._nobody)
        if due:
            self._note_use(due, now)
        return found

    def _to_renew(self, prefix: str, now: float) -> list[str]:
        """The keys in use, without `prefix`, whose rows were read half of CACHE_SECONDS ago or earlier."""
        with self._lock:
            if now < self._renew_after:
                return []
            self._renew_after = now + _RENEW_PAUSE_SECONDS
            due = (
                name
                for name in self._used
                if name != prefix and (key := self._keys.get(name)) and key.until < now + CACHE_SECONDS / 2
            )
            return list(islice(due, _RENEWED_KEYS))

    def _note_use(self, prefixes: Sequence[str], now: float) -> None:
        """Write `last_used_at`, once a minute for all processes together, since a row says whether it is due.

        An error is logged and does not fail the request, which may only read. The next attempt is a minute later.
        """
        if now < self._note_after:
            return
        if error := try_change(_NOTE_USE, (prefixes,)):
            self._note_after = now + _NOTE_PAUSE_SECONDS
            logger.warning(
                "last_used_at of API keys cannot be written (%s); trying again in a minute", reason_of(error)
            )


def _digest(secret: str) -> bytes:
    return sha256(secret.encode(errors="replace")).digest()


verifier = Verifier()
