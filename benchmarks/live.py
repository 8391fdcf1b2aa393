"""The live process: what idle streams cost it and the API, how long after its commit a client hears of a change,
whether streams miss anything while others write, and what is left of clients that come and go.
"""

import asyncio
import resource
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import mean, median, quantiles

from benchmarks.contenders import ROOT, Product, processor_seconds
from benchmarks.crowd import Crowd, pass_by
from benchmarks.load import run_wrk
from benchmarks.memory import resident
from benchmarks.postgres import Server, free_port
from benchmarks.report import Claim
from benchmarks.rounds import Rounds
from benchmarks.works import WORKS

STREAMS, IDLE_SECONDS, CHANGES = 5_000, 30, 200
STREAM_KIB, IDLE_PERCENT, TICK_MS, HINT_MS = 40, 5, 500, 100
FOLLOWERS, FOLLOWED, WRITERS, WRITING_SECONDS = 1_000, 200, 32, 20
BESIDE, BESIDE_ROUNDS, BESIDE_SECONDS, BESIDE_RATIO = ("send", "unread"), 6, 3, 0.9
VISITS, SILENT, SLOW, LEFT_MB = 100_000, 200, 8, 20


class WithLive(Product):
    """The product, whose live process is measured; `redis_url` makes it hint at changes."""

    redis_url = ""

    def environment(self) -> dict[str, str]:
        return super().environment() | {"REDIS_URL": self.redis_url, "ACCESS_LOG": "false"}


@contextmanager
def live_process(product: Product, port: int = 0) -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    """The live process on a database of the product; yields its port and process."""
    port = port or free_port()
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


async def idle_ones(port: int, token: str, say: Callable[[str], None]) -> list[Stream]:
    """STREAMS streams on as many mailboxes."""
    gate, started = asyncio.Semaphore(50), time.monotonic()

    async def opened(number: int) -> Stream:
        async with gate:
            return await stream(port, f"idle{number}", token)

    streams = await asyncio.gather(*map(opened, range(STREAMS)))
    say(f"{STREAMS:,} streams on as many mailboxes opened in {time.monotonic() - started:.1f} s")
    return streams


async def idle(
    port: int, process: "subprocess.Popen[bytes]", token: str, say: Callable[[str], None]
) -> tuple[float, float]:
    """KiB of memory of a stream, and the percentage of a processor that all of them take."""
    warm = [await stream(port, f"warm{n}", token) for n in range(50)]
    await asyncio.sleep(2)
    before = resident([process.pid])
    streams = await idle_ones(port, token, say)
    await asyncio.sleep(3)
    each = (resident([process.pid]) - before) * 1e6 / 1024 / STREAMS
    spent, began = processor_seconds([process.pid]), time.monotonic()
    await asyncio.sleep(IDLE_SECONDS)
    percent = (processor_seconds([process.pid]) - spent) / (time.monotonic() - began) * 100
    assert not any(reader.at_eof() for reader, _ in streams + warm)
    return each, percent


async def rates(
    product: Product, port: int, process: "subprocess.Popen[bytes]", say: Callable[[str], None]
) -> dict[str, float]:
    """Of each work in BESIDE, the API's rate beside idle streams, as a ratio to its rate while their process rests.

    A stopped process keeps its connections, so both are measured in turns: medians of as many rounds in each order.
    """
    streams = await idle_ones(port, product.tokens[0], say)
    found: dict[tuple[str, signal.Signals], list[float]] = defaultdict(list)
    for number in range(BESIDE_ROUNDS + 1):
        for work in (work for work in WORKS if work.name in BESIDE):
            requests = work.prepare(product, 0)
            for turn in (signal.SIGSTOP, signal.SIGCONT)[:: 1 if number % 2 else -1]:
                process.send_signal(turn)
                await asyncio.sleep(1)
                run = await asyncio.to_thread(run_wrk, product, requests, seconds=BESIDE_SECONDS, again=True)
                if number:  # the first round warms up
                    found[work.name, turn].append(run.rate)
    process.send_signal(signal.SIGCONT)
    assert not any(reader.at_eof() for reader, _ in streams)
    for (name, turn), each in found.items():
        say(f"{name} after {turn.name}: {', '.join(f'{rate:.0f}' for rate in each)} a second")
    return {name: median(found[name, signal.SIGCONT]) / median(found[name, signal.SIGSTOP]) for name in BESIDE}


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


