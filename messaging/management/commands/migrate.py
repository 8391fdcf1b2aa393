"""`manage.py migrate`: Django's own, one at a time for each database, so that several processes may start at once."""

import time
from typing import Any

from django.core.management.commands import migrate
from django.db import connections

from messaging.database import without_time_limits

# A session's advisory lock, held by the very connection that migrates: it ends with it, however that ends.
LOCK_KEY = int.from_bytes(b"messages")
POLL_SECONDS = 0.2


class Command(migrate.Command):
    """Django's command under a lock. Connect to PostgreSQL itself for it, not through PgBouncer."""

    def handle(self, *args: Any, **options: Any) -> str | None:
        if options["plan"] or options["check_unapplied"]:
            return super().handle(*args, **options)
        with without_time_limits(), connections[options["database"]].cursor() as cursor:
            self._lock(cursor, announce=options["verbosity"] > 0)
            try:
                return super().handle(*args, **options)
            finally:
                # A connection that is lost has lost its lock too, and must not hide what happened.
                if not cursor.connection.closed:
                    cursor.execute("SELECT pg_advisory_unlock(%s)", (LOCK_KEY,))

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
