"""How cost grows: the product with 300,000 messages, and with many millions of which one mailbox holds a million.

Both are served side by side and asked in turn, over one connection: what is compared is what a request costs, not how
the requests for one mailbox queue. Besides the time of a request it prints the time that the API's processes and
PostgreSQL's spend on the processor for it, which other work on the machine changes less.
"""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from benchmarks.contenders import Product, processor_seconds
from benchmarks.load import Request, run_wrk
from benchmarks.postgres import Server
from benchmarks.report import Claim
from benchmarks.works import DEEP_PAGES, MAILBOXES, PAGE, followed_links, ids_body, query

EACH = 300  # messages in an ordinary mailbox
GIANT, GIANT_MESSAGES = "giant", 1_000_000
LIMIT = 1.3


def settings() -> dict[str, str]:
    """PostgreSQL's for many millions of messages: a quarter of the memory, as its documentation advises."""
    quarter = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 // 2**20
    return {"shared_buffers": f"{quarter}MB", "effective_cache_size": f"{3 * quarter}MB", "max_wal_size": "4GB"}


class Cost(NamedTuple):
    """Milliseconds a request: until it was answered, and on the processor."""

    passed: float
    api: float
    database: float


@dataclass
class Place:
    """Where requests go: some mailboxes of one database, and how many pages deep their deep page is."""

    title: str
    product: Product
    names: Sequence[str]
    deep: int
    costs: dict[str, list[Cost]] = field(default_factory=dict)  # one for each round
    deep_paths: list[str] = field(default_factory=list)

    def pages(self, path: str) -> list[Request]:
        return [Request("GET", f"{path}?recipient={name}") for name in self.names]

    def deep_pages(self) -> list[Request]:
        if not self.deep_paths:
            some = self.names[:200]
            for name in some:
                self.deep_paths += followed_links(self.product, name, self.deep, 200 // len(some))
        return [Request("GET", path) for path in self.deep_paths]

    def newest(self, size: int, groups: int, condition: str = "") -> list[list[object]]:
        """Groups of ids, each group of one mailbox, from its newest messages backwards."""
        names = random.sample(self.names, min(groups, len(self.names)))
        return query(
            self.product,
            f"""
            SELECT array_agg(id) FROM unnest(%s::text[]) AS name, LATERAL (
                SELECT id, (row_number() OVER (ORDER BY seq DESC) - 1) / %s AS turn FROM (
                    SELECT id, seq FROM bench_message WHERE recipient = name {condition} ORDER BY seq DESC LIMIT %s
                ) AS newest
            ) AS numbered
            GROUP BY turn, name HAVING count(*) = %s ORDER BY turn
            """,
            names,
            size,
            size * -(-groups // len(names)),
            size,
        )

    def marks(self) -> list[Request]:
        groups = self.newest(20, 500, "AND NOT is_read")
        verbs = ("mark-read", "mark-unread")
        return [Request("PATCH", f"/messages/{verb}", ids_body(ids)) for verb in verbs for ids in groups]

    def deletes(self) -> list[Request]:
        return [Request("DELETE", f"/messages/{ids[0]}") for ids in self.newest(1, 10_000)]

    def measure(self, requests: list[Request], *, seconds: int, again: bool) -> Cost:
        processes = self.product.pids(), self.product.backends()
        before = [processor_seconds(pids) for pids in processes]
        found = run_wrk(self.product, requests, seconds=seconds, again=again, connections=1)
        self.product.settle()
        api, database = (processor_seconds(pids) - spent for pids, spent in zip(processes, before, strict=True))
        return Cost(1_000 / found.rate, 1_000 * api / found.requests, 1_000 * database / found.requests)

    def median(self, name: str) -> Cost:
        return Cost(*map(median, zip(*self.costs[name], strict=True)))


Operation = Callable[[Place], list[Request]]
OPERATIONS: dict[str, Operation] = {
    "first page": lambda place: place.pages("/messages/"),
    "deep page": Place.deep_pages,
    "unread page": lambda place: place.pages("/messages/unread/"),
    "counts": lambda place: place.pages("/mailbox"),
    "mark 20": Place.marks,
    "delete one": Place.deletes,
}


def fill(product: Product, mailboxes: int) -> list[str]:
    """Fills ordinary mailboxes in ten passes, so that the messages of each lie as scattered as they arrive."""
    names = [f"user-{number}" for number in range(1, mailboxes + 1)]
    product.add_mailboxes(names)
    for _ in range(10):
        product.add_messages("user-%", EACH // 10)
    random.shuffle(names)
    return names


def run(
    server: Server, millions: int, partitions: int, *, rounds: int, seconds: int, say: Callable[[str], None]
) -> list[Claim]:
    """Compares 300,000 messages with so many millions; then again, with the latter in partitions if that is not 0."""
    small, large = Product("small", server), Product("large", server)
    for product in (small, large):
        product.page_cache_bytes = 0  # a page from memory costs the same at any size
        product.create()
    total = millions * 1_000_000
    say(f"filling 300,000 and {total:,} messages")
    few, many = fill(small, MAILBOXES), fill(large, (total - GIANT_MESSAGES) // EACH)
    large.add_mailboxes([GIANT])
    large.add_messages(GIANT, GIANT_MESSAGES)
    last_page = EACH // PAGE - 1
    found: list[Claim] = []
    for number in (0, partitions) if partitions else (0,):
        if number:
            say(f"manage.py distribute --partitions {number}")
            large.distribute(number)
        [size] = query(large, "SELECT pg_size_pretty(pg_database_size(current_database()))")
        say(f"the large database has {size}")
        layout = f", {number} partitions" if number else ""
        places = [
            Place("300,000 messages", small, few, last_page),
            # As many mailboxes are asked for as in the small one.
            Place(f"{total:,} messages{layout}", large, many[:MAILBOXES], last_page),
            Place(f"a mailbox of 1,000,000{layout}", large, [GIANT], DEEP_PAGES),
        ]
        measure(server, places, OPERATIONS, rounds=rounds, seconds=seconds, say=say)
        found += claims(places)
    return found


def measure(
    server: Server,
    places: Sequence[Place],
    operations: dict[str, Operation],
    *,
    rounds: int,
    seconds: int,
    say: Callable[[str], None],
) -> None:
    """Serves the places, measures each operation in each of them in turn, and prints the medians."""
    products = {place.product.name: place.product for place in places}.values()
    with ExitStack() as serving:
        for product in products:
            serving.enter_context(product.serving())
        for number in range(rounds + 1):
            say(f"round {number} of {rounds}" if number else "warming up")
            server.checkpoint()
            for name, prepare in operations.items():
                for place in places:
                    cost = place.measure(prepare(place), seconds=seconds if number else 1, again=name != "delete one")
                    place.costs.setdefault(name, []).extend([cost] if number else [])
    for product in products:
        if faults := product.mailbox_faults():
            raise SystemExit(f"the run is void, check_mailboxes found: {faults}")
    for name in operations:
        for place in places:
            passed, api, database = place.median(name)
            print(
                f"{name:<26} {place.title:<22} {passed:7.2f} ms; on the processor, API {api:.2f} ms,"
                f" PostgreSQL {database:.2f} ms"
            )


def claims(places: Sequence[Place]) -> Iterator[Claim]:
    for name in OPERATIONS:
        first, *others = (place.median(name).passed for place in places)
        for place, cost in zip(places[1:], others, strict=True):
            yield Claim(f"{name}, {place.title}, against 300,000", cost / first, LIMIT, at_most=True)
