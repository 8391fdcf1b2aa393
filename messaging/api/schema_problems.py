"""The refusals in the OpenAPI document. Status, code, text and headers of each come from its exception."""

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from msgspec import to_builtins
from rest_framework import exceptions
from rest_framework.exceptions import ErrorDetail
from rest_framework.renderers import JSONRenderer

from messaging import errors
from messaging.access import Scope
from messaging.api import authentication, problems
from messaging.api.answers import PROBLEM_MEDIA_TYPE
from messaging.api.examples import REQUEST_ID
from messaging.api.parsers import BATCH_BODY_FACTOR, BodyTooLarge

# One instance of each exception that an operation can raise.
_RAISED: tuple[Exception, ...] = (
    exceptions.ValidationError({"content": [ErrorDetail("This field is required.", "required")]}),
    exceptions.NotAuthenticated(authentication.MISSING),
    exceptions.AuthenticationFailed(authentication.INVALID),
    errors.InsufficientScopeError(Scope.SEND),
    errors.NotFoundError(),
    exceptions.NotAcceptable(available_renderers=[JSONRenderer()]),
    errors.IdempotencyKeyInUseError(),
    errors.OutcomeDeletedError(),
    errors.ChangesExpiredError(),
    BodyTooLarge(settings.MESSAGES_MAX_BODY_BYTES),
    exceptions.UnsupportedMediaType("text/plain"),
    errors.IdempotencyKeyReusedError(),
    exceptions.Throttled(42),
    errors.TooManyStreamsError(),
    errors.StreamsExhaustedError(),
    errors.DatabaseUnavailableError(),
    errors.OutcomeUnknownError(),
    authentication.TokenKeysUnavailable(),
)
_OF_OPERATIONS = [found for found in map(problems.problem_of, _RAISED) if found] + [
    problems.BAD_REQUEST,
    problems.INTERNAL_ERROR,
]
# Raised outside of operations: unknown paths, and methods that a path does not have.
_OTHERS = (problems.UNKNOWN_PATH, problems.problem_of(exceptions.MethodNotAllowed("PUT")))

_DESCRIPTIONS = {
    400: "The request is not valid; `errors` lists every fault and its place. Nothing was changed.",
    401: "The key or token is missing or not valid.",
    403: "The key or token lacks the scope of the call.",
    404: "There is no such message, or its mailbox is not accessible to the caller: the response is the same.",
    406: "`Accept` excludes JSON, the only format.",
    409: "The first request with this Idempotency-Key is still running.",
    410: "Gone: the changes since that version, or a message that was sent with this Idempotency-Key.",
    413: f"The body has more than {settings.MESSAGES_MAX_BODY_BYTES:,} bytes; a batch may have "
    f"{settings.MESSAGES_MAX_BODY_BYTES * BATCH_BODY_FACTOR:,}.",
    415: "The body is not `application/json`, or it is compressed.",
    422: "This Idempotency-Key was used for another request.",
    429: "The caller has reached a limit. Nothing was changed.",
    500: "An error in the service; its log has the details under the request id.",
    503: "The service is temporarily unavailable. Unless `code` is `outcome_unknown`, nothing was changed.",
}
# Raised before the request is counted.
_UNCOUNTED = frozenset({401, 403, 406, 500})

CODES = sorted({problem.code for problem in (*_OF_OPERATIONS, *_OTHERS) if problem})


def name_of(status: int) -> str:
    """The name of the component that describes the refusals of a status."""
    return problems.title_of(status).replace(" ", "")


def _response(status: int, description: str) -> dict[str, Any]:
    found = [problem for problem in _OF_OPERATIONS if problem.status == status]
    headers = ["X-Request-ID", *found[0].headers, *(() if status in _UNCOUNTED else ("RateLimit", "RateLimit-Policy"))]
    return {
        "description": description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
        "content": {
            PROBLEM_MEDIA_TYPE: {
                "schema": {"$ref": "#/components/schemas/Problem"},
                "examples": {
                    problem.code: {"value": to_builtins(problem.document(path="/messages/", request_id=REQUEST_ID))}
                    for problem in found
                },
            }
        },
    }


RESPONSES: Mapping[str, dict[str, Any]] = {
    name_of(status): _response(status, description) for status, description in _DESCRIPTIONS.items()
}
