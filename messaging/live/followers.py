"""Clients that follow a mailbox: an event stream (WHATWG HTML, 9.2) or a long poll, each on its own connection.

The hub calls them when there is something to send. An event stream has a task only while it sends, so an idle one takes
little more memory than its connection.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from messaging.access import Caller
from messaging.records import MailboxRecord, to_json

Send = Callable[[dict[str, Any]], Awaitable[None]]

SECONDS_BETWEEN_EVENTS = 0.25
COMMENT_SECONDS = 15.0  # below the idle timeouts of common proxies
# How long a client waits before it reconnects: random, so that not all arrive together (thundering herd).
_RETRY_MILLISECONDS = (1_000, 5_000)
_RETRY_AFTER_STOP_MILLISECONDS = (1_000, 10_000)


@dataclass(frozen=True, slots=True)
class Following:
    """A request to follow a mailbox. `version` is the version that the client has, None for none."""

    caller: Caller
    mailbox: MailboxRecord
    version: int | None
    wait_seconds: float | None = None  # of a long poll; None for an event stream


class _Follower:
    """A client, as the hub sees it, for a number of seconds. Times are those of `time.monotonic`."""

    __slots__ = ("caller", "ends_at", "mailbox", "told_at", "version")

    def __init__(self, following: Following, seconds: float) -> None:
        self.caller = following.caller
        self.mailbox = following.mailbox  # the newest known state
        self.version = following.version  # the version that the client has
        if self.caller.ends_at is not None:
            seconds = min(seconds, self.caller.ends_at - time.time())
        now = time.monotonic()
        self.ends_at = now + seconds
        self.told_at = now - SECONDS_BETWEEN_EVENTS  # the first event is sent at once

    def is_ready(self, now: float) -> bool:
        """Whether an event may be sent now. Until then only the newest state is kept."""
        return now - self.told_at >= SECONDS_BETWEEN_EVENTS


class EventStream(_Follower):
    """A `text/event-stream`: an event when the client lacks the newest version.

    Only an event ends with an empty line. After a comment or `retry` some clients (httpx-sse) make an event of it.
    """

    __slots__ = ("_ended", "_send", "_sending")

    def __init__(self, following: Following, seconds: float, send: Send) -> None:
        super().__init__(following, seconds)
        self._send = send
        self._sending: asyncio.Task[None] | None = None
        self._ended = False

    async def open(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head, and the reconnection time for a broken connection."""
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send(_chunk(_retry(_RETRY_MILLISECONDS)))

    def is_ready(self, now: float) -> bool:
        """Also whether the client has received what was sent before."""
        return self._sending is None and super().is_ready(now)

    def tell(self, now: float) -> None:
        self.version, self.told_at = self.mailbox.version, now
        self._start(_chunk(event(self.mailbox)))

    def tend(self, now: float) -> None:
        """End the stream when its time is over; send a comment on an idle one, so that no proxy closes it."""
        if now >= self.ends_at:
            self.end()
        elif self._sending is None and now - self.told_at >= COMMENT_SECONDS:
            self.told_at = now
            self._start(_chunk(b":\n"))

    def end(self, *, stopping: bool = False) -> None:
        """Send the reconnection time, and end the response."""
        milliseconds = _RETRY_AFTER_STOP_MILLISECONDS if stopping else _RETRY_MILLISECONDS
        self._start({**_chunk(_retry(milliseconds)), "more_body": False})

    def refuse(self) -> None:
        """End because the caller's key is no longer valid."""
        self.end()

    def _start(self, message: dict[str, Any]) -> None:
        if self._ended:
            return
        self._ended = not message["more_body"]
        self._sending = asyncio.create_task(self._deliver(message, self._sending))

    async def _deliver(self, message: dict[str, Any], before: "asyncio.Task[None] | None") -> None:
        # Waits while the client does not read. TCP_USER_TIMEOUT ends the connection if that takes too long.
        if before is not None:
            await before
        await self._send(message)
        if self._sending is asyncio.current_task():
            self._sending = None


class LongPoll(_Follower):
    """A request that is answered as soon as the mailbox has another version than the client."""

    __slots__ = ("done",)

    def __init__(self, following: Following, seconds: float) -> None:
        super().__init__(following, seconds)
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()  # whether to answer

    def tell(self, now: float) -> None:
        self.version = self.mailbox.version
        self._finish(answer=True)

    def tend(self, now: float) -> None:
        """Do nothing: application.py waits for `done` with a timeout."""

    def end(self, *, stopping: bool = False) -> None:
        """Answer with the newest known state."""
        self._finish(answer=True)

    def refuse(self) -> None:
        """Make application.py authenticate the caller again."""
        self._finish(answer=False)

    def _finish(self, *, answer: bool) -> None:
        if not self.done.done():
            self.done.set_result(answer)


Follower = EventStream | LongPoll


def event(mailbox: MailboxRecord) -> bytes:
    return b"id: %d\nevent: mailbox\ndata: %b\n\n" % (mailbox.version, to_json(mailbox))


def _chunk(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}


def _retry(milliseconds: tuple[int, int]) -> bytes:
    return b"retry: %d\n" % random.randint(*milliseconds)  # noqa: S311 - not for secrets
