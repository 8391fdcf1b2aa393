"""The way of nearly every request: its head matched by one pattern, its answer sent in one write.

gunicorn's parser and response, written for all of HTTP/1.1 (RFC 9112), take a quarter of the time of a short request.
Whatever is not plain to the last byte stays unread for them, so every doubtful case has one judge.
"""

import re
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from functools import lru_cache
from io import BytesIO
from socket import socket
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from gunicorn import SERVER
from gunicorn.http.wsgi import base_environ

# gunicorn's limit of one line; here that of the whole head.
_MAX_HEAD_BYTES = 8_190
# Origin form, without the fragment and the second slash that make gunicorn look closer; header names without the
# underscore that CGI cannot tell from a dash; values of printable ASCII.
_HEAD = re.compile(
    rb"(GET|HEAD|POST|PATCH|PUT|DELETE|OPTIONS) (/(?!/)[!\"$-~]*) HTTP/1\.1\r\n"
    rb"((?:[A-Za-z0-9-]{1,64}: ?[!-~][ -~]*\r\n){1,64})\r\n"
)
# Each may change where a request ends, or who reads it.
_NOT_PLAIN = frozenset(
    {"HTTP_EXPECT", "HTTP_TRANSFER_ENCODING", "HTTP_UPGRADE", "HTTP_TE", "HTTP_TRAILER", "HTTP_HTTP2_SETTINGS"}
)
_LENGTH = re.compile(r"[0-9]{1,12}")
_NO_BODY = frozenset({"204", "304"})


class PlainRequest(NamedTuple):
    """A request that is whole, and nothing behind it."""

    environ: dict[str, Any]
    stays: bool  # whether the client keeps the connection

    @property
    def method(self) -> str:
        """For the log, should it fail."""
        return str(self.environ["REQUEST_METHOD"])

    @property
    def path(self) -> str:
        """For the log, should it fail."""
        return str(self.environ["RAW_URI"]).partition("?")[0]


@lru_cache(maxsize=256)
def _variable(name: str) -> str:
    """The CGI variable of a header (RFC 3875, 4.1.18)."""
    variable = name.upper().replace("-", "_")
    return variable if variable in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{variable}"


def plain_request(there: bytes, base: dict[str, Any]) -> PlainRequest | None:
    """The request that `there` is, with its environ (PEP 3333) on top of `base`; None if gunicorn must judge."""
    head = _HEAD.match(there)
    if head is None or head.end() > _MAX_HEAD_BYTES:
        return None
    method, target, lines = head.group(1, 2, 3)
    fields = lines.decode("ascii").split("\r\n")
    fields.pop()  # what follows the last line end
    environ = base.copy()
    for field in fields:
        name, _, value = field.partition(":")
        environ[_variable(name)] = value.strip(" ")
    connection = environ.get("HTTP_CONNECTION", "keep-alive").lower()
    length = environ.get("CONTENT_LENGTH", "0")
    if (
        len(environ) != len(base) + len(fields)  # a header stands twice
        or not _NOT_PLAIN.isdisjoint(environ)
        or "HTTP_HOST" not in environ
        or connection not in {"keep-alive", "close"}
        or not _LENGTH.fullmatch(length)
        or len(there) != head.end() + int(length)
    ):
        return None
    uri = target.decode("ascii")
    path, _, query = uri.partition("?")
    environ["REQUEST_METHOD"] = method.decode("ascii")
    environ["RAW_URI"] = uri
    environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1") if "%" in path else path
    environ["QUERY_STRING"] = query
    environ["wsgi.input"] = BytesIO(there[head.end() :])
    return PlainRequest(environ, stays=connection == "keep-alive")


def connection_environ(cfg: Any, client: Any, server: Any) -> dict[str, Any]:
    """What every request of a connection has in its environ; `client` and `server` are their addresses."""
    environ: dict[str, Any] = base_environ(cfg)
    return environ | {
        "wsgi.multithread": True,
        "wsgi.url_scheme": "http",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SCRIPT_NAME": "",
        "REMOTE_ADDR": client[0],
        "REMOTE_PORT": str(client[1]),
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
    }


class PlainAnswer:
    """Sends what the application answers: status, headers and body together where the body is one piece."""

    def __init__(self, request: PlainRequest, *, may_stay: bool) -> None:
        self.request = request
        self.stays = request.stays and may_stay
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.has_begun = False

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[..., Any]:
        """PEP 3333's, without its `write`, which Django does not use."""
        self.status, self.headers = status, headers
        return _no_write

    def send(self, body: Iterable[bytes], client: socket) -> bool:
        """Send it to `client`; True if the connection stays open.

        Raises:
            OSError: the client is gone, or took nothing for as long as its socket waits.
            ValueError: a header holds a line end, or the body is not as long as its Content-Length says.
        """
        left = next((int(value) for name, value in self.headers if name == "Content-Length"), None)
        if self.request.method == "HEAD" or self.status[:3] in _NO_BODY:
            left = 0
        if left is None:
            # Nothing but the end of the connection tells where the body ends.
            self.stays = False
        pending = self._head()
        for piece in body:
            if left == 0:
                break
            if left is not None:
                left -= len(piece)
                if left < 0:
                    raise ValueError("the body is longer than its Content-Length")
            self.has_begun = True
            client.sendall(pending + piece)
            pending = b""
        if pending:
            client.sendall(pending)
        if left:
            raise ValueError("the body is shorter than its Content-Length")
        return self.stays

    def _head(self) -> bytes:
        lines = [f"{name}: {value}\r\n" for name, value in self.headers]
        connection = "keep-alive" if self.stays else "close"
        head = (
            f"HTTP/1.1 {self.status}\r\nServer: {SERVER}\r\nDate: {_date(int(time.time()))}\r\n"
            f"Connection: {connection}\r\n{''.join(lines)}\r\n"
        )
        # Django refuses line ends in headers too; a second answer slipped into the first would be another user's.
        if head.count("\n") != len(lines) + 5 or head.count("\r") != len(lines) + 5:
            raise ValueError("a header holds a line end")
        return head.encode("latin-1")


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


def _no_write(_: bytes) -> None:
    raise NotImplementedError("this server has no `write`")
