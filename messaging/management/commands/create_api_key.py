"""`manage.py create_api_key`: makes an API key and prints it, alone, on standard output."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.utils import timezone

from messaging.access import Scope
from messaging.auth import keys
from messaging.errors import InvalidInputError
from messaging.management.arguments import duration, utf8
from messaging.management.commands.list_api_keys import described


class Command(BaseCommand):
    help = "Makes an API key and prints it, the only time that it can be seen: only its hash is stored."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.epilog = "Example: manage.py create_api_key shop --scopes send --expires 90d"
        parser.add_argument("name", type=utf8, metavar="NAME", help="What or who will call with the key.")
        parser.add_argument(
            "--scopes", required=True, metavar="SCOPE,SCOPE", help=f"What it permits, out of {','.join(Scope)}."
        )
        parser.add_argument(
            "--recipient", type=utf8, metavar="R", help="The only mailbox that it reaches; all without this."
        )
        parser.add_argument(
            "--sender", type=utf8, metavar="S", help="The sender of all its messages; any without this."
        )
        parser.add_argument("--expires", type=duration, metavar="SPAN", help="How long it works, such as 90d.")
        parser.add_argument("--json", action="store_true", help="Print the key with its description, as JSON.")

    def handle(self, *args: Any, **options: Any) -> None:
        span = options["expires"]
        try:
            with transaction.atomic():  # a key that cannot be printed is not created
                key, text = keys.create(
                    name=options["name"],
                    scopes=options["scopes"].replace(",", " ").split(),
                    recipient=options["recipient"],
                    sender=options["sender"],
                    expires_at=None if span is None else timezone.now() + span,
                )
                self.stdout.write(json.dumps({"key": text, **described(key)}) if options["json"] else text)
                self.stdout.flush()
        except InvalidInputError as error:
            raise CommandError("\n".join(f"{fault.pointer[1:]}: {fault.detail}" for fault in error.faults)) from error
        if not options["json"]:
            self.stderr.write(f"Keep it now: it is not shown again. To end it: revoke_api_key {key.prefix}")
