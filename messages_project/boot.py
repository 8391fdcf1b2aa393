"""What a process does before Django reads its settings: name them, and start the embedded PostgreSQL if need be.

The server's own start (waiting, migrating, serving) lives in serve.py.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from messages_project import env

if TYPE_CHECKING:
    from messages_project.embedded_postgres import Server

_SETTINGS = "messages_project.settings"


class StartError(Exception):
    """The process cannot start. The text says why, and what to do."""


def prepare() -> "Server | None":
    """Point Django at its settings, and the settings at a database.

    Without POSTGRES_HOST that is the embedded PostgreSQL, which is then returned; with it none of that is imported.

    Raises StartError, and SettingsError if the environment has faults.
    """
    env.default(DJANGO_SETTINGS_MODULE=_SETTINGS)
    # gunicorn reads this one as soon as it is imported, and takes nothing for a number.
    env.drop_empty("WEB_CONCURRENCY")
    server = None if env.is_set("POSTGRES_HOST") else _embedded_postgres()
    # For its faults, which have to be told before anything else meets them.
    import_module(_SETTINGS)
    return server


def no_database(error: Exception) -> str:
    """What to tell somebody whose database does not answer, or does not let us in."""
    from django.conf import settings

    database = settings.DATABASES["default"]
    reason = str(error).strip().partition("\n")[0]
    return (
        f"No connection to PostgreSQL database {database['NAME']!r} as {database['USER']!r} "
        f"at {database['HOST']}:{database['PORT']}: {reason}\n"
        "Start it, or correct POSTGRES_HOST, POSTGRES_PORT, POSTGRES_DB, POSTGRES_USER and POSTGRES_PASSWORD; "
        "without POSTGRES_HOST an embedded PostgreSQL is used."
    )


def _embedded_postgres() -> "Server":
    from messages_project import embedded_postgres

    try:
        return embedded_postgres.start()
    except embedded_postgres.EmbeddedPostgresError as error:
        raise StartError(str(error)) from error
