"""/health, /livez and /readyz: the state of this process and of its database.

Plain Django views that need no key. The database is queried over a connection of its own, so neither a full pool nor a
server that hangs delays the response beyond its deadline.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import wraps
from http import HTTPStatus
from typing import Any, NamedTuple

import psycopg
from django.apps import apps
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse

from messages_project.boot import IS_PGBOUNCER
from messages_project.stopping import is_stopping
from messaging.api.problems import Problem
from messaging.postgresql.base import is_silent
from messaging.postgresql.sqlstates import first_line

logger = logging.getLogger(__name__)

# A dead database must be reported within 3 s.
_TIMEOUT_SECONDS = 2.5
# How long a result is reused, so that any number of pollers costs two connections a second in each process.
_FRESH_SECONDS = 0.5

# The missing privileges of the service, by table, and the schema of the table.
_MISSING_PRIVILEGES = """
SELECT format('%%s on %%I', string_agg(privilege, ', ' ORDER BY privilege), relname), relnamespace::regnamespace::text
FROM pg_class, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
WHERE (relname = ANY(%s) OR relname = 'django_migrations' AND privilege = 'SELECT')
    AND pg_table_is_visible(pg_class.oid) AND NOT has_table_privilege(pg_class.oid, privilege)
GROUP BY relname, relnamespace ORDER BY relname"""

# Policies could hide messages that exist, so statements that they apply to are refused (row_security in settings.py).
_HIDDEN = """
SELECT relname FROM pg_class
WHERE relname = ANY(%s) AND pg_table_is_visible(oid) AND row_security_active(oid) ORDER BY relname"""

# Only their sequence makes the ids of mailboxes unique, since no constraint on them is possible in partitions. Logical
# replication does not copy sequences. Its value is read later than the snapshot for max(): sends do no harm. The view
# pg_sequences, which is made of this function, would read every sequence, and fail where one of them cannot be read.
_IS_SEQUENCE_BEHIND = """
SELECT coalesce(pg_sequence_last_value(name::regclass), 0) < (SELECT max(id) FROM messaging_mailbox)
FROM pg_get_serial_sequence('messaging_mailbox', 'id') AS name
WHERE has_sequence_privilege(name, 'SELECT, USAGE')
    AND NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') -- which gives each server a range"""


class Fault(NamedTuple):
    """Why the service cannot use the database."""

    reason: str
    cure: str
    is_passing: bool = False  # may end without a restart, so /readyz reports it


_NO_ANSWER = Fault("the database does not answer", "", is_passing=True)


def fault_of(connection: "psycopg.Connection[Any]") -> Fault | None:
    """The reason why the service cannot use this database, or None."""
    row = connection.execute(
        "SELECT current_setting('server_encoding'), current_setting('transaction_read_only'),"
        " to_regclass('messaging_mailbox') IS NOT NULL, quote_ident(current_user),"
        " (SELECT source FROM pg_settings WHERE name = 'row_security')"
    ).fetchone()
    assert row is not None
    encoding, is_read_only, has_tables, role, source = row
    if not settings.POSTGRES_BEHIND_PGBOUNCER and source != "client":
        return Fault("the server ignores start-up options", IS_PGBOUNCER)
    if encoding != "UTF8":
        cure = "Make one that holds every text: CREATE DATABASE messages ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0;"
        return Fault(f"the database's encoding is {encoding}, not UTF8", cure)
    if is_read_only == "on":
        cure = "It is a standby, or default_transaction_read_only is on."
        return Fault("the database is read-only", cure, is_passing=True)
    if not has_tables:
        cure = "Run manage.py migrate; or the role lacks USAGE on their schema, or has another search_path."
        return Fault("migrations are missing, or the role does not see the tables", cure, is_passing=True)
    return _fault_of_tables(connection, role)


