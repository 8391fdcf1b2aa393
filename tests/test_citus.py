"""Citus: its rules for statements, and that its statements do on one server what the others do.

Whether Citus executes them is shown by the other tests on Citus itself: see TEST_CITUS in tests/database.py.
"""

import importlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection

from messaging import changes, upkeep
from messaging.backfill import PastMessage, import_history
from messaging.ids import bucket_of
from messaging.models import Mailbox, Message, Outcome
from messaging.queries import changed_mailboxes
from messaging.records import NewMessage
from messaging.sharding import Layout, Shards, adapted
from tests.commands import run
from tests.helpers import Api
from tests.partitions import not_on_citus, not_partitioned, partitioned, statements_of_citus
from tests.plans import statements
from tests.state import miscounted

MODULES = (
    "backfill", "changes", "citus", "erasure", "outcomes", "queries", "statements", "upkeep",
    "admin.export", "admin.overview", "management.commands.check_mailboxes", "management.commands.export",
    "management.commands.seed",
)  # fmt: skip


@pytest.fixture
def on_citus(api: Api) -> Iterator[Api]:
    """A client whose requests execute the statements for Citus."""
    with statements_of_citus():
        yield api


def texts() -> dict[str, str]:
    """Every statement about the distributed tables that Citus gets, by its name."""
    found = {}
    for module in MODULES:
        for name, text in vars(importlib.import_module(f"messaging.{module}")).items():
            if isinstance(text, str) and re.search(
                "(FROM|INTO|UPDATE) messaging_(mailbox|message|change|outcome)", text
            ):
                found[f"{module}.{name}"] = adapted(text, {"buckets": [1, 2]}, Layout.CITUS)[0]
    return found


def test_updates_and_deletes_use_no_volatile_function(db: None) -> None:
    """Citus refuses it: the servers of a table might compute different values."""
    parts: dict[str, list[str]] = {}
    for name, text in texts().items():
        # Citus gets other statements in the place of these.
        for part in re.findall(r"\b(?:UPDATE (?:messaging_|SET)|DELETE FROM).*?(?=\n\)|RETURNING|\Z)", text, re.DOTALL):
            if name.rpartition(".")[2] not in {"SEND", "SEND_ONCE", "SEND_BATCH", "MARK"}:
                parts.setdefault(name, []).append(part)
    assert {"citus._MARK_READ", "citus._MARK_UNREAD", "statements.DELETE", "outcomes.CLAIM", "changes.PURGE"} <= set(
        parts
    )
    functions = {name: re.findall(r"(\w+)\(", " ".join(found)) for name, found in parts.items()}
    with connection.cursor() as cursor:
        cursor.execute("SELECT DISTINCT proname FROM pg_proc WHERE provolatile = 'v'")
        volatile = {name for (name,) in cursor.fetchall()}
    assert "clock_timestamp" in volatile
    assert {name: set(found) & volatile for name, found in functions.items() if set(found) & volatile} == {}


def test_tables_are_joined_by_their_buckets() -> None:
    """Citus refuses other joins, or has every server send its rows to every other one."""
    joins = {
        name: re.findall(r"JOIN messaging_\w+ \w+ ON (.*?)(?=LEFT JOIN|\nORDER|\Z)", text, re.DOTALL)
        for name, text in texts().items()
        if name not in {"outcomes.FIND", "queries.CHANGED_MAILBOXES", "citus.FIND", "citus.CHANGED_MAILBOXES"}
    }
    assert sum(map(len, joins.values())) >= 4
    assert [name for name, found in joins.items() if any("bucket" not in condition for condition in found)] == []


def test_the_orm_joins_by_the_bucket(db: None) -> None:
    there = Message.objects.select_related("mailbox").filter(mailbox__recipient="ada")
    back = Mailbox.objects.filter(messages__seq=1)
    with statements_of_citus():
        for joined in (there, back):
            sides = re.search(r'"messaging_(\w+)".bucket = "messaging_(\w+)".bucket', str(joined.query))
            assert sides is not None
            assert {*sides.groups()} == {"message", "mailbox"}
            assert list(joined) == []


def test_buckets_are_grouped_by_shard_in_ascending_order() -> None:
    shards = Shards([bucket % 3 for bucket in range(4_096)])
    assert shards.groups([5, 3, 4, 3, 0]) == [[0, 3], [4], [5]]


