"""Stores the outcome of a request with an Idempotency-Key, in the transaction of its change, and replays it.

After draft-ietf-httpapi-idempotency-key-header. A refused request stores nothing, since its transaction is rolled back.
"""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import msgspec
from django.db import Error

from messaging.access import Caller
from messaging.database import change, fetch, in_transaction, read
from messaging.errors import (
    DatabaseUnavailableError,
    IdempotencyKeyInUseError,
    IdempotencyKeyReusedError,
    OutcomeDeletedError,
    OutcomeUnknownError,
)
from messaging.ids import bucket_of
from messaging.postgresql.sqlstates import LOCK_NOT_AVAILABLE, QUERY_CANCELED, sqlstate
from messaging.queries import record, record_columns
from messaging.records import MessageRecord, NewMessage
from messaging.services import note_sent, send, send_batch, send_parameters, sent_record
from messaging.sharding import PARTITIONED, PARTITIONED_BY_ID, bucket_of_id
from messaging.statements import SEND_ONCE

T = TypeVar("T")

LIFETIME = timedelta(hours=24)
WAIT_SECONDS = 10.0  # for the first request with the same key

# Waits for the request that holds the key, if there is one. Returns no row if the key has an outcome; an expired one is
# replaced.
CLAIM = """
INSERT INTO messaging_outcome AS o (caller, key, bucket, fingerprint, body, expires_at)
VALUES (%(caller)s, %(key)s, %(key_bucket)s, %(fingerprint)s, '',
    clock_timestamp() + make_interval(secs => %(lifetime)s))
ON CONFLICT (caller, key, bucket) DO UPDATE SET fingerprint = excluded.fingerprint, status = NULL,
    body = excluded.body, message_ids = NULL, expires_at = excluded.expires_at
WHERE o.expires_at <= clock_timestamp()
RETURNING 1"""

KEEP = """
UPDATE messaging_outcome SET status = %(status)s, body = %(body)s, message_ids = %(message_ids)s::uuid[]
WHERE caller = %(caller)s AND key = %(key)s AND bucket = %(key_bucket)s
RETURNING 1"""

# A row for each message that was sent; nulls for a deleted message, or one row with nulls if none was sent.
FIND = f"""
SELECT o.fingerprint, o.status, o.body, o.message_ids IS NOT NULL, {record_columns("m")}
FROM messaging_outcome o
LEFT JOIN LATERAL unnest(o.message_ids) WITH ORDINALITY AS sent (id, place) ON true
LEFT JOIN LATERAL (
    SELECT * FROM messaging_message WHERE id = sent.id
        AND bucket = {bucket_of_id("sent.id")} {PARTITIONED_BY_ID}
    LIMIT 1 -- as in queries.py
) m ON true
LEFT JOIN messaging_mailbox b ON b.id = m.mailbox_id
    AND b.bucket = m.bucket {PARTITIONED}
WHERE o.caller = %(caller)s AND o.key = %(key)s AND o.bucket = %(key_bucket)s AND o.expires_at > clock_timestamp()
ORDER BY sent.place"""


class KeyedRequest(NamedTuple):
    """A request with an Idempotency-Key. `fingerprint` (32 bytes) is equal for the same request."""

    account: str
    key: str
    fingerprint: bytes

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "caller": self.account,
            "key": self.key,
            # The bucket of caller and key, so that a key is unique in all partitions.
            "key_bucket": bucket_of(f"{self.account}\n{self.key}"),
            "fingerprint": self.fingerprint,
            "lifetime": LIFETIME.total_seconds(),
        }


class StoredOutcome(NamedTuple):
    """The outcome of a request: the `messages` that it sent, as they were then, or the `body` of another response."""

    status: int
    body: bytes = b""
    messages: Sequence[MessageRecord] | None = None


