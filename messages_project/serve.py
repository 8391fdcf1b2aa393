"""`python -m messages_project serve`: check, wait for the database, migrate, then run the web server until a signal."""

import os
import sys

import django
from django.conf import settings

from messages_project import startup
from messages_project.metrics_directory import metrics_directory
from messages_project.supervisor import Supervisor
from messages_project.web_servers import SERVERS


def main() -> None:
    """Serve until SIGTERM or SIGINT. Raises StartError, or SystemExit with the process's exit status."""
    with metrics_directory() as directory:
        # prometheus-client reads it when the first metric is defined.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
        django.setup()
        startup.run_checks()
        startup.require_granian()
        startup.require_tracing()
        address = startup.free_address(settings.PORT)
        startup.require_open_files()
        # Before the migrations, for the encoding; and after them, for the privileges on the new tables.
        startup.require_usable_database()
        if settings.MIGRATE_ON_START:
            startup.migrate()
            startup.require_usable_database()
        companions = {}
        if settings.WITH_COMPANIONS:
            from messages_project import live, upkeep

            companions = {"live": live.main, "upkeep": upkeep.main}
        run_server = SERVERS[settings.WEB_SERVER]
        sys.exit(Supervisor(lambda: run_server(address), companions).run())
