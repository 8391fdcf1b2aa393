"""What makes the service fast, counted and not timed: statements for each call, and rows read for each page."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, transaction

from tests.helpers import Answer, Api
from tests.plans import Statement, maintain, nodes, plan_of, rows_of, statements
from tests.test_reading import send_many


def count(call: Callable[[], Answer], status: int) -> int:
    with statements() as found:
        call().expect(status)
    return len(found)


def calls_on(api: Api, messages: list[dict[str, Any]], turn: str) -> dict[str, int]:
    """How many statements each call takes, on all of these messages where it takes many."""
    ids = {"ids": [m["id"] for m in messages]}
    name, last = messages[0]["recipient"], messages[-1]["id"]
    page = f"/messages/?recipient={name}&limit=200"
    tag = {"If-None-Match": api.get(page).headers["ETag"]}
    key = {"Idempotency-Key": turn}
    draft = {"recipient": name, "content": "x"}
    batch = {"messages": [draft] * len(messages)}
    return {
        "a page": count(lambda: api.get(page), 200),
        "a page, oldest first": count(lambda: api.get(page + "&ordering=created_at"), 200),
        "a page of a filter": count(lambda: api.get(page + "&sender=&is_read=false"), 200),
        "an unread page": count(lambda: api.get(f"/messages/unread?recipient={name}"), 200),
        "a message": count(lambda: api.get(f"/messages/{last}"), 200),
        "a mailbox": count(lambda: api.get(f"/mailbox?recipient={name}"), 200),
        "a page, 304": count(lambda: api.get(page, headers=tag), 304),
        "a message, 304": count(lambda: api.get(f"/messages/{last}", headers=tag), 304),
        "a mailbox, 304": count(lambda: api.get(f"/mailbox?recipient={name}", headers=tag), 304),
        "a page again": count(lambda: api.get(page), 200),
        "a page again, unknown tag": count(lambda: api.get(page, headers={"If-None-Match": '"x"'}), 200),
        "a page, changed": count(lambda: api.get(f"{page}&is_read=true", headers={"If-None-Match": '"x"'}), 200),
        "a message sent": count(lambda: api.post("/messages/", draft), 201),
        "a batch": count(lambda: api.post("/messages/batch", batch), 201),
        "with a key": count(lambda: api.post("/messages/", draft, headers=key), 201),
        "with a key, again": count(lambda: api.post("/messages/", draft, headers=key), 201),
        "marked read": count(lambda: api.patch("/messages/mark-read", ids), 200),
        "marked read again": count(lambda: api.patch("/messages/mark-read", ids), 200),
        "marked unread": count(lambda: api.patch("/messages/mark-unread", ids), 200),
        "marked up to": count(lambda: api.patch("/messages/mark-read", {"recipient": name, "up_to": last}), 200),
        "deleted": count(lambda: api.delete(f"/messages/{last}"), 204),
        "deleted in bulk": count(lambda: api.post("/messages/bulk-delete", ids), 200),
        "refused": count(lambda: api.post("/messages/", {"recipient": name}), 400),
    }


EXPECTED = {
    # Mailbox and messages by one statement, so from one snapshot.
    "a page": 1, "a page, oldest first": 1, "a page of a filter": 1, "an unread page": 1,
    "a message": 1, "a mailbox": 1,
    # The mailbox's row alone.
    "a page, 304": 1, "a message, 304": 1, "a mailbox, 304": 1, "a page again": 1, "a page again, unknown tag": 1,
    "a page, changed": 2,
    # Upsert the mailbox, insert the messages.
    "a message sent": 1, "a batch": 1,
    # Claim, send and outcome in one; and the outcome's look-up.
    "with a key": 1, "with a key, again": 2,
    # Lock, change, counts, and what became of each id in one.
    "marked read": 1, "marked read again": 1, "marked unread": 1, "deleted": 1, "deleted in bulk": 1,
    # Lock, select, change.
    "marked up to": 3,
    "refused": 0,
}  # fmt: skip


def test_the_number_of_statements_does_not_grow_with_the_messages(api: Api) -> None:
    api.mailbox("nobody")  # the key is known from here on
    few = calls_on(api, send_many(api, 2), "few")
    many = calls_on(api, send_many(api, 1_000, "bob"), "many")

    assert few == EXPECTED
    assert many == EXPECTED


def test_a_key_is_looked_up_once_and_its_use_noted_once(api: Api) -> None:
    with statements() as found:
        for _ in range(3):
            api.mailbox("nobody")
    assert len(found) == 3 + 2


def test_a_304_reads_no_message(api: Api) -> None:
    send_many(api, 10)
    tag = {"If-None-Match": api.mailbox("ada") and api.get("/mailbox?recipient=ada").headers["ETag"]}
    for path in ("/messages/?recipient=ada", "/messages/unread?recipient=ada", "/mailbox?recipient=ada"):
        with statements() as found:
            api.get(path, headers=tag).expect(304)
        assert len(found) == 1
        assert "messaging_mailbox" in found[0][0]
        assert "messaging_message" not in found[0][0]


# --- rows read


def rows_read(statement: Statement) -> dict[str, float]:
    """Rows that the statement reads from each table, those thrown away again included; each by an index."""
    found: dict[str, float] = {}
    for node in nodes(plan_of(statement)):
        if "Relation Name" in node:
            if node["Node Type"] in {"ModifyTable", "LockRows"}:
                continue  # it writes what another node has read
            if not node["Actual Loops"]:
                continue  # a partition in which nothing is looked for
            assert node["Node Type"] in {"Index Scan", "Index Only Scan"}, node
            table = re.sub(r"_\d+$", "", node["Relation Name"])
            found[table] = found.get(table, 0) + rows_of(node)
    return found


@pytest.fixture
def large(api: Api) -> list[dict[str, Any]]:
    """A mailbox of 6,000 messages among others, every fourth unread, as PostgreSQL's statistics know it."""
    sent = [m for _ in range(6) for m in send_many(api, 1_000)]
    others = [{"recipient": f"r{i}", "content": "x"} for i in range(1_000)]
    for _ in range(2):
        api.post("/messages/batch", {"messages": others}).expect(201)
    for start in range(0, 6_000, 1_000):
        ids = [m["id"] for m in sent[start : start + 1_000] if m["seq"] % 4]
        api.patch("/messages/mark-read", {"ids": ids}).expect(200)
    maintain("ANALYZE messaging_mailbox, messaging_message")
    return sent


