"""API keys in the admin: create (the text is shown once), list, revoke. A key cannot be edited."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.defaultfilters import pluralize
from django.template.response import TemplateResponse

from messaging.access import Scope
from messaging.auth import keys
from messaging.models import ApiKey

_DESCRIPTION = ("name", "scopes", "recipient", "sender", "expires_at")


class NewKeyForm(forms.ModelForm):  # type: ignore[type-arg]  # generic for type checkers only
    scopes = forms.MultipleChoiceField(
        choices=[(scope.value, scope.value) for scope in Scope], widget=forms.CheckboxSelectMultiple
    )

    class Meta:
        model = ApiKey
        fields = _DESCRIPTION

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in {"recipient", "sender"} & self.fields.keys():
            # Names are compared exactly: without its spaces, a name is another one, or none, which permits all.
            self.fields[name].strip = False  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        described = super().clean() or {}
        if not self.errors:
            for fault in keys.faults_of(**described):
                self.add_error(fault.pointer[1:], fault.detail)
        return described


@admin.register(ApiKey)
class ApiKeyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    form = NewKeyForm
    list_display = ("name", "prefix", "state", "scopes", "recipient", "sender", "expires_at", "last_used_at")
    search_fields = ("name", "prefix", "recipient")
    show_full_result_count = False
    actions = ("revoke_selected",)

    def state(self, key: ApiKey) -> str:
        return keys.state_of(key)

    def get_queryset(self, request: HttpRequest) -> QuerySet[ApiKey]:
        return keys.all_keys().defer("secret_sha256")

    def get_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        if obj is None:
            return _DESCRIPTION
        return (*_DESCRIPTION, "prefix", "state", "created_at", "revoked_at", "last_used_at")

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """No filters: Django would filter by any column that a URL names, even by the hashes of secrets."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        # A revoked key is kept, so that its prefix in a log still identifies it.
        return False

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("messaging.change_apikey")

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:  # noqa: FBT001 - Django's
        key, text = keys.create(**{name: form.cleaned_data[name] for name in _DESCRIPTION})
        obj.pk, obj.prefix, obj.created_at = key.pk, key.prefix, key.created_at
        obj.text = text  # type: ignore[attr-defined]  # for response_add

    def response_add(self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None) -> HttpResponse:
        """The page that shows the key. A redirect with one of Django's messages would put the key into a cookie."""
        context = self.admin_site.each_context(request) | {
            "title": f"API key for {obj.name}",
            "opts": self.opts,
            "key": obj,
            "text": obj.text,  # type: ignore[attr-defined]
        }
        return TemplateResponse(request, "messaging/new_key.html", context)

    @admin.action(description="Revoke selected API keys", permissions=["revoke"])
    def revoke_selected(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        working = [key for key in queryset if key.revoked_at is None]
        with transaction.atomic():
            for key in working:
                self.log_change(request, keys.revoke(prefix=key.prefix), "Revoked.")
        messages.success(request, f"Revoked {len(working)} API key{pluralize(working)}, within 5 seconds everywhere.")
