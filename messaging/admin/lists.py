"""Read-only lists of the admin: mailboxes, and what staff have changed. messages.py has that of messages.

Their cost does not grow with the table: the rows that they count and read are limited.
"""

from typing import Any, cast

from django.contrib import admin
from django.contrib.admin.exceptions import DisallowedModelAdminLookup
from django.contrib.admin.models import LogEntry
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ERROR_FLAG, ChangeList
from django.core.exceptions import BadRequest
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.http import urlencode

from messaging.admin.filters import MailboxFilter
from messaging.models import Mailbox

# The maximum number of rows of a list, and of an action: counting and skipping rows takes time for each of them.
MAX_LISTED = 10_000


class CappedPaginator(Paginator):  # type: ignore[type-arg]  # of whatever the list is of
    """Pages of the first MAX_LISTED rows, so the cost of the count and of the last page is limited."""

    @cached_property
    def count(self) -> int:
        return cast("QuerySet[Model]", self.object_list)[:MAX_LISTED].count()


class CappedChangeList(ChangeList):
    """A list whose title says if it does not show everything."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.result_count >= self.most:
            self.title = f"The first {self.most:,} {self.opts.verbose_name_plural}: search or filter for others"

    @property
    def most(self) -> int:
        return MAX_LISTED

    def get_filters(self, request: HttpRequest) -> Any:
        """Only the filters of the page. Django would filter by any column that a URL names."""
        found = super().get_filters(request)
        if found[2]:  # the parameters that no filter has taken
            raise DisallowedModelAdminLookup
        return found


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # generic for type checkers only
    """Pages that never save. Changes are made by services."""

    paginator = CappedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 50
    sortable_by = ()

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return CappedChangeList

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        """Django treats an invalid filter, after the redirect for another one, as a database error. This refuses it."""
        try:
            return super().get_changelist_instance(request)
        except IncorrectLookupParameters as error:
            if ERROR_FLAG in request.GET:
                raise BadRequest("no such filter") from error
            raise

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False  # messages are sent by the API

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False  # saving a form would write stale values back


@admin.register(Mailbox)
class MailboxAdmin(ReadOnlyAdmin):
    list_display = ("recipient", "total", "unread", "version", "messages")
    search_fields = ("recipient",)  # makes Django show the search box; get_search_results searches
    search_help_text = "How a recipient begins."
    ordering = ("recipient",)
    fields = list_display

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False  # a new mailbox would use the versions of the deleted one again

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Mailbox], search_term: str
    ) -> tuple[QuerySet[Mailbox], bool]:
        return queryset.filter(recipient__startswith=search_term.strip()), False

    def messages(self, mailbox: Mailbox) -> str:
        query = urlencode({MailboxFilter.parameter_name: mailbox.recipient})
        return format_html('<a href="{}?{}">Show</a>', reverse("admin:messaging_message_changelist"), query)


@admin.register(LogEntry)
class LogEntryAdmin(ReadOnlyAdmin):
    list_display = ("action_time", "user", "action_flag", "content_type", "object_repr", "message")
    list_filter = ("action_flag",)
    list_select_related = ("user", "content_type")
    search_fields = ("user__username", "object_id")
    search_help_text = "A user's name, or the id of what was changed."
    fields = list_display

    @admin.display(description="what was done")
    def message(self, entry: LogEntry) -> str:
        return entry.get_change_message()

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False  # staff must not delete the record of their own changes
