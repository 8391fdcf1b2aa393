"""What the log of changes costs: marks and deletions with it and without it, in turns, as prepared statements.

`measure` runs in a process of its own, with the product's environment: `python -m benchmarks.change_log`.
"""

import json
import random
import re
import time
from collections.abc import Callable
from itertools import product as pairs
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from benchmarks.contenders import Product
from benchmarks.postgres import Server
from benchmarks.report import Claim

MAILBOXES, EACH, RUNS, WARM_UP, MOST = 1_000, 300, 300, 20, 1.15
SIZES, SPREADS = (1, 20, 100), ("one mailbox", "a mailbox each")
LOGGED = re.compile(r", logged AS \(.*?\n\)", re.DOTALL)


def without_log(statement: str) -> str:
    """The statement as it was before there was a log."""
    found, count = LOGGED.subn("", statement)
    assert count == 1
    return re.sub(r"array_agg\((.*?)\) FILTER \(.*?\) AS message_ids", r"nullif(count(\1), 0) AS message_ids", found)


def groups(connection: psycopg.Connection, size: int, spread: str) -> list[list[Any]]:
    """Ids in groups of a size: each group of one mailbox, or of as many mailboxes as ids."""
    rows = connection.execute("SELECT array_agg(id ORDER BY seq) FROM messaging_message GROUP BY mailbox_id").fetchall()
    mailboxes = [ids for (ids,) in random.sample(rows, len(rows))]
    if spread == SPREADS[0]:
        return [ids[:size] for ids in mailboxes if len(ids) >= size]
    columns = [[ids[place] for ids in mailboxes] for place in range(min(map(len, mailboxes)))]
    return [column[at : at + size] for column in columns for at in range(0, len(column) - size + 1, size)]


def measure() -> dict[str, list[list[float]]]:
    """Median microseconds of the clock and of PostgreSQL's processor, with the log and then without it."""
    import django

    django.setup()
    from django.db import connection

    from messaging.sharding import Layout, adapted
    from messaging.statements import DELETE, MARK

    connection.ensure_connection()
    raw: Any = connection.connection
    processor = Path(f"/proc/{raw.info.backend_pid}/schedstat")
    found = {}
    for size, spread, (name, statement) in pairs(SIZES, SPREADS, (("mark", MARK), ("delete", DELETE))):
        texts, took = (statement, without_log(statement)), ([], [])
        for turn, ids in enumerate(groups(raw, size, spread)[: 2 * RUNS]):
            values = {"ids": f"{{{','.join(map(str, ids))}}}", "only_recipient": None, "read": turn % 4 < 2}
            query = adapted(texts[turn % 2], values, Layout.WHOLE)
            began, before = time.perf_counter_ns(), processor.read_text()
            psycopg.Cursor(raw).execute(*query, binary=True).fetchall()
            spent = [int(text.split()[0]) for text in (processor.read_text(), before)]
            took[turn % 2].append((time.perf_counter_ns() - began, spent[0] - spent[1]))
        found[f"{name} {size}, {spread}"] = [
            [median(run[kind] for run in runs[WARM_UP:]) / 1e3 for runs in took] for kind in (0, 1)
        ]
    return found


def run(server: Server, *, say: Callable[[str], None]) -> list[Claim]:
    """One claim for each kind of change, by the clock."""
    made = Product("product", server)
    made.create()
    made.add_mailboxes([f"user-{number}" for number in range(MAILBOXES)])
    made.add_messages("user-%", EACH, days=30)
    say(f"{RUNS} runs each, in turns")
    done = made.run_tool("-m", "benchmarks.change_log")
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout)
    for what, (clock, processor) in found.items():
        print("{:<24} {:5.0f} us, {:5.0f} without the log; PostgreSQL's processor".format(what, *clock), end="")
        print(" {:5.0f} us, {:5.0f} without: {:.2f} x".format(*processor, processor[0] / processor[1]))
    return [
        Claim(f"{what}, against the same without the log", clock[0] / clock[1], MOST, at_most=True)
        for what, (clock, _) in found.items()
    ]


if __name__ == "__main__":
    print(json.dumps(measure()))
