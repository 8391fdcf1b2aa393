"""Buckets, by which the tables can be partitioned, and the ids of messages.

A bucket is 12 bits of a hash of the recipient, and never changes. It is the last column of the keys of mailboxes and
messages, and the last 12 bits of a message's id. So all rows of a mailbox are in one partition, and an id names it.
"""

import hashlib
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import uuid_utils

BUCKETS = 4096
# The maximum difference between the clocks of the service, which makes ids, and of the database, which sets created_at.
CLOCK_SKEW = timedelta(minutes=5)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def bucket_of(recipient: str) -> int:
    """The bucket of a recipient, 0 to 4095.

    The first two bytes, big-endian, of the BLAKE2b digest (RFC 7693; 64 bytes, no key, no salt) of the recipient in
    UTF-8, modulo 4096. `bucket_of("alice@example.com")` is 2316, `bucket_of("Zoë")` is 2863.
    """
    return int.from_bytes(hashlib.blake2b(recipient.encode()).digest()[:2]) % BUCKETS


def new_message_id(bucket: int, at: datetime | None = None) -> uuid.UUID:
    """A new id for a message in a bucket: a UUIDv7 (RFC 9562) of now or `at`, whose last 12 bits are the bucket.

    Before these are 48 bits of milliseconds, and 62 bits that are random, or count up within a millisecond. So new rows
    go to the same few index pages, and the ids of a process increase, except for the last 12 bits.
    """
    new = uuid_utils.uuid7() if at is None else uuid_utils.uuid7(nanoseconds=int(at.timestamp() * 1e9))
    return uuid.UUID(int=new.int & -BUCKETS | bucket)


def first_id(at: datetime, slack: timedelta) -> uuid.UUID:
    """The smallest id of a message that can have been made at an instant plus `slack`."""
    milliseconds = (at - _EPOCH + slack) // timedelta(milliseconds=1)
    return uuid.UUID(int=max(0, milliseconds) << 80)


def buckets_in_ids(message_ids: Iterable[str]) -> list[int]:
    """The last 12 bits of ids, each once: the buckets of their messages.

    Ids that were made before there were buckets end in random bits. If the tables contain any, statements do not use
    these buckets: see sharding.py.
    """
    return [int(end, 16) for end in {message_id[-3:] for message_id in message_ids}]
