"""A Redis of a test's own, on a free port: to be stopped, started again, and hung."""

import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any, Self

import redis

from tests.programs import program
from tests.servers import free_port, wait_until

NOT_OF_REDIS = [b":abc\r\n", b">x\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"]


@contextmanager
def no_redis(answer: bytes) -> Iterator[str]:
    """A server that answers everything with these bytes; its URL."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(65536):
                self.request.sendall(answer)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
        server.shutdown()


class RedisServer:
    """`redis-server`, from the moment that it answers. Keeps nothing on disk."""

    def __init__(self) -> None:
        self._program = program("redis-server")
        self._directory = tempfile.TemporaryDirectory(prefix="messages-redis-")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client: Any = redis.Redis.from_url(self.url, protocol=2)
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, empty, on its port."""
        with Path(self._directory.name, "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                    "--rename-command", "HELLO", "",  # as one before version 6, and proxies, which speak RESP2 only
                ],
                cwd=self._directory.name, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_until(self._answers, what="an answer of Redis")
        return self.process

    def _answers(self) -> bool:
        assert self.process.poll() is None, Path(self._directory.name, "log").read_text()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(5) == b"+PONG"
        except OSError:
            return False

    def stop(self) -> None:
        """End it, with its data."""
        self.process.kill()
        self.process.wait(10)

    def hang(self) -> None:
        """Let it accept connections and answer nothing (SIGSTOP)."""
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """End the hang."""
        self.process.send_signal(signal.SIGCONT)

    def used(self, caller: str) -> int:
        """Hundredths of requests counted for a caller, in all its windows."""
        return sum(int(self.client.get(key)) for key in self.client.keys(f"messages:rate:*:{caller}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.client.close()
        self.stop()
        self._directory.cleanup()
