"""`manage.py erase RECIPIENT`: deletes everything about a recipient from the database, and prints a receipt."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from tqdm import tqdm

from messaging import erasure
from messaging.auth import keys, tokens
from messaging.database import in_transaction, read
from messaging.errors import MessagingError
from messaging.management.arguments import utf8
from messaging.management.interruption import interruptible
from messaging.management.progress import hides_bar
from messaging.postgresql.sqlstates import with_cause
from messaging.queries import mailbox_of
from messaging.records import MailboxRecord


def _state(mailbox: MailboxRecord) -> str:
    if not mailbox.version:
        return "deleted"
    if not mailbox.total:
        return f"empty, at version {mailbox.version}"
    return f"at version {mailbox.version}; arrived meanwhile: {mailbox.total}"


class Command(BaseCommand):
    help = (
        "Deletes the messages of a mailbox, its log of changes, the stored outcomes that name it and the API keys bound"
        " to it, and takes its name out of the admin log. Its row stays, with name and version and nothing else:"
        " a client may still hold that version, and a new mailbox of the same name would count from 1 again."
        " --forget-name deletes the row too. Copies in backups, in logs and in messages to others are not reached."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.epilog = "Example: manage.py erase ada@example.com --json > receipt.json"
        parser.add_argument("recipient", type=utf8, metavar="RECIPIENT", help="Whose mailbox; compared exactly.")
        parser.add_argument(
            "--forget-name",
            action="store_true",
            help="Delete the mailbox's row as well. If messages are sent to this name again, clients that kept an ETag,"
            " a cursor or a version of the old mailbox must begin anew.",
        )
        parser.add_argument("--json", action="store_true", help="Print the receipt as JSON.")

    def handle(self, *args: Any, **options: Any) -> None:
        recipient = options["recipient"]
        if not mailbox_of(recipient).version and not keys.bound_to(recipient).exists():
            raise CommandError(f"There is no mailbox and no key of {recipient!r}: nothing was deleted.")
        try:
            receipt = self._erase(recipient, options)
        except KeyboardInterrupt:
            raise CommandError("Stopped before the end. Run the same command again.", returncode=130) from None
        except MessagingError as error:
            raise CommandError(
                f"{with_cause(error)} Not everything is deleted yet: run the same command again."
            ) from error
        if options["json"]:
            self.stdout.write(json.dumps(receipt))
            return
        for name, value in receipt.items():
            self.stdout.write(f"{name.replace('_', ' ')}: {value}")

    def _erase(self, recipient: str, options: dict[str, Any]) -> dict[str, Any]:
        bound = keys.bound_to(recipient)
        # First, so that their holders cannot send more messages.
        in_transaction(lambda: bound.filter(revoked_at=None).update(revoked_at=timezone.now()))
        callers = [f"key:{key.prefix}" for key in read(lambda: list(bound))] + [tokens.identity_of(recipient)]
        receipt: dict[str, Any] = {"recipient": recipient, "messages": 0}
        with interruptible() as interruption, tqdm(unit=" messages", disable=hides_bar(options)) as bar:
            for deleted in interruption.between(erasure.erase_messages(recipient)):
                receipt["messages"] += deleted
                bar.update(deleted)
        receipt |= erasure.erase_traces(recipient, callers=callers)
        if options["forget_name"]:
            erasure.forget_mailbox(recipient)
        # Last, since they lead to the traces, also for a run that goes on after one that was stopped.
        receipt["api_keys"] = in_transaction(keys.bound_to(recipient).delete)[0]
        receipt["mailbox"] = _state(read(lambda: mailbox_of(recipient)))
        receipt["erased_at"] = timezone.now().isoformat(timespec="seconds")
        return receipt
