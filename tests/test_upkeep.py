"""Upkeep: what has ended is deleted like anything else, by several at once, without a request waiting for it."""

import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.db import connection
from django.utils import timezone

from messaging import upkeep
from messaging.backfill import PastMessage, import_history
from messaging.models import Change, Message, Observation, Outcome, RateWindow
from messaging.records import NewMessage
from tests.commands import run
from tests.conftest import MakeKey
from tests.helpers import Api
from tests.plans import maintain, rows_read_by
from tests.programs import program
from tests.servers import PROJECT_DIR, wait_until
from tests.sessions import another_session, in_a_thread, lock_mailbox, somebody_waits_for_a_lock
from tests.state import miscounted
from tests.test_reading import send_many


def expire(*ids: str, seconds_ago: float = 1) -> None:
    Message.objects.filter(pk__in=ids).update(expires_at=timezone.now() - timedelta(seconds=seconds_ago))


def test_an_expired_message_is_deleted_like_any_other(api: Api) -> None:
    kept, gone = (api.send("ada")["id"] for _ in range(2))
    before = api.mailbox("ada")
    expire(gone)
    assert upkeep.backlog()["messages"] == 1
    assert upkeep.run_once()["messages"] == 1
    after = api.mailbox("ada")
    assert (after["total"], after["unread"]) == (1, 1)
    assert after["version"] > before["version"]
    api.get(f"/messages/{gone}").expect(404)
    api.get(f"/messages/{kept}").expect(200)
    assert upkeep.backlog()["messages"] == 0


def test_a_message_that_expires_later_stays(api: Api) -> None:
    id_ = api.send("ada")["id"]
    expire(id_, seconds_ago=-60)
    assert upkeep.run_once()["messages"] == 0
    api.get(f"/messages/{id_}").expect(200)


def test_retention_deletes_messages_of_any_mailbox_by_their_age(api: Api, settings: Any) -> None:
    assert run("seed", "--messages", "300", "--recipients", "3").failure == ""
    fresh = api.send("ada")["id"]
    old = Message.objects.filter(created_at__lt=timezone.now() - timedelta(days=90)).count()
    assert 0 < old < 300
    assert "old_messages" not in upkeep.run_once()
    settings.MESSAGES_RETENTION_DAYS = 36_500  # before the times that ids can have
    assert upkeep.run_once()["old_messages"] == 0
    settings.MESSAGES_RETENTION_DAYS = 90
    assert upkeep.backlog()["old_messages"] == old
    assert upkeep.run_once()["old_messages"] == old
    assert Message.objects.count() == 301 - old
    api.get(f"/messages/{fresh}").expect(200)
    assert miscounted() == []


