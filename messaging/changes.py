"""What has changed in a mailbox since a version, for clients that keep a copy.

New messages are found by their `seq`, so sending writes no log. Marks and deletions are in a log: one row for each
mailbox of a call, written by the statement that makes the change (statements.py). The log is complete after the
mailbox's version `log_from`.

Changes are returned in order of version, and each message in its current state. So a message may be newer than its
change, and be returned again for the change that made it so; the last state of each is right. A deletion comes after
all other changes of its message.
"""

from datetime import datetime
from typing import NamedTuple

from messaging.database import change, fetch
from messaging.errors import ChangesExpiredError
from messaging.ids import bucket_of
from messaging.queries import record, record_columns
from messaging.records import MailboxRecord, MessageRecord, to_json

# The entries after a position, from one snapshot with the mailbox. Marks and deletions up to the version `floor` are
# ignored: a client that starts with an empty copy reads the messages after them.
# Both lists are read in index order, up to the limit. `mailbox_id + 0` keeps the planner from joining with the index of
# the mailbox: without statistics it would, and compare every entry with every message of the mailbox.
CHANGES = f"""
SELECT b.version, b.total, b.unread, b.log_from, entry.version, entry.place, entry.id::text, entry.is_deletion,
    {record_columns("m")}
FROM messaging_mailbox b
LEFT JOIN LATERAL (
    (
        SELECT seq AS version, 1::bigint AS place, id, false AS is_deletion FROM messaging_message
        WHERE mailbox_id = b.id AND seq > %(version)s
            AND bucket = %(bucket)s -- if partitioned
        ORDER BY seq LIMIT %(limit)s
    ) UNION ALL (
        SELECT c.version, named.place, named.id, c.is_deletion
        FROM messaging_change c, unnest(c.message_ids) WITH ORDINALITY AS named (id, place)
        WHERE c.mailbox_id = b.id AND c.bucket = %(bucket)s AND c.version >= %(version)s
            AND c.version > coalesce(%(floor)s::bigint, b.version)
            AND (c.version > %(version)s OR named.place > %(place)s)
        ORDER BY c.version, named.place LIMIT %(limit)s
    ) ORDER BY version, place LIMIT %(limit)s
) entry ON true
LEFT JOIN messaging_message m ON m.id = entry.id AND m.mailbox_id + 0 = b.id AND NOT entry.is_deletion
    AND m.bucket = %(bucket)s -- if partitioned
WHERE b.recipient = %(recipient)s AND b.bucket = %(bucket)s
ORDER BY entry.version, entry.place"""

# Rows of mailboxes that another transaction has locked are left for the next run. A mailbox's log is complete after the
# last of its deleted rows.
PURGE = """
WITH old AS MATERIALIZED (
    SELECT mailbox_id, version, bucket FROM messaging_change WHERE created_at < %(before)s
        AND bucket IN (%(buckets)s) -- if on Citus
    LIMIT %(limit)s
), locked AS MATERIALIZED (
    SELECT id FROM messaging_mailbox WHERE id = ANY(ARRAY(SELECT mailbox_id FROM old))
        AND bucket IN (%(buckets)s) -- if on Citus
    ORDER BY recipient FOR NO KEY UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM messaging_change c USING old, locked
    WHERE c.mailbox_id = old.mailbox_id AND c.version = old.version AND locked.id = c.mailbox_id
        AND c.bucket = old.bucket -- if partitioned
        AND c.bucket IN (%(buckets)s) -- if on Citus
    RETURNING c.mailbox_id, c.version, c.bucket
), moved AS (
    UPDATE messaging_mailbox b SET log_from = greatest(b.log_from, g.version)
    FROM (SELECT mailbox_id, bucket, max(version) AS version FROM gone GROUP BY mailbox_id, bucket) g
    WHERE b.id = g.mailbox_id
        AND b.bucket = g.bucket -- if partitioned
        AND b.bucket IN (%(buckets)s) -- if on Citus
)
SELECT count(*) FROM gone"""


WHOLE = 2**62  # beyond any place
MAX_BYTES = 16 * 1_048_576  # of the messages in an answer, as JSON: proxies buffer as much, which a batch has too


class Position(NamedTuple):
    """How far a reader has come: through the first `place` entries of `version`, WHOLE for all of them.

    `seen` is the version that the mailbox had then: what follows must not be older. `floor` is the version after which
    marks and deletions count; None until the first answer has settled it.
    """

    version: int
    place: int
    seen: int
    floor: int | None

    @property
    def whole_version(self) -> int:
        """The last version of which nothing is left."""
        return self.version if self.place == WHOLE else self.version - 1


class Changes(NamedTuple):
    """Some changes in their order: messages as they now stand, and the ids of those deleted.

    `until` is the last version that is given completely. `position` is where the next ones begin, None at the end.
    """

    messages: list[MessageRecord]
    deleted: list[str]
    until: int
    position: Position | None
    mailbox: MailboxRecord


def start(since: int) -> Position:
    """The position of a reader who has a copy as of a version, or, at 0, none."""
    return Position(since, WHOLE, since, since or None)


def changes(recipient: str, position: Position, *, limit: int) -> Changes:
    """Up to `limit` changes of a mailbox after a position, fewer where their messages have MAX_BYTES.

    An unknown recipient's mailbox is empty at version 0.

    Raises ChangesExpiredError if the log does not reach back that far, or the mailbox is older than the position.
    """
    parameters = position._asdict() | {"recipient": recipient, "bucket": bucket_of(recipient), "limit": limit + 1}
    rows = fetch(CHANGES, parameters)
    version, total, unread, log_from = rows[0][:4] if rows else (0, 0, 0, 0)
    floor = version if position.floor is None else position.floor
    if position.seen > version or max(floor, position.whole_version) < log_from:
        raise ChangesExpiredError
    mailbox = MailboxRecord(recipient, version, total, unread)
    entries = [row[4:] for row in rows if row[4] is not None]
    deleted: list[str] = []
    messages: dict[str, MessageRecord] = {}
    taken = size_bytes = 0
    for _, _, id_, is_deletion, *message in entries[:limit]:
        taken += 1
        if is_deletion:
            deleted.append(id_)
        elif message[0] is not None:
            # One that is named twice is the same both times: it is read once, from one snapshot.
            messages[id_] = record(message)
            size_bytes += len(to_json(messages[id_]))
            if size_bytes >= MAX_BYTES:
                break
    if taken == len(entries):
        return Changes(list(messages.values()), deleted, version, None, mailbox)
    last_version, place = entries[taken - 1][:2]
    until = max(position.whole_version, last_version - 1)
    return Changes(list(messages.values()), deleted, until, Position(last_version, place, version, floor), mailbox)


def purge_changes(before: datetime, *, limit: int) -> int:
    """Delete rows of the log from before an instant; returns how many. 0 where all of their mailboxes are locked."""
    [(gone,)] = change(PURGE, {"before": before, "limit": limit})
    return int(gone)
