"""The components that all operations of the OpenAPI document share: headers, and refusals.

Status, code, text and headers of each refusal come from its exception.
"""

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
from messaging.api.examples import CURSOR, ETAG, MESSAGE_ID, REQUEST_ID
from messaging.api.idempotency import MAX_KEY_LENGTH
from messaging.api.parsers import BATCH_BODY_FACTOR, BodyTooLarge


def _parameter(name: str, description: str, schema: dict[str, Any], example: Any) -> dict[str, Any]:
    # Swagger UI would send an example beside the schema, so that all changes had one Idempotency-Key.
    return {"name": name, "in": "header", "description": description, "schema": {**schema, "examples": [example]}}


HEADER_PARAMETERS: dict[str, dict[str, Any]] = {
    "IfNoneMatch": _parameter(
        "If-None-Match",
        "The `ETag` of an earlier response. If the mailbox has not changed since then, the response is 304, which does "
        "not count against the rate limit.",
        {"type": "string"},
        ETAG,
    ),
    "MinVersion": _parameter(
        "Messages-Min-Version",
        "The oldest version of the mailbox that the response may show; 0 for any. If the service has read replicas, "
        "one of them may then answer. Send the newest version of the mailbox that you have seen. Without this header "
        "the response shows the newest state.",
        {"type": "integer", "format": "int64", "minimum": 0},
        12,
    ),
    "IdempotencyKey": _parameter(
        "Idempotency-Key",
        "Makes a retry safe: the outcome of the first request is stored for 24 hours, in the transaction of its "
        "change, and returned again for the same request with the same key. Choose a new key for each new "
        "request, a UUID for instance.",
        {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH, "pattern": "^[!-~]([ -~]*[!-~])?$"},
        "0c7b1e52-6a0f-4b9e-8a36-2f1d9c3e5b70",
    ),
    "RequestId": _parameter(
        "X-Request-ID",
        "An id for this request, in the response and in the service's log: 1 to 128 characters of `[A-Za-z0-9._-]`. "
        "Any other value is replaced.",
        {"type": "string"},
        REQUEST_ID,
    ),
}


def _header(description: str, schema: dict[str, Any], example: Any, *, required: bool = False) -> dict[str, Any]:
    return {"description": description, "required": required, "schema": schema, "example": example}


_TEXT = {"type": "string"}
HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-ID": _header(
        "The id of this request.", {**_TEXT, "pattern": "^[A-Za-z0-9._-]{1,128}$"}, REQUEST_ID, required=True
    ),
    "ETag": _header(
        "The version of the mailbox, for `If-None-Match`.", {**_TEXT, "pattern": '^"[^"]+"$'}, ETAG, required=True
    ),
    "Messages-Version": _header(
        "The version of the mailbox, for `Messages-Min-Version`.",
        {"type": "integer", "format": "int64", "minimum": 0},
        12,
    ),
    "Link": _header(
        "The URLs of the neighbouring pages, `next` and `prev` (RFC 8288), if there are any.",
        _TEXT,
        f'<http://localhost:8000/messages/?recipient=alice%40example.com&cursor={CURSOR}>; rel="next"',
    ),
    "Location": _header(
        "The URL of the message.",
        {**_TEXT, "format": "uri"},
        f"http://localhost:8000/messages/{MESSAGE_ID}",
        required=True,
    ),
    "Idempotency-Replayed": _header(
        "Present if this is the stored outcome of an earlier request with the same Idempotency-Key.",
        {**_TEXT, "enum": ["true"]},
        "true",
    ),
    "RateLimit-Policy": _header(
        "The limit that applies, if there is one: requests (q) in a window of seconds (w). See "
        "draft-ietf-httpapi-ratelimit-headers-11.",
        {**_TEXT, "pattern": '^"(read|write)";q=[0-9]+;w=[0-9]+$'},
        '"write";q=600;w=60',
    ),
    "RateLimit": _header(
        "What is left of the limit: requests (r), and seconds until the window ends (t).",
        {**_TEXT, "pattern": '^"(read|write)";r=[0-9]+;t=[0-9]+$'},
        '"write";r=598;t=42',
    ),
    "Retry-After": _header(
        "Seconds to wait before sending the same request again.",
        {"type": "integer", "minimum": 0},
        1,
        required=True,
    ),
    "WWW-Authenticate": _header("The authentication scheme (RFC 6750).", _TEXT, "Bearer", required=True),
}

_WITH_ARGUMENTS = (errors.InvalidInputError, errors.InsufficientScopeError)
# One instance of each exception that an operation can raise. Invalid input is shown as DRF raises it.
_RAISED: tuple[Exception, ...] = (
    exceptions.ValidationError({"content": [ErrorDetail("This field is required.", "required")]}),
    exceptions.NotAuthenticated(authentication.MISSING),
    exceptions.AuthenticationFailed(authentication.INVALID, "invalid_key"),
    errors.InsufficientScopeError(Scope.SEND),
    exceptions.NotAcceptable(available_renderers=[JSONRenderer()]),
    BodyTooLarge(settings.MESSAGES_MAX_BODY_BYTES),
    exceptions.UnsupportedMediaType("text/plain"),
    exceptions.Throttled(42),
    *(error() for error in problems.STATUS_OF if error not in _WITH_ARGUMENTS),
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
