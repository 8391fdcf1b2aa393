"""How the tests speak HTTP: bytes of JSON through Django's test client, or over the network to a running server.

Every answer is held against the committed OpenAPI document (document.py) before a test sees it.
"""

import functools
import http.client
import json as jsons
import select
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode, urlsplit

from django.dispatch import receiver
from django.test import Client
from django.test.signals import setting_changed

from tests import document

# How long a test waits for an answer before it gives up; no request may take that long.
PATIENCE_SECONDS = 30.0


class _Headers(dict[str, str]):
    """Headers by lower-case name; looked up in any spelling."""

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).lower())

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: _Headers
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which must be JSON."""
        return jsons.loads(self.body)

    @property
    def code(self) -> str | None:
        """The `code` of a problem document, None for any other answer."""
        return self.json["code"] if self.status >= 400 and self.body else None

    @property
    def faults(self) -> dict[str, str]:
        """The codes of `errors` by pointer; empty where there are none."""
        return {fault["pointer"]: fault["code"] for fault in self.json.get("errors", [])}

    def expect(self, status: int, code: str | None = None) -> "Answer":
        """This answer, if it has this status (and this code), so that calls can be chained."""
        assert self.status == status, f"{self.status} instead of {status}: {self.body[:2000]!r}"
        if code is not None:
            assert self.code == code, f"{self.code} instead of {code}: {self.body[:2000]!r}"
        return self


Transport = Callable[[str, str, Mapping[str, str], bytes], Answer]

_NOTHING: Any = object()


@dataclass(frozen=True)
class Api:
    """A client of the API. `json` is any JSON value, `body` raw bytes that are sent as they are.

    `path` may hold a query string; `query` is appended to it. A header given as None is left out.
    """

    transport: Transport
    key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def holding(self, key: str | None) -> "Api":
        """The same client with another key or token; None for without."""
        return replace(self, key=key)

    def get(self, path: str, query: Mapping[str, Any] | None = None, **options: Any) -> Answer:
        return self.request("GET", path, query=query, **options)

    def post(self, path: str, json: Any = _NOTHING, **options: Any) -> Answer:
        return self.request("POST", path, json, **options)

    def patch(self, path: str, json: Any = _NOTHING, **options: Any) -> Answer:
        return self.request("PATCH", path, json, **options)

    def delete(self, path: str, json: Any = _NOTHING, **options: Any) -> Answer:
        return self.request("DELETE", path, json, **options)

    def request(
        self,
        method: str,
        path: str,
        json: Any = _NOTHING,
        *,
        body: bytes | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> Answer:
        """Send a request; return its answer, which agrees with the OpenAPI document."""
        if query:
            path += ("&" if "?" in path else "?") + urlencode(query)
        sent: dict[str, str | None] = {**self.headers}
        if self.key is not None:
            sent["Authorization"] = f"Bearer {self.key}"
        if json is not _NOTHING:
            body = jsons.dumps(json).encode()
        if body is not None:
            sent["Content-Type"] = "application/json"
        sent |= headers or {}
        answer = self.transport(
            method, path, {name: value for name, value in sent.items() if value is not None}, body or b""
        )
        document.check(document.Exchange(method, path, body or b"", answer.status, answer.headers, answer.body))
        return answer

    # What most tests begin with.

    def send(self, recipient: str | None = None, content: str = "Hello", **fields: Any) -> dict[str, Any]:
        """Send one message; return it."""
        draft = {"content": content, **fields}
        if recipient is not None:
            draft["recipient"] = recipient
        message: dict[str, Any] = self.post("/messages/", draft).expect(201).json
        return message

    def mailbox(self, recipient: str) -> dict[str, Any]:
        """The mailbox of a recipient."""
        found: dict[str, Any] = self.get("/mailbox", {"recipient": recipient}).expect(200).json
        return found

    def pages(self, path: str, query: Mapping[str, Any], link: str = "next") -> list[dict[str, Any]]:
        """All messages from a page on, along its links."""
        page = self.get(path, query).expect(200).json
        found: list[dict[str, Any]] = page["results"]
        while page[link]:
            url = urlsplit(page[link])
            page = self.get(f"{url.path}?{url.query}").expect(200).json
            found += page["results"]
        return found


def through(client: Client) -> Transport:
    """Through Django's test client: all of the application, none of the web server. A crash is an answer, 500."""

    def transport(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        client.raise_request_exception = False
        content_type = next((value for name, value in headers.items() if name.lower() == "content-type"), "")
        response = client.generic(method, path, body, content_type=content_type, headers=dict(headers))
        content = b"".join(response) if response.streaming else response.content
        return Answer(response.status_code, _Headers({k.lower(): v for k, v in response.items()}), content)

    return transport


@functools.cache
def _client() -> Client:
    # Its middleware is built once: WhiteNoise alone looks at every static file, ten times the cost of a request.
    return Client()


@receiver(setting_changed)
def _forget_client(**_change: Any) -> None:
    # Middleware reads settings when it is built.
    _client.cache_clear()


def in_process(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
    """Through one test client for all tests, a new one after a setting has changed."""
    return through(_client())(method, path, headers, body)


def _has_come(connection: socket.socket) -> bool:
    """Whether there is something to read, or an end. Not by select(), which takes no descriptor above 1,023."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


class Network:
    """Over HTTP to a running server, on one persistent connection for each thread, until `close`."""

    def __init__(self, url: str, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        self._host = urlsplit(url).netloc
        self._timeout_seconds = timeout_seconds
        self._own = threading.local()
        self._all: list[http.client.HTTPConnection] = []

    def __call__(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = http.client.HTTPConnection(self._host, timeout=self._timeout_seconds)
            self._all.append(connection)
        if connection.sock and _has_come(connection.sock):
            # The server has closed it meanwhile; the next request opens another.
            connection.close()
        try:
            connection.request(method, path, body or None, dict(headers))
            response = connection.getresponse()
            content = response.read()
        except BaseException:
            # Unread data belongs to a request whose answer is not awaited any more.
            connection.close()
            raise
        return Answer(response.status, _Headers({k.lower(): v for k, v in response.getheaders()}), content)

    def close(self) -> None:
        for connection in self._all:
            connection.close()