async def follow(
    product: Product, ports: list[int], restart: Callable[[], object], say: Callable[[str], None]
) -> float:
    """The seconds after the last change until each stream was at the true version; `restart` kills a live process."""
    crowd = Crowd(product.port, ports, streams=FOLLOWERS, mailboxes=FOLLOWED, writers=WRITERS, tokens=product.tokens)
    async with crowd.at_work():
        say(f"{FOLLOWERS:,} streams on {FOLLOWED} mailboxes at {len(ports)} processes")
        await asyncio.sleep(WRITING_SECONDS / 2)
        await asyncio.to_thread(restart)
        await asyncio.sleep(WRITING_SECONDS / 2)
        ended = time.monotonic()
    again = sum(follower.connections for follower in crowd.followers) - FOLLOWERS
    say(f"{sum(writer.requests for writer in crowd.writers):,} changes; {again:,} streams were opened again")
    return time.monotonic() - ended


def crowd(product: Product, say: Callable[[str], None]) -> list[Claim]:
    """Two live processes, of which one is killed in the middle and started again."""
    with product.serving(), ExitStack() as running:
        lives = [running.enter_context(live_process(product)) for _ in range(2)]

        def restart() -> None:
            port, process = lives[0]
            process.kill()
            process.wait()
            running.enter_context(live_process(product, port))

        took = asyncio.run(follow(product, [port for port, _ in lives], restart, say))
    return [Claim("each stream at the true version after the last change", took, 10, at_most=True, unit="s")]


async def visit(port: int, tokens: list[str], count: int) -> None:
    """Clients that come and go, fifty at once."""
    numbers = iter(range(count))

    async def one_after_the_other() -> None:
        for number in numbers:
            await pass_by(port, f"visited-{number % 1_000}", tokens[number % len(tokens)], number % 4)

    await asyncio.gather(*(one_after_the_other() for _ in range(50)))


async def visits(port: int, pid: int, tokens: list[str], say: Callable[[str], None]) -> tuple[float, float]:
    """MB and descriptors that many clients leave, some of which said nothing or did not read."""
    await stream(port, "first", tokens[0])
    await visit(port, tokens, VISITS // 10)
    files, before, started = descriptors(pid), resident([pid]), time.monotonic()
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(SILENT)]
    idle += [await stream(port, "slow", token) for token in tokens[:SLOW]]
    await visit(port, tokens, VISITS)
    say(f"{VISITS:,} connections, {VISITS / (time.monotonic() - started):,.0f} a second")
    for _, writer in idle:
        writer.close()
    await asyncio.sleep(3)
    return resident([pid]) - before, descriptors(pid) - files


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def coming_and_going(product: Product, say: Callable[[str], None]) -> list[Claim]:
    with live_process(product) as (port, process):
        grown, files = asyncio.run(visits(port, process.pid, product.tokens, say))
    return [
        Claim(f"memory after {VISITS:,} connections more", grown, LEFT_MB, at_most=True, unit="MB"),
        Claim("open files that they left", files, 1, at_most=True, unit=""),
    ]


def idle_streams(product: Product, say: Callable[[str], None]) -> list[Claim]:
    with product.serving(), live_process(product) as (port, process):
        each, percent = asyncio.run(idle(port, process, product.tokens[0], say))
    return [
        Claim("memory of an idle stream", each, STREAM_KIB, at_most=True, unit="KiB"),
        Claim(f"processor for {STREAMS:,} idle streams", percent, IDLE_PERCENT, at_most=True, unit="%"),
    ]


def beside(product: Product, say: Callable[[str], None]) -> list[Claim]:
    Rounds([product], [], BESIDE_SECONDS).fill()
    with product.serving(), live_process(product) as (port, process):
        found = asyncio.run(rates(product, port, process, say))
    return [Claim(f"{name} beside {STREAMS:,} idle streams", ratio, BESIDE_RATIO) for name, ratio in found.items()]


def delays(product: Product, say: Callable[[str], None]) -> list[Claim]:
    """By ticks alone, then with hints by Redis."""
    claims = []
    with redis_server() as url:
        for how, product.redis_url, most in (("ticks", "", TICK_MS), ("hints", url, HINT_MS)):
            with product.serving(), live_process(product) as (port, _):
                found = asyncio.run(latencies(port, product, product.tokens[0]))
            most_take = distribution(f"commit to event, by {how}", found, say)
            claims.append(Claim(f"95 % of events after the commit, by {how}", most_take, most, at_most=True, unit="ms"))
    return claims


PARTS = {"idle": idle_streams, "beside": beside, "delays": delays, "crowd": crowd, "visits": coming_and_going}


def run(server: Server, parts: str, *, say: Callable[[str], None]) -> list[Claim]:
    """The parts named, separated by commas; all of them if none is."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    product = WithLive("product", server)
    product.create()
    return [claim for name in parts.split(",") for claim in PARTS[name](product, say)]
