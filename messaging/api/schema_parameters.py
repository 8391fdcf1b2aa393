"""The parameters of the OpenAPI document and the headers of its answers, with their examples.

Which operation has which stands in schema_operations.py.
"""

from typing import Any

from django.conf import settings

from messaging.api.idempotency import MAX_KEY_LENGTH
from messaging.api.pagination import DEFAULT_PAGE_SIZE, NEWEST_FIRST, OLDEST_FIRST
from messaging.api.serializers import NAME, NAME_OR_NOTHING

ALICE, BOB = "alice@example.com", "bob@example.com"
MESSAGE_ID = "019b5c3e-7a10-7c32-9d5e-0b8f4a6d2c91"
OTHER_ID = "019b5c3e-9f44-7d08-b1a7-53e2c6f0d418"
ETAG = '"7d1f0c6ab2e4-12"'
REQUEST_ID = "019b5c3e7a107c329d5e0b8f4a6d2c91"
# After alice's message number 11, newest first and without filters: of all her messages, and of the unread ones.
CURSOR, UNREAD_CURSOR = "AAAAAAAAAAALI-GhIMDUS68", "AAAAAAAAAAALalp5cl7oBw4"

_INSTANT = {"type": "string", "format": "date-time"}


def _query(name: str, description: str, schema: dict[str, Any], example: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema, "example": example}


def _header_parameter(name: str, description: str, schema: dict[str, Any], example: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": description, "schema": schema, "example": example}


def _cursor(example: str) -> dict[str, Any]:
    return _query(
        "cursor",
        "Where the page begins, as the links of another page have it; opaque. Recipient, filters and ordering must "
        "be those of that page; `limit` may differ.",
        {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"},
        example,
    )


PARAMETERS: dict[str, dict[str, Any]] = {
    "Id": {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "The id of a message.",
        "schema": {"type": "string", "format": "uuid"},
        "example": MESSAGE_ID,
    },
    "Recipient": _query(
        "recipient",
        "Whose mailbox, compared exactly. Required, unless your key is bound to a recipient.",
        NAME,
        ALICE,
    ),
    "Limit": _query(
        "limit",
        f"Messages in a page. More than {settings.MESSAGES_MAX_PAGE_SIZE} are lowered to it.",
        {
            "type": "integer",
            "minimum": 1,
            "default": min(DEFAULT_PAGE_SIZE, settings.MESSAGES_MAX_PAGE_SIZE),
        },
        20,
    ),
    "Cursor": _cursor(CURSOR),
    "UnreadCursor": _cursor(UNREAD_CURSOR),
    "Ordering": _query(
        "ordering",
        "Newest or oldest first, by the order in which the messages arrived.",
        {"type": "string", "enum": [NEWEST_FIRST, OLDEST_FIRST], "default": NEWEST_FIRST},
        OLDEST_FIRST,
    ),
    "Sender": _query(
        "sender",
        "Only messages of exactly this sender; empty finds those without one.",
        NAME_OR_NOTHING,
        BOB,
    ),
    "IsRead": _query("is_read", "Only read or only unread messages.", {"type": "boolean"}, False),  # noqa: FBT003
    "CreatedAfter": _query(
        "created_after",
        "Only messages that arrived then or later (RFC 3339 with an offset; write + as %2B).",
        _INSTANT,
        "2026-01-31T00:00:00Z",
    ),
    "CreatedBefore": _query(
        "created_before",
        "Only messages that arrived earlier (RFC 3339 with an offset; write + as %2B).",
        _INSTANT,
        "2026-02-01T00:00:00+01:00",
    ),
    "AllowMissing": _query(
        "allow_missing",
        "Answer 204 also where there is no such message.",
        {"type": "boolean", "default": False},
        True,  # noqa: FBT003
    ),
    "IfNoneMatch": _header_parameter(
        "If-None-Match",
        "The `ETag` of an earlier answer: if the mailbox has not changed since, 304 is the answer, which reads no "
        "message and costs nothing of the rate limit.",
        {"type": "string"},
        ETAG,
    ),
    "IdempotencyKey": _header_parameter(
        "Idempotency-Key",
        "Makes a retry safe: the first outcome is kept for 24 hours, in the transaction of its change, and given "
        "again for the same request under the same key. Choose a new one for each new request, a UUID for instance.",
        {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH, "pattern": "^[!-~]([ -~]*[!-~])?$"},
        "0c7b1e52-6a0f-4b9e-8a36-2f1d9c3e5b70",
    ),
    "RequestId": _header_parameter(
        "X-Request-ID",
        "Names this request in the answer and in the service's log, if it is 1 to 128 characters of `[A-Za-z0-9._-]`; "
        "anything else is replaced.",
        {"type": "string"},
        REQUEST_ID,
    ),
}


def _header(description: str, schema: dict[str, Any], example: Any, *, required: bool = False) -> dict[str, Any]:
    return {"description": description, "required": required, "schema": schema, "example": example}


_TEXT = {"type": "string"}
_SECONDS = {"type": "integer", "minimum": 0}
_TAG = {"type": "string", "pattern": '^"[^"]+"$'}
HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-ID": _header(
        "The id of this request.", {**_TEXT, "pattern": "^[A-Za-z0-9._-]{1,128}$"}, REQUEST_ID, required=True
    ),
    "ETag": _header("The version of the mailbox, for `If-None-Match`.", _TAG, ETAG, required=True),
    "Link": _header(
        "The pages around this one, `next` and `prev` (RFC 8288), where there are such.",
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
        "Present where this is the outcome of an earlier request with the same Idempotency-Key.",
        {**_TEXT, "enum": ["true"]},
        "true",
    ),
    "RateLimit-Policy": _header(
        "The limit that applies, where there is one: requests (q) in a window of seconds (w). After "
        "draft-ietf-httpapi-ratelimit-headers-11.",
        {**_TEXT, "pattern": '^"(read|write)";q=[0-9]+;w=[0-9]+$'},
        '"write";q=600;w=60',
    ),
    "RateLimit": _header(
        "What is left of it: requests (r), and seconds until a new window (t).",
        {**_TEXT, "pattern": '^"(read|write)";r=[0-9]+;t=[0-9]+$'},
        '"write";r=598;t=42',
    ),
    "Retry-After": _header(
        "Seconds to wait before the same request is worth sending again.", _SECONDS, 1, required=True
    ),
    "WWW-Authenticate": _header("How to prove who you are (RFC 6750).", _TEXT, "Bearer", required=True),
    "Allow": _header("The methods that there are.", _TEXT, "GET, POST, HEAD, OPTIONS", required=True),
}
