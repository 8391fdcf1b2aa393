#!/usr/bin/env python
"""Django's commands. Works with nothing set: without POSTGRES_HOST it starts the embedded PostgreSQL."""

import sys

from messages_project import boot, env


def main() -> None:
    # Limits on time are for requests; a command may take as long as its work does.
    env.default(
        POSTGRES_STATEMENT_TIMEOUT_MS="0", POSTGRES_LOCK_TIMEOUT_MS="0", POSTGRES_IDLE_IN_TRANSACTION_TIMEOUT_MS="0"
    )
    try:
        boot.prepare()
        run_command()
    except (boot.StartError, env.SettingsError) as error:
        sys.exit(str(error))


def run_command() -> None:
    from django.core.management import execute_from_command_line
    from django.db import OperationalError, connection

    try:
        execute_from_command_line(sys.argv)
    except OperationalError as error:
        if connection.connection is not None:
            raise
        sys.exit(boot.no_database(error))


if __name__ == "__main__":
    main()
