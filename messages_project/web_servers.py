"""The two servers that can run the application, each configured by what it documents, from Django's settings.

https://gunicorn.org/reference/settings/ and https://github.com/emmett-framework/granian.
"""

import gc
import multiprocessing
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.conf import settings
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.util import close_graceful

from messages_project import closing
from messages_project.startup import Address, max_connections, welcome
from messages_project.supervisor import follow_parent

_BACKLOG = 1024
# Above the 60 s after which common proxies drop an idle connection, so that it is they who close it.
_KEEPALIVE_SECONDS = 75
_HEAD_BYTES = 64 * 1024  # of Granian; gunicorn's limits are those of lines
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - gunicorn makes an unlinked file of its own there


def _application() -> Any:
    # Here, since Django must be set up before it is made.
    from messages_project.wsgi import application

    return application


def _load_for_all() -> None:
    """Load what workers share, before the fork: the garbage collector shall not visit, and so copy, that memory."""
    _application()
    gc.collect()
    gc.freeze()


# --- gunicorn


class _GunicornLogger(Logger):  # type: ignore[misc]
    """Leaves handlers and formats to settings.LOGGING; the access log is RequestMiddleware's."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self._access_log_enabled = False
        self.error_log.propagate = True

    def warning(self, msg: str, *args: Any, **options: Any) -> None:
        # gunicorn quotes a line of a request that it refuses: it may hold a query string, a key, or a part of a body.
        if msg.startswith("Invalid request from "):
            msg = msg.partition("'")[0].partition('"')[0].rstrip()
        super().warning(msg, *args, **options)


def _end_connection(_worker: Any, _request: Any, environ: dict[str, Any], response: Any) -> None:
    """End a connection that the response closes, in the thread of its request.

    gunicorn's main thread would wait for up to 2 seconds until the client closes its side too, and serve nobody
    meanwhile.
    """
    if response is None or not response.headers_sent or not response.should_close():
        return
    with suppress(OSError):
        if getattr(environ.get("wsgi.input"), "unread", 0):
            # A connection that is closed with data unread is reset, and the response may be lost (RFC 9112, 9.6).
            close_graceful(response.sock.dup(), max_drain=closing.max_drained_bytes())
            # What still comes shall reset it. Else the kernel leaves the client waiting for room, for minutes.
            response.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        response.sock.shutdown(socket.SHUT_RDWR)


class _Gunicorn(BaseApplication):  # type: ignore[misc]
    """gunicorn as a custom application: configured here, and by no file, environment or command line."""

    def __init__(self, address: Address) -> None:
        self.address = address
        super().__init__()

    def load_config(self) -> None:
        options = {
            "bind": str(self.address),
            "workers": settings.WEB_CONCURRENCY,
            "threads": settings.WEB_THREADS,
            "worker_class": "gthread",
            "worker_connections": max_connections(),
            "backlog": _BACKLOG,
            # A listening socket for each worker: with one for all, whichever wakes first takes more than its share of
            # persistent connections. Elsewhere than on Linux the kernel does not spread connections over them.
            "reuse_port": sys.platform == "linux",
            "keepalive": _KEEPALIVE_SECONDS,
            "timeout": 60,
            "graceful_timeout": settings.GRACEFUL_TIMEOUT_SECONDS,
            # A heartbeat on a disk can block for seconds, and its worker would be taken for dead.
            "worker_tmp_dir": _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None,
            # By default all instances of a user share one path.
            "control_socket_disable": True,
            "logger_class": _GunicornLogger,
            "limit_request_line": 8190,
            "limit_request_fields": 64,
            "limit_request_field_size": 8190,
            # The application decides which proxies are trusted (MESSAGES_TRUSTED_PROXIES, TRUST_FORWARDED_PROTO).
            "forwarded_allow_ips": "",
            "when_ready": lambda _arbiter: welcome(),
            "pre_request": lambda _worker, request: closing.serving(request),
            "post_request": _end_connection,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return _application()


def run_gunicorn(address: Address) -> None:
    """Serve until SIGTERM or SIGINT, then raise SystemExit."""
    _load_for_all()
    _Gunicorn(address).run()


# --- Granian


def _wake_main_thread() -> None:
    """Interrupt the main thread's wait twice a second, so that it runs the handler of a signal that came elsewhere.

    CPython runs handlers in the main thread only, which Granian leaves waiting for a lock. Linux lets another thread
    receive the signal, one that is just being started for example, and the lock's wait would go on.
    """
    signal.signal(signal.SIGALRM, lambda _number, _frame: None)
    signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)


def granian_worker() -> Any:
    """The application, in a process of Granian's own."""
    follow_parent()
    _wake_main_thread()
    return _application()


def run_granian(address: Address) -> None:
    """Serve until SIGTERM or SIGINT, then return.

    `backpressure` is a number of connections, idle ones included: one beyond it is accepted only once another ends.
    """
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces, RuntimeModes
    from granian.http import HTTP1Settings
    from granian.log import LogLevels

    # Workers share what is loaded here, and the flag of `announce_stop`; Python 3.14 would start them from nothing.
    multiprocessing.set_start_method("fork", force=True)
    server = Granian(
        f"{__name__}:{granian_worker.__name__}",
        factory=True,
        interface=Interfaces.WSGI,
        address=address.host,
        port=address.port,
        workers=settings.WEB_CONCURRENCY,
        blocking_threads=settings.WEB_THREADS,
        runtime_mode=RuntimeModes.st,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=_KEEPALIVE_SECONDS * 1000, max_buffer_size=_HEAD_BYTES),
        websockets=False,
        backlog=_BACKLOG,
        backpressure=max_connections(),
        respawn_failed_workers=True,
        workers_kill_timeout=max(1, settings.GRACEFUL_TIMEOUT_SECONDS),
        log_level=LogLevels.warning,
        log_dictconfig=settings.LOGGING,
    )
    server.on_startup(welcome)
    _load_for_all()
    _wake_main_thread()
    server.serve()


SERVERS: dict[str, Callable[[Address], None]] = {"gunicorn": run_gunicorn, "granian": run_granian}
