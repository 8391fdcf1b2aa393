"""purge, export, erase and doctor: what they do, what they say, and that a program can read it."""

import io
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.core.management import get_commands, load_command_class
from django.db import connection
from django.utils import timezone

from messages_project.management.commands import doctor
from messaging import erasure, services
from messaging.auth import keys
from messaging.backfill import PastMessage, import_history
from messaging.management.commands import export
from messaging.models import Change, Mailbox, Message
from messaging.records import NewMessage, loadable
from tests.commands import process, run
from tests.conftest import MakeKey
from tests.helpers import Api
from tests.redis_servers import RedisServer
from tests.servers import PROJECT_DIR, wait_until
from tests.sessions import another_session, lock_mailbox, somebody_waits_for_a_lock
from tests.state import miscounted, nothing_changes

OURS = sorted(name for name, app in get_commands().items() if app in {"messaging", "messages_project"})


@pytest.mark.parametrize("name", [name for name in OURS if name != "migrate"])
def test_every_command_helps_with_an_example(name: str) -> None:
    parser = load_command_class(get_commands()[name], name).create_parser("manage.py", name)
    text = io.StringIO()
    parser.print_help(text)
    assert f"manage.py {name}" in (parser.epilog or ""), "no example"
    assert "Example" in text.getvalue()


# purge


@pytest.fixture
def old_messages(db: None) -> int:
    """300 messages of the past 180 days in 3 mailboxes, half of them read; returns how many are older than 90 days."""
    assert run("seed", "--messages", "300", "--recipients", "3").failure == ""
    return Message.objects.filter(created_at__lt=timezone.now() - timedelta(days=90)).count()


def test_purge_says_what_it_would_delete_and_deletes_nothing(old_messages: int) -> None:
    with nothing_changes():
        found = run("purge", "--older-than", "90d", "--dry-run")
    assert f"Would delete {old_messages:,} messages" in found.out


def test_purge_deletes_old_messages_and_counts_stay_exact(old_messages: int) -> None:
    assert json.loads(run("purge", "--older-than", "90d", "--json").out)["deleted"] == old_messages
    assert Message.objects.count() == 300 - old_messages
    assert miscounted() == []
    assert json.loads(run("purge", "--older-than", "90d", "--json").out)["deleted"] == 0


def test_purge_may_be_limited_to_a_mailbox_and_to_read_messages(old_messages: int) -> None:
    cutoff = timezone.now() - timedelta(days=90)
    old = Message.objects.filter(created_at__lt=cutoff, mailbox__recipient="user1@example.com")
    read = old.filter(read_at__isnull=False).count()
    assert 0 < read < old.count()
    arguments = ("--older-than", "90d", "--read-only", "--recipient", "user1@example.com", "--json")
    assert json.loads(run("purge", *arguments).out)["deleted"] == read
    assert Message.objects.count() == 300 - read
    assert miscounted() == []


def test_purge_of_an_unknown_mailbox_is_an_error(old_messages: int) -> None:
    with nothing_changes():
        outcome = run("purge", "--older-than", "90d", "--recipient", "nobody")
    assert (outcome.status, outcome.failure) == (1, "There is no mailbox of 'nobody'.")


@pytest.mark.parametrize("span", ["90", "0d", "1.5d", "soon", "999999d"])
def test_purge_wants_a_span_of_time(db: None, span: str) -> None:
    assert "no span of time" in run("purge", "--older-than", span).failure


# export


def test_a_reader_that_ends_early_is_no_error(transactional_db: None) -> None:
    assert run("seed", "--messages", "3000", "--recipients", "1").failure == ""
    with process("export") as exporting:
        assert exporting.stdout is not None
        assert exporting.stdout.readline().startswith(b"{")
        exporting.stdout.close()
        assert exporting.wait(30) == 1
        assert exporting.stderr is not None
        assert exporting.stderr.read() == b""


