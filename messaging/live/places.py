"""Limits the number of clients that follow mailboxes: in this process, and for one caller and mailbox."""

import threading
from collections import Counter

from django.conf import settings

from messaging import metrics
from messaging.errors import StreamsExhaustedError, TooManyStreamsError
from messaging.live.followers import Following

MAX_PER_CALLER_AND_MAILBOX = 8


class Places:
    """Counts clients. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: Counter[tuple[str, str]] = Counter()
        self.are_closed = False
        self.total = 0

    def take(self, following: Following) -> None:
        """Count a client, until `leave`.

        Raises:
            StreamsExhaustedError: the process has LIVE_MAX_STREAMS clients, or is stopping.
            TooManyStreamsError: this caller follows this mailbox MAX_PER_CALLER_AND_MAILBOX times.
        """
        key = (following.caller.identity, following.mailbox.recipient)
        with self._lock:
            if self.are_closed or self.total >= settings.LIVE_MAX_STREAMS:
                raise StreamsExhaustedError
            if self._taken[key] >= MAX_PER_CALLER_AND_MAILBOX:
                raise TooManyStreamsError
            self._taken[key] += 1
            self.total += 1
        metrics.live_streams.inc()

    def leave(self, following: Following) -> None:
        key = (following.caller.identity, following.mailbox.recipient)
        with self._lock:
            self.total -= 1
            self._taken[key] -= 1
            if not self._taken[key]:
                del self._taken[key]
        metrics.live_streams.dec()

    def close(self) -> None:
        """Refuse further clients, since the process stops."""
        with self._lock:
            self.are_closed = True
