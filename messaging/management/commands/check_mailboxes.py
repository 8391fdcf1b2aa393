"""`manage.py check_mailboxes`: compares every mailbox with its messages, and repairs those that differ.

It writes mailboxes without services.py, under the same lock, since no service can correct them.
"""

import json
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from django.core.management.base import BaseCommand, CommandError, CommandParser

from messaging.database import fetch, in_transaction, without_time_limits
from messaging.errors import DatabaseUnavailableError
from messaging.ids import bucket_of
from messaging.models import Observation
from messaging.postgresql.sqlstates import with_cause
from messaging.sharding import PARTITIONED

CHUNK = 100  # mailboxes compared by one statement

# One statement, so one snapshot: concurrent changes are in both of the numbers compared, or in neither.
COMPARE = f"""
SELECT b.id, b.bucket, b.recipient, b.version, b.total, b.unread, m.*, log.*
FROM messaging_mailbox b CROSS JOIN LATERAL (
    SELECT count(*), count(*) FILTER (WHERE read_at IS NULL), count(DISTINCT seq), coalesce(min(seq), 1),
        coalesce(max(seq), 0)
    FROM messaging_message WHERE mailbox_id = b.id
        AND bucket = b.bucket {PARTITIONED}
) m CROSS JOIN LATERAL (
    SELECT coalesce(max(c.version), 0), count(*) FILTER (WHERE c.is_deletion AND c.version > b.log_from AND EXISTS (
        SELECT FROM messaging_message WHERE id = ANY(c.message_ids) AND mailbox_id = b.id
            AND bucket = b.bucket {PARTITIONED}
    )) FROM messaging_change c WHERE c.mailbox_id = b.id
        AND c.bucket = b.bucket {PARTITIONED}
) log
WHERE b.id = ANY(ARRAY(SELECT id FROM messaging_mailbox WHERE id > %s AND id <= %s ORDER BY id LIMIT {CHUNK}))
ORDER BY b.id"""

LOCK = "SELECT 1 FROM messaging_mailbox WHERE id = %s AND bucket = %s FOR NO KEY UPDATE"

# The new version is above every earlier one of the mailbox and its messages, so that no entity tag is used twice. The
# log is incomplete, so log_from makes clients with a copy of the mailbox start again.
REPAIR = """
UPDATE messaging_mailbox SET total = %(messages)s, unread = %(unread_messages)s,
    version = greatest(version, %(messages)s, %(last_seq)s, %(last_change)s) + 1,
    log_from = greatest(version, %(messages)s, %(last_seq)s, %(last_change)s) + 1
WHERE id = %(id)s AND bucket = %(bucket)s RETURNING 1"""

ALL = 2**63 - 1  # the largest possible id


class Comparison(NamedTuple):
    """A mailbox's row, and the same values computed from its messages."""

    id: int
    bucket: int
    recipient: str
    version: int
    total: int
    unread: int
    messages: int
    unread_messages: int
    distinct_seqs: int
    first_seq: int
    last_seq: int
    last_change: int
    deletions_of_present: int

    def repairable(self) -> Iterator[str]:
        """The faults of the mailbox's row, which can be corrected."""
        if self.total != self.messages:
            yield f"total is {self.total}, should be {self.messages}"
        if self.unread != self.unread_messages:
            yield f"unread is {self.unread}, should be {self.unread_messages}"
        if self.version < self.last_seq:
            yield f"version is {self.version}, should be at least {self.last_seq}"
        if self.version < self.last_change:
            yield f"version is {self.version}, its log goes to {self.last_change}"
        if self.deletions_of_present:
            yield f"{self.deletions_of_present} deletions in its log are of messages that are there"

    def lasting(self) -> Iterator[str]:
        """The faults that are not corrected: another `seq` would break cursors, another bucket the ids of messages."""
        if self.distinct_seqs != self.messages:
            yield f"seq has {self.distinct_seqs} values, should have {self.messages}, one for each message"
        if self.first_seq < 1:
            yield f"seq is {self.first_seq} at the least, should be at least 1"
        if self.bucket != bucket_of(self.recipient):
            yield f"bucket is {self.bucket}, should be {bucket_of(self.recipient)}, where the service looks for it"


class Command(BaseCommand):
    help = (
        "Compares version, total and unread of every mailbox with its messages, and checks seq and bucket. Safe while "
        "the API serves. Exit status 1 if anything is wrong and was not repaired."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.epilog = "Example: manage.py check_mailboxes --repair"
        parser.add_argument(
            "--repair",
            action="store_true",
            help="Correct the mailboxes, each under its lock; their versions rise. Never changes a message.",
        )
        parser.add_argument("--json", action="store_true", help="Print the result as JSON.")

    def handle(self, *args: Any, **options: Any) -> None:
        compared = left = 0
        told: list[dict[str, Any]] = []
        position = 0
        with without_time_limits():
            while chunk := [Comparison(*row) for row in fetch(COMPARE, (position, ALL))]:
                for found in chunk:
                    if faults := [*found.repairable(), *found.lasting()]:
                        told.append({"recipient": found.recipient, "faults": faults})
                        if not options["json"]:
                            self.stdout.write(f"{found.recipient}: {'; '.join(faults)}.")
                        if not options["repair"] or any(found.lasting()):
                            left += 1
                        if options["repair"]:
                            self._repair(found.id, found.bucket)
                compared += len(chunk)
                position = chunk[-1].id
        try:
            in_transaction(partial(Observation.record, "mailbox_disagreements", left))
        except DatabaseUnavailableError as error:
            # A standby can be compared too.
            self.stderr.write(f"The result is not stored for /metrics. {with_cause(error)}")
        if options["json"]:
            self.stdout.write(json.dumps({"compared": compared, "wrong": len(told), "left": left, "mailboxes": told}))
            sys.exit(1 if left else 0)
        self._conclude(compared, len(told), left, repaired=options["repair"])

    def _conclude(self, compared: int, wrong: int, left: int, *, repaired: bool) -> None:
        if not left:
            outcome = f"{wrong:,} were wrong and are repaired" if wrong else "nothing is wrong"
            self.stdout.write(f"Compared {compared:,} mailboxes with their messages: {outcome}.")
        elif repaired:
            raise CommandError(
                f"Of {compared:,} mailboxes {wrong:,} were wrong; {left:,} have a wrong seq or bucket, which cannot be"
                " repaired. Restore these mailboxes from a backup, and the constraints on seq by the migrations."
            )
        else:
            raise CommandError(
                f"Of {compared:,} mailboxes {wrong:,} are wrong. Correct them by manage.py check_mailboxes --repair."
            )

    def _repair(self, mailbox_id: int, bucket: int) -> None:
        """Correct one mailbox. It is compared again under its lock, since it may have changed."""

        def work() -> None:
            fetch(LOCK, (mailbox_id, bucket))
            [row] = fetch(COMPARE, (mailbox_id - 1, mailbox_id))
            now = Comparison(*row)
            if any(now.repairable()):
                fetch(REPAIR, now._asdict())

        in_transaction(work)
