"""django-filter with the fields of the API. The filters of messages stand in serializers.py."""

from typing import Any

from django import forms
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema_field
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.fields import Field

from messaging.api.parameters import named_as_parameters


class _FormField(forms.Field):
    """A form's field that reads its value by a field of the API."""

    def __init__(self, *, rule: Field[Any, Any, Any, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rule = rule

    def to_python(self, value: Any) -> Any:
        """The value; None where the parameter is not given."""
        try:
            return None if value is None else self.rule.run_validation(value)
        except ValidationError as error:
            [detail] = error.detail
            assert isinstance(detail, ErrorDetail)
            # As a parameter, since django-filter takes a percent sign in the message for a placeholder.
            raise forms.ValidationError("%(detail)s", detail.code, {"detail": str(detail)}) from None


class FieldFilter(filters.Filter):
    """A filter whose values are those of a field of the API, which also describes it."""

    field_class = _FormField

    def __init__(self, rule: Field[Any, Any, Any, Any], **kwargs: Any) -> None:
        super().__init__(rule=rule, **kwargs)
        extend_schema_field(rule)(self)

    def filter(self, qs: Any, value: Any) -> Any:
        """The selected messages; unlike django-filter's own, empty text is a value."""
        return qs if value is None else self.get_method(qs)(**{f"{self.field_name}__{self.lookup_expr}": value})


class QueryFilterBackend(filters.DjangoFilterBackend):
    """Filters by the query parameters that the view has read, which are text that PostgreSQL can store."""

    def get_filterset_kwargs(self, request: Any, queryset: Any, view: Any) -> dict[str, Any]:
        """As the base class, with the parameters read once."""
        return {"data": view.given, "queryset": queryset, "request": request}

    def filter_queryset(self, request: Any, queryset: Any, view: Any) -> Any:
        """What the filters select; None without filters, since such a page is one statement that is compiled once."""
        if view.given.keys().isdisjoint(view.filterset_class.base_filters):
            return None
        with named_as_parameters():
            return super().filter_queryset(request, queryset, view)
