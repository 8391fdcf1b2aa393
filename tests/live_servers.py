"""The live process, and clients that follow a mailbox over real connections."""

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode

from django.test import override_settings

from messaging.auth import tokens
from tests.helpers import PATIENCE_SECONDS
from tests.servers import RunningServer, free_port, wait_until

TOKEN_SECRET = "a-secret-for-tokens-of-tests-0123456789abcdef"


class RunningLive(RunningServer):
    """`python -m messages_project live` with the given variables, from the moment that it is ready."""

    command = ("live",)
    port_variable = "LIVE_PORT"


class Event(NamedTuple):
    """One event of a stream."""

    id: int
    mailbox: dict[str, Any]


class Stream:
    """A client of /mailbox/events, which reads in a thread of its own."""

    def __init__(self, port: int, bearer: str | None = None, *, last_event_id: int | None = None, **query: Any) -> None:
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        if last_event_id is not None:
            headers["Last-Event-ID"] = str(last_event_id)
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        self._connection.request("GET", f"/mailbox/events?{urlencode(query)}", headers=headers)
        self._socket = self._connection.sock
        self.response = self._connection.getresponse()
        self.status = self.response.status
        self.events: list[Event] = []
        self.retries: list[int] = []  # what the stream said about connecting again, in milliseconds
        self.has_ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        if self.status == 200:
            self._thread.start()

    def _read(self) -> None:
        fields: dict[str, str] = {}
        try:
            for line in iter(self.response.readline, b""):
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "retry":
                    self.retries.append(int(value))
                elif name and not name.startswith(":"):
                    fields[name] = value
                elif fields:
                    assert fields["event"] == "mailbox"
                    self.events.append(Event(int(fields["id"]), json.loads(fields["data"])))
                    fields = {}
        except (OSError, http.client.HTTPException, ValueError, AttributeError):
            pass  # closed by the test, or cut off by a server that was killed
        finally:
            self.has_ended = True

    @property
    def version(self) -> int:
        """The version of the last event; -1 before the first."""
        return self.events[-1].id if self.events else -1

    def wait_for(self, version: int, seconds: float = PATIENCE_SECONDS) -> "Stream":
        """This stream, once it is at a version."""
        wait_until(lambda: self.version == version, seconds, what=f"version {version} on a stream")
        return self

    def wait_for_end(self, seconds: float = PATIENCE_SECONDS) -> "Stream":
        """This stream, once the server has ended it."""
        wait_until(lambda: self.has_ended, seconds, what="the end of a stream")
        return self

    def close(self) -> None:
        """Leave, as a client that is closed does."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # which ends the reading, too
        if self._thread.is_alive():
            self._thread.join()
        self.response.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()


class Service:
    """The API and the live process beside it, as on one machine; `api` may do everything."""

    def __init__(
        self, run_server: Callable[..., RunningServer], run_live: Callable[..., RunningLive], key: str
    ) -> None:
        variables = {"MESSAGES_TOKEN_SECRET": TOKEN_SECRET, "PLAIN_HTTP": "true", "WEB_CONCURRENCY": "1"}
        live_port = str(free_port())
        self.server = run_server(LIVE_PORT=live_port, **variables)
        self.live = run_live(LIVE_PORT=live_port, PORT=str(self.server.port), **variables)
        self.api = self.server.api(key)

    def messages(self, recipient: str, ordering: str = "created_at") -> list[Any]:
        """Every message of a recipient."""
        return self.api.pages("/messages/", {"recipient": recipient, "ordering": ordering, "limit": 200})


def token(*scopes: str, recipient: str = "ada", seconds: float = 600) -> str:
    """A token that the processes of `Service` take."""
    with override_settings(MESSAGES_TOKEN_SECRET=TOKEN_SECRET):
        return tokens.create(recipient=recipient, scopes=scopes, lifetime=timedelta(seconds=seconds))
