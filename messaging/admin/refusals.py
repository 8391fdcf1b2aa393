"""HTML pages for refusals below /admin/: what was refused, why, and which setting or permission is missing."""

import json
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.sites import site
from django.contrib.sessions.exceptions import SessionInterrupted
from django.core.exceptions import BadRequest, DisallowedHost, PermissionDenied, SuspiciousOperation, ValidationError
from django.db import DataError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.template.loader import render_to_string

from messaging.api.answers import PROBLEM_MEDIA_TYPE
from messaging.api.problems import Problem, problem_of, title_of
from messaging.postgresql.sqlstates import QUERY_CANCELED, has_lost_connection, sqlstate

_TOO_SLOW = Problem(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "too_slow",
    "PostgreSQL took longer than POSTGRES_STATEMENT_TIMEOUT_MS allows, so the page was given up. Nothing was changed. "
    "Go back and narrow the search: choose a mailbox or a period, or search for an id.",
)
_PERHAPS_CHANGED = Problem(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "outcome_unknown",
    "The database cannot be reached. What the form was to change may have been changed: look before you repeat it.",
)
_INVALID_ADDRESS = Problem(
    HTTPStatus.BAD_REQUEST,
    "bad_request",
    "The address of the page names something that does not exist. Go back to the list and choose its filters there.",
)
_LOGGED_OUT = Problem(HTTPStatus.BAD_REQUEST, "bad_request", "The session ended while the page was made. Log in again.")
_METHOD_NOT_ALLOWED = "This address takes a form only. Go back to the page that leads here, and use its button."


def page(request: HttpRequest, problem: Problem) -> HttpResponse:
    """The problem as a page of the admin. It reads neither session nor database, since these may have failed."""
    context = {
        "site_header": site.site_header,
        "site_title": site.site_title,
        "title": title_of(problem.status),
        "problem": problem,
        "request_id": getattr(request, "request_id", ""),
    }
    return HttpResponse(
        render_to_string("messaging/refusal.html", context),
        status=problem.status,
        headers={"Cache-Control": "no-store"} | problem.headers,
    )


def page_of_error(request: HttpRequest, error: Exception) -> HttpResponse | None:
    """The page for an exception of the admin's views; None for an unexpected exception."""
    problem = problem_of(error)
    if sqlstate(error) == QUERY_CANCELED:
        problem = _TOO_SLOW
    elif has_lost_connection(error) and request.method == "POST":
        problem = _PERHAPS_CHANGED
    elif isinstance(error, PermissionDenied):
        problem = _forbidden(request)
    elif isinstance(error, Http404):
        problem = Problem(HTTPStatus.NOT_FOUND, "not_found", "There is nothing at this address.")
    elif isinstance(error, SessionInterrupted):
        problem = _LOGGED_OUT
    elif problem is None and isinstance(
        error, IncorrectLookupParameters | DataError | BadRequest | SuspiciousOperation | ValidationError
    ):
        problem = _INVALID_ADDRESS
    elif isinstance(error, ValueError) and "expected a number but got" in str(error):
        problem = _INVALID_ADDRESS  # Django's for a selected id that is none; of a message it is a ValidationError
    return page(request, problem) if problem else None


def as_page(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    """The response; for a refusal that is not HTML, a page that says the same."""
    if (
        response.status_code < HTTPStatus.BAD_REQUEST
        or not isinstance(response, HttpResponse)
        or (response.content and response.headers.get("Content-Type", "").startswith("text/html"))
    ):
        return response
    status = HTTPStatus(response.status_code)
    code, detail = "refused", _METHOD_NOT_ALLOWED if status == HTTPStatus.METHOD_NOT_ALLOWED else status.description
    if response.headers.get("Content-Type") == PROBLEM_MEDIA_TYPE and response.content:
        document: dict[str, Any] = json.loads(response.content)
        code, detail = document["code"], _host_detail(request) or document["detail"]
    kept = {name: value for name, value in response.items() if name not in {"Content-Type", "Content-Length"}}
    shown = page(request, Problem(status, code, detail, headers=kept))
    shown.cookies = response.cookies
    return shown


def _host_detail(request: HttpRequest) -> str:
    """The reason if the request's Host is refused; else empty."""
    try:
        request.get_host()
    except DisallowedHost:
        name = request.headers.get("Host", "").rpartition("@")[2]
        return f"The service does not answer to the name {name!r}. If it is one of its own, add it to ALLOWED_HOSTS."
    return ""


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Django's CSRF_FAILURE_VIEW. Only forms of the admin have CSRF tokens."""
    return page(request, Problem(HTTPStatus.FORBIDDEN, "csrf_failed", _csrf_detail(request, reason)))


def _csrf_detail(request: HttpRequest, reason: str) -> str:
    here = f"{request.scheme}://{request.get_host()}"
    origin = request.headers.get("Origin", "")
    if reason.startswith("Origin") and origin != "null":
        return (
            f"The form was sent from {origin}, but this service takes forms from {here} only. "
            f"If both are this service, start it with CSRF_TRUSTED_ORIGINS={origin}, or with PUBLIC_URL. "
            + _proxy_advice(is_https=origin.startswith("https:"), request=request)
        )
    if reason.startswith(("Origin", "Referer")):
        referer = urlsplit(request.headers.get("Referer", ""))
        sender = f"{referer.scheme}://{referer.netloc}" if referer.netloc else "an address that the browser withheld"
        return (
            f"The form was sent from {sender}, but this service takes forms from {here} only. Open {here}/admin/ and "
            "try again there. If both are this service, name that origin in CSRF_TRUSTED_ORIGINS."
        )
    if "cookie not set" in reason:
        if settings.CSRF_COOKIE_SECURE and not request.is_secure():
            return (
                f"The browser did not send the form's cookie: the service gives its cookies to https only, and this is "
                f"{here}. On a machine of your own, start it with PLAIN_HTTP=true. "
                + _proxy_advice(is_https=True, request=request)
            )
        return "The browser did not send the form's cookie. Allow cookies for this site, then load the form again."
    return "The form's token is missing or stale, as after a log-in in another window. Load the page again."


def _proxy_advice(*, is_https: bool, request: HttpRequest) -> str:
    if is_https and not request.is_secure():
        return "Behind a proxy that ends TLS, let it send X-Forwarded-Proto and set TRUST_FORWARDED_PROTO=true."
    return "Behind a proxy that rewrites the Host header, let it pass on the one that the browser sent."


def _forbidden(request: HttpRequest) -> Problem:
    user = getattr(request, "user", None)
    name = user.get_username() if user is not None and user.is_authenticated else ""
    who = f"You are logged in as {name}, and this account" if name else "This account"
    return Problem(
        HTTPStatus.FORBIDDEN,
        "permission_denied",
        f"{who} may not do this. A superuser can give it the permission, under Users or Groups.",
    )
