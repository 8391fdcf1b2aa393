"""Connects django-filter with the fields of the API. serializers.py declares the filters of messages."""

from typing import Any

from django import forms
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema_field
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.fields import Field

from messaging.api.parameters import named_as_parameters


class _FormField(forms.Field):
    """A form field that validates its value with a field of the API."""

    def __init__(self, *, rule: Field[Any, Any, Any, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rule = rule

    def to_python(self, value: Any) -> Any:
        try:
            return None if value is None else self.rule.run_validation(value)
        except ValidationError as error:
            [detail] = error.detail
            assert isinstance(detail, ErrorDetail)
            # As a parameter, since a percent sign in the message would be a placeholder.
            raise forms.ValidationError("%(detail)s", detail.code, {"detail": str(detail)}) from None


class FieldFilter(filters.Filter):
    """A filter that a field of the API validates and describes."""

    field_class = _FormField

    def __init__(self, rule: Field[Any, Any, Any, Any], **kwargs: Any) -> None:
        super().__init__(rule=rule, **kwargs)
        extend_schema_field(rule)(self)

    def filter(self, qs: Any, value: Any) -> Any:
        """The selected messages. Unlike in django-filter, an empty text is a value."""
        return qs if value is None else self.get_method(qs)(**{f"{self.field_name}__{self.lookup_expr}": value})


class QueryFilterBackend(filters.DjangoFilterBackend):
    """Filters by the query parameters that the view has validated."""

    def get_filterset_kwargs(self, request: Any, queryset: Any, view: Any) -> dict[str, Any]:
        return {"data": view.given, "queryset": queryset, "request": request}

    def filter_queryset(self, request: Any, queryset: Any, view: Any) -> Any:
        """What the filters select; None without filters, since such a page is one statement that is compiled once."""
        if view.given.keys().isdisjoint(view.filterset_class.base_filters):
            return None
        with named_as_parameters():
            return super().filter_queryset(request, queryset, view)
