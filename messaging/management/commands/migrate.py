"""`manage.py migrate`: Django's own, one at a time for each database, so that several processes may start at once.

A change of a table waits for every transaction that has used it, and all later ones wait behind it in turn. So it waits
briefly for its lock, gives way to those later ones, and tries again.
"""

import time
from typing import Any

from django.core.management.commands import migrate
from django.db import OperationalError, connections

from messaging.database import without_time_limits
from messaging.postgresql.sqlstates import LOCK_NOT_AVAILABLE, sqlstate

# A session's advisory lock, held by the very connection that migrates: it ends with it, however that ends.
LOCK_KEY = int.from_bytes(b"messages")
POLL_SECONDS = 0.2

# Less than a request waits for a lock by itself (settings.py).
LOCK_TIMEOUT_MS = 150
PAUSE_SECONDS = 1.0

_OLDEST_TRANSACTION = """
SELECT format('process %s (%s), for %s s', pid, coalesce(nullif(application_name, ''), backend_type),
    extract(epoch FROM clock_timestamp() - xact_start)::integer)
FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
ORDER BY xact_start LIMIT 1"""


class Command(migrate.Command):
    """Django's command under a lock. Connect to PostgreSQL itself for it, not through PgBouncer."""

    def handle(self, *args: Any, **options: Any) -> str | None:
        if options["plan"] or options["check_unapplied"]:
            return super().handle(*args, **options)
        with without_time_limits(), connections[options["database"]].cursor() as cursor:
            self._lock(cursor, announce=options["verbosity"] > 0)
            try:
                return self._migrate(cursor, *args, **options)
            finally:
                # A connection that is lost has lost its lock too, and must not hide what happened.
                if not cursor.connection.closed:
                    cursor.execute("SELECT pg_advisory_unlock(%s)", (LOCK_KEY,))

    def _migrate(self, cursor: Any, *args: Any, **options: Any) -> str | None:
        self._cursor = cursor
        while True:
            try:
                return super().handle(*args, **options)
            except OperationalError as error:
                if sqlstate(error) != LOCK_NOT_AVAILABLE:
                    raise
            cursor.execute(_OLDEST_TRANSACTION)
            oldest = cursor.fetchone()
            self.stderr.write(
                "The migration waits for a lock, lets requests pass, and tries again every second."
                + (f" The oldest transaction in its way: {oldest[0]}." if oldest else "")
            )
            time.sleep(PAUSE_SECONDS)

    def migration_progress_callback(self, action: str, *migration: Any) -> None:
        """Tell of the progress as Django does, and bound how long the migration that begins may hold others up."""
        if action in {"apply_start", "unapply_start"}:
            # What is not atomic (CREATE INDEX CONCURRENTLY) holds nobody up, and could not be tried again.
            self._cursor.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS if migration[0].atomic else 0}")
        super().migration_progress_callback(action, *migration)

    def _lock(self, cursor: Any, *, announce: bool) -> None:
        # Asked for again and again: a statement that waits would hold a snapshot, and CREATE INDEX CONCURRENTLY in the
        # process that migrates would wait for that in turn.
        while True:
            cursor.execute("SELECT pg_try_advisory_lock(%s)", (LOCK_KEY,))
            if cursor.fetchone()[0]:
                return
            if announce:
                self.stdout.write("Another process is migrating this database; waiting for it to finish.")
                announce = False
            time.sleep(POLL_SECONDS)
