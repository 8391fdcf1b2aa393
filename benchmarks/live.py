"""The live process: what idle streams cost, and how long after its commit a client hears of a change."""

import asyncio
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import mean, quantiles

from benchmarks.contenders import ROOT, Product, processor_seconds
from benchmarks.memory import resident
from benchmarks.postgres import Server, free_port
from benchmarks.report import Claim

STREAMS, IDLE_SECONDS, CHANGES = 5_000, 30, 200
STREAM_KIB, IDLE_PERCENT, TICK_MS, HINT_MS = 40, 5, 500, 100


class WithLive(Product):
    """The product, whose live process is measured; `redis_url` makes it hint at changes."""

    redis_url = ""

    def environment(self) -> dict[str, str]:
        return super().environment() | {"REDIS_URL": self.redis_url, "ACCESS_LOG": "false"}


@contextmanager
def live_process(product: Product) -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    """The live process on a database of the product; yields its port and process."""
    port = free_port()
    # Thousands of streams begin within a few seconds here.
    environment = product.environment() | {"LIVE_PORT": str(port), "MESSAGES_RATE_LIMIT_READ": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "messages_project", "live"],
        env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield port, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextmanager
def redis_server() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen(["redis-server", "--port", str(port), "--save", ""], stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]  # which closes the connection once nobody holds it


async def stream(port: int, recipient: str, token: str) -> Stream:
    """A stream that has had its first event."""
    for _ in range(100):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
            break
        except OSError:
            await asyncio.sleep(0.2)  # it is starting
    head = f"GET /mailbox/events?recipient={recipient} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
    writer.write(f"{head}Authorization: Bearer {token}\r\n\r\n".encode())
    await reader.readuntil(b"data:")
    await reader.readline()
    return reader, writer


async def idle(
    port: int, process: "subprocess.Popen[bytes]", token: str, say: Callable[[str], None]
) -> tuple[float, float]:
    """KiB of memory of a stream, and the percentage of a processor that all of them take."""
    warm = [await stream(port, f"warm{n}", token) for n in range(50)]
    await asyncio.sleep(2)
    before, started = resident([process.pid]), time.monotonic()
    gate = asyncio.Semaphore(50)

    async def opened(number: int) -> Stream:
        async with gate:
            return await stream(port, f"idle{number}", token)

    streams = await asyncio.gather(*map(opened, range(STREAMS)))
    say(f"{STREAMS:,} streams on as many mailboxes opened in {time.monotonic() - started:.1f} s")
    await asyncio.sleep(3)
    each = (resident([process.pid]) - before) * 1e6 / 1024 / STREAMS
    spent, began = processor_seconds([process.pid]), time.monotonic()
    await asyncio.sleep(IDLE_SECONDS)
    percent = (processor_seconds([process.pid]) - spent) / (time.monotonic() - began) * 100
    assert not any(reader.at_eof() for reader, _ in streams + warm)
    return each, percent


async def latencies(port: int, product: Product, token: str) -> list[float]:
    """Milliseconds from the answer to a POST to the event, for changes at random moments."""
    reader, writer = await stream(port, "heard", token)
    found = []
    for number in range(CHANGES):
        await asyncio.sleep(0.35 + number % 7 * 0.037)
        body = '{"recipient": "heard", "content": "x"}'
        status = (await asyncio.to_thread(product.ask, "POST", "/messages/", body))[0]
        committed = time.monotonic()
        assert status == 201, status
        await reader.readuntil(b"data:")
        found.append(max(0.0, time.monotonic() - committed) * 1e3)
        await reader.readline()
    writer.close()
    return found


def distribution(name: str, found: list[float], say: Callable[[str], None]) -> float:
    cuts = quantiles(found, n=100)
    shares = ", ".join(f"{share} % {cuts[share - 1]:.0f}" for share in (50, 90, 95, 99))
    say(f"{name}: mean {mean(found):.0f} ms; {shares}")
    return cuts[94]


def run(server: Server, *, say: Callable[[str], None]) -> list[Claim]:
    """Measures with ticks alone, then with hints by Redis."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    claims = []
    product = WithLive("product", server)
    product.create()
    with product.serving(), live_process(product) as (port, process):
        token = next(iter(product.tokens))
        each, percent = asyncio.run(idle(port, process, token, say))
        claims += [
            Claim("memory of an idle stream", each, STREAM_KIB, at_most=True, unit="KiB"),
            Claim(f"processor for {STREAMS:,} idle streams", percent, IDLE_PERCENT, at_most=True, unit="%"),
        ]
    with product.serving(), live_process(product) as (port, _):
        ticks = distribution("commit to event, by ticks", asyncio.run(latencies(port, product, token)), say)
        claims.append(Claim("95 % of events after the commit, by ticks", ticks, TICK_MS, at_most=True, unit="ms"))
    with redis_server() as url:
        product.redis_url = url
        with product.serving(), live_process(product) as (port, _):
            hints = distribution("commit to event, by hints", asyncio.run(latencies(port, product, token)), say)
        claims.append(Claim("95 % of events after the commit, by hints", hints, HINT_MS, at_most=True, unit="ms"))
    return claims
