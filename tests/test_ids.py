"""Buckets and ids never change, so test vectors hold their definition; data from before them is migrated."""

import hashlib
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection, connections
from django.db.migrations.executor import MigrationExecutor

from messaging.ids import bucket_of, new_message_id
from messaging.models import Mailbox, Message
from tests.helpers import Api
from tests.state import miscounted

VECTORS = {"alice@example.com": 2316, "ada": 136, "Zo\u00eb": 2863, "\u65e5\u672c": 891, " ": 3642, "a" * 255: 2350}


@pytest.mark.parametrize(("recipient", "bucket"), VECTORS.items())
def test_a_recipients_bucket_is_12_bits_of_blake2b(recipient: str, bucket: int) -> None:
    digest = hashlib.new("blake2b512", recipient.encode()).digest()
    assert bucket_of(recipient) == bucket == (digest[0] << 8 | digest[1]) & 4095


def test_an_id_is_a_uuid7_that_ends_in_its_bucket() -> None:
    before = datetime.now(UTC)
    ids = [new_message_id(0xABC) for _ in range(10_000)]
    assert len(set(ids)) == 10_000
    assert {(found.version, found.variant, str(found)[-3:]) for found in ids} == {(7, uuid.RFC_4122, "abc")}
    assert [found.int >> 12 for found in ids] == sorted(found.int >> 12 for found in ids)
    milliseconds = ids[0].int >> 80
    assert before.timestamp() - 0.01 <= milliseconds / 1000 <= datetime.now(UTC).timestamp()
    assert new_message_id(1, datetime(2020, 1, 1, microsecond=123_456, tzinfo=UTC)).int >> 80 == 1_577_836_800_123


def test_every_row_of_a_mailbox_has_its_bucket_and_the_database_holds_it(api: Api) -> None:
    sent = [api.send(recipient) for recipient in VECTORS if recipient.strip()]
    batch = [{"recipient": recipient, "content": "x"} for recipient in VECTORS if recipient.strip()]
    sent += api.post("/messages/batch", {"messages": batch}).expect(201).json["results"]

    for message in sent:
        bucket = bucket_of(message["recipient"])
        assert int(message["id"].replace("-", ""), 16) & 4095 == bucket
        found = Message.objects.select_related("mailbox").get(pk=message["id"])
        assert (found.bucket, found.mailbox.bucket) == (bucket, bucket)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE messaging_message SET bucket = (bucket + 1) % 4096")
        with pytest.raises(IntegrityError, match="message_mailbox"):
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


OLD_IDS = [uuid.UUID(int=0x019AAAAA_0000_7000_8000_000000000000 + number) for number in range(4)]


@pytest.fixture
def at_0005(transactional_db: None) -> Iterator[None]:
    """The tables of an earlier checkout; migrated to the newest again in the end."""
    MigrationExecutor(connection).migrate([("messaging", "0005_message_sender")])
    try:
        yield
    finally:
        call_command("migrate", verbosity=0)


def test_data_of_an_earlier_checkout_migrates_with_its_outcomes(at_0005: None, api: Api) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO messaging_mailbox (recipient, version, total, unread)"
            " VALUES ('ada', 5, 3, 2), ('Zo\u00eb', 1, 1, 1), ('nobody', 7, 0, 0)"
        )
        for id_, recipient, seq, read_at in zip(
            OLD_IDS, ["ada", "ada", "ada", "Zo\u00eb"], [1, 3, 4, 1], [None, "2026-01-01", None, None], strict=True
        ):
            cursor.execute(
                "INSERT INTO messaging_message (id, mailbox_id, seq, sender, content, metadata, created_at, read_at)"
                " SELECT %s, id, %s, 's', 'kept', '{}', '2026-01-01', %s FROM messaging_mailbox WHERE recipient = %s",
                [id_, seq, read_at, recipient],
            )
        for key, status, body in [
            ("single", 201, {"id": str(OLD_IDS[0]), "content": "kept"}),
            ("batch", 201, {"results": [{"id": str(OLD_IDS[2])}, {"id": str(OLD_IDS[1])}]}),
            ("mark", 200, {"changed": 1}),
        ]:
            cursor.execute(
                "INSERT INTO messaging_idempotencyrecord (caller, key, fingerprint, status, location, body, created_at)"
                " VALUES ('key:x', %s, 'f', %s, '', %s, clock_timestamp())",
                [key, status, json.dumps(body).encode()],
            )

    call_command("migrate", verbosity=0)

    assert miscounted() == []
    buckets = {mailbox.recipient: mailbox.bucket for mailbox in Mailbox.objects.all()}
    assert buckets == {recipient: bucket_of(recipient) for recipient in ("ada", "Zo\u00eb", "nobody")}
    for message in Message.objects.select_related("mailbox"):
        assert message.bucket == message.mailbox.bucket
    assert [m["id"] for m in api.pages("/messages/", {"recipient": "ada"})] == [str(OLD_IDS[i]) for i in (2, 1, 0)]
    # By their ids, whose last bits are no bucket.
    assert api.get(f"/messages/{OLD_IDS[3]}").expect(200).json["recipient"] == "Zo\u00eb"
    ids = {"ids": [str(OLD_IDS[0]), str(OLD_IDS[3])]}
    assert api.patch("/messages/mark-read", ids).expect(200).json["changed"] == 2
    assert api.send("ada")["seq"] == 7
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT key, bucket, status, convert_from(body, 'UTF8'), message_ids,"
            " expires_at BETWEEN now() + interval '23 hours' AND now() + interval '24 hours'"
            " FROM messaging_outcome WHERE caller = 'key:x' ORDER BY key"
        )
        assert cursor.fetchall() == [
            ("batch", bucket_of("key:x\nbatch"), 201, "", [OLD_IDS[2], OLD_IDS[1]], True),
            ("mark", bucket_of("key:x\nmark"), 200, '{"changed": 1}', None, True),
            ("single", bucket_of("key:x\nsingle"), 201, "", [OLD_IDS[0]], True),
        ]


def test_the_migrations_can_be_undone(at_0005: None) -> None:
    call_command("migrate", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO messaging_mailbox (recipient, bucket, version, total, unread) VALUES ('a', 1, 1, 1, 1)"
        )
        cursor.execute(
            "INSERT INTO messaging_message (id, bucket, mailbox_id, seq, sender, content, metadata, created_at)"
            " SELECT %s, 1, id, 1, '', 'kept', '{}', now() FROM messaging_mailbox",
            [OLD_IDS[0]],
        )
    MigrationExecutor(connection).migrate([("messaging", "0005_message_sender")])
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT content FROM messaging_message")
        assert cursor.fetchall() == [("kept",)]
        cursor.execute("SELECT count(*) FROM messaging_idempotencyrecord")
        assert cursor.fetchone() == (0,)
