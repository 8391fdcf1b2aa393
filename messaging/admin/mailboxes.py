"""Mailboxes in the admin: found by how a recipient begins, each with its counts and a link to its messages."""

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.http import urlencode

from messaging.admin.filters import MailboxFilter
from messaging.admin.lists import ReadOnlyAdmin
from messaging.models import Mailbox


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
