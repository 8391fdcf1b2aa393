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
from django.db.backends.utils import CursorWrapper
from psycopg.pq import Format

from messaging.errors import DatabaseUnavailableError, OutcomeUnknownError
from messaging.postgresql.base import is_lost
from messaging.postgresql.sqlstates import RUN_AGAIN, STALE_SESSION, is_unavailable, sqlstate

T = TypeVar("T")
Row = tuple[Any, ...]
Session = psycopg.Connection[Any]
Parameters = Sequence[Any] | Mapping[str, Any]

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.01


def fetch(statement: str, parameters: Parameters = (), *, prepare: bool = True) -> list[Row]:
    """All rows of one statement, in one round trip.

    `prepare` runs it as a server-side prepared statement with a binary result, neither of which Django's own cursor
    can do. A statement whose best plan depends on its values runs by Django's cursor, which makes them part of the
    text: `prepare=False`. Both kinds pass Django's wrappers (`execute_wrapper`, `connection.queries`).
    """
    connection = connections[DEFAULT_DB_ALIAS]
    with _preparing_cursor(connection) if prepare else connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        rows: list[Row] = cursor.fetchall()
        return rows


def _preparing_cursor(connection: BaseDatabaseWrapper) -> CursorWrapper:
    connection.ensure_connection()
    # Whether it prepares is the connection's setting: `prepare_threshold` is 0, or None behind PgBouncer.
    cursor: Any = psycopg.Cursor(connection.connection)
    cursor.format = Format.BINARY
    return connection.make_debug_cursor(cursor) if connection.queries_logged else connection.make_cursor(cursor)


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

    def attempt(session: Session) -> T:
        committing = False
        try:
            with transaction.atomic():
                result = work()
                committing = True
        except Error as error:
            if committing and session.closed:
                raise OutcomeUnknownError from error
            raise
        _refuse_unreplicated(session)
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

    def attempt(session: Session) -> list[Row]:
        try:
            rows = fetch(statement, parameters)
        except Error as error:
            if session.closed:
                raise OutcomeUnknownError from error
            raise
        _refuse_unreplicated(session)
        return rows

    return _until_done(connection, attempt)


def read(work: Callable[[], T]) -> T:
    """What `work`, which only reads, returns; run again as `in_transaction` does.

    Raises:
        DatabaseUnavailableError: the database stayed away, or a limit of time was reached.
    """
    connection = connections[DEFAULT_DB_ALIAS]
    return work() if connection.in_atomic_block else _until_done(connection, lambda _session: work())


def drop_lost_connection() -> None:
    """Close this thread's connection if it was lost, so that the next statement begins with another.

    For bookkeeping whose failure does not fail the request.
    """
    connection = connections[DEFAULT_DB_ALIAS]
    if not connection.is_usable():
        connection.close()


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
    timeout, raw.timeout_seconds = getattr(raw, "timeout_seconds", None), None
    try:
        yield
    finally:
        # The connection may go back to a pool. RESET restores what it was opened with.
        raw.timeout_seconds = timeout
        if connection.connection is raw and not raw.closed:
            with connection.cursor() as cursor:
                for name in names:
                    cursor.execute(f"RESET {name}")


def _until_done(connection: BaseDatabaseWrapper, attempt: Callable[[Session], T]) -> T:
    """What `attempt` returns; it is run again while it fails for a reason that may pass, until the deadline."""
    # From the start, so that waits and repetitions together end in time.
    deadline = time.monotonic() + settings.MESSAGES_RETRY_SECONDS
    pause = _FIRST_PAUSE_SECONDS
    may_be_stale = True
    while True:
        # Kept, since Django has replaced a connection that was lost in a transaction by the time one can ask.
        session = _live_session(connection)
        try:
            return attempt(session)
        except Error as error:
            code = sqlstate(error)
            if code in STALE_SESSION:
                session.close()
            if session.closed and connection.connection is session:
                connection.close()
            is_stale, may_be_stale = code in STALE_SESSION and may_be_stale, False
            if not (is_stale or code in RUN_AGAIN or (session.closed and code not in STALE_SESSION)):
                if is_unavailable(error):
                    raise DatabaseUnavailableError from error
                raise
            if time.monotonic() + pause > deadline:
                raise DatabaseUnavailableError from error
            logger.info("running a transaction again after SQLSTATE %s", code)
        # Full jitter: whoever collided once must not collide again at the same moment.
        time.sleep(random.uniform(0, pause))  # noqa: S311 - not for secrets
        pause *= 2


def _live_session(connection: BaseDatabaseWrapper) -> Session:
    """The connection's session; a new one where the server has closed it since its last statement."""
    if connection.connection is not None and is_lost(connection.connection):
        connection.close()
    try:
        connection.ensure_connection()
    except OperationalError as error:
        # The pool has already spent its time on trying.
        raise DatabaseUnavailableError from error
    session: Session = connection.connection
    return session


def _refuse_unreplicated(session: Any) -> None:
    """A commit that gave up its wait for the synchronous standby is reported as a success, with a warning only."""
    if getattr(session, "unreplicated", False):
        session.unreplicated = False
        raise OutcomeUnknownError
