"""The admin's pages for messages: view, search and filter; mark and delete by calls of services.

Nothing here writes to a table. The cost of a page is bounded, however large the tables are.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.db.models.functions import Left
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.template.defaultfilters import pluralize
from django.urls import reverse_lazy
from django.utils.text import Truncator

from messaging import services
from messaging.admin import search
from messaging.admin.export import MAX_EXPORTED, csv_response, json_lines_response
from messaging.admin.filters import AgeFilter, MailboxFilter, ReadFilter, SenderFilter
from messaging.admin.lists import MAX_LISTED, CappedChangeList, ReadOnlyAdmin
from messaging.admin.staff_actions import StaffAction
from messaging.errors import MessagingError
from messaging.models import Message
from messaging.records import BulkOutcome
from messaging.validation import id_from

EXCERPT_LENGTH = 80  # characters of a content in a list

admin.site.site_header = admin.site.site_title = "Messages"
admin.site.site_url = reverse_lazy("docs")  # type: ignore[assignment]  # a promise of text
admin.site.index_title = "Administration"
admin.site.index_template = "messaging/index.html"
# Django's action logs a deletion before it is made, in another transaction; the page of one user or group does not.
admin.site.disable_action("delete_selected")


class MessageChangeList(CappedChangeList):
    """The list of messages. A filter without an index is applied to the newest messages only."""

    looked_through = 0  # the number of messages that were filtered; 0 for all

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.looked_through and self.result_count < self.most:
            self.title = f"Found among the newest {self.looked_through:,} messages. {self.title}"

    @property
    def most(self) -> int:
        return search.MAX_FOUND if self.query.strip() else super().most

    def get_queryset(self, request: HttpRequest, *args: Any, **kwargs: Any) -> QuerySet[Any]:
        found = super().get_queryset(request, *args, **kwargs)
        scope = search.Scope.of(request.GET)
        if scope.order == "seq":
            # Unique in a mailbox. By the primary key, which Django adds, PostgreSQL 15 would sort the whole mailbox.
            found = found.order_by("-seq")
        if self._has_index(scope):
            return found
        bound = scope.newest()
        self.looked_through = scope.window if bound else 0
        found = found.filter(bound)
        if not self.query.strip():
            return found
        # Evaluated once, since otherwise the texts would be read for the count and again for the page.
        ids = list(found.values_list("pk", flat=True)[: self.most])
        everything = self.apply_select_related(self.root_queryset)
        return everything.filter(pk__in=ids).order_by(*found.query.order_by)

    def _has_index(self, scope: search.Scope) -> bool:
        if term := self.query.strip():
            # Ids have an index, and search.py limits a search in all mailboxes.
            return not scope.recipient or id_from(term) is not None
        filters = {name: value for name, value in self.get_filters_params().items() if name not in search.PARAMETERS}
        if scope.order == "seq" and (
            filters == {ReadFilter.parameter_name: ["false"]} or filters.keys() == {SenderFilter.parameter_name}
        ):
            return True
        # The ids of a period are a range, unless a wrong clock made some of them.
        return not filters and not (scope.order == "pk" and (scope.since or scope.until))


@admin.register(Message)
class MessageAdmin(ReadOnlyAdmin):
    list_display = ("excerpt", "mailbox", "sender", "seq", "arrived", "is_read")
    list_filter = (MailboxFilter, SenderFilter, ReadFilter, ("created_at", AgeFilter))
    list_select_related = ("mailbox",)
    search_fields = ("id",)  # makes Django show the search box; get_search_results searches
    search_help_text = (
        f"An id, how a recipient begins, or a sender of the newest {search.WINDOW:,} messages. Within one mailbox: how "
        f"a sender begins, or words or a part of a content, of the newest {search.MAILBOX_WINDOW:,} messages."
    )
    fields = ("id", "mailbox", "seq", "sender", "content", "metadata", "created_at", "read_at", "expires_at")
    actions = ("mark_read", "mark_unread", "export_csv", "export_json_lines", "delete_selected")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return MessageChangeList

    def get_queryset(self, request: HttpRequest) -> QuerySet[Message]:
        # A list shows the beginnings of contents, each of which may have megabytes.
        found = super().get_queryset(request).defer("content", "metadata")
        return cast("QuerySet[Message]", found.annotate(beginning=Left("content", EXCERPT_LENGTH + 1)))

    def get_ordering(self, request: HttpRequest) -> tuple[str]:
        return (f"-{search.Scope.of(request.GET).order}",)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Message], search_term: str
    ) -> tuple[QuerySet[Message], bool]:
        """The messages found. MessageChangeList limits the cost of a search in one mailbox, search.py of one in all."""
        term = search_term.strip()
        if not term:
            return queryset, False
        if message_id := id_from(term):
            return queryset.filter(pk=message_id), False
        if request.GET.get(MailboxFilter.parameter_name):
            return search.mentioning(term, queryset), False
        return queryset.filter(pk__in=search.to_or_from(term, search.Scope.of(request.GET))), False

    @admin.display(description="content")
    def excerpt(self, message: Message) -> str:
        return Truncator(message.beginning).chars(EXCERPT_LENGTH)  # type: ignore[attr-defined]  # of get_queryset

    @admin.display(description="created at")
    def arrived(self, message: Message) -> str:
        return f"{message.created_at:%Y-%m-%d %H:%M:%S}"

    @admin.display(description="read", boolean=True)
    def is_read(self, message: Message) -> bool:
        return message.read_at is not None

    def has_delete_permission(self, request: HttpRequest, obj: Message | None = None) -> bool:
        # The confirmation shows the messages.
        return super().has_delete_permission(request, obj) and self.has_view_permission(request, obj)

    def has_mark_permission(self, request: HttpRequest) -> bool:
        return bool(cast("Any", request.user).has_perm("messaging.change_message"))

    @admin.action(permissions=["mark"], description="Mark selected messages as read")
    def mark_read(self, request: HttpRequest, queryset: QuerySet[Message]) -> None:
        self._change(request, queryset, services.mark_read, "Marked as read", CHANGE)

    @admin.action(permissions=["mark"], description="Mark selected messages as unread")
    def mark_unread(self, request: HttpRequest, queryset: QuerySet[Message]) -> None:
        self._change(request, queryset, services.mark_unread, "Marked as unread", CHANGE)

    @admin.action(permissions=["view"], description="Export selected messages as CSV")
    def export_csv(self, request: HttpRequest, queryset: QuerySet[Message]) -> HttpResponseBase | None:
        return None if self._is_too_much(request, queryset, MAX_EXPORTED) else csv_response(queryset)

    @admin.action(permissions=["view"], description="Export selected messages as JSON Lines")
    def export_json_lines(self, request: HttpRequest, queryset: QuerySet[Message]) -> HttpResponseBase | None:
        return None if self._is_too_much(request, queryset, MAX_EXPORTED) else json_lines_response(queryset)

    @admin.action(permissions=["delete"], description="Delete selected messages")
    def delete_selected(self, request: HttpRequest, queryset: QuerySet[Message]) -> HttpResponseBase | None:
        if request.POST.get("post"):
            self._change(request, queryset, services.delete, "Deleted", DELETION)
            return None
        # The form of the confirmation page has a field for each message.
        limit = min(MAX_LISTED, (settings.DATA_UPLOAD_MAX_NUMBER_FIELDS or MAX_LISTED) - 10)
        return None if self._is_too_much(request, queryset, limit) else delete_selected(self, request, queryset)

    def _change(
        self, request: HttpRequest, queryset: QuerySet[Message], verb: Callable[..., BulkOutcome], name: str, flag: int
    ) -> None:
        if self._is_too_much(request, queryset, MAX_LISTED):
            return
        action = StaffAction(verb=verb, name=name, flag=flag, user_id=cast("int", request.user.pk))
        failure = ""
        try:
            action.apply_to(list(queryset.values_list("pk", flat=True)))
        except MessagingError as error:
            failure = f" Then: {error}"
        unchanged = f", {action.unchanged:,} unchanged" if action.unchanged else ""
        self.message_user(
            request,
            f"{name}: {action.changed:,} message{pluralize(action.changed)}{unchanged}.{failure}",
            messages.ERROR if failure else messages.SUCCESS,
        )

    def _is_too_much(self, request: HttpRequest, queryset: QuerySet[Message], limit: int) -> bool:
        """Whether "select all" selects more messages than may be changed at once, or than the list has shown."""
        if queryset[: limit + 1].count() <= limit:
            return False
        self.message_user(request, f"More than {limit:,} messages at once. Search or filter for fewer.", messages.ERROR)
        return True

    def get_deleted_objects(
        self, objs: Sequence[Any] | QuerySet[Any], request: HttpRequest
    ) -> tuple[list[str], dict[str, int], set[str], list[str]]:
        """What the confirmation page shows: no other rows depend on a message."""
        lacking = set() if self.has_delete_permission(request) else {str(self.opts.verbose_name)}
        shown = [f"{message} to {message.mailbox}: {self.excerpt(message)}" for message in objs]
        return shown, {str(self.opts.verbose_name_plural): len(shown)}, lacking, []

    def log_deletions(self, request: HttpRequest, queryset: Any) -> list[LogEntry]:
        return []  # Django calls this before the deletion; StaffAction writes the entry with it

    def delete_model(self, request: HttpRequest, obj: Message) -> None:
        action = StaffAction(verb=services.delete, name="Deleted", flag=DELETION, user_id=cast("int", request.user.pk))
        action.apply_to([obj.pk])
