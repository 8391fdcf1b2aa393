"""pytest plugin, named on pytest's command line: a throwaway PostgreSQL, started before Django's settings are loaded.

With POSTGRES_HOST set, that server is used instead; with WITHOUT_DATABASE, none (`make unit`). With
TEST_CITUS=127.0.0.1:5433,127.0.0.1:5434 as well, that server is the coordinator of Citus, and these are its workers.
With TEST_REPLICAS=2 the server has so many replicas, and the processes that tests start (servers.py) read from them.
The workers of pytest-xdist inherit the environment and with it the server of the process that started them.
"""

import atexit
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
    # A user's shell seldom has it, and without it Python keeps in a buffer what a full disk refuses.
    os.environ.pop("PYTHONUNBUFFERED", None)
    if env.is_set("TEST_CITUS"):
        _drop_databases([f"{os.environ['POSTGRES_HOST']}:{os.environ['POSTGRES_PORT']}", *workers()])
    if env.is_set("POSTGRES_HOST") or env.is_set("WITHOUT_DATABASE"):
        return None
    server = embedded_postgres.start(Path(tempfile.mkdtemp(prefix="messages-test-")), throwaway=True)
    if env.is_set("TEST_REPLICAS"):
        _start_replicas(int(os.environ["TEST_REPLICAS"]))
    return server


def workers() -> list[str]:
    """Host and port of each worker of Citus; none without TEST_CITUS."""
    return os.environ["TEST_CITUS"].split(",") if env.is_set("TEST_CITUS") else []


def _drop_databases(servers: list[str]) -> None:
    """Drop what an earlier run has left: a process of Citus keeps Django from it."""
    import psycopg

    for server in servers:
        host, port = server.split(":")
        with psycopg.connect(
            host=host, port=port, user=os.environ["POSTGRES_USER"], dbname="postgres", autocommit=True
        ) as session:
            session.execute("DROP DATABASE IF EXISTS test_messages WITH (FORCE)")


def _start_replicas(count: int) -> None:
    import psycopg

    from tests.postgres_servers import PostgresServer

    primary = f"host={os.environ['POSTGRES_HOST']} port={os.environ['POSTGRES_PORT']}"
    replicas = [PostgresServer(standby_of=primary, max_connections="200") for _ in range(count)]
    for replica in replicas:
        atexit.register(replica.__exit__)
    os.environ["TEST_REPLICA_SERVERS"] = ",".join(f"127.0.0.1:{replica.port}" for replica in replicas)
    # Each commit waits until all of them have replayed it: a test must not read what the one before has left.
    with psycopg.connect(f"{primary} user=postgres dbname=postgres", autocommit=True) as session:
        session.execute(f"ALTER SYSTEM SET synchronous_standby_names = 'FIRST {count} (*)'")
        session.execute("ALTER ROLE messages SET synchronous_commit = remote_apply")
        session.execute("SELECT pg_reload_conf()")


SERVER = _start()
