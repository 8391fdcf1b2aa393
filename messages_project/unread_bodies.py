"""Adds `Connection: close` to a response that leaves a request body unread, so no client reuses the connection.

gunicorn drains an unread rest of a few KiB and keeps the connection, Granian only one that has arrived already. Else
they close it, without the header. Draining it here would let a slow client hold a thread.
"""

import threading
from collections.abc import Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_SMALL_BYTES = 32 * 1024  # gunicorn drains 64 KiB


_thread = threading.local()


def serving(request: Any) -> None:
    """Remember gunicorn's request of this thread: gunicorn drops an application's `Connection` header."""
    _thread.request = request


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


def closing_unread(application: WSGIApplication) -> WSGIApplication:
    """WSGI middleware (PEP 3333) for `application`."""

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        length = environ.get("CONTENT_LENGTH") or "0"
        size = float("inf") if "HTTP_TRANSFER_ENCODING" in environ else int(length)
        if not size:
            return application(environ, start_response)
        body = environ["wsgi.input"] = _Body(environ["wsgi.input"], size)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            request = getattr(_thread, "request", None)
            if body.unread > (_SMALL_BYTES if request else 0):
                headers.append(("Connection", "close"))
                if request:
                    request.force_close()
            return start_response(status, headers, exc_info)

        return application(environ, start)

    return serve
