"""Cross-origin requests (the Fetch standard's CORS protocol) for the origins that MESSAGES_CORS_ORIGINS allows.

Only in use when that setting names one. No credentials are allowed: callers send a key, never a cookie.
"""

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.utils.cache import patch_vary_headers

_METHODS = "GET, HEAD, POST, PATCH, DELETE"
_REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key, If-None-Match, X-Request-ID"
_EXPOSED = "ETag, Link, Location, X-Request-ID, RateLimit, RateLimit-Policy, Retry-After, Idempotency-Replayed"
_PREFLIGHT_SECONDS = "3600"


class CorsMiddleware:
    """Answers preflights itself, and lets the allowed origins read every other answer, errors included."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response
        self.origins = frozenset(settings.MESSAGES_CORS_ORIGINS)

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        origin = request.META.get("HTTP_ORIGIN")
        is_allowed = origin in self.origins and not request.path_info.startswith("/admin")
        is_preflight = request.method == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in request.META
        response = HttpResponse(status=204) if is_allowed and is_preflight else self.get_response(request)
        patch_vary_headers(response, ("Origin",))
        if origin is not None and is_allowed:
            response.headers["Access-Control-Allow-Origin"] = origin
            if is_preflight:
                response.headers["Access-Control-Allow-Methods"] = _METHODS
                response.headers["Access-Control-Allow-Headers"] = _REQUEST_HEADERS
                response.headers["Access-Control-Max-Age"] = _PREFLIGHT_SECONDS
            else:
                response.headers["Access-Control-Expose-Headers"] = _EXPOSED
        return response
