"""The fields of request bodies: each validates a value and describes it in the OpenAPI document.

DRF's own text fields are not used: they convert values (7 to "7"), strip white space, and check each character in
Python.
"""

import json
from typing import Any, NoReturn

from django.conf import settings
from django.utils import timezone
from drf_spectacular.utils import extend_schema_field
from msgspec.structs import replace
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail

from messaging.api import examples
from messaging.api.parsers import InexactNumber, members, pointer_of
from messaging.errors import Fault
from messaging.records import instant_text
from messaging.validation import MAX_NAME_LENGTH, id_from, instant_from, name_fault, text_fault

_to_compact_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_NAME: dict[str, Any] = {"type": "string", "maxLength": MAX_NAME_LENGTH}


class Field(serializers.Field[Any, Any, Any, Any]):
    def validate_empty_values(self, data: Any) -> tuple[bool, Any]:
        """As DRF's, but null in a list is a value. (StrictSerializer removes members that are null.)"""
        return (False, None) if data is None else super().validate_empty_values(data)

    def to_representation(self, value: Any) -> Any:
        return value  # a default in the OpenAPI document


def refuse(fault: Fault) -> NoReturn:
    """Raise DRF's ValidationError for a fault; its pointer, if any, is the key of the detail."""
    detail: Any = [ErrorDetail(fault.detail, fault.code)]
    raise serializers.ValidationError({fault.pointer: detail} if fault.pointer else detail)


class CallersOwn:
    """A default: the recipient or sender that the caller's key or token is bound to, else `otherwise`.

    Without either, the field is required.
    """

    requires_context = True

    def __init__(self, name: str, otherwise: str | None = None) -> None:
        self.name, self.otherwise = name, otherwise

    def __call__(self, field: Field) -> str:
        found: str | None = field.context[self.name]
        if found is None:
            found = self.otherwise
        return field.fail("required") if found is None else found


@extend_schema_field({**_NAME, "minLength": 1, "examples": [examples.ALICE]})
class RecipientField(Field):
    """A recipient: 1 to 255 characters, no control characters."""

    may_be_empty = False

    def to_internal_value(self, data: object) -> str:
        if fault := name_fault(data, may_be_empty=self.may_be_empty):
            refuse(fault)
        return str(data)


@extend_schema_field({**_NAME, "examples": [examples.BOB]})
class SenderField(RecipientField):
    """A sender: as a recipient, or empty."""

    may_be_empty = True


@extend_schema_field({"type": "string", "minLength": 1, "maxLength": settings.MESSAGES_MAX_CONTENT_LENGTH})
class ContentField(Field):
    """The text of a message: 1 to MESSAGES_MAX_CONTENT_LENGTH characters, not only white space, kept as sent."""

    default_error_messages = {
        "blank": "This must hold more than white space.",
        "too_long": "This has {length} characters; at most {limit} are allowed.",
    }

    def to_internal_value(self, data: Any) -> str:
        if fault := text_fault(data):
            refuse(fault)
        if not data or data.isspace():
            self.fail("blank")
        if len(data) > (limit := settings.MESSAGES_MAX_CONTENT_LENGTH):
            self.fail("too_long", length=len(data), limit=limit)
        return str(data)


@extend_schema_field({"type": "object", "additionalProperties": True})
class MetadataField(Field):
    """A JSON object of at most MESSAGES_MAX_METADATA_BYTES bytes as compact JSON, whose numbers come back equal."""

    default_error_messages = {
        "not_an_object": "This must be a JSON object.",
        "too_large": "This is {size} bytes as compact JSON; at most {limit} are allowed.",
    }

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, dict):
            self.fail("not_an_object")
        if not data:
            return "{}"
        limit = settings.MESSAGES_MAX_METADATA_BYTES
        self._check_values(data, limit)
        compact = _to_compact_json(data)
        if (size := len(compact.encode())) > limit:
            self.fail("too_large", size=size, limit=limit)
        return compact

    def _check_values(self, data: dict[str, Any], limit: int) -> None:
        """Refuse the first string or key, at any depth, that cannot be stored, and the first inexact number."""
        for count, (path, item) in enumerate(members(data), start=1):
            if count > limit:
                # Each member has at least one byte, and a body may hold millions of them.
                self.fail("too_large", size=f"more than {limit}", limit=limit)
            if isinstance(item, InexactNumber):
                detail = f"{item[:40]} cannot be kept exactly. Send it as a string."
                refuse(Fault(pointer_of(path), "inexact_number", detail))
            for text in (path[1], item):
                if isinstance(text, str) and (fault := text_fault(text)):
                    refuse(replace(fault, pointer=pointer_of(path)))


@extend_schema_field({"type": "string", "format": "date-time", "examples": ["2126-01-31T00:00:00Z"]})
class ExpiryField(Field):
    """An instant in the future, in RFC 3339."""

    default_error_messages = {
        "invalid_instant": "This must be an instant such as 2026-01-31T12:00:00Z.",
        "not_in_future": "This is not in the future. Leave it out for a message that does not expire.",
    }

    def to_internal_value(self, data: object) -> str:
        found = instant_from(data) if isinstance(data, str) else None
        if found is None:
            self.fail("invalid_instant")
        return instant_text(found) if found > timezone.now() else self.fail("not_in_future")


@extend_schema_field({"type": "string", "format": "uuid", "examples": [examples.MESSAGE_ID]})
class IdField(Field):
    default_error_messages = {"not_a_uuid": "This must be a UUID, as the id of a message is."}

    def to_internal_value(self, data: object) -> str:
        return id_from(data) or self.fail("not_a_uuid")


class BoundedListField(serializers.ListField):
    """1 to MESSAGES_MAX_BULK entries. Their number is checked before the entries."""

    default_error_messages = {
        "not_a_list": "This must be a list.",
        "blank": "This must not be empty.",
        "too_many": "This holds {count} entries; at most {limit} are allowed.",
    }

    def __init__(self, **kwargs: Any) -> None:
        # DRF's bounds describe the list in the OpenAPI document; the checks below come first.
        super().__init__(min_length=1, max_length=settings.MESSAGES_MAX_BULK, **kwargs)

    def to_internal_value(self, data: Any) -> list[Any]:
        if not isinstance(data, list):
            self.fail("not_a_list")
        if not data:
            self.fail("blank")
        if len(data) > (limit := settings.MESSAGES_MAX_BULK):
            self.fail("too_many", count=len(data), limit=limit)
        return super().to_internal_value(data)
