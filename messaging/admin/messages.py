"""The admin's pages for messages and mailboxes: to look at, to search and filter; marking and deleting by the services.

Nothing here writes a table, and no list costs more because a table is large: what a page may cost is said beside it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.text import Truncator

from messaging import services
from messaging.access import EVERYONE, Caller
from messaging.errors import MessagingError
from messaging.models import Mailbox, Message, MessageQuerySet
from messaging.records import BulkOutcome
from messaging.validation import id_from, name_fault

# Generic for type checkers only.
if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
else:
    ModelAdmin = admin.ModelAdmin

# What a list shows at most, and an action takes: counting and skipping rows costs time for each of them.
MAX_LISTED = 10_000
EXCERPT_LENGTH = 80  # characters of a content in a list

admin.site.site_header = admin.site.site_title = "Messages"
admin.site.site_url = "/docs"  # there is no page at /
admin.site.index_title = "Administration"


class CappedPaginator(Paginator):  # type: ignore[type-arg]  # of whatever the list is of
    """Pages of at most the first MAX_LISTED rows, so that neither the count nor the last page grows with the table."""

    @cached_property
    def count(self) -> int:
        """The number of rows, or MAX_LISTED if there are more."""
        return cast("QuerySet[Model]", self.object_list)[:MAX_LISTED].count()


class CappedChangeList(ChangeList):
    """A list that says when it does not show everything."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.result_count >= MAX_LISTED:
            self.title = f"The first {MAX_LISTED:,} {self.opts.verbose_name_plural}: search or filter for others"


class ReadOnlyAdmin(ModelAdmin):
    """Pages that show and never save: whatever changes goes through the services."""

    paginator = CappedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 50
    sortable_by = ()

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list that says when it does not show everything."""
        return CappedChangeList

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Messages come in by the API."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Saving a form would write fields back as they were when it was opened."""
        return False


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
        if not chosen:
            return queryset
        return queryset.none() if name_fault(chosen, "") else queryset.filter(mailbox__recipient=chosen)


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


