"""GET /changes: a copy that follows it equals the mailbox, and 410 says when it cannot."""

import random
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from messaging import changes, upkeep
from messaging.backfill import PastMessage, import_history
from messaging.models import Change, Mailbox
from messaging.records import NewMessage
from tests.commands import run
from tests.conftest import MakeKey
from tests.helpers import Api, in_process
from tests.plans import maintain, rows_read_by
from tests.postgres_servers import PostgresServer
from tests.servers import RunningServer
from tests.sessions import another_session, lock_mailbox
from tests.state import miscounted
from tests.test_reading import MISSING, send_many
from tests.test_stateful import clear, key


class Copy:
    """A client's copy of a mailbox, as the documentation says how to keep one."""

    def __init__(self, api: Api, recipient: str) -> None:
        self.api, self.recipient = api, recipient
        self.messages: dict[str, Any] = {}
        self.version = 0
        self.next: str | None = None
        self.limit = 200

    def begin_anew(self) -> None:
        self.messages, self.version, self.next = {}, 0, None

    def step(self) -> bool:
        """Take one answer; whether it was the last."""
        target = self.next or f"/changes?recipient={self.recipient}&since={self.version}&limit={self.limit}"
        answer = self.api.get(target)
        if answer.status == 410:
            answer.expect(410, "changes_expired")
            self.begin_anew()
            return False
        found = answer.expect(200).json
        assert len(found["messages"]) + len(found["deleted"]) <= self.limit
        assert not {message["id"] for message in found["messages"]} & set(found["deleted"])
        assert found["since"] <= found["until"] <= found["mailbox"]["version"]
        assert answer.headers["ETag"]
        self.messages |= {message["id"]: message for message in found["messages"]}
        for id_ in found["deleted"]:
            self.messages.pop(id_, None)
        if found["next"]:
            self.next = found["next"].replace("http://testserver", "")
            return False
        assert found["until"] == found["mailbox"]["version"]
        self.version, self.next = found["until"], None
        return True

    def catch_up(self) -> None:
        while not self.step():
            pass

    def require_exact(self) -> None:
        """Be the mailbox, which has not changed since the last step."""
        found = self.api.pages("/messages/", {"recipient": self.recipient, "ordering": "created_at"})
        assert sorted(self.messages.values(), key=lambda message: message["seq"]) == found
        assert self.version == self.api.mailbox(self.recipient)["version"]


