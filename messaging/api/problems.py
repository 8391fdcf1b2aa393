"""Turns every exception that is a refusal into a problem document (RFC 9457).

The only place that maps the errors of errors.py, of DRF, Django and the database to HTTP statuses.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any

from django.core.exceptions import RequestDataTooBig
from django.db import Error as DatabaseError
from django.http import HttpRequest, HttpResponse
from django.utils.encoding import escape_uri_path
from msgspec import Meta, Struct
from rest_framework import exceptions
from rest_framework.settings import api_settings

from messaging import errors
from messaging.api.answers import PROBLEM_MEDIA_TYPE
from messaging.api.parsers import BodyTooLarge
from messaging.errors import MAX_FAULTS, Fault
from messaging.postgresql.sqlstates import is_unavailable, reason_of
from messaging.records import to_json

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 1  # the Retry-After of a refusal that may pass

STATUS_OF: dict[type[errors.MessagingError], HTTPStatus] = {
    errors.InvalidInputError: HTTPStatus.BAD_REQUEST,
    errors.InsufficientScopeError: HTTPStatus.FORBIDDEN,
    errors.NotFoundError: HTTPStatus.NOT_FOUND,
    errors.IdempotencyKeyInUseError: HTTPStatus.CONFLICT,
    errors.OutcomeDeletedError: HTTPStatus.GONE,
    errors.ChangesExpiredError: HTTPStatus.GONE,
    errors.IdempotencyKeyReusedError: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.TooManyStreamsError: HTTPStatus.TOO_MANY_REQUESTS,
    errors.StreamsExhaustedError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.DatabaseUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.OutcomeUnknownError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.TokenKeysUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
}

# DRF's codes, if this API has another code for the same fault.
_CODES = {
    "throttled": "rate_limited",
    **dict.fromkeys(("invalid_choice", "min_value", "max_value", "max_string_length"), "invalid"),
}
# Statuses that carry Retry-After.
_PASSING = frozenset({HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


# The phrases of RFC 9110 for statuses whose phrase differs between versions of Python.
_TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}


def title_of(status: int) -> str:
    return _TITLES.get(status) or HTTPStatus(status).phrase


class ProblemDocument(Struct, frozen=True, omit_defaults=True):
    """A problem document (RFC 9457)."""

    # With it, `title` is the phrase of the status (RFC 9457, 4.2.1).
    type: Annotated[str, Meta(description="Always `about:blank`; see `code`.")]
    title: Annotated[str, Meta(description="The reason phrase of the status.")]
    status: Annotated[int, Meta(description="The HTTP status.", ge=400, le=599)]
    detail: Annotated[str, Meta(description="What went wrong and what to do next, for people.")]
    instance: Annotated[str, Meta(description="The path of the request.")]
    code: Annotated[str, Meta(description="The kind of problem, for programs. Later versions may add codes.")]
    request_id: Annotated[str, Meta(description="The id of the request in the service's log.")]
    errors: Annotated[
        tuple[Fault, ...],
        Meta(description=f"The faults of the input, at most {MAX_FAULTS}; with `invalid_input` only.", min_length=1),
    ] = ()


@dataclass(frozen=True)
class Problem:
    """The parts of a problem document that differ between refusals."""

    status: HTTPStatus
    code: str
    detail: str
    faults: tuple[Fault, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)

    def document(self, *, path: str, request_id: str) -> ProblemDocument:
        title = title_of(self.status)
        return ProblemDocument(
            "about:blank", title, self.status.value, self.detail, path, self.code, request_id, self.faults
        )

    def answer(self, request: HttpRequest) -> HttpResponse:
        # RFC 9457, 3.1.5: a URI reference. Django has decoded the path.
        document = self.document(path=escape_uri_path(request.path), request_id=getattr(request, "request_id", ""))
        headers = self.headers | {"Content-Type": PROBLEM_MEDIA_TYPE}
        return HttpResponse(to_json(document), status=self.status, headers=headers)


# Problems without an exception.
BAD_REQUEST = Problem(
    HTTPStatus.BAD_REQUEST, "bad_request", "The request is not acceptable. Check its Host header and its form."
)
UNKNOWN_PATH = Problem(
    HTTPStatus.NOT_FOUND,
    "unknown_path",
    "This process serves nothing at this path. /docs lists the paths of the API, and those of the live process, which "
    "has a port of its own.",
)
INTERNAL_ERROR = Problem(
    HTTPStatus.INTERNAL_SERVER_ERROR,
    "internal_error",
    "The service failed. Report the request id to the operator.",
)
FORM_TOO_LARGE = Problem(
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, BodyTooLarge.default_code, "The body is too large. Send less in one call."
)


def problem_of(error: BaseException) -> Problem | None:
    """The problem of an exception; None for an unexpected exception."""
    if isinstance(error, exceptions.ValidationError):
        error = errors.InvalidInputError(list(faults_of(error.detail)))
    if isinstance(error, errors.MessagingError):
        return _domain_problem(error)
    if isinstance(error, exceptions.APIException):
        return _drf_problem(error)
    if isinstance(error, DatabaseError) and is_unavailable(error):
        return _domain_problem(errors.DatabaseUnavailableError())
    return FORM_TOO_LARGE if isinstance(error, RequestDataTooBig) else None


def faults_of(detail: Any, pointer: str = "") -> Iterator[Fault]:
    """The faults of a DRF ValidationError's detail: a tree of members and list indexes, with lists of errors as leaves.

    A key that begins with a slash or a question mark already is a pointer. Other keys are names of fields.
    """
    if isinstance(detail, exceptions.ErrorDetail):
        code = str(detail.code)
        yield Fault(pointer, _CODES.get(code, code), str(detail))
    elif isinstance(detail, list):
        for item in detail:
            yield from faults_of(item, pointer)
    else:
        for key, item in detail.items():
            inner = "" if key == api_settings.NON_FIELD_ERRORS_KEY else str(key)
            yield from faults_of(item, pointer + (f"/{inner}" if inner and inner[0] not in "/?" else inner))


def _domain_problem(error: errors.MessagingError) -> Problem:
    status = STATUS_OF[type(error)]
    faults = error.faults if isinstance(error, errors.InvalidInputError) else ()
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status in _PASSING else {}
    return Problem(status, error.code, f"{error.detail} {error.advice}".strip(), faults, headers)


def _drf_problem(error: exceptions.APIException) -> Problem:
    code = str(error.get_codes())
    detail = str(error.detail)
    headers = {}
    match error:
        case exceptions.AuthenticationFailed() | exceptions.NotAuthenticated():
            headers["WWW-Authenticate"] = "Bearer"
        case exceptions.Throttled():
            headers["Retry-After"] = str(getattr(error, "wait", None) or RETRY_AFTER_SECONDS)
        case exceptions.MethodNotAllowed():
            # Without the method's name, so that HEAD is told the length of what GET is.
            detail = "This method is not allowed here. The header Allow says which are."
        case exceptions.UnsupportedMediaType():
            detail = f"{detail} Send JSON, with Content-Type: application/json."
        case exceptions.NotAcceptable():
            types = " or ".join(renderer.media_type for renderer in error.available_renderers or ())
            detail = f"This is served as {types} only. Send Accept: {types}, or no Accept at all."
    status = HTTPStatus(error.status_code)
    if status in _PASSING:
        headers.setdefault("Retry-After", str(RETRY_AFTER_SECONDS))
    return Problem(status, _CODES.get(code, code), detail, headers=headers)


def problem_handler(error: Exception, context: dict[str, Any]) -> HttpResponse | None:
    """DRF's exception handler. None leaves an unexpected exception to Django, which logs it: `server_error`."""
    problem = problem_of(error)
    if problem is None:
        return None
    request: HttpRequest = context["request"]._request
    if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        # The cause, which the response does not name.
        logger.warning("%s: %s", problem.code, reason_of(error))
    return problem.answer(request)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler400, such as for a Host that is not allowed."""
    return (problem_of(exception) or BAD_REQUEST).answer(request)


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:  # noqa: ARG001 - Django's signature
    """Django's handler404: no route matches the path."""
    return UNKNOWN_PATH.answer(request)


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler500: shows only the request id, under which the log has the exception."""
    return INTERNAL_ERROR.answer(request)
