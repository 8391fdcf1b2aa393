"""Django's admin log, read-only: what staff have changed, the latest first."""

from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.db.models import Model
from django.http import HttpRequest

from messaging.admin.lists import ReadOnlyAdmin


@admin.register(LogEntry)
class LogEntryAdmin(ReadOnlyAdmin):
    list_display = ("action_time", "user", "kind", "content_type", "object_repr", "message")
    list_filter = ("action_flag",)
    lookups = frozenset({"action_flag__exact"})
    list_select_related = ("user", "content_type")
    search_fields = ("user__username", "object_id")
    search_help_text = "A user's name, or the id of what was changed."
    fields = list_display
    readonly_fields = fields

    @admin.display(description="action")
    def kind(self, entry: LogEntry) -> str:
        return entry.get_action_flag_display()

    @admin.display(description="what was done")
    def message(self, entry: LogEntry) -> str:
        return entry.get_change_message()

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False  # staff must not delete the record of their own changes
