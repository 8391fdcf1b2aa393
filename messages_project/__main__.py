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
    boot.handle_signals()
    postgres = None
    try:
        postgres = boot.prepare()
        import_module(f"messages_project.{command}").main()
    except (boot.StartError, env.SettingsError) as error:
        sys.exit(str(error))
    except (KeyboardInterrupt, Exception):
        # Another error may take the place of KeyboardInterrupt, as in a class body before Python 3.12.
        if not boot.stops:
            raise
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # a second one shall not interrupt what follows
        sys.exit(0)
    finally:
        if postgres:
            postgres.detach()


if __name__ == "__main__":
    main()
