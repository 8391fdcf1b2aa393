"""How statements reach PostgreSQL: prepared, binary, one round trip each; and when a transaction is run again.

No SQL of its own: the statements stand in queries.py and services.py.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, Error, OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.pq import Format

from messaging.errors import DatabaseUnavailableError, OutcomeUnknownError
from messaging.postgresql.base import Connection

T = TypeVar("T")
Row = tuple[Any, ...]
Parameters = Sequence[Any] | Mapping[str, Any]

logger = logging.getLogger(__name__)

# Serialization failure and deadlock: PostgreSQL has rolled everything back and asks for the transaction again.
_RUN_AGAIN = frozenset({"40001", "40P01"})
_FIRST_PAUSE_SECONDS = 0.01


class _StatementCursor(psycopg.Cursor[Row]):
    """A server-side binding cursor that prepares nothing, since that is for the connection's PreparedStatements."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> "_StatementCursor":
        super().execute(query, params, prepare=False)
        return self


def fetch(statement: str, parameters: Parameters = (), *, prepare: bool = True) -> list[Row]:
    """All rows of one statement, in one round trip.

    Goes round Django's own cursor for what that one rules out: server-side prepared statements and the binary format,
    whose values psycopg converts in C. Errors are wrapped as Django's; while somebody counts queries or wraps them
    (`execute_wrapper`), statements go through a cursor, unprepared. Those whose best plan depends on the values always
    do, and the values are part of their text: `prepare=False`.
    """
    connection = connections[DEFAULT_DB_ALIAS]
    connection.ensure_connection()
    session = connection.connection
    is_watched = connection.queries_logged or connection.execute_wrappers
    if prepare and not is_watched and isinstance(session, Connection) and session.prepared:
        connection.validate_no_broken_transaction()
        with connection.wrap_database_errors:
            return session.prepared.fetch(statement, parameters)
    if prepare:
        return _fetch_by_cursor(connection, statement, parameters)
    # What is sent as a parameter would be planned for whatever its value (plan_cache_mode).
    return _fetch_by_cursor(connection, psycopg.ClientCursor(session).mogrify(statement, parameters), None)


def _fetch_by_cursor(connection: BaseDatabaseWrapper, statement: str, parameters: Parameters | None) -> list[Row]:
    raw = _StatementCursor(connection.connection)
    raw.format = Format.BINARY
    wrap = connection.make_debug_cursor if connection.queries_logged else connection.make_cursor
    with wrap(raw) as cursor:  # type: ignore[arg-type]  # the stubs think Django wraps its own wrapper
        cursor.execute(statement, parameters)
        return cursor.fetchall()  # type: ignore[no-any-return]


def sqlstate(error: BaseException | None) -> str | None:
    """PostgreSQL's code of an error (its Appendix A), None where the server said nothing."""
    while error is not None:
        if isinstance(error, psycopg.Error) and error.sqlstate:
            return error.sqlstate
        error = error.__cause__
    return None


def in_transaction(work: Callable[[], T]) -> T:
    """What `work` returns, once committed. Inside an open transaction `work` joins that one.

    A transaction that ended in a serialization failure or a deadlock, or whose connection was lost before COMMIT was
    sent, left nothing behind: it is run again, with jitter, for up to MESSAGES_RETRY_SECONDS. So `work` must have no
    effect but on the database.

    Raises:
        DatabaseUnavailableError: nothing was changed.
        OutcomeUnknownError: the connection was lost, or replication given up, while COMMIT was under way.
    """
    connection = connections[DEFAULT_DB_ALIAS]
    if connection.in_atomic_block:
        return work()

    def attempt() -> T:
        committing = False
        try:
            with transaction.atomic():
                result = work()
                committing = True
        except Error as error:
            if committing and _is_lost(connection):
                raise OutcomeUnknownError from error
            raise
        _refuse_unreplicated(connection)
        return result

    return _until_done(connection, attempt)


def change(statement: str, parameters: Parameters) -> list[Row]:
    """The rows of one statement that changes something, as a transaction of its own: BEGIN and COMMIT cost nothing.

    Raises as `in_transaction` does. A connection lost while the statement runs leaves the outcome unknown, since the
    commit is part of the statement.
    """
    connection = connections[DEFAULT_DB_ALIAS]
    if connection.in_atomic_block:
        return fetch(statement, parameters)

    def attempt() -> list[Row]:
        try:
            rows = fetch(statement, parameters)
        except Error as error:
            if _is_lost(connection):
                raise OutcomeUnknownError from error
            raise
        _refuse_unreplicated(connection)
        return rows

    return _until_done(connection, attempt)


def read(work: Callable[[], T]) -> T:
    """What `work`, which only reads, returns; run again as `in_transaction` does.

    Raises:
        DatabaseUnavailableError: the database stayed away, or a limit of time was reached.
    """
    connection = connections[DEFAULT_DB_ALIAS]
    return work() if connection.in_atomic_block else _until_done(connection, work)


@contextmanager
def without_time_limits() -> Iterator[None]:
    """Statements, waits for locks and idle transactions may take as long as they need, until the block ends.

    For operators' commands, outside of a transaction, on this thread's connection. These are the session's settings:
    behind PgBouncer in transaction mode they would reach other clients, so such commands connect to PostgreSQL itself.
    """
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    connection = connections[DEFAULT_DB_ALIAS]
    with connection.cursor() as cursor:
        for name in names:
            cursor.execute(f"SET {name} = 0")
    raw: Any = connection.connection
    patience, raw.patience_seconds = getattr(raw, "patience_seconds", None), None
    try:
        yield
    finally:
        # The connection may go back to a pool. RESET restores what it was opened with.
        raw.patience_seconds = patience
        if not _is_lost(connection):
            with connection.cursor() as cursor:
                for name in names:
                    cursor.execute(f"RESET {name}")


def _until_done(connection: BaseDatabaseWrapper, attempt: Callable[[], T]) -> T:
    """What `attempt` returns; it is repeated while it fails for a passing reason, until the deadline."""
    # From the start, so that waits and repetitions together end in time.
    deadline = time.monotonic() + settings.MESSAGES_RETRY_SECONDS
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            connection.ensure_connection()
        except OperationalError as error:
            # The pool has already spent its time on trying.
            raise DatabaseUnavailableError from error
        try:
            return attempt()
        except Error as error:
            lost = _is_lost(connection)
            if not lost and sqlstate(error) not in _RUN_AGAIN:
                if isinstance(error, OperationalError):
                    # A statement or a lock that took too long, a server out of room.
                    raise DatabaseUnavailableError from error
                raise
            if lost:
                connection.close()
            if time.monotonic() + pause > deadline:
                raise DatabaseUnavailableError from error
            logger.info("running a transaction again after SQLSTATE %s", sqlstate(error))
        # Full jitter: whoever collided once must not collide again at the same moment.
        time.sleep(random.uniform(0, pause))  # noqa: S311 - not for secrets
        pause *= 2


def _is_lost(connection: BaseDatabaseWrapper) -> bool:
    """Whether the connection that an attempt began with is gone."""
    raw = connection.connection
    return raw is None or bool(raw.closed)


def _refuse_unreplicated(connection: BaseDatabaseWrapper) -> None:
    """A commit that gave up its wait for the synchronous standby is reported as a success, with a warning only."""
    raw = connection.connection
    if getattr(raw, "unreplicated", False):
        raw.unreplicated = False
        raise OutcomeUnknownError
