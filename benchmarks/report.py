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
    *("django", "djangorestframework", "gunicorn", "granian", "psycopg", "msgspec"),
    *("fastapi", "sqlmodel", "sqlalchemy", "pydantic", "uvicorn"),
]
# The least ratio of medians to the opponent's, for the product behind gunicorn and behind Granian.
RATIOS = {
    "product": {"send": 3.0, "page": 4.5, "deep": 4.5, "unread": 4.0, "poll": 5.0, "mark": 2.5, "delete": 2.5,
                "delete100": 2.5},
    "granian": {"send": 4.0, "page": 6.5, "deep": 6.5, "unread": 5.5, "poll": 7.0, "mark": 2.5, "delete": 2.5,
                "delete100": 2.5},
}  # fmt: skip
SERVERS = {"product": "gunicorn", "granian": "Granian"}
# What the opponent does instead.
REFERENCE = {"poll": "page", "crowded": "send", "keyed": "send"}


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
        return f"{self.what:<72} {value:>14} {target:>16}  {'ok' if self.holds else 'MISSED'}"


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
    for who, server in SERVERS.items():
        for name, target in RATIOS[who].items():
            opponent = (REFERENCE.get(name, name), "opponent")
            yield from ratio(f"{server}: {titles[name]}, against the opponent", (name, who), opponent, target)
        yield from ratio(
            f"{server}: batch of 1,000, against its single sends", ("batch", who), ("send", "opponent"), 55, 1_000
        )
        yield from ratio(f"{server}: keyed send, as a part of a plain one", ("keyed", who), ("send", who), 0.85)
        yield from ratio(f"{server}: send, as a part of pgbench", ("send", who), ("send", "pgbench"), 0.15)
        yield from ratio(f"{server}: send into one mailbox, as a part of 1,000", ("crowded", who), ("send", who), 0.6)
        if results.get(("deep", who)) and results.get(("page", who)):
            value = rate(results["page", who]) / rate(results["deep", who])
            yield Claim(f"{server}: cost of a deep page, against the first", value, 1.2, at_most=True)
        for name, title in titles.items():
            found, usual = results.get((name, who)), results.get((REFERENCE.get(name, name), "opponent"))
            if found and usual:
                slowest, middle = median(each.p99 for each in found), median(each.p50 for each in usual)
                what = f"{server}: p99 of {title}, against the opponent's median"
                yield Claim(what, slowest, middle, at_most=True, unit="ms")


def spread(found: list[Measurement]) -> str:
    rates = [each.rate for each in found]
    return f"{median(rates):>8,.0f} ({min(rates):,.0f}..{max(rates):,.0f})"


def table(results: Results) -> str:
    """Requests a second (median, least and most of the rounds) and latencies of every work."""
    titles = {work.name: work.title for work in WORKS}
    heads = f"{'requests a second':<28} {'median ms':>10} {'p99 ms':>8} {'CPU us':>8} {'and PostgreSQL':>15}"
    lines = [f"{'':<42} {'':<9} {heads}"]
    for (name, who), found in results.items():
        p50, p99 = median(each.p50 for each in found), median(each.p99 for each in found)
        server, database = median(each.server_us for each in found), median(each.database_us for each in found)
        latency = f"{p50:>10.1f} {p99:>8.1f} {server:>8,.0f} {database:>15,.0f}" if who != "pgbench" else ""
        lines.append(f"{titles[name]:<42} {who:<9} {spread(found):<28} {latency}".rstrip())
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
