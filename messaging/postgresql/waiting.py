"""Limits the threads of this process that wait for a lock or a standby, so that the others continue to serve.

Without a limit, one locked mailbox, or a standby that is unavailable, would soon block every thread.

Changes of hundreds of mailboxes take turns. PostgreSQL gives a free lock to the first that asks, so of many such
changes at once some would be overtaken at each lock, until they exceed the lock timeout.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from django.conf import settings

from messaging.errors import DatabaseUnavailableError

# After a commit that no standby confirmed, further commits are expected to wait for so long.
_STALL_SECONDS = 5.0
_LOOK_SECONDS = 0.05  # how often a thread that waits for its turn checks whether another waits for a lock
TOO_MANY_WAIT = "Too many changes wait for a lock, or for a standby, so this one was refused."


class Waiting:
    """The threads that wait for a lock; and while no standby confirms commits, all threads with a change."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.threads = 0
        self._stalled_until = 0.0

    @property
    def is_full(self) -> bool:
        """Whether no further thread may wait for a lock."""
        return self.threads >= settings.POSTGRES_MAX_WAITING_THREADS

    @property
    def is_stalled(self) -> bool:
        """Whether a recent commit was not confirmed."""
        return time.monotonic() < self._stalled_until

    def note_commit(self, *, confirmed: bool) -> None:
        self._stalled_until = 0.0 if confirmed else time.monotonic() + _STALL_SECONDS


waiting = Waiting()


class Place:
    """One thread's place among those that wait: not taken at first, and free again at the end of the block."""

    def __init__(self) -> None:
        self.is_taken = False

    def take(self, limit: int) -> bool:
        """Take it, unless `limit` threads wait already."""
        with waiting.lock:
            if waiting.threads < limit:
                waiting.threads += 1
                self.is_taken = True
        return self.is_taken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.is_taken:
            with waiting.lock:
                waiting.threads -= 1


# Those whose turn it is, and those that wait for theirs, in the order in which they came. A lock would not keep it.
_turns: deque[threading.Event] = deque()
_turns_lock = threading.Lock()


@contextmanager
def in_turn() -> Iterator[None]:
    """Run a change of many mailboxes; one at a time in this process, first come, first served.

    While a thread waits for a lock, which may be the one whose turn it is, those that wait for theirs count as waiting
    for a lock too. Where as many wait as may, the next one goes ahead: it may wait for a lock only briefly, and it may
    need none of those that are held.

    Raises DatabaseUnavailableError if its turn does not come in the time for which a change may wait for a lock.
    """
    deadline = time.monotonic() + (settings.POSTGRES_LOCK_TIMEOUT_SECONDS or math.inf)
    mine = threading.Event()
    with _turns_lock:
        _turns.append(mine)
        _turns[0].set()
    try:
        with Place() as place:
            while not mine.wait(_LOOK_SECONDS):
                if waiting.threads and not (place.is_taken or place.take(settings.POSTGRES_MAX_WAITING_THREADS)):
                    break
                if time.monotonic() > deadline:
                    raise DatabaseUnavailableError(TOO_MANY_WAIT, at_once=True)
        yield
    finally:
        with _turns_lock:
            _turns.remove(mine)
            if _turns:
                _turns[0].set()