def once(
    request: KeyedRequest,
    work: Callable[[], T],
    outcome_of: Callable[[T], StoredOutcome],
    *,
    deadline: float | None = None,
) -> T | StoredOutcome:
    """Run `work` and store its outcome in the same transaction; or return the outcome that is stored already.

    Raises:
        IdempotencyKeyReusedError: the key was used for another request.
        IdempotencyKeyInUseError: the first request was still running after WAIT_SECONDS, or at the deadline.
        OutcomeDeletedError: a message that the first request sent has been deleted.
    """
    deadline = deadline or time.monotonic() + WAIT_SECONDS
    parameters = request.parameters
    is_claimed = False

    def attempt() -> T | StoredOutcome:
        nonlocal is_claimed
        is_claimed = False
        claimed = fetch(CLAIM, parameters)
        is_claimed = True
        if not claimed:
            return _stored(request)
        result = work()
        status, body, messages = outcome_of(result)
        ids = None if messages is None else [message.id for message in messages]
        fetch(KEEP, parameters | {"status": status, "body": body, "message_ids": ids})
        return result

    while True:
        try:
            return in_transaction(attempt)
        except DatabaseUnavailableError as error:
            # The lock on the key was not available: the first request is still running.
            if is_claimed or not _is_locked(error):
                raise
            if error.at_once or time.monotonic() >= deadline:
                raise IdempotencyKeyInUseError from error


def send_once(*, message: NewMessage, caller: Caller, request: KeyedRequest) -> tuple[MessageRecord, bool]:
    """Send one message under a key, in one statement. Also returns whether it was sent by an earlier request.

    Raises as `once` and `services.send` do.
    """
    caller.require_reach(message.recipient)
    deadline = time.monotonic() + WAIT_SECONDS
    parameters = send_parameters(message)
    try:
        # Repeatable after a lost connection: if it was committed, the second run finds its outcome.
        rows = change(SEND_ONCE, parameters | request.parameters, repeatable=True)
    except DatabaseUnavailableError as error:
        if not _is_locked(error):
            raise
        # Either the key or the mailbox is locked. `once` locks one after the other, and so finds out which.
        result = once(
            request,
            lambda: _send_unless_locked(message, caller),
            lambda sent: StoredOutcome(201, messages=[sent]),
            deadline=deadline,
        )
    else:
        if rows:
            note_sent([message])
            return sent_record(message, parameters["id"], *rows[0]), False
        try:
            result = read(lambda: _stored(request))
        except DatabaseUnavailableError as error:
            # What is stored may be of an attempt whose connection was lost.
            raise OutcomeUnknownError from error
    if isinstance(result, MessageRecord):
        return result, False
    assert result.messages is not None
    [sent] = result.messages
    # With the id of this request, an attempt whose connection was lost has sent it.
    is_own = sent.id == parameters["id"]
    if is_own:
        note_sent([message])
    return sent, not is_own


def send_batch_once(
    *, messages: Sequence[NewMessage], caller: Caller, request: KeyedRequest
) -> tuple[Sequence[MessageRecord], bool]:
    """Send a batch under a key. Also returns whether it was sent by an earlier request.

    Raises as `once` and `services.send_batch` do.
    """
    result = once(
        request,
        lambda: send_batch(messages=messages, caller=caller),
        lambda sent: StoredOutcome(201, messages=sent),
    )
    if not isinstance(result, StoredOutcome):
        return result, False
    assert result.messages is not None
    return result.messages, True


def _send_unless_locked(message: NewMessage, caller: Caller) -> MessageRecord:
    try:
        return send(message=message, caller=caller)
    except Error as error:
        # The wait for the mailbox was in the first attempt.
        if sqlstate(error) == LOCK_NOT_AVAILABLE:
            raise DatabaseUnavailableError from error
        raise


def _is_locked(error: DatabaseUnavailableError) -> bool:
    return sqlstate(error) in {LOCK_NOT_AVAILABLE, QUERY_CANCELED}


def _stored(request: KeyedRequest) -> StoredOutcome:
    """The stored outcome of the same request, whose key is used. Raises as `once` does."""
    rows = fetch(FIND, request.parameters)
    if not rows:
        # It expired between the two statements, which is rare: the client may retry.
        raise IdempotencyKeyInUseError
    fingerprint, status, body, has_messages = rows[0][:4]
    if bytes(fingerprint) != request.fingerprint:
        raise IdempotencyKeyReusedError
    if not has_messages:
        return StoredOutcome(status, bytes(body))
    columns = [row[4:] for row in rows]
    if any(message_id is None for message_id, *_ in columns):
        raise OutcomeDeletedError
    # As they were when they were sent: only the read mark of a message ever changes.
    return StoredOutcome(
        status, messages=[msgspec.structs.replace(record(row), read_at=None, is_read=False) for row in columns]
    )
