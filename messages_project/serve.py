"""`python -m messages_project serve`: check, wait for the database, migrate, then run the web server until a signal."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import django
from django.conf import settings

from messages_project import startup
from messages_project.supervisor import Supervisor
from messages_project.web_servers import SERVERS

_MEMORY = "/dev/shm"  # noqa: S108 - mkdtemp makes a directory of its own there


def main() -> None:
    """Serve until SIGTERM or SIGINT. Raises StartError, or SystemExit with the process's exit status."""
    with _metrics_directory():
        _serve()


@contextmanager
def _metrics_directory() -> Iterator[None]:
    """The directory of prometheus-client's multiprocess mode. It must exist before a metric is defined."""
    directory = tempfile.mkdtemp(prefix="messages-metrics-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    try:
        yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _serve() -> None:
    django.setup()
    startup.run_checks()
    startup.require_extras()
    address = startup.free_address(settings.PORT)
    startup.require_open_files()
    startup.wait_for_database()
    # Before the migrations, for the encoding; and after them, for the privileges on the new tables.
    startup.require_usable_database()
    if settings.MIGRATE_ON_START:
        startup.migrate()
        startup.require_usable_database()
    startup.close_connections()
    run_server = SERVERS[settings.WEB_SERVER]
    sys.exit(Supervisor(lambda: run_server(address), startup.companions()).run())
