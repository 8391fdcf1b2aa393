"""Limits the threads of this process that wait for a lock or a standby, so that the others continue to serve.

Without a limit, one locked mailbox, or a standby that is unavailable, would soon block every thread.

Changes of hundreds of mailboxes take turns. PostgreSQL gives a lock to whoever asks first once it is free, so that of
many such changes at once some would be overtaken at each lock, until they exceed the lock timeout.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings

# After a commit that no standby confirmed, further commits are expected to wait for so long.
_STALL_SECONDS = 5.0
_LOOK_SECONDS = 0.05  # how often a thread that waits for its turn looks whether another waits for a lock


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
    def is_anyone(self) -> bool:
        """Whether a thread waits for a lock."""
        return self._threads > 0

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


class Turn:
    """Lets one thread of this process through at a time."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._is_taken = False

    def take(self) -> bool:
        """Wait for the turn, for as long as a change may wait for a lock. Returns whether it was taken.

        While a thread waits for a lock, which may be the one whose turn it is, those that wait for theirs count as
        waiting for a lock too.
        """
        deadline = time.monotonic() + settings.POSTGRES_LOCK_TIMEOUT_SECONDS
        with waiting.place() as place, self._free:
            while self._is_taken:
                may_wait = place.is_taken or not waiting.is_anyone or place.take(settings.POSTGRES_MAX_WAITING_THREADS)
                if not may_wait or time.monotonic() > deadline:
                    return False
                self._free.wait(_LOOK_SECONDS)
            self._is_taken = True
        return True

    def pass_on(self) -> None:
        """Let the next thread through."""
        with self._free:
            self._is_taken = False
            self._free.notify()


waiting = Waiting()
