"""The checks before a process serves: valid settings, a free port, a database that answers and is migrated.

The commands of `python -m messages_project` call them after `django.setup()`. Each raises StartError.
"""

import errno
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, NamedTuple

import django
import psycopg
from django.conf import settings
from django.core import checks
from django.core.management import call_command
from django.db import DEFAULT_DB_ALIAS, connections

from messages_project import health
from messages_project.boot import StartError, no_database
from messaging.postgresql.sqlstates import first_line

Session = psycopg.Connection[Any]

MAX_CONNECTIONS = 1_000  # of each worker
_MIN_CONNECTIONS = 50
# Other files of a worker: connections to PostgreSQL for at most 64 threads, Redis, logs, static files, modules.
_OTHER_FILES = 150
_WANTED_FILES = MAX_CONNECTIONS + _OTHER_FILES
_PORT_SECONDS = 3.0  # for the workers of a killed predecessor to end


class Address(NamedTuple):
    """Where to listen: a numeric address and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def run_checks() -> None:
    found = checks.run_checks(include_deployment_checks=True)
    errors = [message for message in found if message.is_serious() and not message.is_silenced()]
    if errors:
        lines = "".join(f"\n  - {message.msg} ({message.id})\n    {message.hint or ''}".rstrip() for message in errors)
        raise StartError(f"This configuration is refused:{lines}")


def require_granian() -> None:
    """Raise StartError if it is to serve, and is not installed."""
    if settings.WEB_SERVER == "granian" and not find_spec("granian"):
        raise StartError("WEB_SERVER=granian is not installed. Run: pip install 'granian>=2.8,<3'")


def require_tracing() -> None:
    """Raise StartError if traces are to be sent, and what sends them is not installed."""
    if settings.TRACING and not (find_spec("opentelemetry") and find_spec("opentelemetry.sdk")):
        raise StartError(
            "An endpoint for traces (OTEL_EXPORTER_OTLP_...) is set, but what sends traces is not installed. "
            "Run: pip install -r requirements-otel.txt"
        )


def raise_open_files(wanted: int) -> int:
    """Raise the limit of open files of this process to `wanted`, or as far as it may; return how far that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


def max_connections() -> int:
    """The number of client connections, including idle ones, that a worker may hold. Raises the limit of open files.

    Without a free file descriptor, a server can neither accept a connection nor reach PostgreSQL.
    """
    return min(MAX_CONNECTIONS, raise_open_files(_WANTED_FILES) - _OTHER_FILES)


def require_open_files() -> None:
    connections_allowed = max_connections()
    limit = connections_allowed + _OTHER_FILES
    if connections_allowed < _MIN_CONNECTIONS:
        raise StartError(
            f"A process may open {limit} files here, too few to serve. "
            f"Raise the limit: ulimit -n {_WANTED_FILES}, or LimitNOFILE={_WANTED_FILES} for systemd."
        )
    if connections_allowed < MAX_CONNECTIONS:
        tell(
            f"A limit of {limit} open files allows {connections_allowed} connections to a worker;"
            f" for more, ulimit -n {_WANTED_FILES}."
        )


# --- the address


