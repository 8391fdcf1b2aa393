"""The problems that the OpenAPI document names: for each status its codes, with an example of each.

What raises them stands in problems.py; a test raises one of each and compares.
"""

from typing import Any, NamedTuple

from django.conf import settings

from messaging.api.parsers import BATCH_BODY_FACTOR
from messaging.api.problems import title_of
from messaging.api.renderers import PROBLEM_MEDIA_TYPE
from messaging.api.schema_parameters import REQUEST_ID


class ProblemKind(NamedTuple):
    """The problems of one status: the name of their component, when they occur, and a `detail` for each `code`."""

    component: str
    description: str
    details: dict[str, str]
    headers: tuple[str, ...] = ()


PROBLEMS: dict[int, ProblemKind] = {
    400: ProblemKind(
        "BadRequest",
        "The request is not valid; `errors` names every fault and where it is. Nothing was changed.",
        {
            "invalid_input": "This field is required.",
            "bad_request": "The request is not acceptable. Check its Host header and its form.",
        },
    ),
    401: ProblemKind(
        "Unauthorized",
        "There is no key or token, or one that is not valid.",
        {
            "not_authenticated": "This call needs a key or token. Send it in the header: `Authorization: Bearer KEY`.",
            "invalid_key": "This key or token is not valid, or no longer. Check it, or ask the operator for a new one.",
        },
        ("WWW-Authenticate",),
    ),
    403: ProblemKind(
        "Forbidden",
        "The key or token lacks the scope of the call.",
        {
            "insufficient_scope": "This call needs the scope `send`, which your key or token lacks. "
            "Ask the operator for one with it."
        },
    ),
    404: ProblemKind(
        "NotFound",
        "There is no such message, or it is in a mailbox that is not yours to reach: the two look the same.",
        {
            "not_found": "There is nothing here that you can reach. Check the id, and that your key may reach its "
            "mailbox.",
        },
    ),
    405: ProblemKind(
        "MethodNotAllowed",
        "The path has no such method; `Allow` lists those that there are.",
        {"method_not_allowed": 'Method "PUT" not allowed. The header Allow says which are.'},
        ("Allow",),
    ),
    406: ProblemKind(
        "NotAcceptable",
        "`Accept` rules out JSON, and there is nothing else.",
        {"not_acceptable": "Answers are JSON only. Send Accept: application/json, or no Accept at all."},
    ),
    409: ProblemKind(
        "Conflict",
        "The first request with this Idempotency-Key is still running.",
        {
            "idempotency_key_in_use": "The first request with this Idempotency-Key is still running. "
            "Send the same request again in a moment."
        },
        ("Retry-After",),
    ),
    413: ProblemKind(
        "ContentTooLarge",
        f"The body has more than {settings.MESSAGES_MAX_BODY_BYTES:,} bytes; a batch may have "
        f"{settings.MESSAGES_MAX_BODY_BYTES * BATCH_BODY_FACTOR:,}.",
        {
            "body_too_large": f"The body is larger than {settings.MESSAGES_MAX_BODY_BYTES:,} bytes. "
            "Send less in one call."
        },
    ),
    415: ProblemKind(
        "UnsupportedMediaType",
        "The body is not `application/json`, or it is compressed.",
        {
            "unsupported_media_type": 'Unsupported media type "text/plain" in request. Send JSON, with Content-Type: '
            "application/json."
        },
    ),
    422: ProblemKind(
        "UnprocessableContent",
        "This Idempotency-Key was used for another request.",
        {
            "idempotency_key_reused": "This Idempotency-Key was used for another request. "
            "Use a new key for each new request."
        },
    ),
    429: ProblemKind(
        "TooManyRequests",
        "The rate limit is reached. Nothing was changed.",
        {"rate_limited": "Request was throttled. Expected available in 42 seconds."},
        ("Retry-After",),
    ),
    500: ProblemKind(
        "InternalServerError",
        "Something failed in the service; its log has more under the request id.",
        {"internal_error": "Something failed in here. Report the request id to the operator."},
    ),
    503: ProblemKind(
        "ServiceUnavailable",
        "The service cannot do this just now. Unless `code` is `outcome_unknown`, nothing was changed.",
        {
            "database_unavailable": "The database cannot be reached or is too busy; nothing was changed. "
            "Send the same request again in a moment.",
            "outcome_unknown": "The database was lost before it confirmed the change, so whether it was made is "
            "unknown. If you sent an Idempotency-Key, send the same request with the same key again: it is made once "
            "only. Without a key, look whether the change is there before you repeat it.",
            "token_keys_unavailable": "The keys that sign tokens cannot be fetched just now. "
            "Send the same request again in a moment.",
        },
        ("Retry-After",),
    ),
}

