"""`python -m messages_project [COMMAND]`: the way to start a process of the service, on a laptop and in a container.

A command is a module of this package with a function `main()`: `serve` (the default), and whichever of `live` and
`upkeep` exist. `main()` is called once the settings are known to be valid; it calls `django.setup()` itself, returns to
end the process with status 0, and raises StartError for what prevents a start, which is printed as one message.

Without POSTGRES_HOST the embedded PostgreSQL is started first.
"""

import signal
import sys
from importlib import import_module
from importlib.util import find_spec

from messages_project import boot, env

COMMANDS = ("serve", "live", "upkeep")


def main() -> None:
    commands = [name for name in COMMANDS if find_spec(f"messages_project.{name}")]
    match sys.argv[1:]:
        case []:
            command = "serve"
        case [command] if command in commands:
            pass
        case _:
            sys.exit(f"usage: python -m messages_project [{'|'.join(commands)}]")
    # As Ctrl-C: process 1 of a container has no default action for SIGTERM, and on KeyboardInterrupt psycopg cancels
    # the statement that is running.
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
