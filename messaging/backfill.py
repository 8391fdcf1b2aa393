"""Appends messages with past times, for `seed`. It locks mailboxes and counts as services.py does."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from msgspec.structs import asdict

from messaging.database import fetch, in_transaction
from messaging.ids import bucket_of, new_message_id
from messaging.records import NewMessage, to_json

# A separate statement, so that the next one sees messages that were committed while this one waited for locks.
APPEND_TO_MAILBOXES = """
INSERT INTO messaging_mailbox AS b (recipient, bucket, version, total, unread)
SELECT recipient COLLATE "C", bucket, count(*), count(*), count(*) FILTER (WHERE read_at IS NULL)
FROM jsonb_to_recordset(convert_from(%(messages)s, 'UTF8')::jsonb)
    AS a (recipient text, bucket smallint, read_at timestamptz)
GROUP BY 1, 2 ORDER BY 1
ON CONFLICT (recipient, bucket) DO UPDATE SET version = b.version + excluded.version,
    total = b.total + excluded.total, unread = b.unread + excluded.unread
RETURNING id"""

# No message may be older than the one before it. The latest of each mailbox is read once, under the lock.
APPEND_MESSAGES = """
WITH arriving AS (
    SELECT * FROM ROWS FROM (
        jsonb_to_recordset(convert_from(%(messages)s, 'UTF8')::jsonb) AS (
            id uuid, bucket smallint, recipient text, sender text, content text, metadata text,
            created_at timestamptz, read_at timestamptz, expires_at timestamptz
        )
    ) WITH ORDINALITY AS a (id, bucket, recipient, sender, content, metadata, at, read_at, expires_at, place)
), box AS MATERIALIZED (
    SELECT id, recipient, version, (
        SELECT created_at FROM messaging_message WHERE mailbox_id = b.id
            AND bucket = b.bucket -- if partitioned
        ORDER BY seq DESC LIMIT 1
    ) AS latest
    FROM messaging_mailbox b WHERE recipient IN (SELECT recipient COLLATE "C" FROM arriving)
), placed AS (
    SELECT a.*, box.id AS mailbox_id,
        box.version - count(*) OVER mailbox + row_number() OVER (mailbox ORDER BY a.place) AS seq,
        greatest(max(a.at) OVER (mailbox ORDER BY a.place), box.latest) AS created_at
    FROM arriving a JOIN box ON box.recipient = a.recipient COLLATE "C"
    WINDOW mailbox AS (PARTITION BY box.id)
)
INSERT INTO messaging_message -- unless on Citus
    (id, bucket, mailbox_id, seq, sender, content, metadata, created_at, read_at, expires_at) -- unless on Citus
SELECT id, bucket, mailbox_id, seq, sender, content, metadata::json, created_at,
    CASE WHEN read_at IS NOT NULL THEN least(created_at + (read_at - at), clock_timestamp()) END, expires_at
FROM placed ORDER BY place
RETURNING 1 -- unless on Citus
"""


class PastMessage(NamedTuple):
    message: NewMessage
    created_at: datetime
    read_at: datetime | None


def import_history(*, messages: Sequence[PastMessage]) -> None:
    """Append messages to their mailboxes in the order given, all or none.

    A message older than the latest one of its mailbox gets that one's time. The time until it is read stays the same.
    """
    arriving = [_arriving(*message) for message in messages]
    parameters = {"messages": to_json(arriving)}

    def work() -> None:
        fetch(APPEND_TO_MAILBOXES, parameters)
        fetch(APPEND_MESSAGES, parameters)

    in_transaction(work)


def _arriving(message: NewMessage, created_at: datetime, read_at: datetime | None) -> dict[str, object]:
    bucket = bucket_of(message.recipient)
    new_id = str(new_message_id(bucket, at=created_at))
    return {"id": new_id, "bucket": bucket, **asdict(message), "created_at": created_at, "read_at": read_at}