def _fault_of_tables(connection: "psycopg.Connection[Any]", role: str) -> Fault | None:
    # Those of Django too: without them neither the admin works nor upkeep.
    tables = [model._meta.db_table for model in apps.get_models(include_auto_created=True)]
    if missing := connection.execute(_MISSING_PRIVILEGES, (tables,)).fetchall():
        cure = f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {missing[0][1]} TO {role};"
        return Fault(f"the database role lacks {'; '.join(lacking for lacking, _ in missing)}", cure)
    if hidden := connection.execute(_HIDDEN, (tables,)).fetchall():
        cure = f"ALTER ROLE {role} BYPASSRLS; or ALTER TABLE ... DISABLE ROW LEVEL SECURITY."
        return Fault(f"row level security hides rows of {', '.join(name for (name,) in hidden)}", cure)
    try:
        is_behind = connection.execute(_IS_SEQUENCE_BEHIND).fetchone() == (True,)
    except psycopg.errors.LockNotAvailable:
        return None  # somebody changes the table, for which requests wait too
    if is_behind:
        sequence = "pg_get_serial_sequence('messaging_mailbox', 'id')"
        cure = f"SELECT setval({sequence}, (SELECT max(id) FROM messaging_mailbox));"
        return Fault("the sequence of mailbox ids is behind them, so that new mailboxes would share messages", cure)
    return None


def is_migrated() -> bool:
    """Whether every migration of this code has been applied to the database."""
    executor = MigrationExecutor(connections[DEFAULT_DB_ALIAS])
    return not executor.migration_plan(executor.loader.graph.leaf_nodes())


class _Database:
    """The last probe of the database. It runs in its own thread, since it may take longer than the deadline."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._probe: Future[Fault | None] | None = None
        self._ended_at = 0.0
        self._is_migrated = False

    def obstacle(self) -> Fault | None:
        """Why it cannot serve requests, None if it can. Takes at most 2.5 s."""
        if is_silent():
            return _NO_ANSWER
        with self._lock:
            probe = self._probe
            if probe is None or (probe.done() and time.monotonic() - self._ended_at > _FRESH_SECONDS):
                probe = Future()
                threading.Thread(target=self._ask, args=[probe], daemon=True).start()
                self._probe = probe
        try:
            return probe.result(_TIMEOUT_SECONDS)
        except TimeoutError:
            return _NO_ANSWER

    def _ask(self, probe: "Future[Fault | None]") -> None:
        try:
            parameters = connections[DEFAULT_DB_ALIAS].get_connection_params()
            with psycopg.connect(**parameters, autocommit=True) as connection:
                fault = fault_of(connection)
        except Exception as error:  # noqa: BLE001 - a probe without a result would be waited for by all later requests
            logger.warning("the database does not answer: %s", first_line(error))
            fault = _NO_ANSWER
        self._ended_at = time.monotonic()
        probe.set_result(fault)

    def is_migrated(self) -> bool:
        """Whether every migration of this code is applied. Once true, it stays true for this process."""
        if not self._is_migrated:
            try:
                self._is_migrated = is_migrated()
            except Exception:
                logger.exception("the migrations applied could not be read")
            finally:
                connections[DEFAULT_DB_ALIAS].close()
        return self._is_migrated


_database = _Database()


def read_only(view: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Refuse, as a problem document, every method but GET and HEAD."""

    @wraps(view)
    def checked(request: HttpRequest) -> HttpResponse:
        if request.method in {"GET", "HEAD"}:
            return view(request)
        detail = "Only GET and HEAD are allowed here."
        headers = {"Allow": "GET, HEAD"}
        return Problem(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", detail, headers=headers).answer(request)

    return checked


def _answer(status: int, body: dict[str, str]) -> HttpResponse:
    return JsonResponse(body, status=status, headers={"Cache-Control": "no-store"})


@read_only
def health(_request: HttpRequest) -> HttpResponse:
    if _database.obstacle() is _NO_ANSWER:
        return _answer(503, {"status": "unavailable", "database": "unavailable"})
    return _answer(200, {"status": "ok", "database": "ok"})


@read_only
def livez(_request: HttpRequest) -> HttpResponse:
    return _answer(200, {"status": "ok"})


@read_only
def readyz(_request: HttpRequest) -> HttpResponse:
    reason = _why_not_ready()
    return _answer(503, {"status": "unavailable", "reason": reason}) if reason else _answer(200, {"status": "ok"})


def _why_not_ready() -> str:
    if is_stopping():
        return "shutting down"
    if fault := _database.obstacle():
        return fault.reason
    return "" if _database.is_migrated() else "migrations are missing"
