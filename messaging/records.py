"""The public shapes of a message and a mailbox, as they come out of PostgreSQL and go into an answer.

Structs and not model instances: a page of 50 would spend more time on building models than PostgreSQL on finding it.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

_NO_METADATA = Raw(b"{}")


_ENCODER = msgspec.json.Encoder()


def to_json(data: Any) -> bytes:
    """`data`, made of records, dicts and lists, as compact JSON in UTF-8."""
    return _ENCODER.encode(data)


def raw_json(text: str) -> Raw:
    """JSON text to be put into an answer as it is."""
    return _NO_METADATA if text == "{}" else Raw(text.encode())


class NewMessage(Struct, frozen=True):
    """A message that has passed every rule and may be sent. `metadata` is compact JSON text."""

    recipient: str
    content: str
    sender: str = ""
    metadata: str = "{}"


class MessageRecord(Struct, frozen=True):
    """A message as clients see it. Instants are RFC 3339 text in UTC with microseconds, as PostgreSQL wrote them."""

    id: str
    seq: int
    recipient: str
    sender: str
    content: str
    metadata: Raw
    created_at: str
    read_at: str | None
    is_read: bool


class MailboxRecord(Struct, frozen=True):
    """A mailbox as clients see it; one that nobody has sent to is empty at version 0."""

    recipient: str
    version: int = 0
    total: int = 0
    unread: int = 0

    @property
    def etag(self) -> str:
        """A strong entity tag (RFC 9110, 8.8.3) for everything read from the mailbox at this version.

        It names the mailbox too, since a key bound to a recipient reads its own mailbox under a URL that does not.
        """
        name = hashlib.blake2b(self.recipient.encode(), digest_size=6).hexdigest()
        return f'"{name}-{self.version}"'


class Page(Struct, frozen=True):
    """A page of messages in the order asked for, with the mailbox as it stood at the same instant.

    `mailbox_id` is the key of its row; 0 where there is none.
    """

    mailbox_id: int
    mailbox: MailboxRecord
    messages: Sequence[MessageRecord]
    more: bool  # whether further messages follow in the direction of reading


class BulkResult(Struct, frozen=True):
    """What became of one id: `changed`, `unchanged` or `not_found`."""

    id: str
    status: str


class BulkOutcome(Struct, frozen=True):
    """What became of the ids of a bulk call, and the mailboxes that hold them as they now stand."""

    results: Sequence[BulkResult]
    changed: int
    unchanged: int
    not_found: int
    mailboxes: Sequence[MailboxRecord]


class UpToOutcome(Struct, frozen=True):
    """What one call did for the messages of a mailbox up to a given one."""

    changed: int
    mailbox: MailboxRecord
    complete: bool
