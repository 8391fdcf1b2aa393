"""`python -m messages_project serve`: check, wait for the database, migrate, then run the web server until a signal."""

import sys

import django
from django.conf import settings

from messages_project import startup
from messages_project.supervisor import Supervisor
from messages_project.web_servers import SERVERS


def main() -> None:
    """Serve until SIGTERM or SIGINT. Raises StartError, or SystemExit with the process's exit status."""
    django.setup()
    startup.run_checks()
    startup.require_web_server()
    address = startup.free_address()
    startup.wait_for_database()
    if settings.MIGRATE_ON_START:
        startup.migrate()
    startup.close_connections()
    run_server = SERVERS[settings.WEB_SERVER]
    sys.exit(Supervisor(lambda: run_server(address), startup.companions()).run())
