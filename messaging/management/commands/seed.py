"""`manage.py seed`: fills mailboxes with generated messages, to try the API or to measure it."""

from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from tqdm import tqdm

from messaging.backfill import import_history
from messaging.database import database_now, fetch
from messaging.errors import MessagingError
from messaging.management.arguments import ratio, whole_number
from messaging.management.interruption import interruptible
from messaging.management.samples import history
from messaging.postgresql.sqlstates import with_cause

MAX_MESSAGES = 100_000_000
MAX_RECIPIENTS = 1_000_000
# The age of the oldest message in a new mailbox.
SPAN = timedelta(days=180)
# Messages in one transaction: enough to amortise its statements, few enough that it locks its mailboxes only briefly.
CHUNK = 2_000

# One index lookup for each mailbox.
_LATEST = """
SELECT max((
    SELECT created_at FROM messaging_message WHERE mailbox_id = b.id
        AND bucket = b.bucket -- if partitioned
    ORDER BY seq DESC LIMIT 1
)) FROM messaging_mailbox b WHERE recipient = ANY(%s::text[])"""


class Command(BaseCommand):
    help = (
        "Appends invented messages to the mailboxes user1@example.com, user2@example.com, ... in many languages, "
        "spread over the past 180 days (or over the time since the latest message of these mailboxes). Safe while the "
        "API serves; one transaction for every 2,000 messages, so whenever it is stopped all counts are exact."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.epilog = "Example: manage.py seed --messages 100000 --recipients 1000"
        parser.add_argument(
            "--messages", type=whole_number(MAX_MESSAGES), required=True, metavar="N", help="How many messages."
        )
        parser.add_argument(
            "--recipients",
            type=whole_number(MAX_RECIPIENTS),
            required=True,
            metavar="M",
            help="Among how many mailboxes; each gets one at least, if there are as many messages.",
        )
        parser.add_argument(
            "--unread-ratio", type=ratio, default=0.5, metavar="R", help="Share of unread messages, 0 to 1 (0.5)."
        )
        parser.add_argument(
            "--content-length",
            type=whole_number(settings.MESSAGES_MAX_CONTENT_LENGTH),
            default=min(200, settings.MESSAGES_MAX_CONTENT_LENGTH),
            metavar="L",
            help="Characters of a content: their exact mean over all messages (200).",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        count = options["messages"]
        recipients = [f"user{number}@example.com" for number in range(1, options["recipients"] + 1)]
        since, until = self._span(recipients)
        messages = history(
            count,
            recipients,
            unread=round(count * options["unread_ratio"]),
            mean_length=options["content_length"],
            since=since,
            until=until,
        )
        written = 0
        try:
            with (
                tqdm(total=count, unit=" messages", disable=options["verbosity"] == 0) as bar,
                interruptible() as interruption,
            ):
                while chunk := list(islice(messages, CHUNK)):
                    with interruption.held_back():
                        import_history(messages=chunk)
                        written += len(chunk)
                    bar.update(len(chunk))
        except KeyboardInterrupt:
            raise CommandError(
                f"Stopped after {written:,} of {count:,} messages, which are kept. Run it again for the rest.",
                returncode=130,
            ) from None
        except MessagingError as error:
            raise CommandError(f"{with_cause(error)} {written:,} of {count:,} messages were written before.") from error
        if options["verbosity"]:
            self.stdout.write(f"Wrote {count:,} messages to {min(count, len(recipients)):,} mailboxes.")

    def _span(self, recipients: list[str]) -> tuple[datetime, datetime]:
        """The period in which the messages arrive: after all messages of these mailboxes, and in the past."""
        arrivals: list[datetime] = []
        for start in range(0, len(recipients), 10_000):
            [(found,)] = fetch(_LATEST, (recipients[start : start + 10_000],))
            arrivals += [found] if found else []
        # The clock of the database, as for every arrival. Read last, so that it is later than all of them.
        until = database_now()
        return max([until - SPAN, *arrivals]), until
