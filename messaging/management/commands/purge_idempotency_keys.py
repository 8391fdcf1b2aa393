"""`manage.py purge_idempotency_keys`: forgets the outcomes that no client may ask for any more. To be run daily."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import transaction
from django.db.models.functions import Now

from messaging.api.idempotency import LIFETIME
from messaging.management.arguments import whole_number
from messaging.models import IdempotencyRecord


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
        while deleted := self._purge(options["batch"]):
            purged += deleted
        self.stdout.write(f"Purged {purged:,} idempotency keys.")

    @transaction.atomic
    def _purge(self, limit: int) -> int:
        # A key that a request holds at this moment is being used anew: it is passed over.
        outlived = IdempotencyRecord.objects.filter(created_at__lt=Now() - LIFETIME).order_by("created_at")
        ids = list(outlived.select_for_update(skip_locked=True).values_list("pk", flat=True)[:limit])
        return IdempotencyRecord.objects.filter(pk__in=ids).delete()[0]
