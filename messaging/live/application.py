"""The ASGI application of the live process.

Django handles each request in a thread, so hosts, CORS, access rules, limits and problem documents are those of the
API. If the response is a FollowResponse, the connection stays open on the event loop, without a thread.
"""

import asyncio
import io
import random
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from django.conf import settings
from django.core import signals
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.base import BaseHandler
from django.db import connections

from messaging.live.followers import EventStream, Following, LongPoll
from messaging.live.hub import Hub
from messaging.live.places import Places
from messaging.live.views import FollowResponse
from messaging.records import to_json

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


_ORIGIN = re.compile(r"\Ahttps?://[^/]*", re.IGNORECASE)


class Answer(NamedTuple):
    """Django's response: complete, or only the head for a client that follows a mailbox."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    following: Following | None


class Application:
    """One live process: its requests, and the hub that notifies them of changes."""

    def __init__(self, *, urlconf: str, without_prefix: Callable[[str], str]) -> None:
        self._urlconf = urlconf
        self._without_prefix = without_prefix
        self._handler = BaseHandler()
        self._handler.load_middleware()
        self._places = Places()
        # In total as many threads as the pool has connections. The hub has one of its own, so that many new clients do
        # not delay events.
        self._request_threads = ThreadPoolExecutor(max(1, settings.WEB_THREADS - 1), "request")
        self.hub = Hub(partial(_in_thread, ThreadPoolExecutor(1, "hub")))

    def stop(self) -> None:
        """End all streams, and open no more."""
        self._places.close()
        self.hub.end_all()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: Answer = await _in_thread(self._request_threads, self._answer, scope)
        following = answer.following
        if following is None:
            await _send_whole(send, answer)
            return
        try:
            if following.wait_seconds is None:
                await self._stream(answer, following, receive, send)
            elif whole := await self._wait(answer, following, scope, receive):
                await _send_whole(send, whole)
        finally:
            self._places.leave(following)

    def _answer(self, scope: Scope) -> Answer:
        signals.request_started.send(sender=type(self), scope=scope)
        # uvicorn leaves a target in absolute form (RFC 9112, 3.2.2) as it is. No endpoint here takes a body.
        path = self._without_prefix(_ORIGIN.sub("", scope["path"]) or "/")
        # Django would take the prefix off every path that begins with its text: `/mail` off `/mailbox/wait`.
        path = (settings.FORCE_SCRIPT_NAME or "") + path
        request: Any = ASGIRequest({**scope, "path": path}, io.BytesIO())
        request.urlconf, request.places = self._urlconf, self._places
        response: Any = self._handler.get_response(request)
        following = response.following if isinstance(response, FollowResponse) else None
        body = b"".join(response) if response.streaming else response.content
        headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in response.items()
            if following is None or name != "Content-Length"
        ]
        response.close()
        return Answer(response.status_code, headers, body, following)

    async def _stream(self, answer: Answer, following: Following, receive: Receive, send: Send) -> None:
        seconds = settings.LIVE_STREAM_SECONDS * random.uniform(0.9, 1.1)  # noqa: S311 - not for secrets
        stream = EventStream(following, seconds, send)
        await stream.open(answer.status, answer.headers)
        self.hub.add(stream)
        try:
            if self._places.are_closed:
                stream.end(stopping=True)
            await _disconnection(receive)
        finally:
            self.hub.remove(stream)

    async def _wait(self, answer: Answer, following: Following, scope: Scope, receive: Receive) -> Answer | None:
        """The complete response to a long poll; None if the client has disconnected."""
        assert following.wait_seconds is not None
        poll = LongPoll(following, following.wait_seconds)
        self.hub.add(poll)
        gone = asyncio.create_task(_disconnection(receive))
        try:
            if self._places.are_closed:
                poll.end()
            either: set[asyncio.Future[Any]] = {gone, poll.done}
            await asyncio.wait(either, timeout=poll.ends_at - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                return None
        finally:
            gone.cancel()
            self.hub.remove(poll)
        if poll.done.done() and not poll.done.result():
            again: Answer = await _in_thread(self._request_threads, self._answer, scope)
            if again.following is None:
                return again
            self._places.leave(following)
        body = to_json(poll.mailbox)
        return answer._replace(body=body, headers=[*answer.headers, (b"content-length", b"%d" % len(body))])


async def _disconnection(receive: Receive) -> None:
    """Return when the client has disconnected, or has received the complete response."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_whole(send: Send, answer: Answer) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send({"type": "http.response.body", "body": answer.body})


async def _in_thread(threads: ThreadPoolExecutor, work: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(threads, _with_database, work, arguments)


def _with_database(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        return work(*arguments)
    finally:
        connections.close_all()  # back into the pool
