"""Handles Ctrl-C, SIGTERM and SIGHUP in commands that write in batches, so that none is cut off within a batch."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    _holding = _arrived = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals. A second one takes effect at once."""
        is_second, self._arrived = self._arrived, True
        if is_second or not self._holding:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has arrived. An error may have taken the place of the first one."""
        if self._arrived:
            raise KeyboardInterrupt

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """A block that is completed first: a signal that arrives in it takes effect after it."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        self.check()

    def between(self, batches: Iterator[T]) -> Iterator[T]:
        """The batches. A signal that arrives in one, or in the body of the loop over them, takes effect after it."""
        while True:
            with self.held_back():
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                yield batch


def ignore_signals() -> None:
    """Ignore these signals until the process ends, whose work is done: its exit status shall say so."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """A block in which these signals raise KeyboardInterrupt.

    An ignored signal, such as SIGHUP under nohup, stays ignored. Outside of the main thread, which alone receives
    signals, nothing changes.
    """
    interruption, before = Interruption(), dict[signal.Signals, Any]()
    if threading.current_thread() is threading.main_thread():
        handled = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, interruption.handle) for number in handled}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
