"""Adds `Connection: close` to a response after which its connection ends, so that no client reuses it.

Once a stop is announced that is every response: after SHUTDOWN_DELAY_SECONDS the server closes what is idle, perhaps
while a client or proxy sends its next request there. Before, it is one that leaves the body of its request unread.

The servers close the latter without the header. (gunicorn reads a rest of a few KiB and keeps the connection;
Granian keeps it if the rest has arrived already.) A proxy that is still sending takes the close for a failure, and
answers 502 in place of the response. So the rest is read first, up to the size of a batch. For gunicorn, web_servers.py
reads it after the response, for at most 2 seconds. For other servers it is read here, without a timeout, so only for
requests through a proxy: a slow client would hold a thread, but a proxy has the whole body before it sends any of it.
"""

import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from django.conf import settings

from messages_project.stopping import is_stopping

_SMALL_BYTES = 32 * 1024  # gunicorn drains 64 KiB
_PIECE_BYTES = 64 * 1024

_thread = threading.local()


def serving(request: Any) -> None:
    """Remember gunicorn's request of this thread: gunicorn drops an application's `Connection` header."""
    _thread.request = request


def max_drained_bytes() -> int:
    """What proxies let pass: a little more than a batch, which may have 16 times as much as other bodies."""
    return 17 * settings.MESSAGES_MAX_BODY_BYTES


class _Body:
    """`wsgi.input`, with a count of the bytes left to read."""

    def __init__(self, stream: Any, size: float) -> None:
        self._stream = stream
        self.unread = size

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._stream.read(size)
        self.unread = self.unread - len(data) if len(data) == size else 0
        return data

    def readline(self, size: int = -1) -> bytes:
        data: bytes = self._stream.readline(size)
        self.unread -= len(data)
        return data

    def drain(self) -> None:
        """Read the rest, up to what proxies let pass."""
        left = max_drained_bytes()
        with suppress(Exception):  # it has disconnected, or sent invalid chunks: each server has exceptions of its own
            while left > 0 and self.unread:
                self.read(_PIECE_BYTES)
                left -= _PIECE_BYTES


def closing_connections(application: WSGIApplication) -> WSGIApplication:
    """WSGI middleware (PEP 3333) for `application`."""
    is_behind_proxy = settings.MESSAGES_TRUSTED_PROXIES or settings.SECURE_PROXY_SSL_HEADER

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        length = environ.get("CONTENT_LENGTH") or "0"
        size = float("inf") if "HTTP_TRANSFER_ENCODING" in environ else int(length)
        body = environ["wsgi.input"] = _Body(environ["wsgi.input"], size)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            request = getattr(_thread, "request", None)
            if is_behind_proxy and not request:
                body.drain()
            if is_stopping() or body.unread > (_SMALL_BYTES if request else 0):
                headers.append(("Connection", "close"))
                if request:
                    request.force_close()
            return start_response(status, headers, exc_info)

        return application(environ, start)

    return serve
