#!/usr/bin/env python
"""Django's commands. Works with nothing set: without POSTGRES_HOST it starts the embedded PostgreSQL."""

import os
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
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader has ended, such as head. Python would fail once more when it flushes standard output at its end:
        # https://docs.python.org/3/library/signal.html#note-on-sigpipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def run_command() -> None:
    from django.core.management import execute_from_command_line
    from django.db import OperationalError, ProgrammingError, connection

    from messaging.postgresql.sqlstates import UNDEFINED, sqlstate

    try:
        execute_from_command_line(sys.argv)
    except OperationalError as error:
        if connection.connection is not None:
            raise
        sys.exit(boot.no_database(error))
    except ProgrammingError as error:
        if sqlstate(error) not in UNDEFINED:
            raise
        sys.exit("The database lacks tables or columns of this version: run manage.py migrate first.")


if __name__ == "__main__":
    main()