def test_every_call_answers_and_counts_as_on_one_server(on_citus: Api) -> None:
    api, key = on_citus, {"Idempotency-Key": "k"}
    first = api.post("/messages/", {"recipient": "ada", "content": "1"}, headers=key).expect(201)
    again = api.post("/messages/", {"recipient": "ada", "content": "1"}, headers=key).expect(201)
    assert again.body == first.body
    assert again.headers["Idempotency-Replayed"] == "true"
    assert api.post("/messages/", {"recipient": "ada", "content": "2"}, headers=key).status == 422
    in_a_year = (datetime.now(UTC) + timedelta(365)).isoformat()
    drafts = [
        {"recipient": f"r{n % 7}", "content": f"{n}", "metadata": {"n": 1e23}, "expires_at": in_a_year}
        for n in range(20)
    ]
    sent = (
        api.post("/messages/batch", {"messages": drafts}, headers={"Idempotency-Key": "b"}).expect(201).json["results"]
    )
    replayed = api.post("/messages/batch", {"messages": drafts}, headers={"Idempotency-Key": "b"}).expect(201)
    assert replayed.json["results"] == sent
    assert [(m["recipient"], m["content"]) for m in sent] == [(d["recipient"], d["content"]) for d in drafts]
    assert [m["seq"] for m in sent if m["recipient"] == "r3"] == [1, 2, 3]
    assert api.get(f"/messages/{sent[0]['id']}").expect(200).json == sent[0]

    ids = [m["id"] for m in sent]
    marked = api.patch("/messages/mark-read", {"ids": ids[:15]}).expect(200).json
    assert (marked["changed"], [m["recipient"] for m in marked["mailboxes"]]) == (15, [f"r{n}" for n in range(7)])
    assert api.patch("/messages/mark-read", {"ids": ids}).expect(200).json["unchanged"] == 15
    assert api.patch("/messages/mark-unread", {"ids": ids[:2]}).expect(200).json["changed"] == 2
    assert api.get(f"/messages/{ids[0]}").expect(200).json["read_at"] is None
    assert api.post("/messages/bulk-delete", {"ids": ids[:5]}).expect(200).json["changed"] == 5
    assert api.post("/messages/batch", {"messages": drafts}, headers={"Idempotency-Key": "b"}).status == 410
    log = api.get("/changes?recipient=r0&since=3").expect(200).json
    assert log["deleted"] == [ids[0]]
    assert [box.recipient for box in changed_mailboxes({"r0": 1, "ada": 1, "nobody": 0})] == ["r0"]
    assert miscounted() == []


def test_upkeep_deletes_what_has_expired(on_citus: Api) -> None:
    past = datetime.now(UTC) - timedelta(days=2)
    import_history(messages=[PastMessage(NewMessage(f"r{n % 5}", f"{n}"), past, None) for n in range(50)])
    api = on_citus
    key = {"Idempotency-Key": "k"}
    kept = api.post("/messages/", {"recipient": "r0", "content": "kept"}, headers=key).expect(201).json
    old = [str(id_) for id_ in Message.objects.exclude(pk=kept["id"]).values_list("pk", flat=True)]
    api.patch("/messages/mark-read", {"ids": old[:10]}).expect(200)
    Message.objects.filter(pk__in=old).update(expires_at=past)
    Outcome.objects.update(expires_at=past)
    deleted = upkeep.run_once()
    assert (deleted["messages"], deleted["outcomes"], deleted["changes"]) == (50, 1, 0)
    # The key is free again, and the log may go.
    assert (
        api.post("/messages/", {"recipient": "r0", "content": "new"}, headers=key).expect(201).json["seq"] > kept["seq"]
    )
    assert changes.purge_changes(datetime.now(UTC), limit=100) > 0
    assert miscounted() == []


def test_a_send_is_two_statements_and_one_transaction(on_citus: Api) -> None:
    on_citus.mailbox("nobody")
    with statements() as found:
        on_citus.post("/messages/", {"recipient": "ada", "content": "x"}).expect(201)
    writes = [sql for sql, *_ in found if "INSERT" in sql]
    assert ["messaging_mailbox" in sql for sql in writes] == [True, False]
    assert all(bucket_of("ada") in statement[1] for statement in found if "INSERT" in statement[0])


@not_on_citus("the extension is there")
@not_partitioned("the command refuses partitions before it looks for the extension")
def test_without_the_extension_the_command_says_what_to_do(db: None) -> None:
    refused = run("distribute", "--citus")
    assert "lacks the extension citus: CREATE EXTENSION citus in it on each server" in refused.failure
    assert refused.failure.endswith("Nothing was changed.")


@not_on_citus("tables are not partitioned there")
@not_partitioned("the test makes the partitions, and plain tables again")
def test_partitioned_tables_are_refused(transactional_db: None) -> None:
    with partitioned(2):
        assert "run manage.py distribute --partitions 1 first" in run("distribute", "--citus").failure


def test_one_layout_at_a_time(db: None) -> None:
    assert "not allowed with argument" in run("distribute", "--citus", "--partitions", "4").failure
