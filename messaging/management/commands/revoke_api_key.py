"""`manage.py revoke_api_key`: revokes an API key."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from messaging.auth import keys
from messaging.errors import NotFoundError
from messaging.management.arguments import utf8
from messaging.management.commands.list_api_keys import described


class Command(BaseCommand):
    help = "Revokes an API key permanently, within 5 seconds in every process. Repeating it changes nothing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.epilog = "Example: manage.py revoke_api_key v19srmnrun"
        parser.add_argument(
            "prefix", type=utf8, metavar="PREFIX", help="The key's public part, as list_api_keys shows it; or the key."
        )
        parser.add_argument("--json", action="store_true", help="Print the key's description, as JSON.")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            key = keys.revoke(prefix=options["prefix"])
        except NotFoundError as error:
            raise CommandError(error.detail) from error
        if options["json"]:
            self.stdout.write(json.dumps(described(key)))
        else:
            self.stderr.write(f"Revoked {key}.")
