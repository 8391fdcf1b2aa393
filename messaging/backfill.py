"""The verb for messages of the past, as `seed` makes them: it locks and counts as those of services.py do."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from messaging.database import fetch, in_transaction
from messaging.models import uuid7
from messaging.queries import MAILBOX, MESSAGE
from messaging.records import NewMessage

# History takes two statements, so that the second sees the latest message of whoever held the locks before.
IMPORT_BOXES = f"""
INSERT INTO {MAILBOX} AS b (recipient, version, total, unread)
SELECT recipient COLLATE "C", count(*), count(*), count(*) FILTER (WHERE unread)
FROM unnest(%s::text[], %s::boolean[]) AS a (recipient, unread) GROUP BY 1 ORDER BY 1
ON CONFLICT (recipient) DO UPDATE SET version = b.version + excluded.version,
    total = b.total + excluded.total, unread = b.unread + excluded.unread
RETURNING id"""

# No message may look older than the one before it in its mailbox, whose latest is looked up once, under the lock.
IMPORT = f"""
WITH arriving AS (
    SELECT * FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[], %s::timestamptz[],
        %s::timestamptz[]) WITH ORDINALITY AS a (id, recipient, sender, content, metadata, at, read_at, place)
), box AS MATERIALIZED (
    SELECT id, recipient, version, (
        SELECT created_at FROM {MESSAGE} WHERE mailbox_id = b.id ORDER BY seq DESC LIMIT 1
    ) AS latest
    FROM {MAILBOX} b WHERE recipient IN (SELECT recipient COLLATE "C" FROM arriving)
), placed AS (
    SELECT a.*, box.id AS mailbox_id,
        box.version - count(*) OVER everyone + row_number() OVER (everyone ORDER BY a.place) AS seq,
        greatest(max(a.at) OVER (everyone ORDER BY a.place), box.latest) AS created_at
    FROM arriving a JOIN box ON box.recipient = a.recipient COLLATE "C"
    WINDOW everyone AS (PARTITION BY box.id)
)
INSERT INTO {MESSAGE} (id, mailbox_id, seq, sender, content, metadata, created_at, read_at)
SELECT id, mailbox_id, seq, sender, content, metadata::json, created_at,
    CASE WHEN read_at IS NOT NULL THEN least(created_at + (read_at - at), clock_timestamp()) END
FROM placed ORDER BY place
RETURNING 1"""


class PastMessage(NamedTuple):
    """A message that was sent, and perhaps read, in the past."""

    message: NewMessage
    created_at: datetime
    read_at: datetime | None


def import_history(*, messages: Sequence[PastMessage]) -> None:
    """Append messages of the past to their mailboxes, all of them or none, each mailbox's in the order given.

    A message older than the latest one of its mailbox takes that one's time, and is read as long after it as it was.
    """

    def work() -> None:
        rows = [(uuid7(), d.recipient, d.sender, d.content, d.metadata, at, read_at) for d, at, read_at in messages]
        columns = [list(column) for column in zip(*rows, strict=True)]
        fetch(IMPORT_BOXES, (columns[1], [read_at is None for read_at in columns[-1]]))
        fetch(IMPORT, columns)

    in_transaction(work)
