"""Django's PostgreSQL backend, with a health check that costs no round trip and an ear for unreplicated commits.

Everything else is Django's, its pool option included. Nothing here knows about messages.
"""

import select
import time
from functools import cached_property
from typing import Any

import psycopg
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS
from django.db.backends.postgresql import base
from django.db.backends.signals import connection_created
from psycopg import errors
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolTimeout

from messaging.postgresql.prepared import PreparedStatements
from messaging.postgresql.uuids import register

# How long after a wait in vain nobody waits again. Requests that queued up behind the first ones are refused at once,
# or each would wait as long as they did, one after another.
_SILENCE_SECONDS = 1.0
_INTERVAL_SECONDS = 0.1  # psycopg's own: how often a wait looks for Ctrl-C

# Before Django copies what psycopg knows to its connections.
register()


class _Silence:
    """Until when this process takes PostgreSQL for silent."""

    until = 0.0


def is_silent() -> bool:
    """Whether PostgreSQL gave no answer a moment ago."""
    return time.monotonic() < _Silence.until


def _note_silence() -> None:
    _Silence.until = time.monotonic() + _SILENCE_SECONDS


class Connection(psycopg.Connection[Any]):
    """A connection that gives up on a server which has fallen silent, and remembers a commit nobody confirmed.

    PostgreSQL ends a statement that takes too long by itself. But a server that hangs, or a network that swallows
    everything, ends nothing: for that, no wait lasts longer than `patience_seconds`, if that is not None.
    """

    patience_seconds: float | None = None
    unreplicated = False
    # Whether the signal that makes Django's types known to a new connection was sent by DatabaseWrapper.connect. What a
    # thread takes first Django announces itself, whoever had it before.
    was_announced = False

    @cached_property
    def prepared(self) -> PreparedStatements | None:
        """Its prepared statements; None where it must not have any (`prepare_threshold`)."""
        return PreparedStatements(self) if self.prepare_threshold is not None else None

    def wait(self, gen: Any, interval: float = _INTERVAL_SECONDS, timeout: float | None = None) -> Any:
        """What psycopg waits for: an answer, or room to send.

        Raises:
            OperationalError: there was none in time. The connection is closed, since the answer may still come.
        """
        try:
            return super().wait(gen, interval, timeout or self.patience_seconds)
        except psycopg.OperationalError:
            # What the server itself reports has ended the statement; a wait that was given up has not.
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.close()
                _note_silence()
            raise

    def heed(self, notice: errors.Diagnostic) -> None:
        """Note the warning with which PostgreSQL reports such a commit as a success (its syncrep.c)."""
        # The function's name, since the text is translated and the SQLSTATE is that of any warning.
        if notice.source_function == "SyncRepWaitForLSN":
            self.unreplicated = True


def is_lost(connection: psycopg.Connection[Any]) -> bool:
    """Whether an idle connection has been closed by the other side.

    An idle connection has nothing to read, unless the server closed it or said that it is about to. Asking the kernel
    for that takes 1 µs, the usual empty query a round trip. A peer that vanished without a word is left to the
    keepalive and TCP_USER_TIMEOUT settings of the connection.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's connection to PostgreSQL, as a request or a command holds it."""

    Database = psycopg

    def __init__(self, settings_dict: dict[str, Any], alias: str = DEFAULT_DB_ALIAS) -> None:
        super().__init__(settings_dict, alias)
        if pool_options := settings_dict["OPTIONS"].get("pool"):
            pool_options["connection_class"] = Connection
        self._was_set_up = False

    def ensure_connection(self) -> None:
        """Connect if there is no connection, as Django's, which asks first whether an event loop runs here.

        Raises:
            django.db.OperationalError: as `connect` does.
        """
        if self.connection is None:
            super().ensure_connection()

    def connect(self) -> None:
        """Take a connection for a request, as Django's, which costs 30 µs to find out each time what does not change.

        Raises:
            OperationalError: PostgreSQL cannot be reached, or could not a moment ago.
        """
        if not self._was_set_up:
            super().connect()
            self._was_set_up = self.pool is not None
            return
        self.in_atomic_block = self.needs_rollback = self.closed_in_transaction = self.errors_occurred = False
        self.savepoint_ids, self.atomic_blocks, self.run_on_commit = [], [], []
        self.health_check_done = True
        self.close_at = 0.0  # to be given back at the end of the request
        self.connection = connection = self.get_new_connection({})
        if not connection.autocommit:
            connection.autocommit = True
        self.autocommit = True
        if not connection.was_announced:
            connection.was_announced = True
            connection_created.send(sender=type(self), connection=self)

    def close(self) -> None:
        """Give the connection back, as Django's, without the questions that a request has no use for."""
        if self.connection is None or self.in_atomic_block or not self._was_set_up:
            super().close()
            return
        connection, self.connection = self.connection, None
        self.run_on_commit = []
        connection._pool.putconn(connection)  # noqa: SLF001 - as Django does, since its pool may be another by now

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """A connection from the pool that is not known to be dead, or a new one where there is no pool.

        Raises:
            OperationalError: PostgreSQL cannot be reached, or could not a moment ago.
        """
        if is_silent():
            raise psycopg.OperationalError("PostgreSQL did not answer a moment ago")
        try:
            connection = super().get_new_connection(conn_params)
        except PoolTimeout:
            _note_silence()
            raise
        # The pool replaces what is given back closed, so this ends with the last connection that died idle.
        while self.pool and is_lost(connection):
            connection.close()
            self.pool.putconn(connection)
            connection = super().get_new_connection(conn_params)
        return connection

    def _configure_connection(self, connection: Any) -> bool:
        # Called once for each new connection. Those without a pool are Django's own, for making test databases.
        if isinstance(connection, Connection):
            connection.patience_seconds = settings.POSTGRES_PATIENCE_SECONDS
            connection.add_notice_handler(connection.heed)
        return bool(super()._configure_connection(connection))  # type: ignore[misc]  # the stubs lack it