def test_what_is_exported_can_be_loaded_again(api: Api, tmp_path: Any) -> None:
    api.post("/messages/", {"recipient": "ada", "content": "Grüße\n€", "sender": "bob", "metadata": {"a": [1, 1e23]}})
    api.send("eve", "second")
    exported = run("export")
    assert [json.loads(line)["recipient"] for line in exported.out.splitlines()] == ["ada", "eve"]
    file = tmp_path / "messages.jsonl"
    file.write_text(exported.out, encoding="utf-8")
    assert run("load", str(file)).failure == ""
    for recipient in ("ada", "eve"):
        first, second = api.get("/messages/", {"recipient": recipient}).expect(200).json["results"]
        same = ("recipient", "sender", "content", "metadata", "expires_at")
        assert [first[name] for name in same] == [second[name] for name in same]


def test_export_writes_each_message_once_over_many_pages(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from messaging.management.commands import export

    monkeypatch.setattr(export, "_BATCH", 7)
    messages = [{"recipient": f"m{n % 4}", "content": str(n)} for n in range(50)]
    api.post("/messages/batch", {"messages": messages}).expect(201)
    contents = [json.loads(line)["content"] for line in run("export").out.splitlines()]
    assert sorted(contents, key=int) == [str(n) for n in range(50)]
    one = [json.loads(line) for line in run("export", "--recipient", "m2").out.splitlines()]
    assert [line["content"] for line in one] == [str(n) for n in range(2, 50, 4)]
    assert "no mailbox" in run("export", "--recipient", "nobody").failure


# erase


def anywhere(text: str) -> list[str]:
    """The tables of which some row holds the text, in any column."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " AND relkind IN ('r', 'p') AND NOT relispartition"
        )
        names = [name for (name,) in cursor.fetchall()]
        found = []
        for name in names:
            hexed = text.encode().hex()
            cursor.execute(f'SELECT 1 FROM "{name}" t WHERE t::text LIKE %s OR t::text LIKE %s LIMIT 1',
                           [f"%{text}%", f"%{hexed}%"])  # fmt: skip
            if cursor.fetchone():
                found.append(name)
    return found


@pytest.mark.parametrize("forget", [False, True])
def test_erase_leaves_nothing_of_a_person(
    api: Api, make_key: MakeKey, anonymous: Api, django_user_model: Any, forget: bool
) -> None:
    name, secret = "ada-lovelace@example.com", "a very private text"
    own = anonymous.holding(make_key("read", "manage", recipient=name))
    ids = [api.send(name, secret)["id"] for _ in range(3)]
    other = api.send("eve", "stays")["id"]
    keyed = {"Idempotency-Key": "k1"}
    api.post("/messages/", {"recipient": name, "content": secret}, headers=keyed).expect(201)
    own.patch("/messages/mark-read", {"ids": ids}, headers={"Idempotency-Key": "k2"}).expect(200)
    made = api.post("/mailbox/ticket", {"recipient": name}, headers={"Idempotency-Key": "k3"}).expect(200)
    ticket = made.json["ticket"]
    assert anywhere(ticket) == ["messaging_outcome"]
    everywhere = {"messaging_mailbox", "messaging_message", "messaging_outcome", "messaging_apikey"}
    assert everywhere <= {*anywhere(name), *anywhere(secret)}
    staff = django_user_model.objects.create_user("staff")
    for text in (f"3 messages to eve, {name} and 2 more", f"1 message to x{name}"):
        LogEntry.objects.create(user=staff, action_flag=2, object_repr=text)
    before = api.mailbox(name)
    receipt = json.loads(run("erase", name, *(["--forget-name"] if forget else []), "--json").out)
    assert (receipt["recipient"], receipt["messages"], receipt["api_keys"]) == (name, 4, 1)
    texts = set(LogEntry.objects.values_list("object_repr", flat=True))
    assert texts == {"3 messages to eve, (erased) and 2 more", f"1 message to x{name}"}
    LogEntry.objects.all().delete()
    assert anywhere(secret) == []
    assert anywhere(ticket) == []
    assert anywhere(name) == ([] if forget else ["messaging_mailbox"])
    if not forget:
        # A client that follows the mailbox starts again, and finds it empty.
        api.get("/changes", {"recipient": name, "since": 1}).expect(410, "changes_expired")
    api.get(f"/messages/{other}").expect(200)
    # A retry of what was sent does not bring it back.
    api.post("/messages/", {"recipient": name, "content": secret}, headers=keyed).expect(410, "outcome_deleted")
    assert anywhere(secret) == []
    if forget:
        assert not Mailbox.objects.filter(recipient=name).exists()
    else:
        # Versions go on where they were, so an ETag of before never comes back.
        assert api.send(name)["seq"] > before["version"]
    assert miscounted() == []


def test_an_erasure_that_was_stopped_is_completed_by_the_next_one(
    api: Api, make_key: MakeKey, anonymous: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key("read", "manage", recipient="ada")
    anonymous.holding(key).patch(
        "/messages/mark-read", {"ids": [api.send("ada")["id"]]}, headers={"Idempotency-Key": "k"}
    ).expect(200)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(erasure, "erase_traces", stop)
    assert run("erase", "ada", "--json").status == 130
    monkeypatch.undo()
    assert [keys.state_of(found) for found in keys.bound_to("ada")] == ["revoked"]

    receipt = json.loads(run("erase", "ada", "--json").out)
    assert (receipt["api_keys"], receipt["outcomes"]) == (1, 1)
    assert anywhere(key.split("_")[1]) == []


@pytest.mark.parametrize("options", [[], ["--forget-name"]])
def test_a_receipt_names_what_arrived_meanwhile(api: Api, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    api.send("ada")
    erase_traces = erasure.erase_traces

    def erase_late(*args: Any, **kwargs: Any) -> dict[str, int]:
        api.send("ada", "new")
        return erase_traces(*args, **kwargs)

    monkeypatch.setattr(erasure, "erase_traces", erase_late)
    receipt = json.loads(run("erase", "ada", *options, "--json").out)
    assert receipt["messages"] == 1
    assert receipt["mailbox"] == "at version 3; arrived meanwhile: 1"


@pytest.mark.django_db(transaction=True)
def test_a_name_is_not_forgotten_while_a_message_arrives(api: Api) -> None:
    api.delete(f"/messages/{api.send('ada')['id']}").expect(204)
    later = api.send("ada")["id"]

    def forget() -> None:
        try:
            erasure.forget_mailbox("ada")
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool, another_session() as session:
        session.execute("UPDATE messaging_mailbox SET total = 0, unread = 0")
        session.commit()
        lock_mailbox(session, "ada")
        forgetting = pool.submit(forget)
        wait_until(somebody_waits_for_a_lock, what="the end of a change of the mailbox")
        session.execute("UPDATE messaging_mailbox SET total = 1, unread = 1")
        session.commit()
        forgetting.result()
    api.get(f"/messages/{later}").expect(200)
    assert miscounted() == []
    api.delete(f"/messages/{later}").expect(204)
    erasure.forget_mailbox("ada")
    assert anywhere("ada") == []
    assert not Change.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_an_export_reads_on_over_a_lost_connection(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        api.send("ada", str(number))
    monkeypatch.setattr(export, "_BATCH", 1)

    def end_the_session(message: Any) -> bytes:
        with another_session() as session:
            session.execute("SELECT pg_terminate_backend(%s)", [connection.connection.info.backend_pid])
        return loadable(message)

    monkeypatch.setattr(export, "loadable", end_the_session)
    assert [json.loads(line)["content"] for line in run("export").out.splitlines()] == ["0", "1", "2"]


def test_erase_goes_on_where_another_process_has_deleted_a_whole_batch(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        api.send("ada", str(number))
    delete, seen = services.delete, list[list[Any]]()

    def delete_late(*, ids: list[Any], **options: Any) -> Any:
        if not seen:
            delete(ids=ids, **options)
        seen.append(ids)
        return delete(ids=ids, **options)

    monkeypatch.setattr(erasure, "BATCH", 2)
    monkeypatch.setattr(services, "delete", delete_late)
    receipt = json.loads(run("erase", "ada", "--json").out)
    assert [len(ids) for ids in seen] == [2, 2, 1]
    assert receipt["messages"] == 3
    assert receipt["mailbox"].startswith("empty, ")
    assert miscounted() == []


def test_erase_of_an_unknown_recipient_says_so(db: None) -> None:
    assert "nothing was deleted" in run("erase", "nobody").failure


def test_erase_compares_a_recipient_exactly(api: Api) -> None:
    for name in ("a%b", "a_b"):
        api.send(name)
    assert json.loads(run("erase", "a_b", "--json").out)["messages"] == 1
    assert api.mailbox("a%b")["total"] == 1


@pytest.mark.parametrize("name", ["recipient", "changed", "mailboxes"])
def test_erase_of_a_name_that_is_a_word_of_responses_keeps_the_outcomes_of_others(api: Api, name: str) -> None:
    ids = [api.send("eve")["id"]]
    keyed = {"Idempotency-Key": "k1"}
    marked = api.patch("/messages/mark-read", {"ids": ids}, headers=keyed).expect(200)
    assert f'"{name}"' in marked.body.decode()
    api.send(name)
    assert json.loads(run("erase", name, "--json").out)["outcomes"] == 0
    replay = api.patch("/messages/mark-read", {"ids": ids}, headers=keyed).expect(200)
    assert (replay.headers.get("Idempotency-Replayed"), replay.body) == ("true", marked.body)


# doctor


def states(found: list[doctor.Finding]) -> dict[str, str]:
    return {finding.subject: finding.state for finding in found}


def test_doctor_looks_at_everything(db: None) -> None:
    found = states(doctor.findings())
    looked_at = {
        "versions", "access", "proxy", "database", "usable", "fsync", "synchronous_commit", "connections", "clock",
        "migrations", "upkeep", "mailboxes", "redis", "disk",
    }  # fmt: skip
    assert looked_at <= set(found)
    assert found["usable"] == found["clock"] == found["migrations"] == "ok"
    # The tests' own PostgreSQL flushes nothing.
    assert found["fsync"] == "bad"


def test_doctor_says_what_to_do_and_ends_with_status_1(db: None) -> None:
    for finding in doctor.findings():
        assert finding.state == "ok" or finding.advice, finding
    with pytest.raises(SystemExit) as ended:
        run("doctor", "--json")
    assert ended.value.code == 1


@pytest.mark.parametrize("limited", ["ROLE CURRENT_USER", "DATABASE {database}"])
def test_doctor_counts_the_connections_that_role_and_database_may_have(db: None, limited: str) -> None:
    database = connection.ops.quote_name(connection.settings_dict["NAME"])
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER {limited.format(database=database)} CONNECTION LIMIT 3")
    assert states(doctor.findings())["connections"] == "bad"


def test_doctor_counts_the_connections_of_other_roles_too(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE ROLE of_doctor")
        cursor.execute("SET LOCAL ROLE of_doctor")  # this session stays another role's
    assert ", 0 in use" not in next(doctor._connections()).found


def test_doctor_finds_a_redis_that_is_gone_and_does_not_show_its_password(db: None, settings: Any) -> None:
    settings.REDIS_URL = "redis://:hunter2@127.0.0.1:1/0"
    found = {finding.subject: finding for finding in doctor.findings()}
    assert found["redis"].state == "warn"
    assert "(ConnectionRefusedError)" in found["redis"].found
    assert "hunter2" not in str(found)


def test_doctor_finds_a_redis_that_answers_and_cannot_count(db: None, settings: Any) -> None:
    with RedisServer() as server:
        settings.REDIS_URL = server.url
        server.client.config_set("maxmemory", 1)
        found = {finding.subject: finding for finding in doctor.findings()}
        server.client.config_set("maxmemory", 0)
        assert states(doctor.findings())["redis"] == "ok"
    assert "(OutOfMemoryError)" in found["redis"].found


def test_doctor_warns_of_a_proxy_whose_scheme_is_not_known(db: None, settings: Any) -> None:
    settings.MESSAGES_TRUSTED_PROXIES = 1
    assert states(doctor.findings())["proxy"] == "warn"
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    assert states(doctor.findings())["proxy"] == "ok"


def test_doctor_without_a_database_says_so(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.db import OperationalError

    def refuse(*_arguments: Any) -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr(doctor, "fetch", refuse)
    found = states(doctor.findings())
    assert found["database"] == "bad"
    assert "usable" not in found


# Any command


@pytest.mark.parametrize("command", [["list_api_keys"], ["export"], ["seed", "--messages=1", "--recipients=1"]])
def test_a_database_without_tables_is_reported_with_what_to_do(db: None, command: list[str]) -> None:
    with process(*command, POSTGRES_DB="postgres") as running:
        out, err = running.communicate()
    assert (running.returncode, out) == (1, b"")
    assert err.splitlines()[-1] == b"The database lacks tables or columns of this version: run manage.py migrate first."
    assert b"Traceback" not in err


@pytest.mark.parametrize("command", ["export", "check_mailboxes"])
def test_ctrl_c_ends_a_command_that_waits(transactional_db: None, command: str) -> None:
    with another_session() as session, process(command) as running:
        session.execute("LOCK TABLE messaging_message")
        wait_until(somebody_waits_for_a_lock, what="a command that waits")
        running.send_signal(signal.SIGINT)
        assert running.communicate() == (b"", b"")
    assert running.returncode == 130


def test_a_mailbox_that_stays_locked_does_not_hold_up_a_purge(transactional_db: None) -> None:
    past = timezone.now() - timedelta(days=2)
    import_history(messages=[PastMessage(NewMessage(name, "x"), past, None) for name in ("busy", "idle")])
    with another_session() as session:
        lock_mailbox(session, "busy")
        with process("purge", "--older-than", "1d") as running:
            out, error = running.communicate(timeout=30)
    assert out.startswith(b"Deleted 1 messages")
    assert b"Messages are left in mailboxes that stay locked." in error
    assert running.returncode == 1


# Keys and tokens, for programs


def test_keys_and_tokens_are_described_as_json(db: None, settings: Any) -> None:
    settings.MESSAGES_TOKEN_SECRET = "x" * 40
    token = json.loads(run("create_token", "--recipient", "ada", "--scopes", "read", "--json").out)
    assert (token["recipient"], token["scopes"]) == ("ada", ["read"])
    key = json.loads(run("create_api_key", "prometheus", "--scopes", "metrics", "--json").out)
    assert key["scopes"] == ["metrics"]
    revoked = json.loads(run("revoke_api_key", key["prefix"], "--json").out)
    assert (revoked["prefix"], revoked["state"]) == (key["prefix"], "revoked")


# The process


def test_the_process_deletes_what_expires_until_it_is_told_to_stop(transactional_db: None) -> None:
    assert run("seed", "--messages", "20", "--recipients", "2").failure == ""
    Message.objects.update(expires_at=timezone.now() + timedelta(seconds=1))
    variables = {"POSTGRES_DB": str(connection.settings_dict["NAME"]), "MESSAGES_UPKEEP_SECONDS": "1"}
    running = subprocess.Popen(
        [sys.executable, "-m", "messages_project", "upkeep"], cwd=PROJECT_DIR, env=os.environ | variables
    )
    try:
        wait_until(lambda: not Message.objects.exists(), what="the deletion")
        running.terminate()
        assert running.wait(15) == 0
    finally:
        running.kill()
        running.wait(15)
    assert miscounted() == []


# In place of the first run: a signal that arrives between the sending of a statement and the wait for its result.
CUT_OFF = """
import os, signal, django
django.setup()
from django.db import connection, transaction
from messages_project.__main__ import main
from messaging import upkeep

def cut_off(**_options):
    with transaction.atomic():
        connection.connection.pgconn.send_query(b"SELECT pg_sleep(60)")
        os.kill(os.getpid(), signal.SIGTERM)

upkeep.run_once = cut_off
main()
"""


def test_a_stop_of_the_process_is_not_lost_in_the_error_of_a_statement_that_it_cuts_off(transactional_db: None) -> None:
    variables = {"POSTGRES_DB": str(connection.settings_dict["NAME"]), "MESSAGES_UPKEEP_SECONDS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", CUT_OFF, "upkeep"], cwd=PROJECT_DIR, env=os.environ | variables, timeout=20, check=False
    )
    assert ended.returncode == 0
