"""Limits the threads of this process that wait for a lock or a standby, so that the others continue to serve.

Without a limit, one locked mailbox, or a standby that is unavailable, would soon block every thread.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings

# After a commit that no standby confirmed, further commits are expected to wait for so long.
_STALL_SECONDS = 5.0


class Waiting:
    """The threads that wait for a lock; and while no standby confirms commits, all threads with a change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._stalled_until = 0.0

    @property
    def is_full(self) -> bool:
        """Whether no further thread may wait for a lock."""
        return self._threads >= settings.POSTGRES_MAX_WAITING_THREADS

    @property
    def is_stalled(self) -> bool:
        """Whether a recent commit was not confirmed."""
        return time.monotonic() < self._stalled_until

    def note_commit(self, *, confirmed: bool) -> None:
        """Store whether a commit was confirmed."""
        self._stalled_until = 0.0 if confirmed else time.monotonic() + _STALL_SECONDS

    @contextmanager
    def place(self) -> Iterator["Place"]:
        """A place for this thread, not taken yet. It is released at the end of the block."""
        place = Place(self)
        try:
            yield place
        finally:
            if place.is_taken:
                with self._lock:
                    self._threads -= 1

    def enter(self, limit: int) -> bool:
        """Count this thread, if fewer than `limit` threads wait."""
        with self._lock:
            if self._threads >= limit:
                return False
            self._threads += 1
            return True


class Place:
    """One thread's place among those that wait."""

    __slots__ = ("_waiting", "is_taken")

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self.is_taken = False

    def take(self, limit: int) -> bool:
        """Take it, unless `limit` threads wait already."""
        self.is_taken = self._waiting.enter(limit)
        return self.is_taken


waiting = Waiting()
