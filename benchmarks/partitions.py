"""What partitions change, and what a request costs: one database plain, and a copy of it after `manage.py distribute`.

Both are served side by side and asked in turn over one connection. Besides the time of a request it prints the time
that the API's processes and PostgreSQL's spend on the processor for it: docs/growth.md computes fleets from these.
"""

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import NamedTuple

from benchmarks.contenders import Product, processor_seconds
from benchmarks.growth import EACH, GIANT, OPERATIONS, Place, fill
from benchmarks.load import Request, run_wrk
from benchmarks.postgres import Server
from benchmarks.works import MAILBOXES, PAGE, ids_body, query, send, send_keyed

GIANT_MESSAGES = 500_000


class Cost(NamedTuple):
    """Milliseconds a request: until it was answered, and on the processor."""

    passed: float
    api: float
    database: float


def marks_of_many(place: Place) -> list[Request]:
    """Marks of 100 messages in 100 mailboxes."""
    ids = query(
        place.product,
        "SELECT id FROM unnest(%s::text[]) name, LATERAL"
        " (SELECT id FROM bench_message WHERE recipient = name ORDER BY seq DESC LIMIT 20) newest ORDER BY random()",
        random.sample(place.names, 500),
    )
    groups = [ids[start : start + 100] for start in range(0, len(ids), 100)]
    return [
        Request("PATCH", f"/messages/mark-{verb}", ids_body(group)) for verb in ("read", "unread") for group in groups
    ]


WORKS: dict[str, Callable[[Place], list[Request]]] = {
    "send": lambda place: send(place.product, 0),
    "send with a key": lambda place: send_keyed(place.product, 0),
    **OPERATIONS,
    "mark 100 of 100 mailboxes": marks_of_many,
}


def distributed(plain: Product, number: int, say: Callable[[str], None]) -> Product:
    """A copy of a product's database, in partitions."""
    with plain.connect() as connection:
        connection.execute("DROP VIEW bench_message")
        [count] = connection.execute("SELECT count(*) FROM messaging_message").fetchone() or [0]
    with plain.server.connect() as connection:
        connection.execute("CREATE DATABASE partitioned TEMPLATE plain")
    product = Product("partitioned", plain.server, tokens=plain.tokens)
    started = time.monotonic()
    done = product.run_tool("-m", "django", "distribute", "--partitions", str(number), "--verbosity", "0")
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds = time.monotonic() - started
    say(f"distribute: {count:,} messages in {seconds:.0f} s, {seconds / count * 1e6:.1f} s a million")
    for each in (plain, product):
        each.create_view()
        with each.connect() as connection:
            connection.execute("VACUUM ANALYZE")
    return product


def measure(place: Place, name: str, seconds: int) -> Cost:
    requests = WORKS[name](place)
    processes, backends = place.product.pids(), place.product.backends()
    before = processor_seconds(processes), processor_seconds(backends)
    found = run_wrk(place.product, requests, seconds=seconds, again=name != "delete one", connections=1)
    place.product.settle()
    spent = processor_seconds(processes) - before[0], processor_seconds(backends) - before[1]
    return Cost(1_000 / found.rate, 1_000 * spent[0] / found.requests, 1_000 * spent[1] / found.requests)


def run(server: Server, number: int, *, mailboxes: int, rounds: int, seconds: int, say: Callable[[str], None]) -> None:
    plain = Product("plain", server)
    plain.create()
    say(f"filling {mailboxes * EACH + GIANT_MESSAGES:,} messages")
    names = fill(plain, mailboxes)[:MAILBOXES]
    plain.add_mailboxes([GIANT])
    plain.add_messages(GIANT, GIANT_MESSAGES)
    say(f"copying, then manage.py distribute --partitions {number}")
    places = [Place(each.name, each, names, EACH // PAGE - 1) for each in (plain, distributed(plain, number, say))]
    costs: dict[tuple[str, str], list[Cost]] = {}
    with ExitStack() as serving:
        for place in places:
            serving.enter_context(place.product.serving())
        for turn in range(rounds + 1):
            say(f"round {turn} of {rounds}" if turn else "warming up")
            server.checkpoint()
            for name in WORKS:
                for place in places:
                    cost = measure(place, name, seconds if turn else 1)
                    costs.setdefault((name, place.title), []).extend([cost] if turn else [])
    for place in places:
        if faults := place.product.mailbox_faults():
            raise SystemExit(f"the run is void, check_mailboxes found: {faults}")
    for name in WORKS:
        for place in places:
            passed, api, database = (median(values) for values in zip(*costs[name, place.title], strict=True))
            print(
                f"{name:<26} {place.title:<12} {passed:7.2f} ms; on the processor, API {api:.2f} ms,"
                f" PostgreSQL {database:.2f} ms"
            )
