"""Executes statements: prepared, binary, one round trip each.

Whatever calls this module may raise DatabaseUnavailableError: nothing was changed. A change may raise
OutcomeUnknownError: the connection was lost, or replication given up, while COMMIT was under way. Other docstrings do
not repeat that.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import psycopg
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, Error, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from psycopg.pq import Format

from messaging import metrics
from messaging.attempts import Session, change_until_done, check_replicated, read_until_done
from messaging.errors import MessagingError, OutcomeUnknownError
from messaging.postgresql.base import lost_a_server
from messaging.postgresql.replicas import replicas
from messaging.postgresql.sqlstates import RUN_AGAIN, sqlstate
from messaging.sharding import STEPS, Layout, adapted, layout_of

T = TypeVar("T")
Row = tuple[Any, ...]
Parameters = Sequence[Any] | Mapping[str, Any]

# The database that `fetch` uses: a replica's for as long as a read runs there.
_alias = ContextVar("alias", default=DEFAULT_DB_ALIAS)


def fetch(statement: str, parameters: Parameters = (), *, prepare: bool = True) -> list[Row]:
    """All rows of one statement, in one round trip.

    `prepare` runs it as a server-side prepared statement with a binary result, neither of which Django's own cursor
    can do. A statement whose best plan depends on its values runs by Django's cursor, which makes them part of the
    text: `prepare=False`. Both kinds pass Django's wrappers (`execute_wrapper`, `connection.queries`).
    """
    connection = connections[_alias.get()]
    connection.ensure_connection()
    if _is_on_citus(connection.connection) and (steps := STEPS.get(statement)):
        return steps(partial(_execute, connection), parameters, connection.connection.shards)
    return _execute(connection, statement, parameters, prepare=prepare)


def _execute(
    connection: BaseDatabaseWrapper, statement: str, parameters: Parameters = (), *, prepare: bool = True
) -> list[Row]:
    with _preparing_cursor(connection) if prepare else connection.cursor() as cursor:
        cursor.execute(*adapted(statement, parameters, layout_of(connection.connection)))
        rows: list[Row] = cursor.fetchall()
        return rows


def _preparing_cursor(connection: BaseDatabaseWrapper) -> CursorWrapper:
    # It prepares according to the connection: `prepare_threshold` is 0, or None behind PgBouncer.
    cursor: Any = psycopg.Cursor(connection.connection)
    cursor.format = Format.BINARY
    return connection.make_debug_cursor(cursor) if connection.queries_logged else connection.make_cursor(cursor)


def in_transaction(work: Callable[[], T], *, lock_seconds: float | None = None) -> T:
    """Run `work` in a transaction and return its result after the commit. An open transaction is joined.

    The first attempt waits for a lock for `lock_seconds`, by default for as long as the session's lock_timeout says.

    A transaction that ended in a serialization failure or a deadlock, or whose connection was lost before COMMIT was
    sent, is rolled back: it is retried, with jitter, for up to MESSAGES_RETRY_SECONDS. So `work` must affect only the
    database.
    """
    connection = connections[DEFAULT_DB_ALIAS]
    if connection.in_atomic_block:
        return work()

    def attempt(session: Session, lock_timeout: float | None) -> T:
        return _commit(work, session, lock_seconds if lock_timeout is None else lock_timeout)

    return change_until_done(connection, attempt, repeatable=False)


def change(statement: str, parameters: Parameters, *, repeatable: bool = False) -> list[Row]:
    """Execute one statement that is a transaction of its own, without the round trips of BEGIN and COMMIT.

    Retries and raises as `in_transaction` does. If the connection is lost while the statement runs, the outcome is
    unknown, since the commit is part of the statement; a `repeatable` statement is retried then too.
    """
    connection = connections[DEFAULT_DB_ALIAS]
    if connection.in_atomic_block:
        return fetch(statement, parameters)

    def attempt(session: Session, lock_timeout: float | None) -> list[Row]:
        if lock_timeout is not None or _is_on_citus(session):
            return _commit(lambda: fetch(statement, parameters), session, lock_timeout)
        try:
            return fetch(statement, parameters)
        except Error as error:
            if session.closed:
                raise OutcomeUnknownError from error
            raise

    return change_until_done(connection, attempt, repeatable=repeatable)


def _commit(work: Callable[[], T], session: Session, lock_timeout: float | None) -> T:
    """Run `work` and commit on the session; it waits for a lock for at most `lock_timeout` seconds, if not None."""
    committing = False
    if lock_timeout is None and _is_on_citus(session) and getattr(session, "timeout_seconds", None) is not None:
        # Citus passes on to other servers what is set for the transaction, not for the session.
        lock_timeout = settings.POSTGRES_FIRST_LOCK_TIMEOUT_SECONDS or None
    try:
        with transaction.atomic():
            if lock_timeout is not None:
                with connections[DEFAULT_DB_ALIAS].wrap_database_errors:
                    session.execute(f"SET LOCAL lock_timeout = {max(1, round(lock_timeout * 1000))}")
            result = work()
            committing = True
    except Error as error:
        # The session itself, since Django has replaced a lost connection.
        if committing and (session.closed or lost_a_server(session, sqlstate(error))):
            raise OutcomeUnknownError from error
        raise
    return result


def check_own_commits() -> None:
    """Raise OutcomeUnknownError if no standby has confirmed a commit on this thread's connection.

    For commits of Django's own, as in the admin: the functions above look after each of theirs.
    """
    session = connections[DEFAULT_DB_ALIAS].connection
    # Otherwise there may have been no commit, which would say nothing of the standby.
    if getattr(session, "unreplicated", False):
        check_replicated(session)


def _is_on_citus(session: Session) -> bool:
    return layout_of(session) == Layout.CITUS


def read(work: Callable[[], T], *, is_new_enough: Callable[[T], bool] | None = None) -> T:
    """What `work`, which only reads, returns; run again as `in_transaction` does.

    With `is_new_enough` a replica may answer, if that finds its answer to be so: what `work` returns must then tell how
    new it is. Where it is not, or the replica fails, or it lacks something, `work` is run on the primary.
    """
    connection = connections[DEFAULT_DB_ALIAS]
    if connection.in_atomic_block:
        return work()
    if is_new_enough is not None and settings.POSTGRES_REPLICAS:
        outcome, found = "none_in_time", None
        for alias in replicas().choose():
            outcome, found = _read_from(alias, work, is_new_enough)
            if found is not None:
                break
        metrics.replica_reads.labels(outcome).inc()
        if found is not None:
            return found[0]
    return read_until_done(connection, work)


def _read_from(alias: str, work: Callable[[], T], is_new_enough: Callable[[T], bool]) -> tuple[str, tuple[T] | None]:
    """What became of a read from a replica, and what `work` returned if that is the answer."""
    token = _alias.set(alias)
    try:
        found = work()
    except MessagingError:
        return "behind", None  # what it does not find may be on the primary
    except Error as error:
        session = connections[alias].connection
        # A conflict with recovery (40001) is the statement's alone:
        # https://www.postgresql.org/docs/current/hot-standby.html#HOT-STANDBY-CONFLICT
        if sqlstate(error) not in RUN_AGAIN or session is None or session.closed:
            replicas().leave_out(alias)
            if session is not None:
                session.close()
            connections[alias].close()
        return "failed", None
    finally:
        _alias.reset(token)
    return ("answered", (found,)) if is_new_enough(found) else ("behind", None)


def database_now() -> datetime:
    """The time by the database's clock, which every process shares."""
    [(now,)] = read(lambda: fetch("SELECT clock_timestamp()"))
    assert isinstance(now, datetime)
    return now


