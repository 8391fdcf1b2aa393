"""The load generators: wrk for the two APIs, with one thread that keeps 32 connections busy; pgbench for PostgreSQL."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders import Contender
from benchmarks.postgres import Server

CONNECTIONS = 32
REPLAY = Path(__file__).with_name("replay.lua")


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    body: str = ""
    etag: str = ""
    keyed: bool = False  # with an Idempotency-Key of its own each time

    def line(self) -> str:
        return f"{self.method}\t{self.path}\t{self.etag}\t{'keyed' if self.keyed else ''}\t{self.body}\n"


@dataclass(frozen=True)
class Measurement:
    """One run: requests a second, latencies in milliseconds, and how many requests were answered.

    `server_us` is the time that the server's processes spent on the processor for each, `database_us` that of the
    PostgreSQL processes behind them.
    """

    rate: float
    p50: float
    p99: float
    requests: int
    bytes_each: float
    server_us: float = 0
    database_us: float = 0


def find_wrk() -> str:
    program = shutil.which("wrk")
    if program is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    return program


def run_wrk(
    contender: Contender, requests: Sequence[Request], *, seconds: int, again: bool, connections: int = CONNECTIONS
) -> Measurement:
    """Sends `requests` in order for `seconds`; fails on any error or refusal, or when they do not suffice."""
    file = contender.server.directory / "requests.tsv"
    with file.open("w") as output:
        output.writelines(request.line() for request in requests)
    tokens = contender.server.directory / "tokens.txt"
    tokens.write_text("".join(f"{token}\n" for token in contender.tokens))
    command = [find_wrk(), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(REPLAY)]
    arguments = [str(file), str(tokens) if contender.tokens else "-", "again" if again else "once"]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{contender.port}", "--", *arguments], check=False, capture_output=True, text=True
    )
    found = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
    if found is None:
        raise SystemExit(f"wrk failed: {done.stdout}{done.stderr}")
    result = json.loads(found[1])
    if result["refused"] or result["broken"] or result["exhausted"] or not result["requests"]:
        raise SystemExit(f"{contender.name}: {requests[0].method} {requests[0].path}: the run is void: {result}")
    return Measurement(
        rate=result["requests"] / (result["microseconds"] / 1e6),
        p50=result["p50"] / 1e3,
        p99=result["p99"] / 1e3,
        requests=result["requests"],
        bytes_each=result["bytes"] / result["requests"],
    )


def run_pgbench(server: Server, database: str, script: str, *, seconds: int) -> Measurement:
    """The same number of clients running one SQL script as a prepared statement."""
    file = server.directory / "pgbench.sql"
    file.write_text(script)
    options = ["-n", "-M", "prepared", "-c", str(CONNECTIONS), "-j", "2", "-T", str(seconds)]
    done = subprocess.run(
        [server.programs / "pgbench", *options, "-f", file, database],
        check=False,
        env=server.variables(database),
        capture_output=True,
        text=True,
    )
    rate = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
    failed = re.search(r"failed transactions: (\d+)", done.stdout)
    latency = re.search(r"latency average = ([\d.]+)", done.stdout)
    if done.returncode or rate is None or latency is None or (failed and failed[1] != "0"):
        raise SystemExit(f"pgbench failed: {done.stdout}{done.stderr}")
    mean = float(latency[1])
    return Measurement(rate=float(rate[1]), p50=mean, p99=mean, requests=round(float(rate[1]) * seconds), bytes_each=0)
