"""When a transaction is run again, when it is given up, and what its caller then knows: nothing changed, or unknown.

How statements are run stands in database.py; what PostgreSQL's error codes mean, in postgresql/sqlstates.py.
"""

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
from messaging.postgresql.base import is_lost
from messaging.postgresql.sqlstates import (
    INSUFFICIENT_PRIVILEGE,
    LOCK_NOT_AVAILABLE,
    READ_ONLY,
    RUN_AGAIN,
    STALE_SESSION,
    is_unavailable,
    sqlstate,
)
from messaging.postgresql.waiting import Place, waiting

T = TypeVar("T")
Session = psycopg.Connection[Any]
# Takes the session that it runs on, and the seconds that it may wait for a lock; None for the session's own limit.
Attempt = Callable[[Session, float | None], T]

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.01
_FRESH_SECONDS = 1.0  # the age up to which a session is taken to be as a new one would be
# For the locks of a change while all places of those who wait are taken: what is not locked for long gets through.
_CROWDED_LOCK_SECONDS = 0.02
_TOO_MANY_WAIT = (
    "Too many changes wait for a lock, or for a standby, so this one was refused; nothing was changed."
    " Send the same request again in a moment."
)


class _Attempts:
    """The attempts at one transaction: until when, how far apart, and which failures are worth another one."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._connection = connection
        # From the start, so that waits and repetitions together end in time.
        self._deadline = time.monotonic() + settings.MESSAGES_RETRY_SECONDS
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._is_first = True

    @property
    def are_over(self) -> bool:
        return time.monotonic() + self._pause_seconds > self._deadline

    def session(self) -> Session:
        """The connection's session; a new one where the server has closed it since its last statement.

        Whoever looks for it after a failure may find another one: Django replaces a connection that was lost in a
        transaction.

        Raises:
            DatabaseUnavailableError: there is none to be had.
        """
        connection = self._connection
        if connection.connection is not None and is_lost(connection.connection):
            connection.close()
        try:
            connection.ensure_connection()
        except OperationalError as error:
            # The pool has already spent its time on trying.
            raise DatabaseUnavailableError from error
        session: Any = connection.connection
        session.unreplicated = False  # what bookkeeping has left is not this transaction's
        return session  # type: ignore[no-any-return]

    def drop_if_lost(self, session: Session) -> None:
        """Let the next statement of this thread connect anew, where Django has not seen to that."""
        if session.closed and self._connection.connection is session:
            self._connection.close()

    def judge(self, error: Error, session: Session) -> None:
        """Return if the transaction, of which nothing is left, shall be run again; else raise why not."""
        code = sqlstate(error)
        is_passing = code in RUN_AGAIN or session.closed
        if code in STALE_SESSION:
            is_passing = self._is_stale(session, code)
            if is_passing:
                session.close()
        self.drop_if_lost(session)
        if is_passing and not self.are_over:
            logger.info("running a transaction again after SQLSTATE %s", code)
            metrics.database_retries.labels(code or "").inc()
            return
        if code == INSUFFICIENT_PRIVILEGE:
            logger.error("The database role lacks a privilege: %s", str(error).partition("\n")[0])
        if is_unavailable(error) or code in RUN_AGAIN or session.closed:
            raise DatabaseUnavailableError from error
        raise error

    def _is_stale(self, session: Any, code: str | None) -> bool:
        """Whether another session may not have the same fault, since this one is older than a moment.

        The next one that the pool gives may be as old, so this ends with the last old one.
        """
        is_first, self._is_first = self._is_first, False
        is_old = time.monotonic() - getattr(session, "opened_at", 0.0) > _FRESH_SECONDS
        # A plan may be outdated at any age. A read-only database is found as it is by every new session.
        return is_old or (is_first and code != READ_ONLY)

    def pause(self) -> None:
        # Full jitter: whoever collided once must not collide again at the same moment.
        time.sleep(random.uniform(0, self._pause_seconds))  # noqa: S311 - not for secrets
        self._pause_seconds *= 2


def read_until_done(connection: BaseDatabaseWrapper, work: Callable[[], T]) -> T:
    """What `work`, which only reads, returns.

    Raises:
        DatabaseUnavailableError: the database stayed away, or a limit of time was reached.
    """
    attempts = _Attempts(connection)
    while True:
        session = attempts.session()
        try:
            return work()
        except Error as error:
            # A read waits for a lock only while a migration changes its table, and then everybody does.
            if sqlstate(error) != LOCK_NOT_AVAILABLE or attempts.are_over:
                attempts.judge(error, session)
        attempts.pause()


def change_until_done(connection: BaseDatabaseWrapper, attempt: Attempt[T], *, repeatable: bool) -> T:
    """What `attempt`, which commits a change, returns.

    It raises OutcomeUnknownError itself where the connection is lost in a commit; if it is `repeatable`, it is run
    again then too.

    Raises:
        DatabaseUnavailableError: nothing was changed.
        OutcomeUnknownError: the change may have been made.
    """
    attempts = _Attempts(connection)
    lock_deadline = time.monotonic() + settings.POSTGRES_LOCK_TIMEOUT_SECONDS
    lock_timeout: float | None = None
    lost: OutcomeUnknownError | None = None
    with waiting.place() as place:
        if waiting.is_stalled and not place.take(settings.POSTGRES_MAX_STALLED_THREADS):
            raise DatabaseUnavailableError(_TOO_MANY_WAIT, at_once=True)
        while True:
            try:
                session = attempts.session()
                try:
                    result = attempt(session, _crowded(lock_timeout, place))
                except OutcomeUnknownError as error:
                    attempts.drop_if_lost(session)
                    if not repeatable or attempts.are_over:
                        raise
                    lost = error
                except Error as error:
                    if sqlstate(error) == LOCK_NOT_AVAILABLE:
                        lock_timeout = _wait_for_lock(place, lock_deadline, error)
                        continue
                    attempts.judge(error, session)
                else:
                    _check_replicated(session)
                    return result
            except DatabaseUnavailableError:
                # That nothing was changed is true of the last attempt alone.
                if lost is not None:
                    raise lost from None
                raise
            attempts.pause()


def _crowded(lock_timeout: float | None, place: Place) -> float | None:
    return _CROWDED_LOCK_SECONDS if lock_timeout is None and waiting.is_full and not place.is_taken else lock_timeout


def _wait_for_lock(place: Place, deadline: float, error: Error) -> float:
    """How many seconds the next attempt may wait for its locks."""
    if not place.is_taken and not place.take(settings.POSTGRES_MAX_WAITING_THREADS):
        raise DatabaseUnavailableError(_TOO_MANY_WAIT, at_once=True) from error
    left = deadline - time.monotonic()
    if left <= 0:
        raise DatabaseUnavailableError from error
    return left


def _check_replicated(session: Any) -> None:
    """A commit that gave up its wait for the synchronous standby is reported as a success, with a warning only."""
    if getattr(session, "unreplicated", False):
        session.unreplicated = False
        waiting.note_commit(confirmed=False)
        raise OutcomeUnknownError
    if waiting.is_stalled:
        waiting.note_commit(confirmed=True)
