"""Retries of transactions: which errors are retried, until when, and the error that the caller gets in the end."""

import logging
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
from django.conf import settings
from django.db import Error, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper

from messaging import metrics
from messaging.errors import DatabaseUnavailableError, OutcomeUnknownError
from messaging.postgresql import sqlstates
from messaging.postgresql.base import is_lost, lost_a_server
from messaging.postgresql.sqlstates import LOCK_NOT_AVAILABLE, first_line, is_unavailable, sqlstate
from messaging.postgresql.waiting import TOO_MANY_WAIT, Place, waiting

T = TypeVar("T")
Session = psycopg.Connection[Any]
# Takes the session that it runs on, and the seconds that it may wait for a lock; None for the session's own limit.
Attempt = Callable[[Session, float | None], T]

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.01
_FRESH_SECONDS = 1.0  # a session younger than this counts as new
# The lock timeout while as many threads wait as may wait: a lock that is held only briefly is still obtained.
_CROWDED_LOCK_SECONDS = 0.02


class _Attempts:
    """The attempts at one transaction: the deadline, the pause between them, and which errors are retried."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._connection = connection
        # From the start, so that waits and retries together end in time.
        self._deadline = time.monotonic() + settings.MESSAGES_RETRY_SECONDS
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._is_first = True

    @property
    def are_over(self) -> bool:
        return time.monotonic() + self._pause_seconds > self._deadline

    def session(self) -> Session:
        """The connection's session; a new one if the server has closed it since its last statement.

        To be kept by the caller: Django replaces a connection that was lost in a transaction.
        """
        connection = self._connection
        if connection.connection is not None and is_lost(connection.connection):
            connection.close()
        try:
            connection.ensure_connection()
        except OperationalError as error:
            # The pool has already retried until its timeout.
            raise DatabaseUnavailableError from error
        session: Any = connection.connection
        session.unreplicated = False  # a notice of an earlier statement does not count
        return session  # type: ignore[no-any-return]

    def drop_if_lost(self, session: Session) -> None:
        """Close a lost connection, unless Django has, so that the next statement opens a new one."""
        if session.closed and self._connection.connection is session:
            self._connection.close()

    def judge(self, error: Error, session: Session) -> None:
        """Return if the rolled back transaction is to be retried; else raise the error for the caller."""
        code = sqlstate(error)
        has_lost_a_server = lost_a_server(session, code)
        is_passing = code in {*sqlstates.RUN_AGAIN, sqlstates.UNIQUE_VIOLATION} or session.closed or has_lost_a_server
        if code in sqlstates.STALE_SESSION:
            is_passing = self._is_stale(session, code)
            if is_passing:
                session.close()
        self.drop_if_lost(session)
        if is_passing and not self.are_over:
            _note_retry(code)
            return
        if code == sqlstates.INSUFFICIENT_PRIVILEGE or code in sqlstates.UNDEFINED:
            logger.error("The database is not set up for this service: %s", first_line(error))
        if is_unavailable(error) or code in sqlstates.RUN_AGAIN or session.closed or has_lost_a_server:
            raise DatabaseUnavailableError from error
        raise error

    def _is_stale(self, session: Any, code: str | None) -> bool:
        """Whether a newer session may be without the fault, since this one is not new.

        The next session from the pool may be old too, so this may repeat until the last old one is closed.
        """
        is_first, self._is_first = self._is_first, False
        is_old = time.monotonic() - getattr(session, "opened_at", 0.0) > _FRESH_SECONDS
        # A plan may be outdated at any age. A read-only database is read-only for every new session.
        return is_old or (is_first and code != sqlstates.READ_ONLY)

    def pause(self) -> None:
        # Full jitter, so that transactions that collided do not collide again.
        time.sleep(random.uniform(0, self._pause_seconds))  # noqa: S311 - not for secrets
        self._pause_seconds *= 2


def _note_retry(code: str | None) -> None:
    logger.info("running a transaction again after SQLSTATE %s", code)
    metrics.database_retries.labels(code or "").inc()


def read_until_done(connection: BaseDatabaseWrapper, work: Callable[[], T]) -> T:
    """What `work` returns, which only reads."""
    attempts = _Attempts(connection)
    while True:
        session = attempts.session()
        try:
            return work()
        except Error as error:
            # A read waits for a lock only while a migration changes its table, and then all reads do.
            if sqlstate(error) != LOCK_NOT_AVAILABLE or attempts.are_over:
                attempts.judge(error, session)
        attempts.pause()


def change_until_done(connection: BaseDatabaseWrapper, attempt: Attempt[T], *, repeatable: bool) -> T:
    """What `attempt`, which commits a change, returns.

    `attempt` itself raises OutcomeUnknownError if the connection is lost in a commit. It is retried if `repeatable`.

    Raises:
        DatabaseUnavailableError: nothing was changed.
        OutcomeUnknownError: the change may have been made.
    """
    attempts = _Attempts(connection)
    lock_deadline = time.monotonic() + settings.POSTGRES_LOCK_TIMEOUT_SECONDS
    lock_timeout: float | None = None
    lost: OutcomeUnknownError | None = None
    with Place() as place:
        if waiting.is_stalled and not place.take(settings.POSTGRES_MAX_STALLED_THREADS):
            raise DatabaseUnavailableError(TOO_MANY_WAIT, at_once=True)
        while True:
            try:
                session = attempts.session()
                try:
                    is_crowded = lock_timeout is None and waiting.is_full and not place.is_taken
                    result = attempt(session, _CROWDED_LOCK_SECONDS if is_crowded else lock_timeout)
                except OutcomeUnknownError as error:
                    attempts.drop_if_lost(session)
                    if not repeatable or attempts.are_over:
                        raise
                    _note_retry(sqlstate(error.__cause__))
                    lost = error
                except Error as error:
                    if sqlstate(error) == LOCK_NOT_AVAILABLE:
                        lock_timeout = _wait_for_lock(place, lock_deadline, error)
                        continue
                    attempts.judge(error, session)
                else:
                    check_replicated(session)
                    return result
            except DatabaseUnavailableError:
                # That nothing was changed is true of the last attempt alone.
                if lost is not None:
                    raise lost from None
                raise
            attempts.pause()


def _wait_for_lock(place: Place, deadline: float, error: Error) -> float:
    """How many seconds the next attempt may wait for its locks."""
    if not place.is_taken and not place.take(settings.POSTGRES_MAX_WAITING_THREADS):
        raise DatabaseUnavailableError(TOO_MANY_WAIT, at_once=True) from error
    left = deadline - time.monotonic()
    if left <= 0:
        raise DatabaseUnavailableError from error
    return left


def check_replicated(session: Any) -> None:
    """Raise OutcomeUnknownError if a commit gave up its wait for the synchronous standby.

    PostgreSQL reports it as a success, with a warning only.
    """
    if getattr(session, "unreplicated", False):
        session.unreplicated = False
        waiting.note_commit(confirmed=False)
        raise OutcomeUnknownError
    if waiting.is_stalled:
        waiting.note_commit(confirmed=True)
