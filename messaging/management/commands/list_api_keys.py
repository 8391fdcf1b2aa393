"""`manage.py list_api_keys`: lists every API key, without its secret, which is not stored."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from messaging.auth import keys
from messaging.models import ApiKey

_COLUMNS = ("prefix", "name", "state", "scopes", "recipient", "sender", "expires_at", "last_used_at")


def described(key: ApiKey) -> dict[str, Any]:
    """The description of a key, as JSON values."""
    instants = {name: getattr(key, name) for name in ("created_at", "expires_at", "revoked_at", "last_used_at")}
    return {
        "prefix": key.prefix,
        "name": key.name,
        "state": keys.state_of(key),
        "scopes": key.scopes,
        "recipient": key.recipient,
        "sender": key.sender,
        **{name: instant and instant.isoformat(timespec="seconds") for name, instant in instants.items()},
    }


class Command(BaseCommand):
    help = "Lists the API keys, the newest first. An empty column (-) means no limit, or that it has not happened."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.epilog = "Example: manage.py list_api_keys --json"
        parser.add_argument("--json", action="store_true", help="Print a JSON list.")

    def handle(self, *args: Any, **options: Any) -> None:
        found = [described(key) for key in keys.all_keys()]
        if options["json"]:
            self.stdout.write(json.dumps(found, indent=2))
            return
        rows = [_COLUMNS, *([_cell(key[column]) for column in _COLUMNS] for key in found)]
        widths = [max(len(row[at]) for row in rows) for at in range(len(_COLUMNS))]
        for row in rows:
            self.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else value or "-"
