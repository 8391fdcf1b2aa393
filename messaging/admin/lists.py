"""Lists of the admin that cost the same however large the table is: what they count and look through is bounded."""

from typing import TYPE_CHECKING, Any, cast

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ERROR_FLAG, ChangeList
from django.core.exceptions import BadRequest
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property

# Generic for type checkers only.
if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
else:
    ModelAdmin = admin.ModelAdmin

# What a list shows at most, and an action takes: counting and skipping rows costs time for each of them.
MAX_LISTED = 10_000


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
        if self.result_count >= self.most:
            self.title = f"The first {self.most:,} {self.opts.verbose_name_plural}: search or filter for others"

    @property
    def most(self) -> int:
        """How many rows it shows at most."""
        return MAX_LISTED


class ReadOnlyAdmin(ModelAdmin):
    """Pages that show and never save: whatever changes goes through the services."""

    paginator = CappedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 50
    sortable_by = ()
    lookups: frozenset[str] = frozenset()  # the parameters of its filters

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list that says when it does not show everything."""
        return CappedChangeList

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        """The list, as Django's, which takes a second wrong address for a fault of the database.

        Raises:
            BadRequest: the address has a filter that there is not, although a first one was passed over.
        """
        try:
            return super().get_changelist_instance(request)
        except IncorrectLookupParameters as error:
            if ERROR_FLAG in request.GET:
                raise BadRequest("no such filter") from error
            raise

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """Only the filters that the page offers: Django would search any column for what an address asks."""
        return lookup in self.lookups

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Messages come in by the API."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Saving a form would write fields back as they were when it was opened."""
        return False
