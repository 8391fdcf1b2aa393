"""Runs before Django reads its settings: names the settings module, and starts the embedded PostgreSQL if required."""

import io
import os
import signal
import sys
from importlib import import_module
from importlib.util import find_spec
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from messages_project import env

if TYPE_CHECKING:
    from messages_project.embedded_postgres import Server


IS_PGBOUNCER = "That is PgBouncer: set POSTGRES_BEHIND_PGBOUNCER=true, or connect to PostgreSQL itself."


class StartError(Exception):
    """The process cannot start. The text says why, and what to do."""


stops: list[int] = []  # the signals to stop that have arrived during the start


def handle_signals() -> None:
    """From now on let SIGTERM raise KeyboardInterrupt, as Ctrl-C does, and ignore the signals of log rotation.

    Process 1 of a container has no default action for SIGTERM, and psycopg cancels the running statement on
    KeyboardInterrupt. The default action of SIGUSR1 and SIGUSR2 ends a process.
    """
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    stops.append(number)
    raise KeyboardInterrupt


def end_if_stopped() -> None:
    """Raise KeyboardInterrupt if a signal to stop has arrived during the start.

    Python drops an exception that is raised in a callback of a weak reference or of the garbage collector.
    """
    if stops:
        raise KeyboardInterrupt


def prepare() -> "Server | None":
    """Set DJANGO_SETTINGS_MODULE, and start the embedded PostgreSQL if POSTGRES_HOST is not set.

    Returns the embedded server, or None. Raises StartError, and SettingsError if the environment has faults.
    """
    _open_standard_streams()
    _unbuffer_errors()
    if not find_spec("django"):
        raise StartError(
            f"Django is not installed for {sys.executable}. "
            "Run .venv/bin/python instead, which `make serve` creates; or pip install -r requirements.txt"
        )
    if sys.flags.optimize > 1:
        raise StartError("Python drops docstrings here, which are texts of the API. Unset PYTHONOPTIMIZE or -OO.")
    env.default(DJANGO_SETTINGS_MODULE="messages_project.settings")
    if not env.is_set("WEB_CONCURRENCY"):
        os.environ.pop("WEB_CONCURRENCY", None)  # gunicorn reads it when it is imported, and fails on an empty one
    for name in ("PGDATESTYLE", "PGTZ", "PGHOSTADDR", "PGSERVICE"):
        os.environ.pop(name, None)  # libpq would let them override the settings of a session, and POSTGRES_HOST
    server = None
    if not env.is_set("POSTGRES_HOST"):
        from messages_project import embedded_postgres

        server = embedded_postgres.start()
    name = os.environ["DJANGO_SETTINGS_MODULE"]
    try:
        # Raises SettingsError here, before other code reads the settings.
        import_module(name)
    except ModuleNotFoundError as error:
        raise StartError(f"DJANGO_SETTINGS_MODULE={name} cannot be imported: {error}. Unset it.") from error
    return server


def _open_standard_streams() -> None:
    """Open /dev/null for each standard stream that the caller has closed.

    Otherwise the next connection would get its descriptor, and Python has None in place of the stream.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - positional only
        # The descriptor stays open when another stream takes the place of this one.
        stream = os.fdopen(descriptor, "w" if descriptor else "r", encoding="utf-8", closefd=False)
        setattr(sys, ("stdin", "stdout", "stderr")[descriptor], stream)
    os.close(descriptor)


def _unbuffer_errors() -> None:
    """Write to standard error without a buffer, as PYTHONUNBUFFERED does.

    What a full disk refuses would stay in the buffer, and fail every later flush: at a fork, and at the end.
    """
    raw = os.fdopen(2, "wb", buffering=0, closefd=False)
    sys.stderr = io.TextIOWrapper(raw, encoding=sys.stderr.encoding, errors="backslashreplace", write_through=True)


def why_no_connection(error: Exception) -> str:
    """Why PostgreSQL cannot be reached, in one line. The error of a pool says only that its time is up."""
    import psycopg
    from django.db import connection

    from messaging.postgresql.sqlstates import first_line

    try:
        psycopg.connect(**connection.get_connection_params()).close()
    except psycopg.OperationalError as refusal:
        error = refusal
    return first_line(error)


def no_database(reason: str) -> str:
    """The message for a database that does not answer, or that refuses the connection, and why."""
    from django.conf import settings

    database = settings.DATABASES["default"]
    cure = (
        "Start it, or correct POSTGRES_HOST, POSTGRES_PORT, POSTGRES_DB, POSTGRES_USER, POSTGRES_PASSWORD and "
        "POSTGRES_SSLMODE; "
        "without POSTGRES_HOST an embedded PostgreSQL is used."
    )
    if "unsupported startup parameter" in reason:
        cure = IS_PGBOUNCER
    return (
        f"No connection to PostgreSQL database {database['NAME']!r} as {database['USER']!r} "
        f"at {database['HOST']}:{database['PORT']}: {reason}\n{cure}"
    )
