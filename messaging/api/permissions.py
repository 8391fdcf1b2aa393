"""What a caller must hold to make a call: the scope that the view names for it.

Which mailboxes the caller reaches is no permission but a condition of each statement (services.py, queries.py).
"""

from typing import Any

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from messaging.errors import InsufficientScopeError


class HasScope(BasePermission):
    """The caller holds the scope of the action: the view's `scopes[action]`.

    An action that the table lacks is a KeyError, so a route that somebody forgot is closed and not open.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        """True.

        Raises:
            InsufficientScopeError: the caller lacks the scope.
        """
        # None: the method leads to no action, so a 405 follows. `metadata` answers OPTIONS and tells nothing.
        if view.action in {None, "metadata"}:
            return True
        scope = view.scopes[view.action]
        caller: Any = request.user
        if not caller.may(scope):
            raise InsufficientScopeError(scope)
        return True
