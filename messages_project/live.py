"""`python -m messages_project live`: the live process, run by uvicorn (why it and no other: docs/decisions.md)."""

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any

import django
import uvicorn
from django.conf import settings
from uvicorn.protocols.http.h11_impl import H11Protocol

from messages_project import boot, startup
from messages_project.public_url import without_prefix
from messages_project.stopping import announce_stop, is_stopping

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import RequestResponseCycle

    # Imported by _serve, since Django must be set up before the application's views are loaded.
    from messaging.live.application import Application

logger = logging.getLogger(__name__)

_BACKLOG = 2048  # all clients of a process may reconnect at once
_SPARE_FILES = 200  # in addition to the streams: the database, libraries, idle connections
_OTHER_FILES = 100  # of these for anything but clients
# TCP_USER_TIMEOUT: a connection ends if its client has not acknowledged, or not read, data for so long.
_UNREAD_SECONDS = 30
_KEEPALIVE_IDLE_SECONDS = 20
_HEAD_SECONDS = 10  # from the connection to the end of the first request's head
_NEXT_HEAD_SECONDS = 75


def main() -> None:
    django.setup()
    startup.run_checks()
    startup.require_tracing()
    address = startup.free_address(settings.LIVE_PORT)
    startup.wait_for_database()
    if settings.MIGRATE_ON_START:
        startup.migrate()
    wanted = settings.LIVE_MAX_STREAMS + _SPARE_FILES
    if (allowed := startup.raise_open_files(wanted)) < wanted:
        logger.warning(
            "only %d files may be open, LIVE_MAX_STREAMS needs %d: raise the limit (ulimit -Hn)", allowed, wanted
        )
    asyncio.run(_serve(_listener(address, max_files=allowed - _OTHER_FILES)))


class _Listener(socket.socket):
    """Closes a connection at once if its descriptor is one of the last, which the rest of the process needs.

    Without any, asyncio tries thousands of times a second to accept, and logs each failure. The kernel gives the lowest
    free descriptor, so its number says how many are in use.
    """

    max_files: int

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        if connection.fileno() >= self.max_files:
            connection.close()
            raise ConnectionAbortedError
        return connection, address


class _Protocol(H11Protocol):
    """Closes connections that bring no whole request in time. uvicorn's own timeout ends with the first byte."""

    _timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        super().connection_made(transport)
        self._expect_request(_HEAD_SECONDS, None)

    def on_response_complete(self) -> None:
        answered = self.cycle
        super().on_response_complete()  # may begin the next request
        self._timer.cancel()
        self._expect_request(_NEXT_HEAD_SECONDS, answered)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP; if the response to it has begun, end the connection, which uvicorn does not do."""
        cycle: Any = self.cycle  # None before the first request
        if cycle is not None and cycle.response_started and cycle.more_body:
            self.transport.close()
        else:
            super().send_400_response(msg)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._timer.cancel()

    def _expect_request(self, seconds: float, before: "RequestResponseCycle | None") -> None:
        self._timer = self.loop.call_later(seconds, self._close_without_request, before)

    def _close_without_request(self, before: "RequestResponseCycle | None") -> None:
        if self.cycle is before:
            self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn waits for open connections when it stops, so all streams are ended first."""

    def __init__(self, config: uvicorn.Config, application: "Application") -> None:
        super().__init__(config)
        self._application = application

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if not is_stopping():  # else the supervisor has announced the stop, and waited
            announce_stop()
            await asyncio.sleep(settings.SHUTDOWN_DELAY_SECONDS)
        self._application.stop()
        await super().shutdown(sockets)


async def _serve(listener: socket.socket) -> None:
    from messaging.live.application import Application
    from messaging.live.hints import listen

    application = Application(urlconf="messages_project.live_urls", without_prefix=without_prefix)
    config = uvicorn.Config(
        application,
        loop="asyncio",
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,  # RequestMiddleware writes it
        server_header=False,
        proxy_headers=False,  # the application decides which proxies are trusted
        timeout_keep_alive=_NEXT_HEAD_SECONDS,
        timeout_graceful_shutdown=settings.GRACEFUL_TIMEOUT_SECONDS,
        backlog=_BACKLOG,
    )
    server = _Server(config, application)
    startup.tell(f"Following mailboxes on http://{settings.LOCAL_HOST}:{settings.LIVE_PORT}/mailbox/events")
    boot.end_if_stopped()
    # A failure in one of them ends the process, which the supervisor restarts.
    async with asyncio.TaskGroup() as group:
        companions = [
            group.create_task(work) for work in (application.hub.run(), application.hub.tend(), listen(application.hub))
        ]
        await server.serve([listener])
        for companion in companions:
            companion.cancel()


def _listener(address: startup.Address, *, max_files: int) -> socket.socket:
    """The listening socket. Connections inherit its options (tcp(7))."""
    is_ipv6 = ":" in address.host
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    bound = socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=is_ipv6)
    listener = _Listener(fileno=bound.detach())
    listener.max_files = max_files
    options = (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", _KEEPALIVE_IDLE_SECONDS),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", _UNREAD_SECONDS * 1000),
    )
    for level, name, value in options:
        if hasattr(socket, name):  # some exist on Linux only
            listener.setsockopt(level, getattr(socket, name), value)
    return listener
