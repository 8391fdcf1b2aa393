"""Requests with an invalid key or token, counted for each client address in this process.

An invalid key costs a query, which no caller's limit can count. Above MESSAGES_RATE_LIMIT_INVALID_KEYS such requests
of an address are refused with 429 instead of 401, and cost no query each. A valid key is never refused for this, since
other clients may share the address.
"""

import threading
import time
from collections.abc import Callable

from cachetools import LRUCache

from messaging.auth import limits

_CACHED_ADDRESSES = 10_000


class InvalidKeyCounter:
    """A fixed window for each address, which begins with its first invalid key. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: LRUCache[str, tuple[int, float]] = LRUCache(_CACHED_ADDRESSES)  # count, end

    def seconds_to_wait(self, address: str) -> float | None:
        """Seconds until the window of an address ends, if its limit is reached; else None."""
        policy = limits.policy("invalid_keys")
        if policy is None or not self._windows:
            return None
        with self._lock:
            count, ends = self._windows.get(address, (0, 0.0))
        seconds = ends - self._clock()
        return seconds if count >= policy.quota and seconds > 0 else None

    def add(self, address: str) -> None:
        policy = limits.policy("invalid_keys")
        if policy is None:
            return
        now = self._clock()
        with self._lock:
            count, ends = self._windows.get(address, (0, 0.0))
            self._windows[address] = (count + 1, ends) if now < ends else (1, now + policy.seconds)

    def clear(self) -> None:
        with self._lock:
            self._windows.clear()


invalid_keys = InvalidKeyCounter()
