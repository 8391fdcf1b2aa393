"""`manage.py distribute`: partitioned tables hold and promise what they did, and statements look into one partition."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection, transaction

from messaging.management import partitioning
from messaging.models import Change, Mailbox, Message, Outcome
from messaging.queries import changed_mailboxes
from messaging.sharding import TABLES
from tests.commands import process, read_until, run
from tests.helpers import Api
from tests.partitions import distribute, not_partitioned, partitioned, reconnect, statements_of_citus, touched_by
from tests.plans import maintain, statements
from tests.sessions import another_session, in_a_thread
from tests.state import miscounted
from tests.test_reading import send_many

NUMBER = 4

pytestmark = not_partitioned("each test starts from plain tables")


@pytest.fixture
def filled(transactional_db: None, api: Api) -> Iterator[None]:
    """Rows in all four tables, which are plain again at the end."""
    sent = send_many(api, 40)
    for number in range(30):
        api.post("/messages/", {"recipient": f"r{number}", "content": "x"}, headers={"Idempotency-Key": f"k{number}"})
    api.patch("/messages/mark-read", {"ids": [m["id"] for m in sent[:20]]}).expect(200)
    api.delete(f"/messages/{sent[0]['id']}").expect(204)
    yield
    distribute(1)


def contents() -> list[Any]:
    """All rows of the four tables."""
    models = (Mailbox, Message, Change, Outcome)
    return [sorted(model.objects.values_list(*_columns(model)), key=repr) for model in models]


def _columns(model: Any) -> list[str]:
    return [field.attname for field in model._meta.concrete_fields if field.attname != "pk"]


def promises() -> dict[str, list[str]]:
    """The columns, constraints, indexes and privileges of each table, as PostgreSQL describes them."""
    found = {}
    with connection.cursor() as cursor:
        for table in TABLES:
            cursor.execute(
                "SELECT format('%%s %%s %%s %%s', attname, atttypid::regtype, attnotnull, attidentity)"
                " || coalesce(pg_get_expr(adbin, adrelid), '')"
                " FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum"
                " WHERE attrelid = %(table)s::regclass AND attnum > 0 AND NOT attisdropped"
                " UNION ALL SELECT conname || pg_get_constraintdef(oid) FROM pg_constraint"
                " WHERE conrelid = %(table)s::regclass AND conparentid = 0 AND conname <> 'message_id_bucket'"
                " UNION ALL SELECT replace(pg_get_indexdef(indexrelid), 'ON ONLY', 'ON') FROM pg_index"
                " WHERE indrelid = %(table)s::regclass"
                " UNION ALL SELECT format('%%s %%s', grantee, privilege_type) FROM pg_class, aclexplode(relacl)"
                " WHERE oid = %(table)s::regclass",
                {"table": table},
            )
            found[table] = sorted(line for (line,) in cursor.fetchall())
    return found


def test_partitions_keep_rows_constraints_and_privileges(filled: None, api: Api) -> None:
    with connection.cursor() as cursor:
        cursor.execute("GRANT SELECT ON messaging_message TO PUBLIC")
    rows, described = contents(), promises()

    assert json.loads(run("distribute", "--partitions", "4", "--json").out) == {
        "partitions": 4, "partitions_before": 1, "ids_end_in_buckets": True, "seconds": pytest.approx(0, abs=60),
    }  # fmt: skip
    assert contents() == rows
    assert promises() == described
    assert partitioning.partitions() == 4
    run("distribute", "--partitions", "3")
    assert contents() == rows
    assert promises() == described
    api.send("new")
    assert miscounted() == []

    assert "plain now" in run("distribute", "--partitions", "1").out
    assert promises() == described
    assert Message.objects.count() == len(rows[1]) + 1


def test_a_second_run_changes_nothing(filled: None) -> None:
    run("distribute", "--partitions", str(NUMBER))
    with connection.cursor() as cursor:
        cursor.execute("SELECT 'messaging_message'::regclass::oid")
        before = cursor.fetchall()
        again = run("distribute", "--partitions", str(NUMBER))
        assert (again.status, again.out) == (0, "The tables are in 4 partitions already.\n")
        cursor.execute("SELECT 'messaging_message'::regclass::oid")
        assert cursor.fetchall() == before


def test_a_dry_run_says_what_would_be(filled: None) -> None:
    assert run("distribute", "--partitions", "4", "--dry-run").out == (
        "1 partitions now; the tables would be in 4 partitions.\n"
    )
    assert partitioning.partitions() == 1


@pytest.mark.parametrize("number", ["0", "129", "x", ""])
def test_a_number_out_of_range_is_refused(db: None, number: str) -> None:
    assert "is not a whole number from 1 to 128" in run("distribute", "--partitions", number).failure


def test_migrations_find_nothing_to_do(filled: None) -> None:
    distribute(NUMBER)
    assert "No migrations to apply" in run("migrate", verbosity=1).out
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


@pytest.mark.parametrize(
    ("addition", "removal", "said"),
    [
        (
            "CREATE TRIGGER mine BEFORE UPDATE ON messaging_message EXECUTE FUNCTION tsvector_update_trigger()",
            "DROP TRIGGER mine ON messaging_message",
            "messaging_message has the trigger mine",
        ),
        ("CREATE VIEW mine AS SELECT id FROM messaging_message", "DROP VIEW mine", "view mine depends on"),
        (
            "CREATE PUBLICATION mine FOR TABLE messaging_change",
            "DROP PUBLICATION mine",
            "messaging_change is part of a publication",
        ),
        (
            "CREATE PUBLICATION mine FOR ALL TABLES",
            "DROP PUBLICATION mine",
            "messaging_change is part of a publication",
        ),
        (
            "ALTER TABLE messaging_change OWNER TO pg_monitor",
            "ALTER TABLE messaging_change OWNER TO CURRENT_USER",
            "messaging_change belongs to pg_monitor, the role of this session is",
        ),
        (
            (
                "SET allow_in_place_tablespaces = on; CREATE TABLESPACE mine LOCATION ''; "
                "ALTER INDEX messaging_message_pkey SET TABLESPACE mine"
            ),
            "ALTER INDEX messaging_message_pkey SET TABLESPACE pg_default; DROP TABLESPACE mine",
            "messaging_message_pkey lies in the tablespace mine, which is not default_tablespace",
        ),
        (
            "CREATE STATISTICS mine ON sender, mailbox_id FROM messaging_message",
            "DROP STATISTICS mine",
            "messaging_message has the statistics object mine",
        ),
        (
            "ALTER TABLE messaging_outcome REPLICA IDENTITY FULL",
            "ALTER TABLE messaging_outcome REPLICA IDENTITY DEFAULT",
            "messaging_outcome has a replica identity of its own",
        ),
    ],
)
def test_what_would_be_lost_is_named_and_nothing_is_changed(
    filled: None, addition: str, removal: str, said: str
) -> None:
    rows = contents()
    with connection.cursor() as cursor:
        for statement in addition.split(";"):
            cursor.execute(statement)
        planned = run("distribute", "--partitions", str(NUMBER), "--dry-run")
        refused = run("distribute", "--partitions", str(NUMBER))
        for statement in removal.split(";"):
            cursor.execute(statement)
    for answer in (planned, refused):
        assert said in answer.failure
        assert answer.failure.endswith("Nothing was changed.")
        assert answer.status == 1
    assert partitioning.partitions() == 1
    assert contents() == rows


@pytest.mark.process
def test_it_lets_others_through_while_it_waits_and_may_be_stopped(filled: None, api: Api) -> None:
    with another_session() as writer, process("distribute", "--partitions", "4", "--verbosity", "0") as command:
        writer.execute("SELECT FROM messaging_mailbox WHERE recipient = 'ada' FOR UPDATE")
        read_until(command, b"Waiting for a lock")
        assert api.send("bob")["seq"] == 1
        command.send_signal(signal.SIGINT)
        _, errors = command.communicate(timeout=120)
    assert command.returncode == 130, errors.decode()
    assert b"Stopped: nothing was changed, unless COMMIT had begun." in errors
    assert partitioning.partitions() == 1


def test_a_session_that_postgresql_ends_after_the_commit_is_no_refusal(filled: None) -> None:
    session: Any = connection.connection

    def end_it(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if sql.startswith("RESET"):
            with another_session() as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", [session.info.backend_pid])
        return execute(sql, *rest)

    # It is no CommandError, so manage.py says what it says of each lost connection.
    with connection.execute_wrapper(end_it), pytest.raises(OperationalError):
        run("distribute", "--partitions", str(NUMBER))
    reconnect()
    assert partitioning.partitions() == NUMBER


@pytest.mark.process
def test_reads_are_served_and_writes_refused_while_it_copies(filled: None, api: Api) -> None:
    with another_session() as reader, process("distribute", "--partitions", "4", "--verbosity", "0") as command:
        # It has copied all, and cannot replace the tables before this has ended.
        reader.execute("SELECT count(*) FROM messaging_mailbox")
        read_until(command, b"Waiting for a lock")
        assert api.mailbox("ada")["total"] == 39
        assert api.post("/messages/", {"recipient": "ada", "content": "x"}).status == 503
        assert api.get("/messages/?recipient=ada").expect(200).json["results"]
        # This one waits until the tables are replaced, and goes into the new ones.
        waiting = in_a_thread(lambda: api.post("/messages/", {"recipient": "ada", "content": "late"}))
        reader.rollback()
        assert command.wait(60) == 0
        assert waiting.result(30).status in {201, 503}
    assert partitioning.partitions() == NUMBER
    assert miscounted() == []
    # Connections from before are as good.
    assert api.send("ada")["recipient"] == "ada"


def test_messages_from_before_there_were_buckets_are_found_by_their_ids(filled: None, api: Api) -> None:
    sent = send_many(api, 3, "old")
    old = [m["id"][:-3] + f"{(int(m['id'][-3:], 16) + 1) % 4096:03x}" for m in sent]
    for before, after in zip(sent, old, strict=True):
        Message.objects.filter(pk=before["id"]).update(id=after)
    told = run("distribute", "--partitions", str(NUMBER)).out
    assert "from before there were buckets" in told
    reconnect()

    assert api.get(f"/messages/{old[0]}").expect(200).json["id"] == old[0]
    assert api.patch("/messages/mark-read", {"ids": old}).expect(200).json["changed"] == 3
    assert api.post("/messages/bulk-delete", {"ids": old}).expect(200).json["changed"] == 3
    assert miscounted() == []

    assert json.loads(run("distribute", "--partitions", str(NUMBER), "--json").out)["ids_end_in_buckets"]


# --- what statements look into


@pytest.fixture(scope="module")
def names() -> list[str]:
    """Recipients of many mailboxes."""
    return [f"r{number}" for number in range(1_000)]


@pytest.fixture
def spread(transactional_db: None, api: Api, names: list[str]) -> Iterator[list[dict[str, Any]]]:
    """300 messages to ada among mailboxes in every partition, as PostgreSQL's statistics know them."""
    with partitioned(NUMBER):
        for _ in range(3):
            api.post("/messages/batch", {"messages": [{"recipient": n, "content": "x"} for n in names]}).expect(201)
        sent = send_many(api, 300)
        api.patch("/messages/mark-read", {"ids": [m["id"] for m in sent[:200]]}).expect(200)
        maintain(f"ANALYZE {', '.join(TABLES)}")
        yield sent


