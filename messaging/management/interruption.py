"""Ctrl-C, SIGTERM and SIGHUP for commands that write in batches: never between the commit of a batch and its count."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """While entered, these signals raise KeyboardInterrupt; inside `held_back` they do so when that block ends.

    A second signal does not wait. A signal that is ignored, as SIGHUP under nohup, stays ignored. In a thread other
    than the main one, where signals never arrive, nothing changes.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._holding = self._arrived = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._handle)
                for number in _SIGNALS
                if signal.getsignal(number) != signal.SIG_IGN
            }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._holding or self._arrived:
            raise KeyboardInterrupt
        self._arrived = True

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """A block that is carried out as a whole: a signal that arrives in it takes effect after it."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._arrived:
            raise KeyboardInterrupt
