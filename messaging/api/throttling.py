"""The throttle of DRF: charges requests, and sets the headers that show how much of a limit is left.

The headers are those of draft-ietf-httpapi-ratelimit-headers-11 (23 May 2026), sections 3 and 4.
"""

import math
from typing import Any

from rest_framework.exceptions import Throttled
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from messaging import metrics
from messaging.api.authentication import caller_of
from messaging.auth import limits


class CallerThrottle(BaseThrottle):
    """Charges a request to its caller: one request of `read` for a safe method, of `write` for any other."""

    _decision: limits.Decision | None = None

    def allow_request(self, request: Request, view: Any) -> bool:
        self._decision = _charge(request, _policy_name(request), limits.HUNDREDTHS)
        return self._decision is None or self._decision.allowed

    def wait(self) -> float | None:
        return self._decision.reset_seconds if self._decision else None


def charge_extra(request: Request, items: int) -> None:
    """Charge what a bulk or batch call of `items` costs beyond its one request: a hundredth of a request for each.

    A call that costs more than the limit takes all of it, so it passes only as the first of its window.

    Raises Throttled if the limit does not allow it. The request itself stays counted, since its body was read.
    """
    name = _policy_name(request)
    policy = limits.policy(name)
    if policy is not None:
        decision = _charge(request, name, min(items, (policy.quota - 1) * limits.HUNDREDTHS))
        if decision is not None and not decision.allowed:
            raise Throttled(decision.reset_seconds)


def _policy_name(request: Request) -> limits.PolicyName:
    return "read" if request.method in SAFE_METHODS else "write"


def _charge(request: Request, name: limits.PolicyName, cost: int) -> limits.Decision | None:
    decision = limits.take(name, caller_of(request).identity, cost)
    if decision is not None:
        if not decision.allowed:
            metrics.rate_limited.labels(name).inc()
        limit = decision.policy
        http: Any = request._request  # on Django's request, since finalize_response clears DRF's
        http.rate_limit_headers = {
            "RateLimit-Policy": f'"{name}";q={limit.quota};w={limit.seconds}',
            "RateLimit": f'"{name}";r={decision.remaining};t={math.ceil(decision.reset_seconds)}',
        }
    return decision