# Of no operation: a path that leads nowhere.
OTHER_CODES = ("unknown_path",)

FAULT_CODES = (
    "blank", "control_character", "duplicate_key", "foreign_cursor", "incomplete_body", "inexact_number", "invalid",
    "invalid_cursor", "invalid_idempotency_key", "invalid_instant", "invalid_limit", "invalid_ordering",
    "invalid_utf8", "lone_surrogate", "malformed_json", "not_a_list", "not_a_string", "not_a_uuid", "not_an_object",
    "nul_character", "repeated_parameter", "required", "sender_mismatch", "too_deep", "too_large", "too_long",
    "too_many", "too_many_parameters", "unknown_field", "unknown_parameter",
)  # fmt: skip


FAULT = {
    "type": "object",
    "description": "One thing wrong with the input.",
    "required": ["pointer", "code", "detail"],
    "properties": {
        "pointer": {
            "type": "string",
            "description": "Where: a JSON Pointer (RFC 6901) into the body, `?name` for a query parameter, or empty "
            "for the request as a whole.",
        },
        "code": {"type": "string", "enum": list(FAULT_CODES), "description": "What programs go by."},
        "detail": {"type": "string", "description": "What to do about it, for people."},
    },
}
PROBLEM = {
    "type": "object",
    "description": "A problem document (RFC 9457).",
    "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "description": "`about:blank`: `code` says more."},
        "title": {"type": "string", "description": "The phrase of the status."},
        "status": {"type": "integer", "minimum": 400, "maximum": 599, "description": "The status, once more."},
        "detail": {"type": "string", "description": "What went wrong and what to do next, for people."},
        "instance": {"type": "string", "description": "The path of the request."},
        "code": {
            "type": "string",
            "enum": [*(code for kind in PROBLEMS.values() for code in kind.details), *OTHER_CODES],
            "description": "What went wrong; stable, and what programs go by.",
        },
        "request_id": {"type": "string", "description": "Under which the service's log has the request."},
        "errors": {
            "type": "array",
            "items": {"$ref": "#/components/schemas/Fault"},
            "minItems": 1,
            "description": "Every fault of the input, at most 100 of them; with `invalid_input` only.",
        },
    },
}


def problem(status: int, code: str, detail: str) -> dict[str, Any]:
    """An example of a problem document."""
    members: dict[str, Any] = {
        "type": "about:blank",
        "title": title_of(status),
        "status": status,
        "detail": detail,
        "instance": "/messages/",
        "code": code,
        "request_id": REQUEST_ID,
    }
    if code == "invalid_input":
        members["errors"] = [{"pointer": "/content", "code": "required", "detail": detail}]
    return members


def response_of(status: int) -> dict[str, Any]:
    """The component that describes the problems of one status."""
    kind = PROBLEMS[status]
    headers = ("X-Request-ID", *kind.headers)
    if status not in {401, 403, 405, 406, 500}:  # those come before the counting
        headers += ("RateLimit", "RateLimit-Policy")
    narrowed = {"properties": {"status": {"const": status}, "code": {"enum": list(kind.details)}}}
    examples = {code: {"value": problem(status, code, detail)} for code, detail in kind.details.items()}
    return {
        "description": kind.description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
        "content": {
            PROBLEM_MEDIA_TYPE: {
                "schema": {"allOf": [{"$ref": "#/components/schemas/Problem"}, narrowed]},
                "examples": examples,
            }
        },
    }
