"""What both APIs are asked to do, request by request. Every request does real work: marks find unread messages and
unmarks read ones, deletes find their ids, polls find nothing new.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from benchmarks.contenders import Contender, Opponent
from benchmarks.load import Request

MAILBOXES, MESSAGES, PAGE = 1_000, 300_000, 50
DEEP_PAGES = 10_000
DEEP_MAILBOX, DEEP_MESSAGES = "deep", (DEEP_PAGES + 200) * PAGE
CONTENT = "The quick brown fox jumps over the lazy dog, and then it does so once again. " * 4


@dataclass(frozen=True)
class Work:
    """One kind of request: how it is prepared for `needed` requests, and what proves afterwards that it was done."""

    name: str
    title: str
    status: int
    prepare: Callable[[Contender, int], Sequence[Request]]
    again: bool = True  # whether a request may be sent twice
    messages: int = 0  # how many messages one request adds; below 0 where it deletes
    largest_answer: int = 0  # in bytes, where a larger one would mean that something else was answered
    product_only: bool = False
    patience: int = 1  # how many times as long it runs as the others


def query(contender: Contender, statement: str, *parameters: Any) -> list[Any]:
    with contender.connect() as connection:
        return [row[0] for row in connection.execute(statement.encode(), parameters)]


def recipients() -> list[str]:
    names = [f"user-{number}" for number in range(1, MAILBOXES + 1)]
    random.shuffle(names)
    return names


def message(recipient: str) -> dict[str, str]:
    return {"recipient": recipient, "sender": "benchmark", "content": CONTENT[:200]}


def send(_: Contender, _needed: int) -> list[Request]:
    return [Request("POST", "/messages/", json.dumps(message(name))) for name in recipients()]


def send_keyed(_: Contender, _needed: int) -> list[Request]:
    return [Request("POST", "/messages/", json.dumps(message(name)), keyed=True) for name in recipients()]


def send_into_one(_: Contender, _needed: int) -> list[Request]:
    return [Request("POST", "/messages/", json.dumps(message("crowded")))]


def send_batches(_: Contender, _needed: int) -> list[Request]:
    """Forty different batches, each of a thousand messages to recipients drawn at random."""
    names = recipients()
    batches = [[message(random.choice(names)) for _ in range(1_000)] for _ in range(40)]
    return [Request("POST", "/messages/batch", json.dumps({"messages": batch})) for batch in batches]


def pages(_: Contender, _needed: int) -> list[Request]:
    return [Request("GET", f"/messages/?recipient={name}") for name in recipients()]


def unread_pages(_: Contender, _needed: int) -> list[Request]:
    return [Request("GET", f"/messages/unread/?recipient={name}") for name in recipients()]


def polls(contender: Contender, needed: int) -> list[Request]:
    """First pages again, with the entity tag that the same page has just had."""
    first = pages(contender, needed)
    answers = contender.ask_all((request.method, request.path) for request in first)
    return [
        Request("GET", request.path, etag=headers["etag"])
        for request, (_, headers, _) in zip(first, answers, strict=True)
    ]


def deep_pages(contender: Contender, _needed: int) -> list[Request]:
    """Two hundred pages from the ten-thousandth on, each API's own way of getting there; found once."""
    if "deep" not in contender.kept:
        found = (
            keyset_positions(contender)
            if isinstance(contender, Opponent)
            else followed_links(contender, DEEP_MAILBOX, DEEP_PAGES, 190)
        )
        contender.kept["deep"] = [Request("GET", path) for path in found]
    return random.sample(contender.kept["deep"], len(contender.kept["deep"]))


def keyset_positions(contender: Contender) -> list[str]:
    ids = query(
        contender,
        "SELECT id FROM bench_message WHERE recipient = %s ORDER BY id DESC OFFSET %s",
        DEEP_MAILBOX,
        DEEP_PAGES * PAGE,
    )
    return [f"/messages/?recipient={DEEP_MAILBOX}&before={id_}" for id_ in ids[:-PAGE:PAGE]]


