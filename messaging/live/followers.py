"""Clients that follow a mailbox: an event stream (WHATWG HTML, 9.2) or a long poll, each on its own connection.

The hub calls them when there is something to send. An event stream has a task only while it sends, so an idle one costs
its connection and little more.
"""

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

from messaging.access import Caller
from messaging.records import MailboxRecord, to_json

Send = Callable[[dict[str, Any]], Awaitable[None]]

SECONDS_BETWEEN_EVENTS = 0.25
COMMENT_SECONDS = 15.0  # below the idle timeouts of common proxies
# How long a client waits before it connects again: spread, so that they do not all arrive together.
_RETRY_MILLISECONDS = (1_000, 5_000)
_RETRY_AFTER_STOP_MILLISECONDS = (1_000, 10_000)
NO_VERSION = -1  # of a client that has none yet


class Follower(ABC):
    """What the hub knows of a client. Times are those of `time.monotonic`."""

    __slots__ = ("caller", "ends_at", "mailbox", "told_at", "version")

    def __init__(self, *, caller: Caller, mailbox: MailboxRecord, version: int, now: float, ends_at: float) -> None:
        self.caller = caller
        self.mailbox = mailbox  # the newest state that is known here
        self.version = version  # the version that the client has
        self.ends_at = ends_at
        self.told_at = now - SECONDS_BETWEEN_EVENTS  # the first event waits for nothing

    def is_ready(self, now: float) -> bool:
        """Whether an event may be sent now. Meanwhile only the newest state is kept."""
        return now - self.told_at >= SECONDS_BETWEEN_EVENTS

    @abstractmethod
    def tell(self, now: float) -> None:
        """Send the newest state."""

    @abstractmethod
    def tend(self, now: float) -> None:
        """Do what is due. The hub calls it about once a second."""

    @abstractmethod
    def end(self, *, stopping: bool = False) -> None:
        """Send what is to be sent last."""

    def refuse(self) -> None:
        """End because the caller's key is no longer valid."""
        self.end()


class EventStream(Follower):
    """A `text/event-stream`: an event for each version that the client lacks, the newest wins."""

    __slots__ = ("_ended", "_send", "_sending")

    def __init__(self, *, send: Send, **follower: Any) -> None:
        super().__init__(**follower)
        self._send = send
        self._sending: asyncio.Task[None] | None = None
        self._ended = False

    async def open(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head, and when to connect again should this connection break."""
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send(_chunk(_retry(_RETRY_MILLISECONDS)))

    def is_ready(self, now: float) -> bool:
        """As inherited; and the client has taken what was sent before."""
        return self._sending is None and super().is_ready(now)

    def tell(self, now: float) -> None:
        """Send an event."""
        self.version, self.told_at = self.mailbox.version, now
        self._start(_chunk(event(self.mailbox)))

    def tend(self, now: float) -> None:
        """End the stream when its time is over; keep an idle one from looking dead."""
        if now >= self.ends_at:
            self.end()
        elif self._sending is None and now - self.told_at >= COMMENT_SECONDS:
            self.told_at = now
            self._start(_chunk(b":\n\n"))

    def end(self, *, stopping: bool = False) -> None:
        """Send when to connect again, and finish the response."""
        milliseconds = _RETRY_AFTER_STOP_MILLISECONDS if stopping else _RETRY_MILLISECONDS
        self._start({**_chunk(_retry(milliseconds)), "more_body": False})

    def _start(self, message: dict[str, Any]) -> None:
        if self._ended:
            return
        self._ended = not message["more_body"]
        self._sending = asyncio.create_task(self._deliver(message, self._sending))

    async def _deliver(self, message: dict[str, Any], before: "asyncio.Task[None] | None") -> None:
        # Waits for as long as the client does not read. TCP_USER_TIMEOUT ends a connection on which that lasts.
        if before is not None:
            await before
        await self._send(message)
        if self._sending is asyncio.current_task():
            self._sending = None


class LongPoll(Follower):
    """A request that is answered as soon as the mailbox has another version than the client."""

    __slots__ = ("done",)

    def __init__(self, **follower: Any) -> None:
        super().__init__(**follower)
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()  # whether to answer

    def tell(self, now: float) -> None:
        """Answer with the newest state."""
        self.version = self.mailbox.version
        self._finish(answer=True)

    def tend(self, now: float) -> None:
        """Do nothing: application.py waits for `done` with a timeout."""

    def end(self, *, stopping: bool = False) -> None:
        """Answer with the state that is known."""
        self._finish(answer=True)

    def refuse(self) -> None:
        """Ask again who the caller is."""
        self._finish(answer=False)

    def _finish(self, *, answer: bool) -> None:
        if not self.done.done():
            self.done.set_result(answer)


def event(mailbox: MailboxRecord) -> bytes:
    """A server-sent event."""
    return b"id: %d\nevent: mailbox\ndata: %b\n\n" % (mailbox.version, to_json(mailbox))


def _chunk(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}


def _retry(milliseconds: tuple[int, int]) -> bytes:
    return b"retry: %d\n\n" % random.randint(*milliseconds)  # noqa: S311 - not for secrets
