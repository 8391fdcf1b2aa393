"""The statements that take several steps where Citus distributes the tables (`manage.py distribute --citus`).

Citus sends a statement unchanged to one server if all its buckets are in one shard (a router query), unless it contains
an INSERT: then it executes each CTE by itself and sends the results from server to server. So an INSERT is a step of
its own here, with its rows written out. The steps of a change are one transaction. If it has changed several servers,
Citus commits it in two phases.

A change locks its mailboxes shard by shard, in ascending order, and within a shard by recipient, so that no two
writers can deadlock. Citus inserts many rows in that order too. Outcomes are locked before mailboxes.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from messaging.backfill import APPEND_MESSAGES
from messaging.changes import PURGE
from messaging.ids import buckets_in_ids
from messaging.outcomes import CLAIM, FIND, KEEP
from messaging.queries import CHANGED_MAILBOXES, record_columns
from messaging.records import MessageRecord, NewMessage, instant_text
from messaging.sharding import STEPS, Run, Shards
from messaging.statements import DELETE, LOCK_FREE_MAILBOXES, MARK, SEND, SEND_BATCH, SEND_ONCE
from messaging.upkeep import PURGE_OUTCOMES

Rows = list[tuple[Any, ...]]

_RAISE_MAILBOXES = """
INSERT INTO messaging_mailbox AS b (recipient, bucket, version, total, unread) VALUES {rows}
ON CONFLICT (recipient, bucket) DO UPDATE SET version = b.version + excluded.version,
    total = b.total + excluded.total, unread = b.unread + excluded.unread
RETURNING recipient, id, version"""

# The columns of what a sender decides: a field that is added to NewMessage comes along.
_GIVEN = [name for name in NewMessage.__struct_fields__ if name != "recipient"]
_ADD_MESSAGES = f"""
INSERT INTO messaging_message (id, bucket, mailbox_id, seq, created_at, {", ".join(_GIVEN)})
VALUES {{rows}} RETURNING id, created_at"""
_MESSAGE_ROW = f"(%s, %s, %s, %s, clock_timestamp(), {', '.join('%s' for _ in _GIVEN)})"

# The rows that APPEND_MESSAGES inserts.
_PAST_MESSAGES = APPEND_MESSAGES.replace("metadata::json", "metadata")

_ADD_PAST_MESSAGES = """
INSERT INTO messaging_message
    (id, bucket, mailbox_id, seq, sender, content, metadata, created_at, read_at, expires_at)
