"""How many clients may follow at once: in this process, and of one caller in one mailbox."""

import threading
from collections import Counter

from django.conf import settings

from messaging import metrics
from messaging.access import Caller
from messaging.errors import StreamsExhaustedError, TooManyStreamsError

MAX_PER_CALLER_AND_MAILBOX = 8


class Places:
    """The places that are taken. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: Counter[tuple[str, str]] = Counter()
        self._closed = False
        self.total = 0

    def take(self, caller: Caller, recipient: str) -> None:
        """Take a place, to be given back by `leave`.

        Raises:
            StreamsExhaustedError: all places of the process are taken, or it stops.
            TooManyStreamsError: all places of this caller in this mailbox are.
        """
        key = (caller.identity, recipient)
        with self._lock:
            if self._closed or self.total >= settings.LIVE_MAX_STREAMS:
                raise StreamsExhaustedError
            if self._taken[key] >= MAX_PER_CALLER_AND_MAILBOX:
                raise TooManyStreamsError
            self._taken[key] += 1
            self.total += 1
        metrics.live_streams.inc()

    def leave(self, caller: Caller, recipient: str) -> None:
        """Give a place back."""
        key = (caller.identity, recipient)
        with self._lock:
            self.total -= 1
            self._taken[key] -= 1
            if not self._taken[key]:
                del self._taken[key]
        metrics.live_streams.dec()

    def close(self) -> None:
        """Give no more places: the process stops."""
        with self._lock:
            self._closed = True
