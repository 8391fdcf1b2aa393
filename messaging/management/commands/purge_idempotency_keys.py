"""`manage.py purge_idempotency_keys`: forgets the outcomes that no client may ask for any more. To be run daily."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from messaging.management.arguments import whole_number
from messaging.retention import purge_outcomes


class Command(BaseCommand):
    """See `help`."""

    help = "Deletes the idempotency keys whose lifetime of 24 hours has passed. Safe while the API serves."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--batch",
            type=whole_number(1, 100_000),
            default=1000,
            metavar="N",
            help="Keys deleted in one transaction (1000).",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        purged = 0
        while deleted := purge_outcomes(limit=options["batch"]):
            purged += deleted
        self.stdout.write(f"Purged {purged:,} idempotency keys.")
