"""What partitions change, and what a request costs: one database plain, and a copy of it after `manage.py distribute`.

Both are measured as growth.py does it. docs/growth.md computes fleets from the times on the processor.
"""

import random
import time
from collections.abc import Callable

from benchmarks.contenders import Product
from benchmarks.growth import EACH, GIANT, OPERATIONS, Operation, Place, fill, measure
from benchmarks.load import Request
from benchmarks.postgres import Server
from benchmarks.works import MAILBOXES, PAGE, ids_body, query, send, send_keyed

GIANT_MESSAGES = 500_000


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


WORKS: dict[str, Operation] = {
    "send": lambda place: send(place.product, 0),
    "send with a key": lambda place: send_keyed(place.product, 0),
    **OPERATIONS,
    "mark 100 of 100 mailboxes": marks_of_many,
}


def distributed(plain: Product, number: int, say: Callable[[str], None]) -> Product:
    """A copy of a product's database, in partitions."""
    with plain.connect() as connection:
        [count] = connection.execute("SELECT count(*) FROM messaging_message").fetchone() or [0]
    with plain.server.connect() as connection:
        connection.execute("CREATE DATABASE partitioned TEMPLATE plain")
    product = Product("partitioned", plain.server, tokens=plain.tokens)
    started = time.monotonic()
    product.distribute(number)
    seconds = time.monotonic() - started
    say(f"distribute: {count:,} messages in {seconds:.0f} s, {seconds / count * 1e6:.1f} s a million")
    return product


def run(server: Server, number: int, *, mailboxes: int, rounds: int, seconds: int, say: Callable[[str], None]) -> None:
    plain = Product("plain", server)
    plain.create()
    say(f"filling {mailboxes * EACH + GIANT_MESSAGES:,} messages")
    names = fill(plain, mailboxes)[:MAILBOXES]
    plain.add_mailboxes([GIANT])
    plain.add_messages(GIANT, GIANT_MESSAGES)
    say(f"copying, then manage.py distribute --partitions {number}")
    places = [Place(each.name, each, names, EACH // PAGE - 1) for each in (plain, distributed(plain, number, say))]
    measure(server, places, WORKS, rounds=rounds, seconds=seconds, say=say)
