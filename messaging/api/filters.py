"""The filters of a page: query parameters to QuerySets of messages, by django-filter."""

import re
from datetime import UTC, datetime
from typing import Any

from django import forms
from django_filters import rest_framework as filters

from messaging.errors import Fault, InvalidInputError
from messaging.models import Message, MessageQuerySet
from messaging.validation import name_fault

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


_NO_INSTANT = "This must be an instant such as 2026-01-31T12:00:00Z. In a URL, write + as %2B."


class InstantField(forms.Field):
    """An instant in RFC 3339, which always says its offset from UTC."""

    default_error_messages = {"invalid": _NO_INSTANT}

    def to_python(self, value: Any) -> datetime | None:
        """The instant in UTC."""
        if value is None:
            return None
        if not _RFC3339.fullmatch(value):
            raise forms.ValidationError(self.error_messages["invalid"], code="invalid_instant")
        try:
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            raise forms.ValidationError(self.error_messages["invalid"], code="invalid_instant") from None


class InstantFilter(filters.Filter):
    """A bound on an instant."""

    field_class = InstantField


class SenderFilter(filters.CharFilter):
    """Exactly this sender; `sender=` finds the messages of none."""

    def filter(self, qs: Any, value: Any) -> Any:
        """The messages of that sender, all where the parameter is not given."""
        return qs.filter(sender=value) if "sender" in self.parent.data else qs


class MessageFilter(filters.FilterSet):
    """What a page may be restricted to."""

    sender = SenderFilter(strip=False, help_text="Only messages of exactly this sender.")
    is_read = filters.ChoiceFilter(
        choices=[("true", "true"), ("false", "false")], method="filter_is_read", help_text="Only read or unread ones."
    )
    created_after = InstantFilter(
        field_name="created_at", lookup_expr="gte", help_text="Only messages that arrived then or later (RFC 3339)."
    )
    created_before = InstantFilter(
        field_name="created_at", lookup_expr="lt", help_text="Only messages that arrived earlier (RFC 3339)."
    )

    class Meta:
        model = Message
        fields: list[str] = []

    def filter_is_read(self, queryset: MessageQuerySet, name: str, value: str) -> MessageQuerySet:
        """The read or the unread ones."""
        return queryset.already_read() if value == "true" else queryset.unread()


FILTERS = tuple(MessageFilter.base_filters)

_REFUSALS = {
    "is_read": ("invalid", "This must be true or false."),
    "created_after": ("invalid_instant", _NO_INSTANT),
    "created_before": ("invalid_instant", _NO_INSTANT),
}


def filtered_messages(query: dict[str, str]) -> MessageQuerySet | None:
    """The messages that the filters of `query` select; None where it has none, which costs nothing.

    Raises:
        InvalidInputError: naming each filter that is malformed.
    """
    given = {name: query[name] for name in FILTERS if name in query}
    if not given:
        return None
    filterset = MessageFilter(data=given, queryset=Message.objects.all())
    refused = set(filterset.errors)
    if given.get("is_read") == "":
        # The only one that django-filter takes for absent when it is empty.
        refused.add("is_read")
    faults = [Fault(f"?{name}", *_REFUSALS[name]) for name in given if name in refused]
    # The rule of a sender stands in drafts.py; what no message can have is a mistake, and not a search in vain.
    if "sender" in given and (fault := name_fault(given["sender"], "?sender", may_be_empty=True)):
        faults.append(fault)
    if faults:
        raise InvalidInputError(faults)
    selected: MessageQuerySet = filterset.qs
    return selected
