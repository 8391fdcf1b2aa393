"""The public shapes of bodies and answers, for the OpenAPI document.

They describe; the rules of input stand in drafts.py and the answers are records (records.py). Limits come from where
the rules have them, and the tests hold every request that was taken, and every answer, against the document.
"""

from typing import Any

from django.conf import settings
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from messaging.validation import MAX_NAME_LENGTH, WHITE_SPACE

NAME: dict[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_NAME_LENGTH,
    # Unicode's control characters, category Cc.
    "pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$",
}
NAME_OR_NOTHING: dict[str, Any] = {**NAME, "minLength": 0}
_CONTENT = {
    "type": "string",
    "minLength": 1,
    "maxLength": settings.MESSAGES_MAX_CONTENT_LENGTH,
    # No U+0000, and something that is not white space.
    "pattern": rf"^[^\u0000]*[^\u0000{WHITE_SPACE}][^\u0000]*$",
}
_INSTANT = {
    "type": "string",
    "format": "date-time",
    # RFC 3339 in UTC, always with microseconds.
    "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z$",
}
_COUNT = {"type": "integer", "format": "int64", "minimum": 0}


@extend_schema_field(NAME)
class NameField(serializers.CharField):
    """A recipient."""


@extend_schema_field(NAME_OR_NOTHING)
class SenderField(serializers.CharField):
    """A sender."""


@extend_schema_field(_CONTENT)
class ContentField(serializers.CharField):
    """The text of a message."""


@extend_schema_field(_INSTANT)
class InstantField(serializers.DateTimeField):
    """An instant."""


@extend_schema_field({**_INSTANT, "type": ["string", "null"]})
class InstantOrNullField(serializers.DateTimeField):
    """An instant, or null."""


@extend_schema_field(_COUNT)
class CountField(serializers.IntegerField):
    """How many, or the how-many-eth."""


@extend_schema_field({"type": "object", "additionalProperties": True})
class MetadataField(serializers.DictField):
    """A JSON object of the sender's."""


class MessageSerializer(serializers.Serializer[None]):
    """A message."""

    id = serializers.UUIDField(help_text="A UUIDv7.")
    seq = CountField(help_text="The version of the mailbox at which the message arrived: its place in commit order.")
    recipient = NameField(help_text="Whose mailbox it is in.")
    sender = SenderField(help_text="May be empty.")
    content = ContentField(help_text="The text, exactly as it was sent.")
    metadata = MetadataField(help_text="The sender's own data; its numbers come back equal.")
    created_at = InstantField(help_text="By the database's clock.")
    read_at = InstantOrNullField(help_text="When it was first marked as read; null while it is unread.")
    is_read = serializers.BooleanField(help_text="Whether it is marked as read.")


class NewMessageSerializer(serializers.Serializer[None]):
    """A message to send. Fields that are not listed here are refused."""

    recipient = NameField(
        required=False,
        help_text="Whom it is for, compared exactly. Required, unless your key is bound to a recipient.",
    )
    sender = SenderField(
        required=False,
        help_text="Who sends it; empty by default. A key bound to a sender fills it in and takes no other.",
    )
    content = ContentField(help_text="The text, kept exactly as sent; not only white space.")
    metadata = MetadataField(
        required=False,
        help_text=f"Data of your own: at most {settings.MESSAGES_MAX_METADATA_BYTES:,} bytes as compact JSON, numbers "
        "that a double or an integer holds exactly, no U+0000. An empty object by default.",
    )


class BatchSerializer(serializers.Serializer[None]):
    """Messages to send together, all or none."""

    messages = serializers.ListField(
        child=NewMessageSerializer(),
        min_length=1,
        max_length=settings.MESSAGES_MAX_BULK,
        help_text="They get their places in this order.",
    )


class BatchResultSerializer(serializers.Serializer[None]):
    """The messages of a batch, in the order given."""

    results = MessageSerializer(many=True)


class MailboxSerializer(serializers.Serializer[None]):
    """A mailbox: all the messages of one recipient."""

    recipient = NameField(help_text="Whose it is.")
    version = CountField(help_text="Rises with every change of the mailbox; 0 while nothing was ever sent to it.")
    total = CountField(help_text="Messages in it, exactly.")
    unread = CountField(help_text="Unread messages in it, exactly.")


@extend_schema_field({"type": ["string", "null"], "format": "uri"})
class LinkField(serializers.URLField):
    """A URL, or null."""


class PageSerializer(serializers.Serializer[None]):
    """A page of messages, its neighbours, and the mailbox at the same instant."""

    results = MessageSerializer(many=True, help_text="The messages, in the order asked for.")
    next = LinkField(help_text="The page that follows; null at the end. Follow it as it is.")
    previous = LinkField(help_text="The page before; null at the beginning.")
    mailbox = MailboxSerializer()


class IdsSerializer(serializers.Serializer[None]):
    """Messages named by their ids."""

    ids = serializers.ListField(
        child=serializers.UUIDField(),
        min_length=1,
        max_length=settings.MESSAGES_MAX_BULK,
        help_text="Repeated ids count once.",
    )


class UpToSerializer(serializers.Serializer[None]):
    """Every message of a mailbox up to one of them."""

    recipient = NameField(required=False, help_text="Whose mailbox. Required, unless your key is bound to a recipient.")
    up_to = serializers.UUIDField(help_text="The last message meant; nothing that arrived after it is touched.")


@extend_schema_field({"type": "string", "enum": ["changed", "unchanged", "not_found"]})
class StatusField(serializers.CharField):
    """What became of one message."""


class BulkResultSerializer(serializers.Serializer[None]):
    """What became of one id."""

    id = serializers.UUIDField()
    status = StatusField(
        help_text="`unchanged`: it already was in that state. `not_found`: there is none, or none you can reach.",
    )


class BulkOutcomeSerializer(serializers.Serializer[None]):
    """What a call did to the messages it named."""

    results = BulkResultSerializer(many=True, help_text="One entry for each distinct id, in the order given.")
    changed = CountField(help_text="Results with this status.")
    unchanged = CountField(help_text="Results with this status.")
    not_found = CountField(help_text="Results with this status.")
    mailboxes = MailboxSerializer(many=True, help_text="The mailboxes of the messages found, as they now stand.")


class UpToOutcomeSerializer(serializers.Serializer[None]):
    """What a call with `up_to` did."""

    changed = CountField(help_text="Messages marked by this call.")
    unchanged = CountField(help_text="Always 0: only messages in the other state are looked at.")
    not_found = CountField(help_text="Always 0.")
    mailboxes = MailboxSerializer(many=True, help_text="The one mailbox, as it now stands.")
    complete = serializers.BooleanField(help_text="False while messages remain: send the same call again.")
