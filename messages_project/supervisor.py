"""The supervisor: runs the web server and its companions as child processes, restarts companions, stops all in order.

It serves nothing itself, so a stop is the same with every server: /readyz answers 503 first, the server continues for
SHUTDOWN_DELAY_SECONDS, and then receives the signal. Each child leads a process group of its own, so Ctrl-C in a
terminal reaches the supervisor alone, and what a child leaves behind can be killed. A child whose parent was killed
stops by itself (`follow_parent`).
"""

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from django.conf import settings

from messages_project.boot import StartError, end_if_stopped
from messages_project.stopping import announce_stop

if TYPE_CHECKING:
    from multiprocessing.context import ForkProcess

logger = logging.getLogger(__name__)

# Before a companion that ended is started again: at first, and at most, since the pause doubles each time.
_RESTART_SECONDS, _MAX_RESTART_SECONDS = 2.0, 60.0
_INTERRUPT_SECONDS = 2.0  # for running requests after Ctrl-C
_KILL_SECONDS = 2.0  # for a server to notice that GRACEFUL_TIMEOUT_SECONDS are over, before it is killed
_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def follow_parent() -> None:
    """Send this process SIGTERM once its parent has died, however that happened.

    For children made by `multiprocessing`, whose parent holds a pipe open for as long as it lives.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="follow-parent", daemon=True).start()


def _end_unready_forks() -> None:
    """From now on a signal to stop ends a fork that has not set its own handler yet, forks of forks included.

    A fork inherits the handler of its parent, which only puts the signal into a queue that the fork does not read. The
    parent would wait for it until the grace period is over. The signals are blocked until the default action is set.
    """
    block = partial(signal.pthread_sigmask, signal.SIG_BLOCK, _STOP)
    unblock = partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, _STOP)

    def reset() -> None:
        for number in _STOP:
            signal.signal(number, signal.SIG_DFL)
        unblock()

    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=reset)


def _run_child(run: Callable[[], None]) -> None:
    for number in (signal.SIGHUP, signal.SIGCHLD):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    os.setpgid(0, 0)
    follow_parent()
    try:
        run()
    except StartError as error:
        sys.exit(str(error))


class Supervisor:
    """Runs `server` and `companions`, each in a process of its own, which is a fork of this one."""

    def __init__(self, server: Callable[[], None], companions: Mapping[str, Callable[[], None]]) -> None:
        self._programs = {"server": server, **companions}
        self._children: dict[str, ForkProcess] = {}
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._started_at: dict[str, float] = {}
        self._pauses: dict[str, float] = {}
        self._restart_at: dict[str, float] = {}

    def run(self) -> int:
        """Run them until a signal to stop arrives; return the exit status of the process."""
        for number in (*_STOP, signal.SIGHUP, signal.SIGCHLD):
            # SIGHUP stays ignored under nohup.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda received, _frame: self._signals.put(received))
        end_if_stopped()
        _end_unready_forks()
        for name in self._programs:
            self._start(name)
        received = self._watch()
        if received is None:
            logger.error("the web server has ended, with status %s", self._children["server"].exitcode)
            self._end(signal.SIGTERM, grace_seconds=settings.GRACEFUL_TIMEOUT_SECONDS)
            return 1
        announce_stop()
        if received != signal.SIGINT:
            self._watch(until=time.monotonic() + settings.SHUTDOWN_DELAY_SECONDS)
        if received in {signal.SIGTERM, signal.SIGHUP}:
            self._end(signal.SIGTERM, grace_seconds=settings.GRACEFUL_TIMEOUT_SECONDS + _KILL_SECONDS)
        else:
            self._end(signal.SIGINT, grace_seconds=_INTERRUPT_SECONDS)
        return 0

    def _start(self, name: str) -> None:
        # A fork, so that all share the memory of what is loaded, and the flag of `announce_stop`.
        child = multiprocessing.get_context("fork").Process(target=_run_child, args=[self._programs[name]], name=name)
        child.start()
        self._children[name] = child
        self._started_at[name] = time.monotonic()

    def _watch(self, until: float = float("inf")) -> int | None:
        """Restart companions that end; return the signal to stop, None once the server has ended or time is up."""
        while self._children["server"].is_alive():
            now = time.monotonic()
            for name, child in self._children.items():
                if not child.is_alive():
                    self._restart(name, child.exitcode, now)
            wake_at = min(until, *self._restart_at.values(), now + 3600)
            if now >= until:
                break
            with contextlib.suppress(queue.Empty):
                if (received := self._signals.get(timeout=max(0.0, wake_at - now))) != signal.SIGCHLD:
                    return received
        return None

    def _restart(self, name: str, status: int | None, now: float) -> None:
        """Start a companion that has ended once its pause is over."""
        if name not in self._restart_at:
            pause = min(2 * self._pauses.get(name, 0.0), _MAX_RESTART_SECONDS) or _RESTART_SECONDS
            if now - self._started_at[name] > _MAX_RESTART_SECONDS:
                pause = _RESTART_SECONDS  # it has worked in between
            self._pauses[name], self._restart_at[name] = pause, now + pause
            logger.error("%s has ended, with status %s; starting it again in %.0f s", name, status, pause)
        elif now >= self._restart_at[name]:
            del self._restart_at[name]
            self._start(name)

    def _end(self, number: signal.Signals, *, grace_seconds: float) -> None:
        """Send every child the signal. After the grace period, or at the next SIGINT, kill what still runs."""
        children = self._children.values()
        for child in children:
            if child.is_alive():
                os.kill(child.pid or 0, number)
        deadline = time.monotonic() + grace_seconds
        while any(child.is_alive() for child in children) and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                if self._signals.get(timeout=left) == signal.SIGINT:
                    break
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid or 0, signal.SIGKILL)
            child.join()
        for ignored in (*_STOP, signal.SIGHUP):
            # At its end Python restores the default action of a signal that has a handler.
            signal.signal(ignored, signal.SIG_IGN)