def followed_links(contender: Contender, mailbox: str, pages_deep: int, count: int) -> list[str]:
    """`count` pages from the given depth on; walks there by `next`, as a client does, in larger steps at first."""
    step = PAGE if pages_deep % 4 else 4 * PAGE
    path = f"/messages/?recipient={mailbox}&limit={step}"
    for _ in range(0, pages_deep * PAGE, step):
        path = next_page(contender, path)
    found = [path.replace(f"limit={step}", f"limit={PAGE}")]
    while len(found) < count:
        found.append(next_page(contender, found[-1]))
    return found


def next_page(contender: Contender, path: str) -> str:
    [(_, _, content)] = contender.ask_all([("GET", path)])
    following = json.loads(content)["next"]
    if following is None:
        raise SystemExit(f"{contender.name}: {path} is the last page: the mailbox holds too few messages")
    link = urlsplit(following)
    return f"{link.path}?{link.query}"


def marks(contender: Contender, _needed: int) -> list[Request]:
    """Twenty newest unread messages of each mailbox are marked, then unmarked, and so on; or the other way round."""
    [unread] = query(
        contender, "SELECT count(*) > sum(is_read::int) * 2 FROM bench_message WHERE recipient LIKE 'user-%%'"
    )
    groups = query(
        contender,
        """
        SELECT (array_agg(id ORDER BY id DESC))[:20] FROM bench_message
        WHERE recipient LIKE 'user-%%' AND is_read = %s GROUP BY recipient HAVING count(*) >= 20
        """,
        not unread,
    )
    verbs = ["mark-read", "mark-unread"] if unread else ["mark-unread", "mark-read"]
    return [Request("PATCH", f"/messages/{verb}", ids_body(ids)) for verb in verbs for ids in groups]


def ids_body(ids: Sequence[object]) -> str:
    return json.dumps({"ids": [str(id_) for id_ in ids]})


def oldest_ids(contender: Contender, needed: int, size: int) -> list[list[Any]]:
    """`needed` groups of `size` ids, each from one mailbox, taking turns; messages are added first so that 300,000
    remain when all of the groups are gone.
    """
    [present] = query(contender, "SELECT count(*) FROM bench_message WHERE recipient LIKE 'user-%%'")
    missing = MESSAGES + needed * size - present
    if missing > 0:
        contender.add_messages("user-%", -(-missing // MAILBOXES))
    return query(
        contender,
        """
        SELECT array_agg(id) FROM (
            SELECT id, recipient, (row_number() OVER (PARTITION BY recipient ORDER BY id) - 1) / %s AS turn
            FROM bench_message WHERE recipient LIKE 'user-%%'
        ) AS numbered
        GROUP BY turn, recipient HAVING count(*) = %s ORDER BY turn, recipient LIMIT %s
        """,
        size,
        size,
        needed,
    )


def deletes(contender: Contender, needed: int) -> list[Request]:
    return [Request("DELETE", f"/messages/{ids[0]}") for ids in oldest_ids(contender, needed, 1)]


def bulk_deletes(contender: Contender, needed: int) -> list[Request]:
    groups = oldest_ids(contender, needed, 100)
    return [Request("POST", "/messages/bulk-delete", ids_body(ids)) for ids in groups]


WORKS = [
    Work("send", "send one message", 201, send, messages=1),
    Work("keyed", "send one message with an Idempotency-Key", 201, send_keyed, messages=1, product_only=True),
    Work("page", "first page of 50", 200, pages),
    Work("deep", "page of 50, 10,000 pages deep", 200, deep_pages),
    Work("unread", "unread page of 50", 200, unread_pages),
    Work("poll", "conditional poll, 304", 304, polls, largest_answer=1_000, product_only=True),
    Work("mark", "mark 20 ids", 200, marks),
    Work("delete", "delete one", 204, deletes, again=False, messages=-1),
    Work("delete100", "delete 100 ids", 200, bulk_deletes, again=False, messages=-100),
    # Long enough for each of the opponent's connections to get several answers: its slowest would go uncounted.
    Work("batch", "batch of 1,000", 201, send_batches, messages=1_000, patience=3),
    Work("crowded", "send, all into one mailbox", 201, send_into_one, messages=1, product_only=True),
]