@admin.register(Message)
class MessageAdmin(ReadOnlyAdmin):
    """Messages, the latest first."""

    list_display = ("excerpt", "recipient", "sender", "seq", "created_at", "is_read")
    list_display_links = ("excerpt",)
    list_filter = (MailboxFilter, ReadFilter, "created_at")
    list_select_related = ("mailbox",)
    search_fields = ("id",)  # what is searched stands in get_search_results; this shows the box
    search_help_text = (
        "An id, a sender, or how a recipient begins. Within one mailbox (choose it in the list of mailboxes): the "
        "beginning of a sender, or any part of a content."
    )
    fields = ("id", "mailbox_link", "seq", "sender", "content", "metadata", "created_at", "read_at")
    readonly_fields = fields
    actions = ("mark_read", "mark_unread", "delete_selected")

    def get_ordering(self, request: HttpRequest) -> tuple[str]:
        """By arrival: in one mailbox by `seq`, over all of them by id, which rises with time. Each has its index."""
        return ("-seq",) if request.GET.get(MailboxFilter.parameter_name) else ("-pk",)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Message], search_term: str
    ) -> tuple[QuerySet[Message], bool]:
        """The messages searched for.

        By id this costs an index look-up; by recipient and sender a scan of the table, if there are few of them; by
        content one of the mailbox, since only there it is bearable.
        """
        term = search_term.strip()
        if not term:
            return queryset, False
        if message_id := id_from(term):
            return queryset.filter(pk=message_id), False
        if request.GET.get(MailboxFilter.parameter_name):
            return queryset.filter(Q(sender__startswith=term) | Q(content__icontains=term)), False
        mailboxes = Mailbox.objects.filter(recipient__startswith=term).values("pk")
        return queryset.filter(Q(mailbox__in=mailboxes) | Q(sender=term)), False

    @admin.display(description="content")
    def excerpt(self, message: Message) -> str:
        """How the content begins."""
        return Truncator(message.content).chars(EXCERPT_LENGTH)

    @admin.display(description="recipient")
    def recipient(self, message: Message) -> str:
        """Whose message it is."""
        return message.mailbox.recipient

    @admin.display(description="read", boolean=True)
    def is_read(self, message: Message) -> bool:
        """Whether it is marked as read."""
        return message.read_at is not None

    @admin.display(description="mailbox")
    def mailbox_link(self, message: Message) -> str:
        """A link to the message's mailbox."""
        address = reverse("admin:messaging_mailbox_change", args=(message.mailbox_id,))
        return format_html('<a href="{}">{}</a>', address, message.mailbox.recipient)

    def has_mark_permission(self, request: HttpRequest) -> bool:
        """Whether the user may mark messages as read and unread: the permission to change them."""
        return bool(cast("Any", request.user).has_perm("messaging.change_message"))

    @admin.action(permissions=["mark"], description="Mark selected messages as read")
    def mark_read(self, request: HttpRequest, queryset: QuerySet[Message]) -> None:
        """Mark the selected messages as read."""
        self._mark(request, queryset, services.mark_read, "read")

    @admin.action(permissions=["mark"], description="Mark selected messages as unread")
    def mark_unread(self, request: HttpRequest, queryset: QuerySet[Message]) -> None:
        """Mark the selected messages as unread."""
        self._mark(request, queryset, services.mark_unread, "unread")

    @admin.action(permissions=["delete"], description="Delete selected messages")
    def delete_selected(self, request: HttpRequest, queryset: QuerySet[Message]) -> HttpResponseBase | None:
        """Django's own action, with its page that asks once more."""
        # That page sends each message as a field of its form.
        limit = min(MAX_LISTED, (settings.DATA_UPLOAD_MAX_NUMBER_FIELDS or MAX_LISTED) - 10)
        return None if self._is_too_much(request, queryset, limit) else delete_selected(self, request, queryset)

    def _mark(
        self,
        request: HttpRequest,
        queryset: QuerySet[Message],
        verb: Callable[..., BulkOutcome],
        state: str,
    ) -> None:
        if self._is_too_much(request, queryset, MAX_LISTED):
            return
        changed = unchanged = 0
        failure = ""
        try:
            for outcome in in_bulk(verb, list(queryset.values_list("pk", flat=True))):
                changed += outcome.changed
                unchanged += outcome.unchanged
        except MessagingError as error:
            failure = f" Then: {error}"
        self.message_user(
            request,
            f"{changed:,} messages marked as {state}, {unchanged:,} already were.{failure}",
            messages.ERROR if failure else messages.SUCCESS,
        )

    def _is_too_much(self, request: HttpRequest, queryset: QuerySet[Message], limit: int) -> bool:
        """Whether "select all" would reach more messages than may be changed at once, or than the list has shown."""
        if queryset[: limit + 1].count() <= limit:
            return False
        self.message_user(
            request,
            f"More than {limit:,} messages at once. Search or filter for fewer.",
            messages.ERROR,
        )
        return True

    def get_deleted_objects(
        self, objs: Sequence[Any] | QuerySet[Any], request: HttpRequest
    ) -> tuple[list[str], dict[str, int], set[str], list[str]]:
        """What the page before a deletion shows. Nothing hangs on a message, so nothing else is looked for."""
        lacking = set() if self.has_delete_permission(request) else {str(self.opts.verbose_name)}
        shown = [f"{message} to {message.mailbox}: {self.excerpt(message)}" for message in objs]
        return shown, {str(self.opts.verbose_name_plural): len(shown)}, lacking, []

    def delete_model(self, request: HttpRequest, obj: Message) -> None:
        """Delete one message."""
        services.delete(ids=[obj.pk], caller=EVERYONE)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Message]) -> None:
        """Delete the messages that were confirmed."""
        for _ in in_bulk(services.delete, [message.pk for message in queryset]):
            pass


def in_bulk(verb: Callable[..., BulkOutcome], ids: Sequence[UUID], caller: Caller = EVERYONE) -> Iterable[BulkOutcome]:
    """The outcomes of a verb for any number of messages, MESSAGES_MAX_BULK in a transaction."""
    for start in range(0, len(ids), settings.MESSAGES_MAX_BULK):
        yield verb(ids=ids[start : start + settings.MESSAGES_MAX_BULK], caller=caller)


@admin.register(Mailbox)
class MailboxAdmin(ReadOnlyAdmin):
    """Mailboxes, by their recipients."""

    list_display = ("recipient", "total", "unread", "version", "messages")
    search_fields = ("recipient",)  # what is searched stands in get_search_results; this shows the box
    search_help_text = "How a recipient begins."
    ordering = ("recipient",)
    fields = list_display
    readonly_fields = fields

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """A mailbox keeps its version for good: a new one would use it again for other messages."""
        return False

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Mailbox], search_term: str
    ) -> tuple[QuerySet[Mailbox], bool]:
        """The mailboxes whose recipient begins so, found by the index of the recipients."""
        return queryset.filter(recipient__startswith=search_term.strip()), False

    @admin.display(description="messages")
    def messages(self, mailbox: Mailbox) -> str:
        """A link to the messages."""
        query = urlencode({MailboxFilter.parameter_name: mailbox.recipient})
        return format_html('<a href="{}?{}">Show</a>', reverse("admin:messaging_message_changelist"), query)
