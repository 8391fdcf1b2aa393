"""The permission of a call: the scope that the view names for its action.

Access to a mailbox is not a permission, but a condition of each statement (services.py, queries.py).
"""

from typing import Any

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from messaging.api.authentication import caller_of
from messaging.errors import InsufficientScopeError


class HasScope(BasePermission):
    """The caller holds the scope of the action, the view's `scopes[action]`; else InsufficientScopeError.

    An action without a scope raises KeyError, so a forgotten one is closed and not open.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        # None: the method has no action, so a 405 follows. `metadata` answers OPTIONS.
        if view.action in {None, "metadata"}:
            return True
        scope = view.scopes[view.action]
        if scope not in caller_of(request).scopes:
            raise InsufficientScopeError(scope)
        return True