def read_by(api: Api, target: str) -> tuple[dict[str, float], dict[str, Any]]:
    """The rows that a page reads, and the page."""
    with statements() as found:
        page = api.get(target).expect(200).json
    # The key is looked up again every few seconds.
    [statement] = [each for each in found if "messaging_apikey" not in each[0]]
    return rows_read(statement), page


def test_a_message_and_a_mailbox_are_found_by_their_keys(api: Api, large: list[dict[str, Any]]) -> None:
    api.mailbox("nobody")
    rows, _ = read_by(api, f"/messages/{large[3_000]['id']}")
    assert rows == {"messaging_message": 1, "messaging_mailbox": 1}
    rows, _ = read_by(api, "/mailbox?recipient=ada")
    assert rows == {"messaging_mailbox": 1}


@pytest.fixture
def unanalyzed(large: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As `large`, but without statistics, as after an import."""
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM pg_statistic WHERE starelid = 'messaging_message'::regclass")
    return large


def entries_read(statement: Statement) -> float:
    """Rows that the statement reads from tables, and entries from indexes that it reads apart from them."""
    read = (node for node in nodes(plan_of(statement)) if node["Node Type"].endswith("Scan"))
    return sum(rows_of(node) for node in read if {"Relation Name", "Index Name"} & node.keys())


def test_a_message_is_found_by_its_key_without_statistics_too(api: Api, unanalyzed: list[dict[str, Any]]) -> None:
    api.mailbox("nobody")
    with statements() as found:
        api.get(f"/messages/{unanalyzed[3_000]['id']}").expect(200)
        api.patch("/messages/mark-read", {"recipient": "ada", "up_to": unanalyzed[40]["id"]}).expect(200)
    [message] = [each for each in found if "recipient = coalesce" in each[0] and "UPDATE" not in each[0]]
    [selection] = [each for each in found if "messaging_message last" in each[0]]
    assert entries_read(message) <= 3
    assert entries_read(selection) <= 13  # that message, and a quarter of those up to it


def test_a_deep_page_reads_what_a_first_page_reads(api: Api, large: list[dict[str, Any]]) -> None:
    api.mailbox("nobody")
    for path in ("/messages/", "/messages/unread"):
        for ordering in ("-created_at", "created_at"):
            target, seen = f"{path}?recipient=ada&limit=50&ordering={ordering}", 0
            for turn in range(25):
                rows, page = read_by(api, target)
                # One more than it shows, to know whether more follow.
                assert rows["messaging_message"] <= 51
                assert rows["messaging_mailbox"] == 1
                seen += len(page["results"])
                assert seen == 50 * (turn + 1)
                target = f"{path}?" + page["next"].partition("?")[2]
            rows, page = read_by(api, f"{path}?" + page["previous"].partition("?")[2])
            assert rows["messaging_message"] <= 51
            assert len(page["results"]) == 50


def test_a_span_of_time_reads_that_part_of_the_mailbox(api: Api, large: list[dict[str, Any]]) -> None:
    api.mailbox("nobody")
    # Oldest first, so that the messages before the span would all be passed over by `seq`.
    at = large[-10]["created_at"]
    rows, page = read_by(api, f"/messages/?recipient=ada&created_after={at}&ordering=created_at")
    assert [m["id"] for m in page["results"]] == [m["id"] for m in large if m["created_at"] >= at]
    assert rows["messaging_message"] == len(page["results"]) < 50


def test_a_sender_is_found_by_its_index(api: Api, large: list[dict[str, Any]]) -> None:
    api.send("ada", sender="rare")
    for sender, found in (("rare", 1), ("nobody", 0)):
        for more in ("", "&ordering=created_at", "&is_read=false", "&created_after=2020-01-01T00:00:00Z"):
            rows, page = read_by(api, f"/messages/?recipient=ada&sender={sender}{more}")
            assert len(page["results"]) == found
            assert rows["messaging_message"] <= 1, more


def test_a_change_reads_the_messages_it_names(api: Api, large: list[dict[str, Any]]) -> None:
    api.mailbox("nobody")
    ids = [m["id"] for m in large[::300]]
    for method, path in (
        ("PATCH", "/messages/mark-read"),
        ("PATCH", "/messages/mark-unread"),
        ("POST", "/messages/bulk-delete"),
    ):
        with statements() as found:
            api.request(method, path, {"ids": ids}).expect(200)
        with transaction.atomic():
            rows = rows_read(found[0])
            transaction.set_rollback(True)
        # Once for their mailbox, once to change them; nothing of the mailbox's other messages.
        assert rows["messaging_message"] <= 2 * len(ids)
