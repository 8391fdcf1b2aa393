"""`manage.py migrate`: Django's command under an advisory lock, so that several processes may start at once.

ALTER TABLE waits for every transaction that has used the table, and later statements queue behind it. So it waits only
briefly for its lock, lets the queue pass, and tries again.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

from django.core.management.commands import migrate
from django.db import OperationalError, connections, transaction
from django.db.migrations.exceptions import MigrationSchemaMissing

from messaging.database import without_time_limits
from messaging.postgresql.sqlstates import LOCK_NOT_AVAILABLE, sqlstate

T = TypeVar("T")

# An advisory lock of the session that migrates, so it is released when that session ends.
LOCK_KEY = int.from_bytes(b"messages")
POLL_SECONDS = 0.2

# Less than the lock timeout of a request (settings.py).
LOCK_TIMEOUT_MS = 150
_PAUSE_SECONDS = 1.0

_OLDEST_TRANSACTION = """
SELECT format('%s, for %s s', name, extract(epoch FROM clock_timestamp() - started_at)::integer) FROM (
    SELECT format('process %s (%s)', pid, coalesce(nullif(application_name, ''), backend_type)), xact_start
    FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
    UNION ALL SELECT format('prepared, %L', gid), prepared FROM pg_prepared_xacts WHERE database = current_database()
) AS transaction (name, started_at) ORDER BY started_at LIMIT 1"""


def with_lock(work: Callable[[], T], cursor: Any, say: Callable[[str], object]) -> T:
    """What `work` returns. It is run again every second for as long as it does not get a lock in time."""
    while True:
        try:
            return work()
        except OperationalError as error:
            if sqlstate(error) != LOCK_NOT_AVAILABLE:
                raise
        # Otherwise pg_stat_activity shows the same snapshot throughout a transaction.
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(_OLDEST_TRANSACTION)
        oldest = f" The oldest transaction in its way: {row[0]}." if (row := cursor.fetchone()) else ""
        say(f"Waiting for a lock, and letting requests pass; trying again every second.{oldest}")
        time.sleep(_PAUSE_SECONDS)


class Command(migrate.Command):
    """Django's command under a lock. It must connect to PostgreSQL itself, not through PgBouncer."""

    def handle(self, *args: Any, **options: Any) -> str | None:
        if options["plan"] or options["check_unapplied"]:
            return super().handle(*args, **options)
        with without_time_limits(), connections[options["database"]].cursor() as cursor:
            self._lock(cursor, announce=options["verbosity"] > 0)
            try:
                return with_lock(partial(self._migrate, cursor, *args, **options), cursor, self.stderr.write)
            finally:
                # A lost connection has released its lock; unlocking would hide the first exception.
                if not cursor.connection.closed:
                    cursor.execute("SELECT pg_advisory_unlock(%s)", (LOCK_KEY,))

    def _migrate(self, cursor: Any, *args: Any, **options: Any) -> str | None:
        self._cursor = cursor
        with ExitStack() as self._transaction:
            try:
                return super().handle(*args, **options)
            except MigrationSchemaMissing as error:
                # It has the text of PostgreSQL's error, but callers need the SQLSTATE.
                refusal = error.__context__ or error
                raise refusal from refusal.__cause__

    def migration_progress_callback(self, action: str, *migration: Any) -> None:
        """Report progress as Django does; set a migration's lock timeout, and make its record part of its transaction.

        Django records most migrations after their commit. A process that is killed in between would block all later
        ones, since these would apply the migration again.
        """
        if action in {"apply_start", "unapply_start"}:
            # A migration that is not atomic (CREATE INDEX CONCURRENTLY) blocks no statement, and cannot be retried.
            self._cursor.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS if migration[0].atomic else 0}")
            if migration[0].atomic:
                self._transaction.enter_context(transaction.atomic(self._cursor.db.alias))
        elif action in {"apply_success", "unapply_success"}:
            self._transaction.close()
        super().migration_progress_callback(action, *migration)

    def _lock(self, cursor: Any, *, announce: bool) -> None:
        # Polled: a waiting statement holds a snapshot, and CREATE INDEX CONCURRENTLY elsewhere would wait for it.
        while True:
            cursor.execute("SELECT pg_try_advisory_lock(%s)", (LOCK_KEY,))
            if cursor.fetchone()[0]:
                return
            if announce:
                self.stdout.write("Another process is migrating this database; waiting for it to finish.")
                announce = False
            time.sleep(POLL_SECONDS)
