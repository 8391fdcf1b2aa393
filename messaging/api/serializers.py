"""The serializers of request bodies and query parameters, and the filters. Each rule is declared once."""

import threading
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar, cast

from django.conf import settings
from django_filters.rest_framework import FilterSet
from drf_spectacular.utils import extend_schema_serializer
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail

from messaging.access import Caller
from messaging.api import fields, filters, parameters
from messaging.errors import MAX_FAULTS
from messaging.models import Message
from messaging.records import NewMessage
from messaging.validation import escaped

S = TypeVar("S", bound="StrictSerializer")


class StrictSerializer(serializers.Serializer[Any]):
    """Refuses members that it does not declare. A member that is null counts as absent."""

    default_error_messages = {
        "not_an_object": "This must be a JSON object.",
        "unknown_field": "This call takes no such field. It takes: {known}.",
    }

    def validate_empty_values(self, data: Any) -> tuple[bool, Any]:
        """As DRF's, but null is a value, which is refused."""
        return False, data

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.fields)

    def to_internal_value(self, data: Any) -> Any:
        """The validated members. Raises ValidationError with the faults of all members."""
        if not isinstance(data, dict):
            self.fail("not_an_object")
        errors: dict[str, Any] = {}
        if not data.keys() <= self._names:
            message = self.error_messages["unknown_field"].format(known=", ".join(sorted(self.fields)))
            unknown = (name for name in data if name not in self.fields)
            # An unknown name may hold any character, so the key is a JSON Pointer.
            errors = {
                f"/{escaped(name)}": [ErrorDetail(message, "unknown_field")] for name in islice(unknown, MAX_FAULTS)
            }
        if None in data.values():
            data = {name: value for name, value in data.items() if value is not None}
        try:
            found = super().to_internal_value(data)
        except serializers.ValidationError as error:
            errors |= cast("dict[str, Any]", error.detail)
        else:
            if not errors:
                return found
        raise serializers.ValidationError(errors)


# In Go, NewMessage would be the constructor of Message.
@extend_schema_serializer(component_name="MessageToSend")
class NewMessageSerializer(StrictSerializer):
    """A message to send. Fields that are not listed here are refused."""

    recipient = fields.RecipientField(
        default=fields.CallersOwn("recipient"),
        allow_null=True,
        help_text="The recipient, compared exactly. Required, unless your key is bound to a recipient.",
    )
    sender = fields.SenderField(
        default=fields.CallersOwn("sender", otherwise=""),
        allow_null=True,
        help_text="The sender; empty by default. A key bound to a sender sets it, and accepts no other.",
    )
    content = fields.ContentField(help_text="The text, kept exactly as sent; not only white space.")
    metadata = fields.MetadataField(
        required=False,
        allow_null=True,
        help_text=f"Data of your own: at most {settings.MESSAGES_MAX_METADATA_BYTES:,} bytes as compact JSON, numbers "
        "that a double or an integer holds exactly, no U+0000. An empty object by default.",
    )

    expires_at = fields.ExpiryField(
        required=False,
        allow_null=True,
        help_text="When the message is deleted, within a minute. Never by default.",
    )

    default_error_messages = {"sender_mismatch": "Your key sends as another sender. Leave this out, or match it."}

    def validate_sender(self, sender: str) -> str:
        return sender if self.context["sender"] in {None, sender} else self.fail("sender_mismatch")

    def to_internal_value(self, data: Any) -> NewMessage:
        return NewMessage(**super().to_internal_value(data))


class BatchSerializer(StrictSerializer):
    """Messages to send together, all or none."""

    messages = fields.BoundedListField(child=NewMessageSerializer(), help_text="They arrive in this order.")


class MessageIdsSerializer(StrictSerializer):
    """Messages named by their ids."""

    ids = fields.BoundedListField(child=fields.IdField(), help_text="Repeated ids count once.")


