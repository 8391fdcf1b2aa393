"""`manage.py export`: writes messages as JSON Lines that `load` takes."""

from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from tqdm import tqdm

from messaging.database import fetch, read
from messaging.management.arguments import utf8
from messaging.management.progress import hides_bar
from messaging.models import Mailbox
from messaging.queries import record, record_columns
from messaging.records import loadable
from messaging.sharding import PARTITIONED

_BATCH = 1_000

# In order of mailbox and arrival, read from the index message_order.
_PAGE = f"""
SELECT b.id, {record_columns("m")}
FROM messaging_message m JOIN messaging_mailbox b ON b.id = m.mailbox_id
    AND b.bucket = m.bucket {PARTITIONED}
WHERE (m.mailbox_id, m.seq) > (%(mailbox_id)s, %(seq)s) AND m.mailbox_id <= %(last_mailbox_id)s
    AND (m.expires_at IS NULL OR m.expires_at > clock_timestamp())
ORDER BY m.mailbox_id, m.seq LIMIT %(limit)s"""


class Command(BaseCommand):
    help = (
        "Writes messages to standard output, one JSON object a line with the fields that `load` takes: recipient,"
        " sender, content, metadata and, where it is set, expires_at. Ids, instants and read marks are not part of it:"
        " for a copy of everything use pg_dump."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.epilog = "Example: manage.py export --recipient ada@example.com | gzip > ada.jsonl.gz"
        parser.add_argument("--recipient", type=utf8, metavar="R", help="Only this mailbox; all without this.")
        parser.add_argument("--json", action="store_true", help="Report on standard error as JSON, too.")

    def handle(self, *args: Any, **options: Any) -> None:
        place = {"mailbox_id": 0, "seq": 0, "last_mailbox_id": 2**63 - 1, "limit": _BATCH}
        if options["recipient"] is not None:
            mailbox = Mailbox.objects.filter(recipient=options["recipient"]).first()
            if mailbox is None:
                raise CommandError(f"There is no mailbox of {options['recipient']!r}.")
            place |= {"mailbox_id": mailbox.pk, "last_mailbox_id": mailbox.pk}
        written = 0
        with tqdm(unit=" messages", disable=hides_bar(options)) as bar:
            while rows := read(partial(fetch, _PAGE, place)):
                messages = [record(row[1:]) for row in rows]
                self.stdout.write(b"".join(map(loadable, messages)).decode(), ending="")
                place |= {"mailbox_id": rows[-1][0], "seq": messages[-1].seq}
                written += len(rows)
                bar.update(len(rows))
        self.stderr.write(f'{{"exported": {written}}}' if options["json"] else f"Exported {written:,} messages.")
