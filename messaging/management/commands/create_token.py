"""`manage.py create_token`: signs an end-user token and prints it, alone, on standard output."""

import json
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from messaging.auth import tokens
from messaging.errors import InvalidInputError
from messaging.management.arguments import duration, utf8


class Command(BaseCommand):
    help = "Signs a token with which a page or an app reads one recipient's mailbox. It needs MESSAGES_TOKEN_SECRET."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.epilog = "Example: manage.py create_token --recipient ada --scopes read,manage --expires 15m"
        parser.add_argument("--recipient", type=utf8, required=True, metavar="R", help="Whose mailbox it reaches.")
        parser.add_argument("--scopes", metavar="SCOPE,SCOPE", help="Out of read,manage (read; with --open both).")
        parser.add_argument(
            "--expires", type=duration, default=timedelta(minutes=15), metavar="SPAN", help="How long it works (15m)."
        )
        parser.add_argument("--open", action="store_true", help="Print the address of an inbox that shows the mailbox.")
        parser.add_argument("--json", action="store_true", help="Print the token with its description, as JSON.")

    def handle(self, *args: Any, **options: Any) -> None:
        named = options["scopes"]
        if named is None:
            named = "read,manage" if options["open"] else "read"
        scopes = named.replace(",", " ").split()
        try:
            token = tokens.create(recipient=options["recipient"], scopes=scopes, lifetime=options["expires"])
        except InvalidInputError as error:
            raise CommandError("\n".join(f"{fault.pointer[1:]}: {fault.detail}" for fault in error.faults)) from error
        except tokens.NoTokenSecretError as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            description = {
                "token": token,
                "recipient": options["recipient"],
                "scopes": scopes,
                "expires_at": (timezone.now() + options["expires"]).isoformat(timespec="seconds"),
            }
            self.stdout.write(json.dumps(description | ({"url": _inbox(token)} if options["open"] else {})))
        else:
            self.stdout.write(_inbox(token) if options["open"] else token)


def _inbox(token: str) -> str:
    """The URL of the inbox. The token is in the fragment, which browsers do not send to a server."""
    return f"{settings.PUBLIC_URL or settings.LOCAL_URL}/inbox#token={token}"
