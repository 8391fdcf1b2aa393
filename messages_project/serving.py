"""Serving with gunicorn: what must hold before the first request, and the server's configuration.

Started by __main__.py, after boot.py. What a request passes through stands in handler.py and settings.MIDDLEWARE.
"""

import contextlib
import errno
import queue
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import django
import psycopg
from django.conf import settings
from django.core import checks
from django.core.management import call_command
from django.db import DEFAULT_DB_ALIAS, connections
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger as GunicornLogger

from messages_project import health
from messages_project.boot import StartError, no_database
from messages_project.epoll_worker import EpollWorker
from messages_project.handler import Handler, settle
from messages_project.memory import give_large_blocks_back
from messages_project.orphans import follower
from messages_project.worker import Worker

_BACKLOG = 1024


def serve() -> None:
    """Serve until SIGTERM or SIGINT, then raise SystemExit(0).

    Raises StartError.
    """
    give_large_blocks_back()
    django.setup()
    _run_checks()
    _refuse_busy_port()
    _wait_for_database()
    if settings.MIGRATE_ON_START:
        _migrate()
    # No connection may cross a fork: parent and child would talk over each other on one socket.
    connection: Any = connections[DEFAULT_DB_ALIAS]
    connection.close()
    connection.close_pool()
    Server().run()


def _run_checks() -> None:
    found = checks.run_checks(include_deployment_checks=True)
    errors = [message for message in found if message.is_serious() and not message.is_silenced()]
    if errors:
        lines = "".join(f"\n  - {message.msg} ({message.id})\n    {message.hint or ''}".rstrip() for message in errors)
        raise StartError(f"This configuration is refused:{lines}")


# --- the address


def _address() -> tuple[socket.AddressFamily, Any]:
    try:
        found = socket.getaddrinfo(
            settings.BIND.strip("[]"), settings.PORT, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise StartError(f"BIND={settings.BIND} is no address of this machine; use 127.0.0.1 or 0.0.0.0.") from error
    return found[0][0], found[0][4]


def _bound_socket(*, shared: bool) -> socket.socket:
    family, address = _address()
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        where = f"{settings.BIND}:{settings.PORT}"
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"{where} is in use by another process. Stop it, or choose another port: PORT=8001."
            ) from error
        if error.errno == errno.EACCES:
            raise StartError(f"This user may not listen on {where}. Choose a port above 1023: PORT=8000.") from error
        raise StartError(
            f"Cannot listen on {where} ({error.strerror}). Set BIND to an address of this machine."
        ) from error
    return listener


def _refuse_busy_port() -> None:
    """Raise StartError if another process listens; the workers of a killed predecessor get a second to notice."""
    deadline = time.monotonic() + 1
    while True:
        try:
            _bound_socket(shared=False).close()
            return
        except StartError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _listeners(workers: int) -> list[socket.socket]:
    """A socket for each worker, all at one address.

    The kernel spreads new connections over them; with a single one, whichever worker wakes first takes more than its
    share. They belong to the parent, so what waits in the queue of a worker that dies is served by the next one.
    """
    _refuse_busy_port()
    if sys.platform != "linux":  # elsewhere SO_REUSEPORT does not spread
        return [_bound_socket(shared=False)]
    return [_bound_socket(shared=True) for _ in range(workers)]


# --- the database


def _wait_for_database() -> None:
    """Return once the database accepts a connection; give up after DATABASE_WAIT_SECONDS, or when it refuses us."""
    parameters = connections[DEFAULT_DB_ALIAS].get_connection_params()
    deadline = time.monotonic() + settings.DATABASE_WAIT_SECONDS
    has_told = False
    while True:
        try:
            psycopg.connect(**parameters).close()
            return
        except psycopg.OperationalError as error:
            reason = str(error).strip().partition("\n")[0]
            is_refusal = "FATAL" in reason and "the database system is" not in reason and "too many" not in reason
            if is_refusal or time.monotonic() > deadline:
                raise StartError(no_database(error)) from error
            if not has_told:
                _tell(f"Waiting for PostgreSQL at {parameters['host']}:{parameters['port']} ...")
                has_told = True
            time.sleep(0.3)


