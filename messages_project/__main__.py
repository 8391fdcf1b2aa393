"""`python -m messages_project [COMMAND]` starts a process of the service: `serve` (the default), `live` or `upkeep`.

Each command is a module of this package with a function `main()`. It is called after the settings are validated and,
without POSTGRES_HOST, the embedded PostgreSQL is started. It calls `django.setup()`, returns to end the process with
status 0, and raises StartError for what prevents a start; the text of that is the one message that a user sees.
"""

import signal
import sys
from argparse import ArgumentParser
from importlib import import_module

from messages_project import boot, env

COMMANDS = ("serve", "live", "upkeep")


def main() -> None:
    parser = ArgumentParser(prog="python -m messages_project")
    parser.add_argument("command", nargs="?", choices=COMMANDS, default="serve")
    command = parser.parse_args().command
    # SIGTERM raises KeyboardInterrupt, as Ctrl-C does: process 1 of a container has no default action for SIGTERM, and
    # psycopg cancels the running statement on KeyboardInterrupt.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    postgres = None
    try:
        postgres = boot.prepare()
        import_module(f"messages_project.{command}").main()
    except (boot.StartError, env.SettingsError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(0)
    finally:
        if postgres:
            postgres.detach()


if __name__ == "__main__":
    main()
