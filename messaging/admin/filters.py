"""The filters of the list of messages."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

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
        return queryset.none() if name_fault(chosen, "") else queryset.filter(sender=chosen)


class ReadFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "is_read"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        return [("false", "Unread"), ("true", "Read")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = self.value()
        return queryset.filter(read_at__isnull=chosen == "false") if chosen in {"false", "true"} else queryset


class AgeFilter(admin.ListFilter):
    """Messages that arrived in a period: a common one, or from one day (included) to another (excluded), in UTC."""

    title = "age"
    template = "messaging/age_filter.html"
    parameters = ("created_at__gte", "created_at__lt")

    def __init__(self, request: HttpRequest, params: Any, model: Any, model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        for name in self.parameters:
            if values := params.pop(name, None):
                self.used_parameters[name] = values[-1]

    def has_output(self) -> bool:
        return True

    def expected_parameters(self) -> list[str | None]:
        return list(self.parameters)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return Scope.of(request.GET).arrived(queryset)

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        """The form with its current values, and links to common periods."""
        today = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)
        usual = [
            ("Any", {}),
            ("Today", {"created_at__gte": today}),
            ("Past 7 days", {"created_at__gte": today - timedelta(7)}),
            ("Past 30 days", {"created_at__gte": today - timedelta(30)}),
            ("Older than 30 days", {"created_at__lt": today - timedelta(30)}),
            ("Older than a year", {"created_at__lt": today - timedelta(365)}),
        ]
        links = []
        for display, bounds in usual:
            chosen = {name: f"{day:%Y-%m-%d}" for name, day in bounds.items()}
            url = changelist.get_query_string(chosen, remove=self.parameters)
            links.append((display, url, chosen == self.used_parameters))
        yield {
            "links": links,
            "since": str(self.used_parameters.get("created_at__gte", ""))[:10],
            "until": str(self.used_parameters.get("created_at__lt", ""))[:10],
            "others": _other_parameters(changelist, self.parameters),
        }
