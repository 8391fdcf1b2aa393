"""pytest plugin, named on pytest's command line: a throwaway PostgreSQL, started before Django's settings are loaded.

With POSTGRES_HOST set, that server is used instead; with WITHOUT_DATABASE, none (`make unit`).
The workers of pytest-xdist inherit the environment and with it the server of the process that started them.
"""

import os
import tempfile
from pathlib import Path

from messages_project import embedded_postgres, env


def pytest_configure() -> None:
    """Nothing to do here: the server has to run before pytest-django configures itself, so it starts on import."""


def _start() -> "embedded_postgres.Server | None":
    os.environ.setdefault("SECRET_KEY", "only-for-tests-1f0c7d6b9a8e5c4d3f2a1b0c9d8e7f6a")
    # Tests see the defaults of a deployment, but for what they ask for themselves.
    os.environ.setdefault("MESSAGES_ACCESS", "keys")
    if env.is_set("POSTGRES_HOST") or env.is_set("WITHOUT_DATABASE"):
        return None
    return embedded_postgres.start(Path(tempfile.mkdtemp(prefix="messages-test-")), throwaway=True)


SERVER = _start()
