"""The service as a process of its own, on a free port: for what only a real server shows."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Self

import psutil

from tests.helpers import Api, Network

PROJECT_DIR = Path(__file__).resolve().parent.parent


def wait_until(condition: Callable[[], bool], seconds: float = 30.0, *, what: str = "the condition") -> None:
    """Return as soon as `condition` holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds:g} s"
        time.sleep(0.02)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def refuse_in_unit_tests() -> None:
    """Fail if the test that starts a server runs in `make unit`: its mark is missing."""
    assert "WITHOUT_DATABASE" not in os.environ, "A test that starts a server needs the mark `process`."


class RunningServer:
    """`python -m messages_project` with the given variables, from the moment that it is ready."""

    launcher: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    port_variable = "PORT"

    def __init__(self, **variables: str) -> None:
        refuse_in_unit_tests()
        self.port = int(variables.get(self.port_variable) or free_port())
        self.url = f"http://127.0.0.1:{self.port}"
        self.variables = variables
        self.project_dir = PROJECT_DIR
        self._clients: list[Network] = []
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        # Of the tests' own PostgreSQL (database.py).
        replicas = "" if "POSTGRES_HOST" in self.variables else os.environ.get("TEST_REPLICA_SERVERS", "")
        environment = os.environ | {
            "POSTGRES_REPLICAS": replicas,
            "BIND": "127.0.0.1",
            self.port_variable: str(self.port),
            **self.variables,
        }
        process = subprocess.Popen(
            [*self.launcher, sys.executable, "-m", "messages_project", *self.command],
            cwd=self.project_dir, env=environment, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C does not reach it
        )  # fmt: skip
        self.process = process
        api = self.api()

        def is_ready() -> bool:
            assert process.poll() is None, f"the server ended with status {process.returncode}:\n{self.log}"
            try:
                return api.get("/readyz").status == 200
            except OSError:
                return False

        try:
            wait_until(is_ready, what="a ready server")
        except BaseException:
            self.kill()
            raise
        return process

    @property
    def log(self) -> str:
        """What it has printed so far."""
        # Through /proc or a second descriptor the offset of the writer would move.
        return os.pread(self._log.fileno(), 10_000_000, 0).decode(errors="replace")

    def api(self, key: str | None = None) -> Api:
        """A client of this server."""
        client = Network(self.url)
        self._clients.append(client)
        return Api(client, key)

    def stop(self) -> int:
        """Ask it to stop (SIGTERM); return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        """Kill it and all its children at once (SIGKILL), as a crash of the machine would."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [psutil.Process(self.process.pid), *self.children()]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait(30)

    def children(self) -> list[psutil.Process]:
        """The processes below the one that was started: the server's first, and those that serve."""
        children: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return children

    def workers(self) -> list[psutil.Process]:
        """The processes that serve."""
        return [process for process in self.children() if process.ppid() != self.process.pid]

    def restart(self) -> None:
        """Start it anew on the same port, after `stop` or `kill`."""
        self.process = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        for client in self._clients:
            client.close()  # gunicorn would wait two seconds for another request on the connection
        try:
            self.stop()
        finally:
            self.kill()
            self._log.close()
