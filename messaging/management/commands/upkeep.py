"""`manage.py upkeep --once`: deletes expired rows, for cron. `python -m messages_project upkeep` repeats it."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from messaging import upkeep


class Command(BaseCommand):
    help = (
        "Deletes what has expired: messages past expires_at or older than MESSAGES_RETENTION_DAYS, stored outcomes,"
        " marks and deletions older than MESSAGES_CHANGES_DAYS, rate limit windows and admin sessions. Safe while the"
        " API serves; several may run at once."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.epilog = "Example, in crontab: * * * * * manage.py upkeep --once --json"
        parser.add_argument("--once", action="store_true", required=True, help="Delete what has expired, and exit.")
        parser.add_argument("--json", action="store_true", help="Print what was deleted and what is left, as JSON.")

    def handle(self, *args: Any, **options: Any) -> None:
        deleted, backlog = upkeep.run_once(), upkeep.backlog()
        if options["json"]:
            self.stdout.write(json.dumps({"deleted": deleted, "backlog": backlog}))
            return
        for kind, count in deleted.items():
            self.stdout.write(f"{kind}: {count:,} deleted, {backlog[kind]:,} left")
