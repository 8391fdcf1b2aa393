"""Django's PostgreSQL backend with a timeout for a server that has fallen silent, a note of commits that no standby
confirmed, a check of pooled connections that costs no round trip, and the layout of the tables.

Everything else is Django's, its pool option included. Two of Django's features are extended to statements that do not
go through its own cursor and transactions: `last_executed_query` and the option `isolation_level`.
"""

import select
import time
from typing import Any

import psycopg
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS
from django.db.backends.postgresql import base, operations
from psycopg import errors
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolTimeout

from messaging.sharding import LAYOUT, SESSION, SHARDS, Layout, Shards, layout_of

# No connection attempt is made for so long after PostgreSQL did not answer, and requests are refused at once. Otherwise
# queued requests would wait for the whole timeout, one after another.
_SILENCE_SECONDS = 1.0
_CANCEL_SECONDS = 0.3  # for PostgreSQL to accept a cancel request, and again for the cancelled statement's result
_INTERVAL_SECONDS = 0.1  # the default of psycopg: how often a wait checks for Ctrl-C


# The time until which this process considers a server silent, by the alias of the database.
_silent_until: dict[str, float] = {}


def is_silent(alias: str = DEFAULT_DB_ALIAS) -> bool:
    """Whether the server did not answer within the last second."""
    return time.monotonic() < _silent_until.get(alias, 0.0)


def _note_silence(alias: str) -> None:
    _silent_until[alias] = time.monotonic() + _SILENCE_SECONDS


class Connection(psycopg.Connection[Any]):
    """A connection that gives up on a server which has fallen silent, and notes commits that no standby confirmed."""

    # For the result of one statement. PostgreSQL enforces statement_timeout itself, but not for a COMMIT that waits for
    # a standby, and not if the server hangs or cannot be reached.
    timeout_seconds: float | None = None
    alias = ""  # of the database
    unreplicated = False
    opened_at = 0.0  # by the monotonic clock
    layout = Layout.WHOLE  # of the tables, when it was opened
    shards: Shards | None = None  # on Citus

    def wait(self, gen: Any, interval: float = _INTERVAL_SECONDS, timeout: float | None = None) -> Any:
        """Wait for a result, or until data can be sent.

        After the timeout, raises OperationalError and closes the connection, since the result may still arrive.
        """
        try:
            return super().wait(gen, interval, timeout or self.timeout_seconds)
        except psycopg.OperationalError:
            # An error from the server has ended the statement; a timeout has not.
            if self.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            return self._cancelled(gen)

    def _cancelled(self, gen: Any) -> Any:
        """Cancel the statement, since its backend would continue to wait; return the server's result."""
        try:
            try:
                self.cancel_safe(timeout=_CANCEL_SECONDS)
            except errors.CancellationTimeout:
                # The server does not accept a cancel request, so not only this statement hangs.
                _note_silence(self.alias)
                raise
            return super().wait(gen, _INTERVAL_SECONDS, _CANCEL_SECONDS)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.close()
            raise

    def read_layout(self) -> None:
        """Find out how the tables are laid out, and set up the session for it."""
        if not (row := self.execute(LAYOUT).fetchone()):
            return
        layout, has_citus = row
        self.layout = Layout(layout)
        if has_citus and (shards := self.execute(SHARDS).fetchone()) and shards[0]:
            self.layout, self.shards = Layout.CITUS, Shards(shards[0])
            self.execute(SESSION)

    def note_unreplicated(self, notice: errors.Diagnostic) -> None:
        """Note the warning with which PostgreSQL reports an unconfirmed commit as a success (its syncrep.c)."""
        # By the function's name, since the text is translated and the SQLSTATE is that of any warning.
        if notice.source_function == "SyncRepWaitForLSN":
            self.unreplicated = True


def is_lost(connection: psycopg.Connection[Any]) -> bool:
    """Whether an idle connection has been closed, by the other side too.

    An idle connection is readable only if the server has closed it, or has announced that. poll(2) takes 1 µs; the
    query of Django's CONN_HEALTH_CHECKS takes a round trip. The keepalive and TCP_USER_TIMEOUT settings of the
    connection detect a dead peer.
    """
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def lost_a_server(connection: psycopg.Connection[Any], code: str | None) -> bool:
    """Whether an error may mean that Citus has lost one of its servers: 08 is a connection's class, XX Citus's own."""
    return layout_of(connection) == Layout.CITUS and (code or "")[:2] in {"08", "XX"}


class DatabaseOperations(operations.DatabaseOperations):
    """Django's, which knows the text of a statement only of cursors that put the parameters into it."""

    def last_executed_query(self, cursor: Any, sql: str, params: Any) -> str:
        return str(self.compose_sql(sql, params))


class DatabaseWrapper(base.DatabaseWrapper):
    ops_class = DatabaseOperations

    def __init__(self, settings_dict: dict[str, Any], alias: str = DEFAULT_DB_ALIAS) -> None:
        super().__init__(settings_dict, alias)
        if pool_options := settings_dict["OPTIONS"].get("pool"):
            pool_options["connection_class"] = Connection

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """A connection from the pool that is not closed, or a new one without a pool."""
        if is_silent(self.alias):
            raise psycopg.OperationalError("PostgreSQL did not answer a moment ago")
        try:
            connection = super().get_new_connection(conn_params)
        except PoolTimeout:
            _note_silence(self.alias)
            raise
        except RuntimeError as error:
            # "can't start new thread": the pool counts as open, and without its threads it would never connect.
            self.close_pool()
            raise psycopg.OperationalError(f"The pool could not be opened: {error}") from error
        # The pool replaces a closed connection that is returned, so this ends after the last closed one.
        while self.pool and is_lost(connection):
            connection.close()
            self.pool.putconn(connection)
            connection = super().get_new_connection(conn_params)
        return connection

    def _configure_connection(self, connection: Any) -> bool:
        # Called once for each new connection. Django opens those without a pool, to create test databases.
        if isinstance(connection, Connection):
            connection.alias, connection.opened_at = self.alias, time.monotonic()
            is_primary = self.alias == DEFAULT_DB_ALIAS
            connection.timeout_seconds = (
                settings.POSTGRES_CLIENT_TIMEOUT_SECONDS if is_primary else settings.POSTGRES_REPLICA_TIMEOUT_SECONDS
            )
            connection.add_notice_handler(connection.note_unreplicated)
            connection.read_layout()
        if level := self.settings_dict["OPTIONS"].get("isolation_level"):
            # psycopg sends the level with BEGIN. This is for statements without a transaction block.
            name = psycopg.IsolationLevel(level).name.replace("_", " ").lower()
            connection.execute(f"SET default_transaction_isolation = '{name}'")
        return bool(super()._configure_connection(connection))  # type: ignore[misc]  # the stubs lack it
