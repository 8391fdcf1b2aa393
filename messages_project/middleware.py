"""Middleware: request id, access log, security headers and Host for every request; sessions and CSRF for the admin.

Requests to the API skip the middleware of the admin.
"""

import logging
import re
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from django.conf import settings
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.exceptions import DisallowedHost
from django.core.handlers.exception import convert_exception_to_response
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.csrf import CsrfViewMiddleware
from uuid_utils import uuid7
from whitenoise.middleware import WhiteNoiseMiddleware

from messages_project.health import read_only
from messages_project.logs import log_access
from messaging import metrics
from messaging.database import check_own_commits

logger = logging.getLogger(__name__)

GetResponse = Callable[[HttpRequest], HttpResponseBase]

_is_request_id = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII).fullmatch

# RFC 9110, 8.6: a 204 has no Content-Length, and that of a 304 would be the length of another response.
_NO_LENGTH = frozenset({204, 304})
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}
# For HTML. Swagger UI and Redoc use inline styles, and Redoc's search is a worker from a blob.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; connect-src 'self'; font-src 'self' data:;"
    " form-action 'self'; frame-ancestors 'none'; img-src 'self' data:; script-src 'self';"
    " style-src 'self' 'unsafe-inline'; worker-src blob:",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


def route_of(request: HttpRequest) -> str:
    """The template of a request's path, such as `/messages/{id}`; `unmatched` if no route matches."""
    match = request.resolver_match
    if match is not None:
        return _template(match.route)
    return "/static" if request.path_info.startswith(settings.STATIC_URL) else "unmatched"


@lru_cache(maxsize=256)
def _template(route: str) -> str:
    if route.startswith("admin"):
        return "/admin"
    path = re.sub(r"\(\?P<\w+>.*?\)", "{id}", route.strip("^$").removesuffix("/?"))
    return "/" + path.replace("\\", "")


class RequestMiddleware:
    """Assigns the request id; adds it and the security headers to the response; writes the access log.

    It is on the hot path; docs/performance.md says what it takes.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        self.headers = tuple(_HEADERS.items())
        if settings.HSTS_SECONDS:
            self.headers += (("Strict-Transport-Security", f"max-age={settings.HSTS_SECONDS}"),)

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        started = time.perf_counter()
        request_id = request.META.get("HTTP_X_REQUEST_ID")
        if request_id is None or not _is_request_id(request_id):
            request_id = uuid7().hex
        request.request_id = request_id  # type: ignore[attr-defined]
        response = self.get_response(request)
        headers = response.headers
        headers["X-Request-ID"] = request_id
        if isinstance(response, HttpResponse):
            if response.status_code not in _NO_LENGTH:
                # Without it the server would use chunked encoding.
                headers["Content-Length"] = str(len(response.content))
            # As it was sent: for Granian `head` is another method than HEAD (RFC 9110, 9.1), for Django it is not.
            if request.META["REQUEST_METHOD"] == "HEAD":
                response.content = b""
        for name, value in self.headers:
            headers[name] = value
        if headers.get("Content-Type", "").startswith("text/html"):
            for name, value in _PAGE_HEADERS.items():
                headers.setdefault(name, value)
        size = len(response.content) if isinstance(response, HttpResponse) else 0
        seconds = time.perf_counter() - started
        metrics.observe_request(route_of(request), request.method or "-", response.status_code, seconds)
        if "Idempotency-Replayed" in headers:
            metrics.idempotent_replays.inc()
        parts = {
            "method": request.method or "-", "path": request.path, "status": response.status_code,
            "milliseconds": round(seconds * 1e3, 3), "bytes": size,
            "caller": getattr(request, "caller_name", "-"), "request_id": request_id,
        }  # fmt: skip
        log_access(parts, request.META.get("HTTP_TRACEPARENT", ""))
        return response


class StaticFilesMiddleware(WhiteNoiseMiddleware):  # type: ignore[misc]
    """WhiteNoise, which gives whole files, and refuses other methods with a problem document."""

    @staticmethod
    def serve(static_file: Any, request: HttpRequest) -> HttpResponse:
        request.META.pop("HTTP_RANGE", None)  # RFC 9110, 14.2: a server may ignore it
        return read_only(partial(WhiteNoiseMiddleware.serve, static_file))(request)


class HostMiddleware:
    """Refuses a Host that is not in ALLOWED_HOSTS with 400, which prevents DNS rebinding.

    The health endpoints accept any Host, since probes call them by address. So do the metrics where they need a key,
    since Prometheus calls each instance by its own name: a page that rebinds a name has no key.
    """

    _OPEN = frozenset({"/health", "/livez", "/readyz"})
    _KNOWN_HOSTS = 100

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        self.known: set[str] = set()
        self.open = self._OPEN | ({"/metrics"} if settings.MESSAGES_ACCESS == "keys" else set())

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        host = request.META.get("HTTP_HOST")
        if host not in self.known and request.path_info.rstrip("/") not in self.open:
            try:
                request.get_host()
            except DisallowedHost:
                logger.warning("refused the Host %.100r, which ALLOWED_HOSTS does not name", host)
                raise
            if host is not None and len(self.known) < self._KNOWN_HOSTS:
                self.known.add(host)
        return self.get_response(request)


class AdminMiddleware:
    """Runs Django's session, CSRF, authentication, messages and clickjacking middleware for /admin only.

    It turns every refusal below /admin into an HTML page, those of HostMiddleware included, so it wraps that one.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        inner: Any = get_response
        for wrap in (XFrameOptionsMiddleware, MessageMiddleware, AuthenticationMiddleware):
            inner = convert_exception_to_response(wrap(inner))
        self.csrf: Any = CsrfViewMiddleware(inner)
        self.admin: Any = SessionMiddleware(convert_exception_to_response(self.csrf))

    @staticmethod
    def is_for(request: HttpRequest) -> bool:
        # The live process, whose requests have a urlconf of their own, has no admin.
        is_api = not hasattr(request, "urlconf")
        return is_api and (request.path_info.startswith("/admin/") or request.path_info == "/admin")

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if not self.is_for(request):
            return self.get_response(request)
        # Imported here, since a process that serves only the API loads no admin.
        from messaging.admin.refusals import as_page, page_of_error

        try:
            response: HttpResponseBase = self.admin(request)
            check_own_commits()
        except Exception as error:  # also where the session could not be saved
            refusal = page_of_error(request, error)
            if refusal is None:
                raise
            return refusal
        return as_page(request, response)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponseBase | None:
        from messaging.admin.refusals import page_of_error

        return page_of_error(request, exception) if self.is_for(request) else None

    def process_view(self, request: HttpRequest, *view: Any) -> HttpResponseBase | None:
        answer: HttpResponseBase | None = self.csrf.process_view(request, *view) if self.is_for(request) else None
        return answer
