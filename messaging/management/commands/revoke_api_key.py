"""`manage.py revoke_api_key`: ends an API key for good."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from messaging.auth import keys
from messaging.errors import NotFoundError


class Command(BaseCommand):
    """See `help`."""

    help = "Ends an API key for good, within 5 seconds in every process. Doing so again changes nothing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("prefix", metavar="PREFIX", help="The key's public part, as list_api_keys shows it.")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            key = keys.revoke(prefix=options["prefix"])
        except NotFoundError as error:
            raise CommandError(error.detail) from error
        self.stderr.write(f"Revoked {key}.")