def free_address(port: int) -> Address:
    """The address of BIND and a port, if no process listens there.

    Waits a few seconds for a busy port: the workers of a killed predecessor need time to stop. Workers listen with
    SO_REUSEPORT, so another service could listen there too until they do: on Linux the address is claimed before.
    """
    try:
        family, _, _, _, found = socket.getaddrinfo(
            settings.BIND, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise StartError(f"BIND={settings.BIND} is no address of this machine; use 127.0.0.1 or 0.0.0.0.") from error
    address = Address(str(found[0]), int(found[1]))
    deadline = time.monotonic() + _PORT_SECONDS
    with socket.socket(socket.AF_UNIX) as claim:
        while True:
            try:
                if sys.platform == "linux" and not claim.getsockname():
                    # An abstract socket (unix(7)): the kernel removes its name with its last descriptor.
                    claim.bind(f"\0messages {address.host}:{address.port}")
                # Without SO_REUSEPORT, so that it fails if any other process listens.
                socket.create_server(found, family=family, dualstack_ipv6=family == socket.AF_INET6).close()
                claim.detach()  # open as long as this process or a child of it runs
                return address
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise StartError(_why_not(error.errno, port)) from error
            time.sleep(0.05)


def _why_not(code: int | None, port: int) -> str:
    where = Address(settings.BIND, port)
    name = "PORT" if port == settings.PORT else "LIVE_PORT"
    if code == errno.EADDRINUSE:
        return f"{where} is in use by another process. Stop it, or choose another port: {name}={port + 1}."
    if code == errno.EACCES:
        return f"This user may not listen on {where}. Choose a port above 1023: {name}=8000."
    return f"Cannot listen on {where} ({os.strerror(code or 0)}). Set BIND to an address of this machine."


# --- the database


def wait_for_database(look: Callable[[Session], health.Fault | None] = lambda _session: None) -> health.Fault | None:
    """What `look` finds once the database accepts a connection; give up after DATABASE_WAIT_SECONDS.

    A refusal is waited for as well: PostgreSQL may be starting, or have no connection left. libpq tells only the text
    of an error met while connecting, in the server's language, and no SQLSTATE.
    """
    parameters = connections[DEFAULT_DB_ALIAS].get_connection_params()
    deadline = time.monotonic() + settings.DATABASE_WAIT_SECONDS
    has_told = False
    while True:
        try:
            with psycopg.connect(**parameters, autocommit=True) as connection:
                return look(connection)
        except psycopg.Error as error:
            if time.monotonic() > deadline:
                raise StartError(no_database(first_line(error))) from error
            if not has_told:
                where = f"{parameters['host']}:{parameters['port']}"
                tell(f"Waiting for PostgreSQL at {where} ({first_line(error)}) ...")
                has_told = True
            time.sleep(0.3)


def require_usable_database() -> None:
    """Wait for the database; raise StartError if the service needs another one, or another user.

    /readyz reports passing faults.
    """
    fault = wait_for_database(health.fault_of)
    if fault and not fault.is_passing:
        raise StartError(f"PostgreSQL cannot be used: {fault.reason}.\n{fault.cure}")


def migrate() -> None:
    """Apply missing migrations. If several processes start at once, one applies them and the others wait."""
    try:
        with _without_pool():
            if health.is_migrated():
                return
            if settings.POSTGRES_BEHIND_PGBOUNCER:
                raise StartError(
                    "Migrations are missing, and cannot be applied through PgBouncer. Run `manage.py migrate` with "
                    "POSTGRES_HOST and POSTGRES_PORT of PostgreSQL itself, then start again."
                )
            tell("Migrating the database, or waiting for the process that does ...")
            call_command("migrate", interactive=False, verbosity=0)
    except django.db.Error as error:
        raise StartError(
            f"The migrations could not be applied: {first_line(error)}\n"
            "Run `manage.py migrate`, to see all of it. Its database user must own the tables."
        ) from error


@contextmanager
def _without_pool() -> Iterator[None]:
    """Use one connection without a pool, and close it at the end.

    The threads of a pool use OpenSSL, for passwords and TLS. A fork while one of them runs, or ends, may copy a lock
    that it has taken: no process after that fork could then connect to PostgreSQL.
    """
    connection = connections[DEFAULT_DB_ALIAS]
    options = connection.settings_dict["OPTIONS"]
    pool = options.pop("pool")
    try:
        yield
    finally:
        connection.close()
        options["pool"] = pool


# --- the rest


def welcome() -> None:
    url = settings.LOCAL_URL
    key = "" if settings.MESSAGES_ACCESS == "open" else " -H 'Authorization: Bearer KEY'"
    tell(
        f"Serving on {url}  (docs {url}/docs, admin {url}/admin/)\n"
        f"Try: curl {url}/messages/{key} -H 'Content-Type: application/json' "
        """-d '{"recipient": "ada", "content": "Hello"}'"""
    )


def tell(text: str) -> None:
    """Print a line on standard error. A full disk of logs must not prevent a start; logging passes over it too."""
    with suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
