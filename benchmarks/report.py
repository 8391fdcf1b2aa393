"""From measurements to claims: medians, spreads, ratios, targets; as a table, as JSON."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.contenders import PROCESSES, ROOT
from benchmarks.load import CONNECTIONS, Measurement
from benchmarks.postgres import SETTINGS, Server
from benchmarks.rounds import Results
from benchmarks.works import MAILBOXES, MESSAGES, WORKS

PACKAGES = [
    *("django", "djangorestframework", "gunicorn", "psycopg", "msgspec"),
    *("fastapi", "sqlmodel", "sqlalchemy", "pydantic", "uvicorn"),
]
# (work, what it is compared with) -> the least ratio of medians; the opponent's same work where nothing else is named.
RATIOS = {"send": 4.0, "page": 5.0, "deep": 5.0, "unread": 5.0, "mark": 3.0, "delete": 3.0, "delete100": 3.0}
REFERENCE = {"poll": "page", "crowded": "send"}  # what the opponent does instead


@dataclass(frozen=True)
class Claim:
    """One line of the table: a value that must be at least, or at most, its target."""

    what: str
    value: float
    target: float
    at_most: bool = False
    unit: str = "x"

    @property
    def holds(self) -> bool:
        return self.value < self.target if self.at_most else self.value >= self.target

    def line(self) -> str:
        value, target = (
            f"{self.value:.2f} {self.unit}",
            f"{'<' if self.at_most else '>='} {self.target:.2f} {self.unit}",
        )
        return f"{self.what:<58} {value:>14} {target:>16}  {'ok' if self.holds else 'MISSED'}"


def rate(found: list[Measurement]) -> float:
    return median(each.rate for each in found)


def claims(results: Results) -> Iterator[Claim]:
    """Every claim whose two sides were measured."""

    def ratio(
        what: str, over: tuple[str, str], under: tuple[str, str], target: float, factor: float = 1
    ) -> Iterator[Claim]:
        if results.get(over) and results.get(under):
            yield Claim(what, factor * rate(results[over]) / rate(results[under]), target)

    titles = {work.name: work.title for work in WORKS}
    for name, target in RATIOS.items():
        yield from ratio(f"{titles[name]}, against the opponent", (name, "product"), (name, "opponent"), target)
    yield from ratio("304, against the opponent's page", ("poll", "product"), ("page", "opponent"), 8)
    yield from ratio("batch of 1,000, against its single sends", ("batch", "product"), ("send", "opponent"), 60, 1_000)
    yield from ratio("send, as a part of pgbench", ("send", "product"), ("send", "pgbench"), 0.2)
    yield from ratio("send into one mailbox, as a part of 1,000", ("crowded", "product"), ("send", "product"), 0.6)
    if results.get(("deep", "product")) and results.get(("page", "product")):
        value = rate(results["page", "product"]) / rate(results["deep", "product"])
        yield Claim("cost of a deep page, against the first", value, 1.2, at_most=True)
    for name, title in titles.items():
        product, opponent = results.get((name, "product")), results.get((REFERENCE.get(name, name), "opponent"))
        if product and opponent:
            slowest, usual = median(each.p99 for each in product), median(each.p50 for each in opponent)
            yield Claim(f"p99 of {title}, against the opponent's median", slowest, usual, at_most=True, unit="ms")


def spread(found: list[Measurement]) -> str:
    rates = [each.rate for each in found]
    return f"{median(rates):>8,.0f} ({min(rates):,.0f}..{max(rates):,.0f})"


def table(results: Results) -> str:
    """Requests a second (median, least and most of the rounds) and latencies of every work."""
    titles = {work.name: work.title for work in WORKS}
    heads = f"{'requests a second':<28} {'median ms':>10} {'p99 ms':>8} {'CPU us':>8} {'and PostgreSQL':>15}"
    lines = [f"{'':<30} {'':<9} {heads}"]
    for (name, who), found in results.items():
        p50, p99 = median(each.p50 for each in found), median(each.p99 for each in found)
        server, database = median(each.server_us for each in found), median(each.database_us for each in found)
        latency = f"{p50:>10.1f} {p99:>8.1f} {server:>8,.0f} {database:>15,.0f}" if who != "pgbench" else ""
        lines.append(f"{titles[name]:<30} {who:<9} {spread(found):<28} {latency}".rstrip())
    return "\n".join([*lines, ""])


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], check=False, cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip()


def as_json(
    results: Results, found: Iterable[Claim], server: Server, *, rounds: int, seconds: int, notes: list[str]
) -> dict[str, Any]:
    """Everything needed to judge the numbers, and to take them again."""
    return {
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "commit": commit(),
        "notes": notes,
        "settings": {
            "rounds": rounds,
            "seconds": seconds,
            "connections": CONNECTIONS,
            "processes": PROCESSES,
            "messages": MESSAGES,
            "mailboxes": MAILBOXES,
            "postgresql": SETTINGS,
        },
        "machine": {"processor": processor(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()},
        "versions": {
            "python": platform.python_version(),
            "postgresql": server.version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "works": {
            work.name: {
                "title": work.title,
                **{who: summary(found) for (name, who), found in results.items() if name == work.name},
            }
            for work in WORKS
        },
        "claims": [asdict(claim) | {"holds": claim.holds} for claim in found],
    }


def summary(found: list[Measurement]) -> dict[str, Any]:
    return {
        "rate": round(rate(found), 1),
        "p50_ms": median(each.p50 for each in found),
        "p99_ms": median(each.p99 for each in found),
        "server_us": round(median(each.server_us for each in found)),
        "database_us": round(median(each.database_us for each in found)),
        "rounds": [asdict(each) for each in found],
    }