@pytest.mark.parametrize("command", ["upkeep --once", "purge --older-than 90d"])
def test_age_is_told_by_the_clock_of_the_database_not_of_the_machine(
    transactional_db: None, api: Api, command: str
) -> None:
    api.patch("/messages/mark-read", {"ids": [api.send("ada")["id"]]}).expect(200)
    done = subprocess.run(
        [program("faketime"), "-f", "+400d", sys.executable, "manage.py", *command.split()],
        cwd=PROJECT_DIR, check=False, capture_output=True, text=True,
        env=os.environ | {"POSTGRES_DB": str(connection.settings_dict["NAME"]), "MESSAGES_RETENTION_DAYS": "90"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (Message.objects.count(), Change.objects.count()) == (1, 1)


def test_old_messages_are_found_in_order_even_by_the_statistics_of_before_a_load(api: Api) -> None:
    send_many(api, 1_000)
    maintain("ANALYZE messaging_message")
    past = timezone.now() - timedelta(days=2)
    for _ in range(5):
        import_history(messages=[PastMessage(NewMessage(f"m{n % 50}", "x"), past, None) for n in range(1_000)])
    oldest = upkeep.older_messages(past + timedelta(days=1)).values_list("pk", flat=True)[:10]
    read, found = rows_read_by(lambda: list(oldest))
    assert len(found) == 10
    assert read < 200  # ten of each partition, if there are any


def test_outcomes_windows_and_sessions_that_have_ended_are_deleted(api: Api) -> None:
    for key in ("old", "new"):
        api.post("/messages/", {"recipient": "a", "content": "x"}, headers={"Idempotency-Key": key}).expect(201)
    now, past = timezone.now(), timezone.now() - timedelta(seconds=1)
    Outcome.objects.filter(key="old").update(expires_at=past)
    RateWindow.objects.bulk_create(
        RateWindow(bucket=f"b{n}", used=1, ends_at=past if n else now + timedelta(hours=1)) for n in range(2_500)
    )
    Session.objects.create(session_key="old", session_data="x", expire_date=past)
    Session.objects.create(session_key="new", session_data="x", expire_date=now + timedelta(hours=1))
    backlog = upkeep.backlog()
    assert (backlog["outcomes"], backlog["rate_windows"], backlog["sessions"]) == (1, 2_499, 1)
    deleted = upkeep.run_once()
    assert (deleted["outcomes"], deleted["rate_windows"], deleted["sessions"]) == (1, 2_499, 1)
    assert list(Outcome.objects.values_list("key", flat=True)) == ["new"]
    assert list(Session.objects.values_list("session_key", flat=True)) == ["new"]
    assert set(upkeep.backlog().values()) == {0}


@pytest.mark.django_db(transaction=True)
def test_several_at_once_share_the_work(api: Api) -> None:
    messages = [{"recipient": f"m{n % 40}", "content": "x"} for n in range(1_000)]
    sent = api.post("/messages/batch", {"messages": messages}).expect(201).json["results"]
    expire(*(message["id"] for message in sent))

    running = [in_a_thread(upkeep.run_once) for _ in range(4)]
    # A mailbox that another one was just working on may be left for the next round.
    assert sum(share.result()["messages"] for share in running) + upkeep.run_once()["messages"] == 1_000
    assert Message.objects.count() == 0
    assert miscounted() == []


@pytest.mark.django_db(transaction=True)
def test_a_locked_mailbox_is_left_for_the_next_run(api: Api) -> None:
    busy, idle = api.send("busy")["id"], api.send("idle")["id"]
    expire(busy, idle)
    with another_session() as session:
        lock_mailbox(session, "busy")
        assert upkeep.run_once()["messages"] == 1
    assert upkeep.run_once()["messages"] == 1


@pytest.mark.django_db(transaction=True)
def test_a_locked_mailbox_with_many_expired_messages_delays_no_other_one(api: Api) -> None:
    busy = [message["id"] for message in send_many(api, upkeep.MESSAGES_BATCH + 1, "busy")]
    idle = api.send("idle")["id"]
    expire(*busy, seconds_ago=60)
    expire(idle)
    with another_session() as session:
        lock_mailbox(session, "busy")
        assert upkeep.run_once()["messages"] == 1
    api.get(f"/messages/{idle}").expect(404)


@pytest.mark.django_db(transaction=True)
def test_a_locked_mailbox_takes_the_place_of_others_in_one_batch_only(api: Api) -> None:
    expire(api.send("locked")["id"], seconds_ago=60)
    expire(*(message["id"] for message in send_many(api, 5, "idle")))
    with another_session() as session:
        lock_mailbox(session, "locked")
        batches = upkeep.discard_all(upkeep.expired_messages(timezone.now()), limit=2)
        assert [deleted for deleted in batches if deleted] == [1, 2, 2]


@pytest.mark.django_db(transaction=True)
def test_locked_mailboxes_are_waited_for_once_the_others_are_done(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "MESSAGES_BATCH", 2)
    monkeypatch.setattr(upkeep, "LOCK_SECONDS", 60)
    names = ["busy0", "busy1", "busy2"]
    for name in names:
        expire(*(message["id"] for message in send_many(api, 3, name)), seconds_ago=60)
    expire(api.send("idle")["id"])

    with another_session() as locking:
        for name in names:
            lock_mailbox(locking, name)
        running = in_a_thread(upkeep.run_once)
        wait_until(somebody_waits_for_a_lock, what="upkeep to wait for a locked mailbox")
        assert api.mailbox("idle")["total"] == 0
        locking.rollback()
        assert running.result()["messages"] == 10
    assert miscounted() == []


@pytest.mark.django_db(transaction=True)
def test_a_mailbox_that_is_busy_is_waited_for_beside_one_that_stays_locked(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "LOCK_SECONDS", 3)
    expire(api.send("locked")["id"], seconds_ago=60)
    expire(api.send("busy")["id"])

    with another_session() as locking, another_session() as changing:
        lock_mailbox(locking, "locked")
        lock_mailbox(changing, "busy")
        running = in_a_thread(upkeep.run_once)
        wait_until(somebody_waits_for_a_lock, what="upkeep to wait for the locked mailbox")
        changing.rollback()
        assert running.result()["messages"] == 1
    assert api.mailbox("busy")["total"] == 0


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("command", [("upkeep", "--once"), ("purge", "--older-than", "1d", "--read-only")])
def test_a_mailbox_that_is_never_free_is_waited_for(api: Api, command: tuple[str, ...]) -> None:
    past = timezone.now() - timedelta(days=2)
    import_history(messages=[PastMessage(NewMessage("busy", "x", expires_at=past.isoformat()), past, past)])

    with another_session() as session:
        lock_mailbox(session, "busy")
        running = in_a_thread(lambda: run(*command).out)
        wait_until(somebody_waits_for_a_lock, what=f"{command[0]} to wait for the mailbox")
        session.rollback()
        assert re.search(r"messages: 1 deleted, 0 left|^Deleted 1 messages", running.result())
    assert api.mailbox("busy")["total"] == 0
    assert miscounted() == []


@pytest.mark.django_db(transaction=True)
def test_a_run_ends_though_more_messages_expire_meanwhile(api: Api) -> None:
    expire(api.send("ada")["id"])
    deleted: list[str] = []

    def delete_and_expire(execute: Any, sql: str, *arguments: Any) -> Any:
        if "DELETE FROM messaging_message" in sql:
            assert len(deleted) < 5
            deleted.append(sql)
            with another_session() as session:
                session.execute("UPDATE messaging_message SET expires_at = clock_timestamp()")
                session.commit()
        return execute(sql, *arguments)

    api.send("bob")
    with connection.execute_wrapper(delete_and_expire):
        assert upkeep.run_once()["messages"] == 1
    assert upkeep.run_once()["messages"] == 1


def test_a_large_backlog_of_one_kind_delays_no_other(api: Api, settings: Any) -> None:
    settings.MESSAGES_RETENTION_DAYS = 1
    past = timezone.now() - timedelta(days=2)
    old = [PastMessage(NewMessage("ada", "x"), past, None) for _ in range(2 * upkeep.MESSAGES_BATCH)]
    import_history(messages=old)
    for _ in range(2):
        expire(api.send("bob")["id"])
        deleted = upkeep.run_once(seconds=0)
        assert (deleted["old_messages"], deleted["messages"]) == (upkeep.MESSAGES_BATCH, 1)
    assert set(upkeep.backlog().values()) == {0}


def test_the_command_says_what_it_did_and_what_is_left(api: Api) -> None:
    expire(api.send("ada")["id"])
    assert "messages: 1 deleted, 0 left" in run("upkeep", "--once").out
    found = json.loads(run("upkeep", "--once", "--json").out)
    assert set(found["deleted"].values()) == set(found["backlog"].values()) == {0}
    seen = Observation.last("upkeep")
    assert seen is not None
    assert timezone.now() - seen.observed_at < timedelta(minutes=1)


def test_metrics_tell_of_the_backlog_and_of_the_last_check(api: Api, anonymous: Api, make_key: MakeKey) -> None:
    expire(api.send("ada")["id"])
    reader = anonymous.holding(make_key("metrics"))

    def lines() -> list[str]:
        return reader.get("/metrics").expect(200).body.decode().splitlines()

    assert 'messages_upkeep_backlog{kind="messages"} 1.0' in lines()
    assert not [line for line in lines() if line.startswith("messages_mailbox_disagreements")]
    with connection.cursor() as cursor:
        cursor.execute("UPDATE messaging_mailbox SET total = total + 1, version = version + 1")
    assert run("check_mailboxes").failure
    assert "messages_mailbox_disagreements 1.0" in lines()
    assert run("check_mailboxes", "--repair").failure == ""
    upkeep.run_once()
    assert "messages_mailbox_disagreements 0.0" in lines()
    assert 'messages_upkeep_backlog{kind="messages"} 0.0' in lines()
