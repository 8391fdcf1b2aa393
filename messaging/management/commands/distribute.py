"""`manage.py distribute`: partitions the tables of messages by bucket, or spreads them over the servers of Citus."""

import json
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError
from tqdm import tqdm

from messaging.database import without_time_limits
from messaging.management import citus, partitioning
from messaging.management.arguments import whole_number
from messaging.management.interruption import interruptible
from messaging.management.progress import hides_bar
from messaging.postgresql.sqlstates import has_lost_connection


class Command(BaseCommand):
    help = (
        "Divides the tables of mailboxes, messages, changes and outcomes by bucket: into hash partitions, for more than"
        " 100 million messages on one server, or over the servers of Citus. See docs/growth.md. All in one transaction,"
        " which copies them and needs as much free disk as they take. Until its end reads are served, and what writes"
        " is refused with 503. It may be stopped at any time, which changes nothing, and be run again with another"
        " number. Connect to PostgreSQL itself for it, not through PgBouncer, as the owner of the tables. Restart the"
        " service afterwards: connections that are open go on as they were, for up to an hour."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.epilog = "Example: manage.py distribute --partitions 16 --dry-run"
        layout = parser.add_mutually_exclusive_group(required=True)
        layout.add_argument(
            "--partitions",
            type=whole_number(partitioning.MAX_PARTITIONS),
            metavar="N",
            help="How many, preferably a power of two; 1 for plain tables again.",
        )
        layout.add_argument(
            "--citus",
            action="store_true",
            help="Distribute the tables over the servers of Citus instead: run on the coordinator, in a database with"
            " the extension citus. While the rows are copied, reads wait too. It cannot be undone.",
        )
        parser.add_argument("--dry-run", action="store_true", help="Say what would be done, and do nothing.")
        parser.add_argument("--json", action="store_true", help="Print the result as JSON.")

    def handle(self, *args: Any, **options: Any) -> None:
        number, started_at = options["partitions"], time.monotonic()
        try:
            if options["citus"]:
                self._spread(options)
                return
            before = partitioning.partitions()
            if options["dry_run"]:
                if before != number:
                    partitioning.require_nothing_added()
            else:
                self._distribute(number, options)
            result = {
                "partitions": partitioning.partitions(),
                "partitions_before": before,
                "ids_end_in_buckets": partitioning.ids_end_in_buckets(),
                "seconds": round(time.monotonic() - started_at, 1),
            }
        except KeyboardInterrupt:
            raise CommandError(
                "Stopped: nothing was changed, unless COMMIT had begun. Run this again.", returncode=130
            ) from None
        except (DatabaseError, partitioning.DistributeError) as error:
            if has_lost_connection(error):
                raise  # perhaps in COMMIT: manage.py says so
            raise CommandError(f"{str(error).strip()} Nothing was changed.") from error
        if options["json"]:
            self.stdout.write(json.dumps(result))
        else:
            self._tell(result, number)

    def _spread(self, options: dict[str, Any]) -> None:
        before = citus.distributed_tables()
        if not options["dry_run"]:
            with without_time_limits(), interruptible():
                citus.distribute(self.stderr.write)
        now = citus.distributed_tables()
        if options["json"]:
            self.stdout.write(json.dumps({"distributed_tables": now, "distributed_tables_before": before}))
        elif before == now == 0:
            self.stdout.write("The tables are on this server; they would be distributed by Citus.")
        else:
            self.stdout.write(f"The tables are distributed by Citus {'already' if before == now else 'now'}.")

    def _distribute(self, number: int, options: dict[str, Any]) -> None:
        with without_time_limits(), interruptible(), tqdm(unit=" pages", disable=hides_bar(options)) as bar:

            def report(stage: str, done: int, total: int) -> None:
                bar.total = total or bar.total
                bar.update(done - bar.n if total else 0)
                bar.set_description(stage, refresh=bar.n in {0, bar.total})

            partitioning.distribute(number, report, self.stderr.write)

    def _tell(self, result: dict[str, Any], number: int) -> None:
        wanted = "plain" if number == 1 else f"in {number} partitions"
        if result["partitions"] != number:
            self.stdout.write(f"{result['partitions']:,} partitions now; the tables would be {wanted}.")
        elif result["partitions_before"] == number:
            self.stdout.write(f"The tables are {wanted} already.")
        else:
            self.stdout.write(f"The tables are {wanted} now. That took {result['seconds']} s.")
        if result["partitions"] > 1 and not result["ids_end_in_buckets"]:
            self.stdout.write(
                "Some messages are from before there were buckets, so calls by ids look into all partitions."
                " Once these messages are deleted, run this command again."
            )
