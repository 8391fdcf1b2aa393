"""The public keys that verify end-user tokens: a JWKS (RFC 7517) from a file or URL, one algorithm for each key."""

import json
import logging
import threading
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import jwt

from messaging.errors import TokenKeysUnavailableError

# A key determines its algorithm, whatever the token's header claims (RFC 8725, 3.1). A shared secret (`oct`) in a
# published set is not secret, so a set cannot enable HS256.
ALGORITHMS = frozenset({"RS256", "EdDSA"})

_CACHE_SECONDS = 300.0  # after this time a set is read again
# The minimum time between two reads, so that tokens with invalid key ids cannot overload the source.
_PAUSE_SECONDS = 15.0
_TIMEOUT_SECONDS = 2.0
_SPARE_SECONDS = 0.5  # for a reader to report that timeout
_MAX_BYTES = 1024 * 1024

UNREADABLE = (OSError, HTTPException, ValueError, RecursionError)  # what `load` raises

logger = logging.getLogger(__name__)


class KeySet:
    """The keys of one source, read again after a while, and when a token names an unknown key.

    A thread of its own reads. Requests wait for it briefly, and use the last set while it takes longer or fails.
    `clock` is monotonic, in seconds.
    """

    def __init__(self, source: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._keys: tuple[jwt.PyJWK, ...] | None = None
        self._read_at = -_CACHE_SECONDS
        self._readers: list[threading.Thread] = []
        self._lock = threading.Lock()

    def candidates(self, key_id: str | None, algorithm: str) -> list[jwt.PyJWK]:
        """The keys that may have signed a token with this `kid` and `alg`; without a `kid`, all of the algorithm.

        Raises TokenKeysUnavailableError if no set could be read yet.
        """
        if self._keys is None or self._clock() - self._read_at >= _CACHE_SECONDS:
            self._refresh()
        found = self._matching(key_id, algorithm)
        if not found and self._clock() - self._read_at >= _PAUSE_SECONDS:
            self._refresh()
            found = self._matching(key_id, algorithm)
        return found

    def _matching(self, key_id: str | None, algorithm: str) -> list[jwt.PyJWK]:
        keys = [key for key in self._keys or () if key.algorithm_name == algorithm]
        return keys if key_id is None else [key for key in keys if key.key_id == key_id]

    def _refresh(self) -> None:
        with self._lock:
            now = self._clock()
            unended = [reader for reader in self._readers if reader.is_alive()]
            # Doubled by each read that does not end: a source that sends a head byte by byte holds it for hours.
            is_due = now - self._read_at >= _PAUSE_SECONDS * max(1, 2 ** (len(unended) - 1))
            if is_due:
                self._read_at = now
                self._readers = [*unended, threading.Thread(target=self._read, daemon=True)]
                self._readers[-1].start()
            reader = self._readers[-1]
        if is_due or self._keys is None:
            reader.join(max(0.0, self._read_at + _TIMEOUT_SECONDS + _SPARE_SECONDS - now))
        if self._keys is None:
            raise TokenKeysUnavailableError

    def _read(self) -> None:
        try:
            keys = load(self._source)
        except UNREADABLE as error:
            logger.warning("the keys of MESSAGES_TOKEN_JWKS cannot be read: %s", error)
            return
        with self._lock:
            # A response that took longer than the pause may be older than the one that came meanwhile.
            if self._readers[-1] is threading.current_thread():
                self._keys = keys


def is_url(source: str) -> bool:
    """Whether a JWKS source is fetched over HTTP; else it is a file's path."""
    return source.startswith(("https://", "http://"))


def load(source: str) -> tuple[jwt.PyJWK, ...]:
    """The keys of a JWKS that verify tokens. Others (encryption, private or shared keys, other curves) are ignored.

    Raises one of UNREADABLE if it cannot be read, is not a JWKS, or has no usable key.
    """
    document = json.loads(_fetch(source) if is_url(source) else Path(source).read_bytes())
    entries = document.get("keys") if isinstance(document, dict) else None
    keys = map(_key, entries if isinstance(entries, list) else [])
    found = tuple(
        key for key in keys if key and key.algorithm_name in ALGORITHMS and key.public_key_use in (None, "sig")
    )
    if not found:
        raise ValueError(f'it needs a list "keys" with a public key of {" or ".join(sorted(ALGORITHMS))}')
    return found


def _fetch(url: str) -> bytes:
    """What a GET of the URL returns: at most 1 MiB, within the timeout."""
    ends_at = time.monotonic() + _TIMEOUT_SECONDS
    body = b""
    with urlopen(url, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310 - see is_url
        # In pieces, since the library's timeout is for each of them.
        while piece := response.read1(_MAX_BYTES):
            body += piece
            if len(body) > _MAX_BYTES or time.monotonic() > ends_at:
                raise OSError(f"the response is above {_MAX_BYTES} bytes or takes longer than {_TIMEOUT_SECONDS:g} s")
    return body


def _key(entry: Any) -> jwt.PyJWK | None:
    """One key of a set; None if it is malformed or private, which is no fault of the other keys (RFC 7517, 5)."""
    try:
        return None if "d" in entry else jwt.PyJWK(entry)
    except Exception:  # noqa: BLE001 - for members that are missing or invalid the library raises many of Python's errors
        return None
