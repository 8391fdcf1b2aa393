"""HAProxy with the deployed configuration, in front of services on loopback."""

import os
import subprocess
import tempfile
from http.client import HTTPConnection
from typing import IO, Self

from tests.programs import program
from tests.servers import PROJECT_DIR, free_port, wait_until

CONFIGURATION = PROJECT_DIR / "deploy" / "haproxy" / "haproxy.cfg"
NOTHING = "127.0.0.1:1"


class HAProxy:
    """The proxy in front of two services on these ports, from the moment that it has found both ready."""

    def __init__(self, a: int, b: int, *, live: str = NOTHING, **variables: str) -> None:
        self.port, metrics = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._metrics = metrics
        addresses = {
            "API_A": f"127.0.0.1:{a}", "API_B": f"127.0.0.1:{b}", "LIVE": live,
            "LISTEN": f"127.0.0.1:{self.port}", "METRICS": f"127.0.0.1:{metrics}",
        }  # fmt: skip
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self.process = subprocess.Popen(
            [program("haproxy"), "-db", "-f", str(CONFIGURATION)],
            env=os.environ | addresses | variables, stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            wait_until(lambda: self.up == {"a", "b"}, what="a proxy with two ready services")
        except BaseException:
            self.__exit__()
            raise

    @property
    def log(self) -> str:
        return os.pread(self._log.fileno(), 10_000_000, 0).decode(errors="replace")

    @property
    def up(self) -> set[str]:
        """The names of the services that it would send a request to."""
        assert self.process.poll() is None, self.log
        connection = HTTPConnection("127.0.0.1", self._metrics, timeout=5)
        try:
            connection.request("GET", "/metrics?scope=server")
            lines = connection.getresponse().read().decode().splitlines()
        except ConnectionRefusedError:
            return set()
        finally:
            connection.close()
        start, end = 'haproxy_server_status{proxy="api",server="', '",state="UP"} 1'
        return {line[len(start) : -len(end)] for line in lines if line.startswith(start) and line.endswith(end)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.process.kill()
        self.process.wait(10)
        self._log.close()
