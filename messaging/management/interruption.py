"""Handles Ctrl-C, SIGTERM and SIGHUP in commands that write in batches, so that none is cut off within a batch."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """A context in which these signals raise KeyboardInterrupt. Inside `held_back` they do so when that block ends.

    A second signal takes effect at once. An ignored signal, such as SIGHUP under nohup, stays ignored. Outside of the
    main thread, which alone receives signals, nothing changes.
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
        """A block that is completed first: a signal that arrives in it takes effect after it."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._arrived:
            raise KeyboardInterrupt
