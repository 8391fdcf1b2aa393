"""The fields of query parameters. A value is text, which the field parses."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, cast

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from messaging.api import examples
from messaging.api.fields import Field
from messaging.records import MAX_VERSION, version_from
from messaging.validation import instant_from

DEFAULT_PAGE_SIZE = 50
DEFAULT_CHANGES, MAX_CHANGES = 200, 1_000
NEWEST_FIRST, OLDEST_FIRST = "-created_at", "created_at"

_DIGITS = re.compile(r"0*([1-9][0-9]*)", re.ASCII)


@extend_schema_field({"type": "integer", "minimum": 1, "examples": [20]})
class LimitField(Field):
    """How many entries an answer has: a number above `largest` is lowered to it."""

    default_error_messages = {"invalid_limit": "This must be a whole number from 1 to {largest}."}

    def __init__(self, *, largest: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.largest = largest

    def to_internal_value(self, data: str) -> int:
        number = _DIGITS.fullmatch(data)
        if number is None:
            self.fail("invalid_limit", largest=self.largest)
        # Python converts at most 4,300 digits.
        return min(int(number[1][:9]), self.largest)


@extend_schema_field({"type": "integer", "format": "int64", "minimum": 0, "examples": [12]})
class WholeNumberField(Field):
    default_error_messages = {"invalid": f"This must be a whole number from 0 to {MAX_VERSION}."}

    def to_internal_value(self, data: str) -> int:
        number = version_from(data)
        return self.fail("invalid") if number is None else number


@extend_schema_field({"type": "integer", "format": "int64", "minimum": 0, "examples": [0]})
class SinceField(WholeNumberField):
    """A version that a client has seen; 0 for none."""


@extend_schema_field(
    {
        "type": "string",
        "enum": [NEWEST_FIRST, OLDEST_FIRST],
        "x-enum-varnames": ["NEWEST_FIRST", "OLDEST_FIRST"],
        "examples": [OLDEST_FIRST],
    }
)
class OrderingField(Field):
    default_error_messages = {"invalid_ordering": f"This must be {NEWEST_FIRST} or {OLDEST_FIRST}."}

    def to_internal_value(self, data: str) -> str:
        return data if data in {NEWEST_FIRST, OLDEST_FIRST} else self.fail("invalid_ordering")


@extend_schema_field({"type": "string"})
class OpaqueField(Field):
    """A text that is validated elsewhere, as a cursor is by pagination.py."""

    def to_internal_value(self, data: str) -> str:
        return data


@extend_schema_field({"type": "string", "examples": [examples.TICKET]})
class TicketField(OpaqueField):
    """A ticket, which TicketAuthentication has validated."""


@extend_schema_field({"type": "boolean", "examples": [True]})
class FlagField(Field):
    """`true` or `false`; also `True` and `False`, as Python writes them, and `1` and `0`, as PHP does."""

    default_error_messages = {"invalid": "This must be true or false."}

    def to_internal_value(self, data: str) -> bool:
        text = data.lower()
        return text in {"true", "1"} if text in {"true", "false", "1", "0"} else self.fail("invalid")


@extend_schema_field({"type": "string", "format": "date-time", "examples": ["2026-01-31T00:00:00Z"]})
class InstantField(Field):
    """An instant: see `instant_from`."""

    default_error_messages = {
        "invalid_instant": "This must be an instant such as 2026-01-31T12:00:00Z. In a URL, write + as %2B.",
    }

    def to_internal_value(self, data: str) -> datetime:
        return instant_from(data) or self.fail("invalid_instant")


@contextmanager
def named_as_parameters() -> Iterator[None]:
    """Mark the names in a ValidationError as those of query parameters."""
    try:
        yield
    except serializers.ValidationError as error:
        detail = cast("dict[str, Any]", error.detail)
        raise serializers.ValidationError({f"?{name}": found for name, found in detail.items()}) from None
