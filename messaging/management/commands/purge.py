"""`manage.py purge --older-than 90d`: deletes old messages, in batches."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from tqdm import tqdm

from messaging.database import database_now, without_time_limits
from messaging.management.arguments import duration, utf8
from messaging.management.interruption import interruptible
from messaging.management.progress import hides_bar
from messaging.models import Mailbox, MessageQuerySet
from messaging.upkeep import discard_all, older_messages

_BATCH = 500


class Command(BaseCommand):
    help = (
        "Deletes messages older than a span of time, oldest first. Counts and versions change as with any deletion."
        " Safe while the API serves. It may be stopped at any time, and run again."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.epilog = "Example: manage.py purge --older-than 90d --read-only --dry-run"
        parser.add_argument("--older-than", type=duration, required=True, metavar="SPAN", help="Such as 90d or 12h.")
        parser.add_argument("--read-only", action="store_true", help="Delete only messages that are marked as read.")
        parser.add_argument("--recipient", type=utf8, metavar="R", help="Delete only messages of this mailbox.")
        parser.add_argument("--dry-run", action="store_true", help="Say how many that would be, and delete nothing.")
        parser.add_argument("--json", action="store_true", help="Print the result as JSON.")

    def handle(self, *args: Any, **options: Any) -> None:
        before, recipient = database_now() - options["older_than"], options["recipient"]
        if recipient is not None and not Mailbox.objects.filter(recipient=recipient).exists():
            raise CommandError(f"There is no mailbox of {recipient!r}.")
        messages = older_messages(before, recipient=recipient, only_read=options["read_only"])
        with without_time_limits():
            matching = messages.count()
        result = {"before": before.isoformat(timespec="seconds"), "matching": matching, "deleted": 0}
        try:
            if not options["dry_run"]:
                self._delete(messages, result, options)
        except KeyboardInterrupt:
            raise CommandError("Stopped. Run the same command again to go on.", returncode=130) from None
        finally:
            self._report(result, options)
        if not options["dry_run"] and result["deleted"] < result["matching"] and messages.exists():
            raise CommandError("Messages are left in mailboxes that stay locked. Run the same command again.")

    def _delete(self, messages: MessageQuerySet, result: dict[str, Any], options: dict[str, Any]) -> None:
        with (
            interruptible() as interruption,
            tqdm(total=result["matching"], unit=" messages", disable=hides_bar(options)) as bar,
        ):
            batches = discard_all(messages, limit=_BATCH, only_read=options["read_only"])
            for deleted in interruption.between(batches):
                result["deleted"] += deleted
                bar.update(deleted)

    def _report(self, result: dict[str, Any], options: dict[str, Any]) -> None:
        if options["json"]:
            self.stdout.write(json.dumps(result))
        elif options["dry_run"]:
            self.stdout.write(f"Would delete {result['matching']:,} messages that arrived before {result['before']}.")
        else:
            self.stdout.write(f"Deleted {result['deleted']:,} messages that arrived before {result['before']}.")
