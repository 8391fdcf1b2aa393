"""The public shapes of messages and mailboxes, made from rows and rendered into responses.

Structs and not model instances: making 50 model instances takes longer than PostgreSQL needs to read the page.
"""

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

_NO_METADATA = Raw(b"{}")

# Types with their description in the OpenAPI document.
Count = Annotated[int, Meta(ge=0, extra_json_schema={"format": "int64"})]
Id = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
# RFC 3339 in UTC with microseconds, as `instant_text` and the statements of PostgreSQL write them.
Instant = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
InstantOrNull = Annotated[str | None, Meta(extra_json_schema={"type": ["string", "null"], "format": "date-time"})]

_is_version = re.compile(r"[0-9]{1,19}", re.ASCII).fullmatch
MAX_VERSION = 2**63 - 1  # a bigint
_ENCODER = msgspec.json.Encoder()


def to_json(data: Any) -> bytes:
    """`data`, made of records, dicts and lists, as compact JSON in UTF-8."""
    return _ENCODER.encode(data)


def instant_text(instant: datetime) -> str:
    return f"{instant.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def version_from(text: str) -> int | None:
    """The version of a mailbox that a header names, an int64; None if it is not one."""
    return int(text) if _is_version(text) and int(text) <= MAX_VERSION else None


def raw_json(text: str) -> Raw:
    """JSON text that is rendered unchanged."""
    return _NO_METADATA if text == "{}" else Raw(text.encode())


class NewMessage(Struct, frozen=True):
    """A validated message to send.

    `metadata` is compact JSON text, `expires_at` an `Instant`.
    """

    recipient: str
    content: str
    sender: str = ""
    metadata: str = "{}"
    expires_at: str | None = None


class MessageRecord(Struct, frozen=True):
    """A message."""

    id: Annotated[Id, Meta(description="A UUIDv7; opaque.")]
    seq: Annotated[
        Count, Meta(description="The version of the mailbox at which the message arrived: its place in commit order.")
    ]
    recipient: Annotated[str, Meta(description="Whose mailbox it is in.", min_length=1)]
    sender: Annotated[str, Meta(description="May be empty.")]
    content: Annotated[str, Meta(description="The text, exactly as it was sent.", min_length=1)]
    metadata: Annotated[
        Raw,
        Meta(
            description="The sender's own data; its numbers come back equal.",
            extra_json_schema={"type": "object", "additionalProperties": True},
        ),
    ]
    created_at: Annotated[Instant, Meta(description="When it arrived, by the database's clock.")]
    read_at: Annotated[InstantOrNull, Meta(description="When it was first marked as read; null while it is unread.")]
    is_read: Annotated[bool, Meta(description="Whether it is marked as read.")]
    expires_at: Annotated[InstantOrNull, Meta(description="When it will be deleted, within a minute; null for never.")]


def loadable(message: MessageRecord) -> bytes:
    """A message as a line of the JSON Lines that `manage.py load` reads: the fields of NewMessage that are not null."""
    fields = {name: getattr(message, name) for name in NewMessage.__struct_fields__}
    return to_json({name: value for name, value in fields.items() if value is not None}) + b"\n"


class MailboxRecord(Struct, frozen=True):
    """A mailbox: all the messages of one recipient. One that nobody has sent to is empty at version 0."""

    recipient: Annotated[str, Meta(description="Whose it is.", min_length=1)]
    version: Annotated[
        Count, Meta(description="Rises with every change of the mailbox; 0 while nothing was ever sent to it.")
    ] = 0
    total: Annotated[Count, Meta(description="Messages in it, exactly.")] = 0
    unread: Annotated[Count, Meta(description="Unread messages in it, exactly.")] = 0

    @property
    def etag(self) -> str:
        """A strong entity tag (RFC 9110, 8.8.3) for everything read from the mailbox at this version.

        It names the mailbox too, since a key bound to a recipient reads its own mailbox under a URL that does not.
        """
        return f'"{self._tag_name}-{self.version}"'

    def version_of(self, etag: str) -> int | None:
        """The version of this mailbox that an entity tag names; None for a tag of something else."""
        name, _, version = etag.strip('"').partition("-")
        return version_from(version) if name == self._tag_name else None

    @property
    def _tag_name(self) -> str:
        return hashlib.blake2b(self.recipient.encode(), digest_size=6).hexdigest()


class Page(Struct, frozen=True):
    """A page of messages in the order asked for, with the mailbox as it stood at the same instant.

    `mailbox_id` is the key of its row; 0 where there is none.
    """

    mailbox_id: int
    mailbox: MailboxRecord
    messages: Sequence[MessageRecord]
    more: bool  # whether further messages follow in the direction of reading


class BulkResult(Struct, frozen=True):
    """The result for one id."""

    id: Id
    status: Annotated[
        Literal["changed", "unchanged", "not_found"],
        Meta(description="`unchanged`: it was in that state already. `not_found`: there is none that you may access."),
    ]


class BulkOutcome(Struct, frozen=True):
    """The result of a call that names messages by their ids."""

    results: Annotated[Sequence[BulkResult], Meta(description="One entry for each distinct id, in the order given.")]
    changed: Annotated[Count, Meta(description="Results with this status.")]
    unchanged: Annotated[Count, Meta(description="Results with this status.")]
    not_found: Annotated[Count, Meta(description="Results with this status.")]
    mailboxes: Annotated[
        Sequence[MailboxRecord], Meta(description="The mailboxes of the messages found, as they now stand.")
    ]


class MarkOutcome(Struct, frozen=True, kw_only=True):
    """The result of a call that marks messages: with `results` by ids, with `complete` by `up_to`."""

    results: Annotated[
        Sequence[BulkResult] | UnsetType,
        Meta(description="With `ids` only: one entry for each distinct id, in the order given."),
    ] = UNSET
    changed: Annotated[Count, Meta(description="Messages marked by this call.")]
    unchanged: Annotated[Count, Meta(description="Messages in that state already. Always 0 with `up_to`.")] = 0
    not_found: Annotated[Count, Meta(description="Ids of no message that you may access. Always 0 with `up_to`.")] = 0
    mailboxes: Annotated[
        Sequence[MailboxRecord], Meta(description="The mailboxes of the messages found, as they now stand.")
    ]
    complete: Annotated[
        bool | UnsetType,
        Meta(
            description="With `up_to` only: false while messages remain. Send the same call again, if it has an "
            "Idempotency-Key under a new one."
        ),
    ] = UNSET