VALUES {rows} RETURNING 1"""

_ADD_CHANGES = """
INSERT INTO messaging_change (mailbox_id, version, bucket, is_deletion, message_ids, created_at)
VALUES {rows} RETURNING 1"""

# Citus refuses a volatile function in an UPDATE, and one that is not immutable in a CASE.
_MARKED_AT = "CASE WHEN %(read)s::boolean THEN clock_timestamp() END"
_MARK_READ = MARK.replace(_MARKED_AT, "greatest(statement_timestamp(), m.created_at)")
_MARK_UNREAD = MARK.replace(_MARKED_AT, "NULL")

_OUTCOME = """
SELECT fingerprint, status, body, message_ids FROM messaging_outcome
WHERE caller = %(caller)s AND key = %(key)s AND bucket = %(key_bucket)s AND expires_at > clock_timestamp()"""

_MESSAGES = f"""
SELECT {record_columns("m")}
FROM messaging_message m JOIN messaging_mailbox b ON b.id = m.mailbox_id AND b.bucket = m.bucket
WHERE m.id = ANY(%(ids)s::uuid[]) AND m.bucket IN (%(buckets)s)"""

_KNOWN_MAILBOXES = """
SELECT recipient, version, total, unread FROM messaging_mailbox
WHERE recipient = ANY(%s::text[]) AND bucket = ANY(%s::smallint[])"""

_OLD_OUTCOMES = "SELECT bucket FROM messaging_outcome WHERE expires_at <= %(now)s LIMIT %(limit)s"
_OLD_CHANGES = "SELECT bucket FROM messaging_change WHERE created_at < %(before)s LIMIT %(limit)s"


def _insert(run: Run, statement: str, row: str, values: Sequence[tuple[Any, ...]]) -> Rows:
    """Insert rows; `row` is the SQL of one. A statement for one row is prepared."""
    text = statement.format(rows=", ".join([row] * len(values)))
    return run(text, [value for columns in values for value in columns], prepare=len(values) == 1)


def _sent(run: Run, arriving: Sequence[Mapping[str, Any]], shards: Shards) -> Iterator[tuple[Any, ...]]:
    """Send messages; yields id, seq and created_at of each."""
    boxes = Counter((new["bucket"], new["recipient"]) for new in arriving)
    ordered = sorted(boxes, key=lambda box: (shards.of_bucket[box[0]], box[1].encode()))
    raised = _insert(
        run, _RAISE_MAILBOXES, "(%s, %s, %s, %s, %s)",
        [(recipient, bucket, *[boxes[bucket, recipient]] * 3) for bucket, recipient in ordered],
    )  # fmt: skip
    mailbox_ids = {recipient: id_ for recipient, id_, _ in raised}
    counts = {recipient: count for (_, recipient), count in boxes.items()}
    versions = {recipient: version - counts[recipient] for recipient, _, version in raised}
    rows, seqs = [], {}
    for new in arriving:
        recipient = new["recipient"]
        versions[recipient] += 1
        seqs[new["id"]] = versions[recipient]
        given = [new[name] for name in _GIVEN]
        rows.append((new["id"], new["bucket"], mailbox_ids[recipient], versions[recipient], *given))
    rows.sort(key=lambda row: shards.of_bucket[row[1]])
    added = _insert(run, _ADD_MESSAGES, _MESSAGE_ROW, rows)
    for id_, created_at in added:
        # Citus refuses to_char() in RETURNING, since it is not immutable.
        yield str(id_), seqs[str(id_)], instant_text(created_at)


def _send(run: Run, parameters: Mapping[str, Any], shards: Shards) -> Rows:
    return [row[1:] for row in _sent(run, [parameters], shards)]


def _send_once(run: Run, parameters: Mapping[str, Any], shards: Shards) -> Rows:
    if not run(CLAIM, parameters):
        return []
    run(KEEP, {**parameters, "status": 201, "body": b"", "message_ids": [parameters["id"]]})
    return _send(run, parameters, shards)


def _send_batch(run: Run, parameters: Mapping[str, Any], shards: Shards) -> Rows:
    return list(_sent(run, msgspec.json.decode(parameters["messages"]), shards))


def _append(run: Run, parameters: Mapping[str, Any], _shards: Shards) -> Rows:
    rows = run(_PAST_MESSAGES, parameters)
    return _insert(run, _ADD_PAST_MESSAGES, "(%s, %s, %s, %s, %s, %s, %s::json, %s, %s, %s)", rows)


def _mark(run: Run, parameters: Mapping[str, Any], shards: Shards) -> Rows:
    statement = _MARK_READ if parameters["read"] else _MARK_UNREAD
    return _by_mailbox(_by_ids(run, statement, parameters, shards, is_deletion=False))


def _delete(run: Run, parameters: Mapping[str, Any], shards: Shards) -> Rows:
    return _by_mailbox(_by_ids(run, DELETE, parameters, shards, is_deletion=True))


def _lock_free_mailboxes(run: Run, parameters: Mapping[str, Any], shards: Shards) -> Rows:
    groups = shards.groups(parameters["buckets"])
    return [row for buckets in groups for row in run(LOCK_FREE_MAILBOXES, {**parameters, "buckets": buckets})]


def _by_ids(run: Run, statement: str, parameters: Mapping[str, Any], shards: Shards, *, is_deletion: bool) -> Rows:
    """Run a statement once for each shard of its ids. Its last column has the changes, for the log."""
    rows = [
        row
        for buckets in shards.groups(parameters["buckets"])
        for row in run(statement, {**parameters, "buckets": buckets})
    ]
    changes = [change for row in rows for change in row[-1] or ()]
    values = [(box["id"], box["version"], box["bucket"], is_deletion, box["message_ids"]) for box in changes]
    if values:
        _insert(run, _ADD_CHANGES, "(%s, %s, %s, %s, %s::uuid[], clock_timestamp())", values)
    return rows


def _by_mailbox(rows: Rows) -> Rows:
    """The rows of all shards as MARK returns them: the mailboxes by recipient, then one row with ids."""
    mailboxes = sorted((row for row in rows if row[0] is not None), key=lambda row: row[0].encode())
    ids = [row for row in rows if row[0] is None]
    return [*mailboxes, (*[None] * 4, *([id_ for row in ids for id_ in row[column]] for column in (4, 5)))]


def _find(run: Run, parameters: Mapping[str, Any], _shards: Shards) -> Rows:
    outcomes = run(_OUTCOME, parameters)
    if not outcomes:
        return []
    *outcome, ids = outcomes[0]
    names = [str(id_) for id_ in ids or ()]
    place = {"ids": names, "buckets": buckets_in_ids(names)}
    found = {row[0]: row for row in run(_MESSAGES, place)} if names else {}
    nothing = [None] * len(MessageRecord.__struct_fields__)
    return [(*outcome, ids is not None, *found.get(name, nothing)) for name in names or [""]]


def _changed_mailboxes(run: Run, parameters: Sequence[list[Any]], _shards: Shards) -> Rows:
    names, buckets, versions = parameters
    found = {row[0]: row for row in run(_KNOWN_MAILBOXES, (names, buckets))}
    rows = [found.get(name, (name, 0, 0, 0)) for name in names]
    return [row for row, version in zip(rows, versions, strict=True) if row[1] != version]


def _purge_outcomes(run: Run, parameters: Mapping[str, Any], shards: Shards) -> Rows:
    rows: Rows = []
    for buckets in shards.groups(row[0] for row in run(_OLD_OUTCOMES, parameters)):
        rows += run(PURGE_OUTCOMES, {**parameters, "buckets": buckets, "limit": parameters["limit"] - len(rows)})
    return rows


def _purge_changes(run: Run, parameters: Mapping[str, Any], shards: Shards) -> Rows:
    gone = 0
    for buckets in shards.groups(row[0] for row in run(_OLD_CHANGES, parameters)):
        gone += run(PURGE, {**parameters, "buckets": buckets, "limit": parameters["limit"] - gone})[0][0]
    return [(gone,)]


STEPS |= {
    SEND: _send,
    SEND_ONCE: _send_once,
    SEND_BATCH: _send_batch,
    APPEND_MESSAGES: _append,
    MARK: _mark,
    DELETE: _delete,
    LOCK_FREE_MAILBOXES: _lock_free_mailboxes,
    FIND: _find,
    CHANGED_MAILBOXES: _changed_mailboxes,
    PURGE_OUTCOMES: _purge_outcomes,
    PURGE: _purge_changes,
}
