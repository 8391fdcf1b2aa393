"""The filters of the list of messages."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest

from messaging.admin.search import Scope, to
from messaging.validation import name_fault


def _other_parameters(changelist: ChangeList, mine: Sequence[str | None]) -> list[tuple[str, str]]:
    """Hidden fields for the form of a filter, which keep the other filters."""
    return [(name, value) for name, value in changelist.params.items() if name not in mine]


class TextFilter(admin.SimpleListFilter):
    """A filter by a text that is typed in and compared exactly."""

    template = "messaging/text_filter.html"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        return ()  # there may be millions of values

    def has_output(self) -> bool:
        return True

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        yield {
            "name": self.parameter_name,
            "value": self.value() or "",
            "others": _other_parameters(changelist, (self.parameter_name,)),
            "without": changelist.get_query_string(remove=[str(self.parameter_name)]),
        }


class MailboxFilter(TextFilter):
    title = "mailbox"
    parameter_name = "recipient"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = self.value()
        return to(queryset, chosen) if chosen else queryset


class SenderFilter(TextFilter):
    title = "sender"
    parameter_name = "sender"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = self.value()
        if not chosen:
            return queryset
        return queryset.none() if name_fault(chosen) else queryset.filter(sender=chosen)


class ReadFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "is_read"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        return [("false", "Unread"), ("true", "Read")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = self.value()
        return queryset.filter(read_at__isnull=chosen == "false") if chosen in {"false", "true"} else queryset


class AgeFilter(admin.DateFieldListFilter):
    """Messages that arrived in a period: a common one, or from one day (included) to another (excluded), in UTC."""

    template = "messaging/age_filter.html"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return Scope.of(request.GET).arrived(queryset)

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        """Django's links to common periods, and the form with its current values."""
        yield {
            "links": list(super().choices(changelist)),
            "since": self.date_params.get(self.lookup_kwarg_since, "")[:10],
            "until": self.date_params.get(self.lookup_kwarg_until, "")[:10],
            "others": _other_parameters(changelist, self.expected_parameters()),
        }