class Followers(RuleBasedStateMachine):
    """Changes of every kind, and copies that follow them at their own pace from versions of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.api = Api(in_process, key())
        self.copies = [Copy(self.api, "ada") for _ in range(3)]

    @initialize()
    def a_first_message(self) -> None:
        clear()
        self.api.send("ada")

    def some(self, seed: int) -> list[str]:
        choose = random.Random(seed)
        ids = [m["id"] for m in self.api.pages("/messages/", {"recipient": "ada", "limit": 200})]
        return choose.sample(ids, min(len(ids), choose.choice([1, 2, 5, 50]))) or [MISSING]

    @rule(count=st.integers(1, 6))
    def send(self, count: int) -> None:
        messages = [{"recipient": name, "content": "x"} for name in ["ada", "bob"] * count]
        self.api.post("/messages/batch", {"messages": messages}).expect(201)

    @rule(seed=st.integers(0, 2**16), path=st.sampled_from(["mark-read", "mark-unread", "bulk-delete"]))
    def change(self, seed: int, path: str) -> None:
        self.api.post(f"/messages/{path}", {"ids": self.some(seed)}).expect(200)

    @rule(seed=st.integers(0, 2**16), read=st.booleans())
    def mark_up_to(self, seed: int, read: bool) -> None:
        path = "/messages/mark-read" if read else "/messages/mark-unread"
        assert self.api.patch(path, {"recipient": "ada", "up_to": self.some(seed)[0]}).status in {200, 404}

    @rule(seed=st.integers(0, 2**16))
    def delete_one(self, seed: int) -> None:
        assert self.api.delete(f"/messages/{self.some(seed)[0]}").status in {204, 404}

    @rule(seed=st.integers(0, 2**16))
    def expire(self, seed: int) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE messaging_message SET expires_at = '2020-01-01' WHERE id = ANY(%s::uuid[])", [self.some(seed)]
            )
        upkeep.discard(upkeep.expired_messages(timezone.now()), limit=3)
        while upkeep.discard(upkeep.expired_messages(timezone.now()), limit=100).ids:
            pass

    @rule(count=st.integers(1, 3))
    def append_messages_of_the_past(self, count: int) -> None:
        then = timezone.now() - timedelta(days=1)
        import_history(messages=[PastMessage(NewMessage("ada", "old"), then, None) for _ in range(count)])

    @rule(limit=st.integers(1, 4))
    def purge(self, limit: int) -> None:
        changes.purge_changes(timezone.now() + timedelta(days=1), limit=limit)

    @rule()
    def repair(self) -> None:
        # Something has deleted a message past the service.
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM messaging_message WHERE id IN (SELECT id FROM messaging_message LIMIT 1)")
        assert run("check_mailboxes", "--repair").failure == ""

    @rule(which=st.integers(0, 2), limit=st.sampled_from([1, 2, 3, 7, 1000]))
    def step(self, which: int, limit: int) -> None:
        copy = self.copies[which]
        if copy.next is None:
            copy.limit = limit
        copy.step()

    @rule(which=st.integers(0, 2))
    def begin_anew(self, which: int) -> None:
        self.copies[which].begin_anew()

    @rule(which=st.integers(0, 2))
    def catch_up(self, which: int) -> None:
        self.copies[which].catch_up()
        self.copies[which].require_exact()

    @invariant()
    def the_log_is_sound(self) -> None:
        assert miscounted() == []

    def teardown(self) -> None:
        for copy in self.copies:
            copy.catch_up()
            copy.require_exact()
        assert run("check_mailboxes").failure == ""


def test_a_copy_that_follows_changes_is_the_mailbox(transactional_db: None) -> None:
    run_state_machine_as_test(
        Followers,
        settings=settings(
            max_examples=30,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
        ),
    )


def changes_of(api: Api, since: int, **parameters: Any) -> dict[str, Any]:
    query = {"recipient": "ada", "since": str(since), **{name: str(value) for name, value in parameters.items()}}
    found: dict[str, Any] = api.get("/changes", query).expect(200).json
    return found


def test_changes_list_arrivals_marks_and_deletions_after_a_version(api: Api) -> None:
    sent = send_many(api, 4)
    api.patch("/messages/mark-read", {"ids": [sent[0]["id"], sent[1]["id"]]}).expect(200)
    api.delete(f"/messages/{sent[1]['id']}").expect(204)
    late = api.send("ada")
    marked = api.get(f"/messages/{sent[0]['id']}").json
    mailbox = api.mailbox("ada")

    assert changes_of(api, 0) == {
        "messages": [marked, sent[2], sent[3], late], "deleted": [], "since": 0, "until": 7, "next": None,
        "mailbox": mailbox,
    }  # fmt: skip
    found = changes_of(api, 4)
    assert (found["messages"], found["deleted"], found["until"]) == ([marked, late], [sent[1]["id"]], 7)
    assert changes_of(api, 7) | {"mailbox": None} == {
        "messages": [], "deleted": [], "since": 7, "until": 7, "next": None, "mailbox": None,
    }  # fmt: skip
    pages = [changes_of(api, 4, limit=1)]
    while pages[-1]["next"]:
        pages.append(api.get(pages[-1]["next"].replace("http://testserver", "")).expect(200).json)
    assert [len(page["messages"]) + len(page["deleted"]) for page in pages] == [1, 0, 1, 1]
    assert [page["until"] for page in pages] == [4, 4, 5, 7]


def test_one_large_mark_is_given_in_parts(api: Api) -> None:
    sent = [message for _ in range(2) for message in send_many(api, 1_000)]
    api.patch("/messages/mark-read", {"recipient": "ada", "up_to": sent[-1]["id"]}).expect(200)
    assert Change.objects.count() == 1
    copy = Copy(api, "ada")
    copy.version, copy.messages, copy.limit = 2_000, {m["id"]: m for m in sent}, 300
    steps = 1
    while not copy.step():
        steps += 1
    assert steps == 7
    copy.require_exact()


def test_messages_of_many_bytes_are_given_in_parts(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "MAX_BYTES", 3_000)
    sent = [api.send("ada", "\x01" * 200)["id"] for _ in range(7)]  # 1,400 bytes each, as JSON
    api.patch("/messages/mark-read", {"ids": [sent[0]]}).expect(200)
    api.delete(f"/messages/{sent[6]}").expect(204)
    copy = Copy(api, "ada")
    steps = 1
    while not copy.step():
        steps += 1
    assert steps == 2  # of three messages each
    assert (list(copy.messages), copy.version) == (sent[:6], 9)
    assert copy.messages[sent[0]]["is_read"]


def test_an_unknown_recipient_has_no_changes(api: Api) -> None:
    assert changes_of(api, 0) == {
        "messages": [], "deleted": [], "since": 0, "until": 0, "next": None,
        "mailbox": {"recipient": "ada", "version": 0, "total": 0, "unread": 0},
    }  # fmt: skip
    api.get("/changes?recipient=ada&since=1").expect(410, "changes_expired")


def test_a_version_before_the_log_or_in_the_future_has_expired(api: Api) -> None:
    sent = send_many(api, 3)
    for message in sent:
        api.patch("/messages/mark-read", {"ids": [message["id"]]}).expect(200)
    for headers in ({}, {"If-None-Match": "*"}):
        api.get("/changes?recipient=ada&since=7", headers=headers).expect(410, "changes_expired")
    middle = changes_of(api, 3, limit=1)["next"].replace("http://testserver", "")
    assert changes.purge_changes(timezone.now() - timedelta(days=1), limit=10) == 0
    assert changes.purge_changes(timezone.now(), limit=2) == 2
    for since in (1, 3, 4):
        api.get(f"/changes?recipient=ada&since={since}").expect(410, "changes_expired")
    api.get(middle).expect(410, "changes_expired")
    assert [m["id"] for m in changes_of(api, 5)["messages"]] == [sent[2]["id"]]
    assert len(changes_of(api, 0)["messages"]) == 3


def test_purging_waits_for_no_lock(transactional_db: None, api: Api) -> None:
    for recipient in ("ada", "bob"):
        api.patch("/messages/mark-read", {"ids": [api.send(recipient)["id"]]}).expect(200)
    with another_session() as session:
        lock_mailbox(session, "ada")
        assert changes.purge_changes(timezone.now(), limit=10) == 1
        session.rollback()
    assert dict(Mailbox.objects.values_list("recipient", "log_from")) == {"ada": 0, "bob": 2}


def test_purging_reads_only_old_rows_where_the_space_of_others_is_used_again(transactional_db: None) -> None:
    fill = (
        "INSERT INTO messaging_change (mailbox_id, version, bucket, is_deletion, message_ids, created_at)"
        " SELECT 1, n, 0, true, '{}', now() - make_interval(days => %s) FROM generate_series(1, 5000) n"
    )
    for days in (60, 0):
        Change.objects.all().delete()
        maintain("VACUUM messaging_change")
        with connection.cursor() as cursor:
            cursor.execute(fill, [days])
    maintain("VACUUM ANALYZE messaging_change")

    rows, purged = rows_read_by(lambda: changes.purge_changes(timezone.now() - timedelta(days=30), limit=10))

    assert (rows, purged) == (0, 0)


@pytest.mark.process
def test_changes_of_a_large_mailbox_before_its_table_is_analyzed() -> None:
    with PostgresServer(autovacuum="off") as postgres:
        variables = postgres.variables | {"MESSAGES_ACCESS": "open", "WEB_CONCURRENCY": "1"}
        with RunningServer(**variables, POSTGRES_STATEMENT_TIMEOUT_MS="1500") as server:
            api = server.api()
            api.send("ada")
            postgres.run(
                "INSERT INTO messaging_message (id, bucket, mailbox_id, seq, sender, content, metadata, created_at)"
                " SELECT gen_random_uuid(), bucket, mailbox_id, n, '', 'x', '{}', now()"
                " FROM messaging_message, generate_series(2, 150000) n"
            )
            postgres.run("UPDATE messaging_mailbox SET version = 150000, total = 150000, unread = 150000")
            answer = api.get("/changes", {"recipient": "ada", "since": 0, "limit": 1000}).expect(200)
    assert [message["seq"] for message in answer.json["messages"]] == list(range(1, 1001))


def test_changes_follow_the_rules_of_pages(api: Api, make_key: MakeKey) -> None:
    api.send("ada")
    etag = api.get("/mailbox?recipient=ada").headers["ETag"]
    api.get("/changes?recipient=ada&since=0", headers={"If-None-Match": etag}).expect(304)
    bound = api.holding(make_key("read", recipient="ada"))
    assert len(bound.get("/changes?since=0").expect(200).json["messages"]) == 1
    bound.get("/changes?since=0&recipient=bob").expect(404, "not_found")
    api.holding(make_key("send")).get("/changes?recipient=ada&since=0").expect(403, "insufficient_scope")


@pytest.mark.parametrize(
    ("query", "faults"),
    [
        ("recipient=ada", {"?since": "required"}),
        ("since=0", {"?recipient": "required"}),
        ("recipient=ada&since=-1", {"?since": "invalid"}),
        ("recipient=ada&since=x", {"?since": "invalid"}),
        ("recipient=ada&since=9999999999999999999", {"?since": "invalid"}),
        ("recipient=ada&since=0&limit=0", {"?limit": "invalid_limit"}),
        ("recipient=ada&since=0&cursor=x", {"?cursor": "invalid_cursor"}),
        ("recipient=ada&since=0&ordering=created_at", {"?ordering": "unknown_parameter"}),
    ],
)
def test_malformed_parameters_are_named(api: Api, query: str, faults: dict[str, str]) -> None:
    assert api.get(f"/changes?{query}").expect(400, "invalid_input").faults == faults


def test_every_int64_is_a_version(api: Api) -> None:
    api.send("ada")
    api.get(f"/changes?recipient=ada&since={2**63 - 1}").expect(410, "changes_expired")
    fault = {"?since": "invalid"}
    assert api.get(f"/changes?recipient=ada&since={2**63}").expect(400, "invalid_input").faults == fault


def test_a_cursor_belongs_to_its_mailbox_and_version(api: Api) -> None:
    send_many(api, 3)
    target = changes_of(api, 1, limit=1)["next"].replace("http://testserver", "")
    for foreign in (target.replace("since=1", "since=2"), target.replace("recipient=ada", "recipient=bob")):
        assert api.get(foreign).expect(400, "invalid_input").faults == {"?cursor": "foreign_cursor"}
    position = target.index("cursor=") + 7
    for place in range(60):
        damaged = target[position + place]
        text = target[: position + place] + ("A" if damaged != "A" else "B") + target[position + place + 1 :]
        assert api.get(text).expect(400, "invalid_input").faults == {"?cursor": "invalid_cursor"}


def test_the_log_is_checked(api: Api) -> None:
    sent = send_many(api, 2)
    api.delete(f"/messages/{sent[0]['id']}").expect(204)
    assert run("check_mailboxes").failure == ""
    Change.objects.update(message_ids=[sent[1]["id"]])
    assert "1 deletions in its log are of messages that are there" in run("check_mailboxes").out
    assert run("check_mailboxes", "--repair").failure == ""
    assert run("check_mailboxes").failure == ""
    api.get("/changes?recipient=ada&since=3").expect(410, "changes_expired")
