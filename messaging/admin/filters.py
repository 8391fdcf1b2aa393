"""The filters beside the list of messages."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from messaging.admin import search

if TYPE_CHECKING:
    from messaging.models import MessageQuerySet


class MailboxFilter(admin.SimpleListFilter):
    """Messages of one mailbox: chosen by a link or in the address, since a list of all would be endless."""

    title = "mailbox"
    parameter_name = "recipient"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        """Nothing but what is chosen."""
        chosen = self.value()
        return [(chosen, chosen)] if chosen else []

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The messages of the chosen recipient, compared exactly."""
        chosen = self.value()
        return search.to(queryset, chosen) if chosen else queryset


class ReadFilter(admin.SimpleListFilter):
    """Read or unread messages."""

    title = "read"
    parameter_name = "is_read"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        """Both."""
        return [("false", "Unread"), ("true", "Read")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The messages in the chosen state."""
        selected = cast("MessageQuerySet", queryset)
        match self.value():
            case "true":
                return selected.already_read()
            case "false":
                return selected.unread()
        return selected