def partition_of(recipient: str) -> int:
    """In which partition a mailbox is."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tableoid::regclass::text FROM messaging_mailbox WHERE recipient = %s", [recipient])
        return int(cursor.fetchone()[0].rpartition("_")[2])


def touched(call: Callable[[], Any]) -> dict[str, set[int]]:
    """The partitions that the statements of a call read; the call itself leaves nothing behind."""
    with transaction.atomic(), statements() as found:
        call()
        transaction.set_rollback(True)
    partitions: dict[str, set[int]] = {}
    for statement in found:
        with transaction.atomic():
            if re.search("messaging_(mailbox|message|change|outcome)", statement[0]):
                for table, numbers in touched_by(statement).items():
                    partitions.setdefault(table, set()).update(numbers)
            transaction.set_rollback(True)
    return partitions


@pytest.mark.parametrize("layout", [nullcontext, statements_of_citus])
def test_every_statement_about_a_mailbox_looks_into_its_partition_only(
    layout: Callable[[], AbstractContextManager[None]], spread: list[dict[str, Any]], api: Api
) -> None:
    api.mailbox("nobody")
    ids = {"ids": [m["id"] for m in spread[150:250]]}
    middle = spread[150]
    draft = {"recipient": "ada", "content": "x"}
    key = {"Idempotency-Key": "kept"}
    api.post("/messages/", draft, headers=key).expect(201)
    api.post("/messages/batch", {"messages": [draft] * 3}, headers={"Idempotency-Key": "batch"}).expect(201)
    cursor = api.get("/messages/?recipient=ada&limit=50").json["next"].partition("?")[2]
    calls = {
        "send": lambda: api.post("/messages/", draft).expect(201),
        "keyed send": lambda: api.post("/messages/", draft, headers={"Idempotency-Key": "new"}).expect(201),
        "keyed send again": lambda: api.post("/messages/", draft, headers=key).expect(201),
        "batch": lambda: api.post("/messages/batch", {"messages": [draft] * 10}).expect(201),
        "batch again": lambda: api.post(
            "/messages/batch", {"messages": [draft] * 3}, headers={"Idempotency-Key": "batch"}
        ).expect(201),
        "page": lambda: api.get("/messages/?recipient=ada").expect(200),
        "page, oldest first": lambda: api.get("/messages/?recipient=ada&ordering=created_at").expect(200),
        "next page": lambda: api.get(f"/messages/?{cursor}").expect(200),
        "unread page": lambda: api.get("/messages/unread?recipient=ada").expect(200),
        "filtered page": lambda: api.get("/messages/?recipient=ada&sender=bob").expect(200),
        "mailbox": lambda: api.get("/mailbox?recipient=ada").expect(200),
        "message": lambda: api.get(f"/messages/{middle['id']}").expect(200),
        "mark one": lambda: api.patch("/messages/mark-read", {"ids": [spread[-1]["id"]]}).expect(200),
        "mark": lambda: api.patch("/messages/mark-read", ids).expect(200),
        "mark unread": lambda: api.patch("/messages/mark-unread", ids).expect(200),
        "mark up to": lambda: api.patch("/messages/mark-read", {"recipient": "ada", "up_to": spread[-1]["id"]}).expect(
            200
        ),
        "mark unread up to": lambda: api.patch(
            "/messages/mark-unread", {"recipient": "ada", "up_to": middle["id"]}
        ).expect(200),
        "delete": lambda: api.delete(f"/messages/{middle['id']}").expect(204),
        "delete in bulk": lambda: api.post("/messages/bulk-delete", ids).expect(200),
        "changes": lambda: api.get("/changes?recipient=ada&since=100").expect(200),
        "all changes": lambda: api.get("/changes?recipient=ada&since=0").expect(200),
        "tick of the live process": lambda: changed_mailboxes({"ada": 1}),
    }
    if layout is statements_of_citus:
        del calls["tick of the live process"]  # Citus prunes by an array of buckets, PostgreSQL does not
    home = partition_of("ada")
    for name, call in calls.items():
        with layout():
            found = touched(call)
        assert len(found.pop("messaging_outcome", {0})) == 1, name
        assert all(numbers == {home} for numbers in found.values()), (name, home, found)
        # An insertion reads nothing; everything else has to show up.
        assert found or "send" in name or "batch" in name, name


def test_calls_by_ids_look_into_the_partitions_of_their_mailboxes(
    spread: list[dict[str, Any]], api: Api, names: list[str]
) -> None:
    api.mailbox("nobody")
    home = partition_of("ada")
    other = next(name for name in names if partition_of(name) != home)
    body = {"ids": [spread[0]["id"], api.get(f"/messages/?recipient={other}").json["results"][0]["id"]]}
    expected = {home, partition_of(other)}
    for call in (
        lambda: api.patch("/messages/mark-read", body).expect(200),
        lambda: api.patch("/messages/mark-unread", body).expect(200),
        lambda: api.post("/messages/bulk-delete", body).expect(200),
    ):
        found = touched(call)
        assert found
        assert all(numbers <= expected for numbers in found.values()), (expected, found)


def test_calls_by_ids_of_many_mailboxes_change_them_all(
    spread: list[dict[str, Any]], api: Api, names: list[str]
) -> None:
    ids = [str(id_) for id_ in Message.objects.filter(seq=2, mailbox__recipient__in=names).values_list("pk", flat=True)]
    assert len(ids) == 1_000
    for some in (ids[:3], ids[:40], ids):
        assert api.patch("/messages/mark-read", {"ids": some}).expect(200).json["changed"] == len(some)
        assert api.patch("/messages/mark-unread", {"ids": some}).expect(200).json["changed"] == len(some)
    assert api.post("/messages/bulk-delete", {"ids": ids}).expect(200).json["changed"] == 1_000
    assert miscounted() == []
