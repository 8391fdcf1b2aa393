"""`manage.py check_mailboxes`: finds every disagreement, and no other while the API writes; repairs exactly."""

import threading
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.db.models import F

from messaging import services
from messaging.access import EVERYONE
from messaging.ids import bucket_of
from messaging.management.commands import check_mailboxes
from messaging.models import Mailbox, Message
from messaging.records import NewMessage
from tests.commands import run
from tests.partitions import not_on_citus
from tests.state import miscounted, stored

CLEAN = "Compared 3 mailboxes with their messages: nothing is wrong.\n"


@pytest.fixture
def mailboxes(db: None) -> None:
    """ada, bob and eve. Of the five messages of ada, the latest is the only one left and is unread."""
    for recipient in ("ada", "bob", "eve"):
        services.send_batch(messages=[NewMessage(recipient, str(index)) for index in range(5)], caller=EVERYONE)
    deleted = Message.objects.filter(mailbox__recipient="ada", seq__lt=5)
    services.delete(ids=list(deleted.values_list("pk", flat=True)), caller=EVERYONE)
    services.mark_read(ids=[Message.objects.get(mailbox__recipient="bob", seq=2).pk], caller=EVERYONE)


def spoil(recipient: str = "ada", **values: Any) -> None:
    """Set columns of a mailbox to what they should not be."""
    assert Mailbox.objects.filter(recipient=recipient).update(**values) == 1


def test_nothing_wrong_is_reported(mailboxes: None) -> None:
    assert run("check_mailboxes") == (CLEAN, "", "", 0)


def test_an_empty_database_has_nothing_wrong(db: None) -> None:
    assert run("check_mailboxes").out == "Compared 0 mailboxes with their messages: nothing is wrong.\n"


@pytest.mark.parametrize(
    ("values", "report"),
    [
        ({"total": 2}, "total is 2, should be 1"),
        ({"unread": 0}, "unread is 0, should be 1"),
        ({"version": 4}, "version is 4, should be at least 5; version is 4, its log goes to 6"),
        ({"total": 3, "unread": 2, "version": 3},
         ("total is 3, should be 1; unread is 2, should be 1; version is 3, should be at least 5; version is 3,"
          " its log goes to 6")),
    ],
)  # fmt: skip
def test_each_disagreement_is_reported_then_repaired(mailboxes: None, values: dict[str, Any], report: str) -> None:
    spoil(**values)
    spoiled = Mailbox.objects.get(recipient="ada")
    before = stored()

    found = run("check_mailboxes")
    assert found.out == f"ada: {report}.\n"
    assert found.failure == "Of 3 mailboxes 1 are wrong. Correct them by manage.py check_mailboxes --repair."
    assert found.status == 1
    assert stored() == before

    repaired = run("check_mailboxes", "--repair")
    assert repaired.out == (
        f"ada: {report}.\nCompared 3 mailboxes with their messages: 1 were wrong and are repaired.\n"
    )
    assert repaired.failure == ""
    mailbox = Mailbox.objects.get(recipient="ada")
    assert (mailbox.total, mailbox.unread) == (1, 1)
    # Above all that any client has seen, so that none takes what it holds for fresh.
    assert mailbox.version > max(spoiled.version, 5)
    assert run("check_mailboxes").out == CLEAN


def test_a_mailbox_whose_messages_are_gone_is_found(mailboxes: None) -> None:
    Message.objects.filter(mailbox__recipient="bob").delete()

    assert run("check_mailboxes").out == "bob: total is 5, should be 0; unread is 4, should be 0.\n"
    assert run("check_mailboxes", "--repair").failure == ""
    assert miscounted() == []


def test_more_mailboxes_than_one_statement_reads_are_compared(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    many = 2 * check_mailboxes.CHUNK + 1
    services.send_batch(messages=[NewMessage(f"user{index}", "x") for index in range(many)], caller=EVERYONE)
    for index in (0, check_mailboxes.CHUNK, many - 1):
        spoil(f"user{index}", unread=0)

    assert run("check_mailboxes").failure.startswith(f"Of {many} mailboxes 3 are wrong.")
    assert "3 were wrong and are repaired" in run("check_mailboxes", "--repair").out
    assert f"Compared {many} mailboxes" in run("check_mailboxes").out


@not_on_citus("no constraint is dropped there in the transaction that the test is")
@pytest.mark.parametrize(
    ("constraint", "change", "report"),
    [
        ("message_order", "seq = 1 WHERE seq = 2", "seq has 4 values, should have 5, one for each message"),
        ("message_seq_positive", "seq = 0 WHERE seq = 1", "seq is 0 at the least, should be at least 1"),
    ],
)
def test_a_wrong_seq_is_found_and_left(mailboxes: None, constraint: str, change: str, report: str) -> None:
    # Rolled back with everything else when the test ends.
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute(f"ALTER TABLE messaging_message DROP CONSTRAINT {constraint}")
        cursor.execute(f"UPDATE messaging_message SET {change}")

    assert f"bob: {report}.\n" in run("check_mailboxes").out
    repair = run("check_mailboxes", "--repair")
    assert "2 have a wrong seq or bucket, which cannot be repaired" in repair.failure
    assert repair.status == 1
    assert f"bob: {report}.\n" in run("check_mailboxes").out


def test_a_mailbox_in_a_wrong_bucket_is_found_and_left(mailboxes: None) -> None:
    right = bucket_of("zoe")
    Mailbox.objects.create(recipient="zoe", bucket=right ^ 1)
    report = f"zoe: bucket is {right ^ 1}, should be {right}, where the service looks for it.\n"

    assert run("check_mailboxes").out == report
    assert "1 have a wrong seq or bucket, which cannot be repaired" in run("check_mailboxes", "--repair").failure
    assert run("check_mailboxes").out == report


@pytest.mark.django_db(transaction=True)
def test_no_false_alarm_and_an_exact_repair_while_others_write() -> None:
    services.send_batch(messages=[NewMessage("ada", str(index)) for index in range(300)], caller=EVERYONE)
    rounds = 0
    finished = threading.Event()
    failures: list[BaseException] = []

    def keep_changing() -> None:
        nonlocal rounds
        try:
            while not finished.is_set():
                sent = services.send_batch(messages=[NewMessage("ada", "x")] * 20, caller=EVERYONE)
                ids = [UUID(message.id) for message in sent]
                services.mark_read(ids=ids[:10], caller=EVERYONE)
                services.delete(ids=ids[5:15], caller=EVERYONE)
                rounds += 1
        except BaseException as error:
            failures.append(error)
            raise
        finally:
            connection.close()

    writer = threading.Thread(target=keep_changing)
    writer.start()
    try:
        while rounds < 40 and not failures:
            assert run("check_mailboxes").failure == ""
        for _ in range(10):
            # Written under the row's lock, so nothing that the writer does is lost.
            spoil(total=F("total") + 3)
            assert "1 were wrong and are repaired" in run("check_mailboxes", "--repair").out
            assert run("check_mailboxes").failure == ""
    finally:
        finished.set()
        writer.join()
    assert failures == []
    assert miscounted() == []
