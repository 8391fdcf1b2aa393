"""Messages that expire or are too old are deleted like any other deletion, in batches that wait for no lock."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from messaging import upkeep
from messaging.backfill import PastMessage, import_history
from messaging.models import Message, MessageQuerySet
from messaging.records import NewMessage
from tests.helpers import Api
from tests.sessions import another_session, lock_mailbox
from tests.state import miscounted, nothing_changes
from tests.test_reading import send_many

IN_A_YEAR = "2126-01-31T12:00:00+02:00"


def expire(*recipients: str) -> None:
    """Let every message of these expire a second ago."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE messaging_message m SET expires_at = statement_timestamp() - interval '1 second'"
            " FROM messaging_mailbox b WHERE b.id = m.mailbox_id AND b.bucket = m.bucket AND b.recipient = ANY(%s)",
            [list(recipients)],
        )


def discard(messages: MessageQuerySet, *, limit: int, only_read: bool = False) -> tuple[int, int]:
    """How many messages were selected, and how many of them deleted."""
    batch = upkeep.discard(messages, limit=limit, only_read=only_read)
    return len(batch.ids), batch.deleted


def test_a_message_says_when_it_expires(api: Api) -> None:
    sent = api.send("ada", expires_at=IN_A_YEAR)
    assert sent["expires_at"] == "2126-01-31T10:00:00.000000Z"
    assert api.send("ada")["expires_at"] is None
    batch = [{"recipient": "ada", "content": "x", "expires_at": value} for value in (IN_A_YEAR, None)]
    results = api.post("/messages/batch", {"messages": batch}).expect(201).json["results"]
    assert [message["expires_at"] for message in results] == [sent["expires_at"], None]
    found = api.pages("/messages/", {"recipient": "ada"})
    assert [m["expires_at"] for m in found] == [None, sent["expires_at"], None, sent["expires_at"]]
    assert api.get(f"/messages/{sent['id']}").expect(200).json == sent
    headers = {"Idempotency-Key": "k"}
    draft = {"recipient": "ada", "content": "x", "expires_at": IN_A_YEAR}
    first = api.post("/messages/", draft, headers=headers).expect(201)
    assert api.post("/messages/", draft, headers=headers).body == first.body


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("2020-01-01T00:00:00Z", "not_in_future"),
        ("2126-01-31", "invalid_instant"),
        ("2126-01-31T12:00:00+00:60", "invalid_instant"),
        ("", "invalid_instant"),
        (4_000_000_000, "invalid_instant"),
        ({}, "invalid_instant"),
        (True, "invalid_instant"),
    ],
)
def test_an_invalid_or_past_instant_is_refused(api: Api, value: Any, code: str) -> None:
    draft = {"recipient": "ada", "content": "x", "expires_at": value}
    with nothing_changes():
        assert api.post("/messages/", draft).expect(400).faults == {"/expires_at": code}


def test_expired_messages_are_deleted_in_batches(api: Api) -> None:
    send_many(api, 5, "ada")
    read = send_many(api, 3, "bob")
    send_many(api, 2, "eve")
    api.patch("/messages/mark-read", {"ids": [read[0]["id"]]}).expect(200)
    with nothing_changes():
        assert discard(upkeep.expired_messages(timezone.now()), limit=100) == (0, 0)
    expire("ada", "bob")

    done = [discard(upkeep.expired_messages(timezone.now()), limit=3) for _ in range(4)]
    assert done == [(3, 3), (3, 3), (2, 2), (0, 0)]
    assert api.mailbox("ada")["total"] == api.mailbox("bob")["unread"] == 0
    assert api.mailbox("ada")["version"] > 5
    assert api.mailbox("eve") == {"recipient": "eve", "version": 2, "total": 2, "unread": 2}
    assert miscounted() == []


def test_a_mailbox_that_is_being_changed_is_left_for_the_next_time(transactional_db: None, api: Api) -> None:
    send_many(api, 2, "ada")
    send_many(api, 2, "bob")
    expire("ada", "bob")
    with another_session() as session:
        lock_mailbox(session, "ada")
        assert discard(upkeep.expired_messages(timezone.now()), limit=100) == (4, 2)
        session.rollback()
    assert discard(upkeep.expired_messages(timezone.now()), limit=100) == (2, 2)
    assert miscounted() == []


def test_old_messages_of_one_mailbox_or_of_all_are_found_by_their_ids(api: Api) -> None:
    then = datetime(2024, 5, 1, tzinfo=UTC)
    days = [0, 10, 20, 30]
    for recipient in ("ada", "bob"):
        past = [
            PastMessage(NewMessage(recipient, str(day)), then + timedelta(days=day), then if day == 10 else None)
            for day in days
        ]
        import_history(messages=past)
    api.send("ada", "now")
    before = then + timedelta(days=20)

    def contents(**options: Any) -> list[str]:
        return sorted(upkeep.older_messages(before, **options).values_list("content", flat=True))

    assert contents() == ["0", "0", "10", "10"]
    assert contents(recipient="ada") == ["0", "10"]
    assert contents(only_read=True) == ["10", "10"]
    assert discard(upkeep.older_messages(before, only_read=True), limit=9, only_read=True) == (2, 2)
    assert discard(upkeep.older_messages(before, recipient="bob"), limit=9) == (1, 1)
    assert [m["content"] for m in api.pages("/messages/", {"recipient": "bob"})] == ["30", "20"]
    assert [m["content"] for m in api.pages("/messages/", {"recipient": "ada"})] == ["now", "30", "20", "0"]
    assert upkeep.older_messages(timezone.now() + timedelta(days=1)).count() == 6
    assert miscounted() == []


def test_a_message_marked_unread_meanwhile_is_kept(api: Api) -> None:
    sent = send_many(api, 2)
    api.patch("/messages/mark-read", {"ids": [sent[0]["id"]]}).expect(200)
    selected = Message.objects.filter(pk__in=[m["id"] for m in sent])
    assert discard(selected, limit=9, only_read=True) == (2, 1)
    assert [m["id"] for m in api.pages("/messages/", {"recipient": "ada"})] == [sent[1]["id"]]
    assert miscounted() == []