def _migrate() -> None:
    """Apply the migrations that are missing. Of several processes that start at once, one does so, the others wait."""
    if health.is_migrated():
        return
    if settings.POSTGRES_BEHIND_PGBOUNCER:
        raise StartError(
            "Migrations are missing, and cannot be applied through PgBouncer. "
            "Run `manage.py migrate` with POSTGRES_HOST and POSTGRES_PORT of PostgreSQL itself, then start again."
        )
    _tell("Migrating the database, or waiting for the process that does ...")
    try:
        call_command("migrate", interactive=False, verbosity=0)
    except django.db.Error as error:
        reason = str(error).partition("\n")[0]
        raise StartError(
            f"The migrations could not be applied: {reason}\nRun `manage.py migrate` as a database user "
            "that may create tables, to see all of it."
        ) from error


# --- gunicorn


class _Logger(GunicornLogger):  # type: ignore[misc]
    """Leaves handlers and formats to settings.LOGGING; the access log is RequestMiddleware's."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self._access_log_enabled = False
        self.error_log.propagate = True


class _Arbiter(Arbiter):  # type: ignore[misc]
    """gunicorn's parent process, which announces its stop to /readyz and gives load balancers the time to notice."""

    def handle_term(self) -> None:
        health.announce_stop()
        deadline = time.monotonic() + settings.SHUTDOWN_DELAY_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                if self.SIG_QUEUE.get(timeout=left) in {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}:
                    break
        super().handle_term()

    def handle_int(self) -> None:
        health.announce_stop()
        super().handle_int()

    # The terminal is gone; and new code needs a new process, since this one has loaded the old.
    handle_hup = handle_term

    def handle_usr2(self) -> None:
        self.log.warning("SIGUSR2 is not supported: start a second process and stop this one")


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn, configured from Django's settings and from nothing else."""

    def load_config(self) -> None:
        self.listeners = _listeners(settings.WEB_CONCURRENCY)
        # Workers of a parent that was killed would keep the port from the next one.
        self.follow = follower(signal.SIGTERM)
        shared_memory = Path("/dev/shm")  # noqa: S108 - gunicorn makes an unlinked file of its own there
        options = {
            "bind": [f"fd://{listener.detach()}" for listener in self.listeners],
            "workers": settings.WEB_CONCURRENCY,
            "threads": settings.WEB_THREADS,
            "worker_class": EpollWorker if sys.platform == "linux" else Worker,
            "worker_connections": 1000,
            "backlog": _BACKLOG,
            # Above the 60 s after which common proxies drop an idle connection, so that it is they who close it.
            "keepalive": 75,
            "timeout": 60,
            "graceful_timeout": settings.GRACEFUL_TIMEOUT_SECONDS,
            # A heartbeat on a disk can block for seconds, and its worker would be taken for dead.
            "worker_tmp_dir": str(shared_memory) if shared_memory.is_dir() else None,
            "control_socket_disable": True,
            "logger_class": _Logger,
            "limit_request_line": 8190,
            "limit_request_fields": 64,
            "limit_request_field_size": 8190,
            # Whoever connects is the client; proxies are Django's business (MESSAGES_TRUSTED_PROXIES).
            "forwarded_allow_ips": "",
            "when_ready": _welcome,
            "pre_fork": self.choose_slot,
            "post_fork": self.take_slot,
            "post_worker_init": settle,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return Handler()

    def run(self) -> None:
        _Arbiter(self).run()

    def choose_slot(self, arbiter: Any, worker: Any) -> None:
        """Give the new worker the listener that the fewest of the living ones have."""
        taken = [sibling.slot for sibling in arbiter.WORKERS.values()]
        worker.slot = min(range(len(arbiter.LISTENERS)), key=taken.count)

    def take_slot(self, _arbiter: Any, worker: Any) -> None:
        self.follow()
        mine = worker.sockets[worker.slot]
        for listener in worker.sockets:
            if listener is not mine:
                listener.close()
        worker.sockets = [mine]


def _welcome(_arbiter: Any) -> None:
    host = settings.BIND if settings.BIND not in {"0.0.0.0", "::"} else "localhost"  # noqa: S104 - a comparison
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.PORT}"
    key = "" if settings.MESSAGES_ACCESS == "open" else " -H 'Authorization: Bearer KEY'"
    _tell(
        f"Serving on {url}  (docs {url}/docs, admin {url}/admin/)\n"
        f"Try: curl {url}/messages/{key} -H 'Content-Type: application/json' "
        """-d '{"recipient": "ada", "content": "Hello"}'"""
    )


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
