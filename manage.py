#!/usr/bin/env python
"""Django's commands. Works with nothing set: without POSTGRES_HOST it starts the embedded PostgreSQL."""

import io
import os
import signal
import sys

from messages_project import boot, env


def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # what `export` and --json print is UTF-8 in every locale
    # Limits on time are for requests; a command may take as long as its work does.
    env.default(
        POSTGRES_STATEMENT_TIMEOUT_MS="0", POSTGRES_LOCK_TIMEOUT_MS="0", POSTGRES_IDLE_IN_TRANSACTION_TIMEOUT_MS="0"
    )
    boot.handle_signals()
    try:
        boot.prepare()
        run_command()
    except (boot.StartError, env.SettingsError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(128 + (boot.stops or [signal.SIGINT])[-1])
    except OSError as error:
        # Of standard output: its reader has ended, such as head, or a disk is full. Python would fail once more when it
        # flushes it at its end: https://docs.python.org/3/library/signal.html#note-on-sigpipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1 if isinstance(error, BrokenPipeError) else str(error))


def run_command() -> None:
    from django.core.management import execute_from_command_line
    from django.db import Error
    from psycopg_pool import PoolTimeout

    from messaging.errors import MessagingError
    from messaging.postgresql.sqlstates import (
        UNDEFINED,
        cause_of,
        first_line,
        has_lost_connection,
        is_unavailable,
        sqlstate,
    )

    try:
        execute_from_command_line(sys.argv)
    except (Error, MessagingError) as error:
        code, cause = sqlstate(error), cause_of(error)
        if isinstance(cause, PoolTimeout):
            sys.exit(boot.no_database(boot.why_no_connection(cause)))
        if has_lost_connection(error) or has_lost_connection(error.__cause__):
            sys.exit(
                f"The connection to PostgreSQL was lost: {first_line(cause)}.\n"
                "A change that was under way may have been made: look before you run the command again."
            )
        if code in UNDEFINED:
            sys.exit("The database lacks tables or columns of this version: run manage.py migrate first.")
        if code and is_unavailable(error):
            sys.exit(f"The database refuses this: {first_line(cause)}.")
        if isinstance(error, MessagingError):
            sys.exit(str(error))
        raise


if __name__ == "__main__":
    main()