def try_change(statement: str, parameters: Parameters = ()) -> Error | None:
    """Execute a statement whose failure must not fail the request. Returns the error, or None.

    A connection that it loses is closed, so that later statements of the request use a new one.
    """
    connection = connections[DEFAULT_DB_ALIAS]
    try:
        fetch(statement, parameters)
    except Error as error:
        session = connection.connection
        if session is not None and session.closed and not connection.in_atomic_block:
            connection.close()
        return error
    return None


@contextmanager
def without_time_limits() -> Iterator[None]:
    """Disable the timeouts of statements, locks and transactions, until the block ends.

    For commands, outside of a transaction, on this thread's connection. They change settings of the session, which
    PgBouncer in transaction mode would pass to other clients, so such commands must connect to PostgreSQL itself.
    """
    names = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"]
    connection = connections[DEFAULT_DB_ALIAS]
    with connection.cursor() as cursor:
        if connection.pg_version >= 170000:  # type: ignore[attr-defined]
            names.append("transaction_timeout")
        for name in names:
            cursor.execute(f"SET {name} = 0")
    raw: Any = connection.connection
    timeout, raw.timeout_seconds = getattr(raw, "timeout_seconds", None), None
    try:
        yield
    finally:
        # The connection may return to a pool. RESET restores the settings that it was opened with.
        raw.timeout_seconds = timeout
        if connection.connection is raw and not raw.closed:
            with connection.cursor() as cursor:
                for name in names:
                    cursor.execute(f"RESET {name}")
