"""Mailboxes in the admin: search by the beginning of a recipient; counts and a link to the messages of each."""

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
    list_display = ("recipient", "total", "unread", "version", "messages")
    search_fields = ("recipient",)  # makes Django show the search box; get_search_results searches
    search_help_text = "How a recipient begins."
    ordering = ("recipient",)
    fields = list_display
    readonly_fields = fields

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False  # a new mailbox would use the versions of the deleted one again

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Mailbox], search_term: str
    ) -> tuple[QuerySet[Mailbox], bool]:
        return queryset.filter(recipient__startswith=search_term.strip()), False

    @admin.display(description="messages")
    def messages(self, mailbox: Mailbox) -> str:
        query = urlencode({MailboxFilter.parameter_name: mailbox.recipient})
        return format_html('<a href="{}?{}">Show</a>', reverse("admin:messaging_message_changelist"), query)