class MarkSerializer(StrictSerializer):
    """Messages to mark: named by `ids`, or all of a `recipient` up to the message `up_to`. Either, not both."""

    ids = fields.BoundedListField(
        child=fields.IdField(), required=False, allow_null=True, help_text="Repeated ids count once."
    )
    recipient = fields.RecipientField(
        required=False,
        allow_null=True,
        help_text="Whose mailbox. Required with `up_to`, unless your key is bound to a recipient.",
    )
    up_to = fields.IdField(
        required=False,
        allow_null=True,
        help_text="The last message to mark. Later ones are not changed.",
    )

    default_error_messages = {"both": "Name messages by ids, or by recipient and up_to; not by both."}

    def validate(self, attrs: Any) -> dict[str, Any]:
        found = attrs
        needed: tuple[str, ...] = ("ids",)
        if attrs.keys() & {"recipient", "up_to"}:
            found = attrs if self.context["recipient"] is None else {"recipient": self.context["recipient"], **attrs}
            needed = ("recipient", "up_to")
        errors = {
            name: [ErrorDetail(str(self.error_messages["required"]), "required")]
            for name in needed
            if name not in found
        }
        if "ids" in found and "ids" not in needed:
            errors["ids"] = [ErrorDetail(str(self.error_messages["both"]), "unknown_field")]
        if errors:
            raise serializers.ValidationError(errors)
        return dict(found)


class TicketSerializer(StrictSerializer):
    """Whose mailbox a ticket is for."""

    recipient = fields.RecipientField(
        default=fields.CallersOwn("recipient"),
        allow_null=True,
        help_text="Required, unless your key is bound to a recipient.",
    )


class MailboxParameters(StrictSerializer):
    """Which mailbox."""

    recipient = fields.RecipientField(
        default=fields.CallersOwn("recipient"),
        help_text="Whose mailbox, compared exactly. Required, unless your key is bound to a recipient.",
        error_messages={"required": "Name the recipient, as in ?recipient=alice@example.com."},
    )


class PageParameters(MailboxParameters):
    """Which part of a mailbox, in which order."""

    limit = parameters.LimitField(
        largest=settings.MESSAGES_MAX_PAGE_SIZE,
        default=min(parameters.DEFAULT_PAGE_SIZE, settings.MESSAGES_MAX_PAGE_SIZE),
        help_text=f"Messages in a page. More than {settings.MESSAGES_MAX_PAGE_SIZE} are lowered to it.",
    )
    ordering = parameters.OrderingField(
        default=parameters.NEWEST_FIRST,
        help_text="`-created_at`, newest first, is the default; `created_at` is oldest first. Both by the order in "
        "which the messages arrived.",
    )
    cursor = parameters.OpaqueField(
        required=False,
        help_text="Where the page begins, from a link of another page; opaque. Recipient, filters and "
        "ordering must be those of that page; `limit` may differ.",
    )


class MessageFilter(FilterSet):
    """What a page may be restricted to."""

    sender = filters.FieldFilter(
        fields.SenderField(help_text="Only messages of exactly this sender; empty finds those without one.")
    )
    is_read = filters.FieldFilter(
        parameters.FlagField(help_text="Only read or only unread messages."),
        field_name="read_at",
        lookup_expr="isnull",
        exclude=True,
    )
    created_after = filters.FieldFilter(
        parameters.InstantField(
            help_text="Only messages that arrived then or later (RFC 3339 with an offset; write + as %2B)."
        ),
        field_name="created_at",
        lookup_expr="gte",
    )
    created_before = filters.FieldFilter(
        parameters.InstantField(
            help_text="Only messages that arrived earlier (RFC 3339 with an offset; write + as %2B)."
        ),
        field_name="created_at",
        lookup_expr="lt",
    )

    class Meta:
        model = Message
        fields: list[str] = []


class ChangesParameters(MailboxParameters):
    """Which changes of a mailbox."""

    since = parameters.SinceField(
        help_text="The version of your copy: `until` of the last response; 0 if you have none.",
    )
    limit = parameters.LimitField(
        largest=parameters.MAX_CHANGES,
        default=parameters.DEFAULT_CHANGES,
        help_text=f"Changes in an answer. More than {parameters.MAX_CHANGES:,} are lowered to it.",
    )
    cursor = parameters.OpaqueField(required=False, help_text="Where to continue, from `next`; opaque.")


class DeleteParameters(StrictSerializer):
    """How one message is deleted."""

    allow_missing = parameters.FlagField(default=False, help_text="Respond with 204 also if there is no such message.")


_made = threading.local()  # the serializers of a thread, by the names of their classes


def serializer(kind: type[S], caller: Caller) -> S:
    """The serializer of a kind, whose context holds what the caller is bound to; until this thread's next call.

    Each thread makes one and uses it for all callers: `run_validation` leaves no trace in a serializer, and making one
    (DRF copies each field) takes six times as long as using it.
    """
    found: S | None = getattr(_made, kind.__name__, None)
    if found is None:
        found = kind(context={})
        setattr(_made, kind.__name__, found)
    cast("dict[str, str | None]", found.context).update(recipient=caller.recipient, sender=caller.sender)
    return found
