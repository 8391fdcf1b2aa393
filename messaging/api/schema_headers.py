"""The headers of requests and responses in the OpenAPI document, with examples."""

from typing import Any

from messaging.api.examples import CURSOR, ETAG, MESSAGE_ID, REQUEST_ID
from messaging.api.idempotency import MAX_KEY_LENGTH


def _parameter(name: str, description: str, schema: dict[str, Any], example: Any) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": description, "schema": schema, "example": example}


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
