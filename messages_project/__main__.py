"""`python -m messages_project`: the one way to serve, on a laptop and in a container.

Starts the embedded PostgreSQL unless POSTGRES_HOST is set, waits for the database, migrates, serves. Whatever prevents
that is told in one message, with exit status 1.
"""

import sys

from messages_project import boot, env


def main() -> None:
    server = None
    try:
        server = boot.prepare()
        from messages_project import serving

        serving.serve()
    except (boot.StartError, env.SettingsError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(0)
    finally:
        if server:
            server.detach()


if __name__ == "__main__":
    main()
