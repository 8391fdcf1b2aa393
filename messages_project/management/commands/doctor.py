"""`manage.py doctor`: one table of what a deployment depends on, and what to do for each finding."""

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from messages_project.doctor import Finding, State, findings


class Command(BaseCommand):
    help = (
        "Checks settings, versions, the database and its settings, clocks, migrations, Redis, disk and upkeep, and"
        " says what to do. Changes nothing. Exit status 1 if anything must be changed."
    )
    requires_system_checks: list[str] = []  # it shows them itself

    def add_arguments(self, parser: CommandParser) -> None:
        parser.epilog = "Example: manage.py doctor --json | jq '.[] | select(.state != \"ok\")'"
        parser.add_argument("--json", action="store_true", help="Print the findings as a JSON list.")

    def handle(self, *args: Any, **options: Any) -> None:
        found = findings()
        if options["json"]:
            self.stdout.write(json.dumps([finding._asdict() for finding in found], indent=2))
        else:
            self._table(found)
        if any(finding.state is State.BAD for finding in found):
            sys.exit(1)

    def _table(self, found: list[Finding]) -> None:
        width = max(len(finding.subject) for finding in found)
        for subject, state, text, advice in found:
            self.stdout.write(f"{state.value:4}  {subject:{width}}  {text}")
            if advice:
                self.stdout.write(f"{'':4}  {'':{width}}  -> {advice}")
