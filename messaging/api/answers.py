"""Responses: msgspec structs rendered as JSON. The OpenAPI document describes these structs and those of records.py."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any

from django.http import HttpResponse
from msgspec import Meta, Struct

from messaging.records import Count, Id, Instant, MailboxRecord, MessageRecord, to_json

MEDIA_TYPE = "application/json"
PROBLEM_MEDIA_TYPE = "application/problem+json"
VERSION = "Messages-Version"

UrlOrNull = Annotated[str | None, Meta(extra_json_schema={"type": ["string", "null"], "format": "uri"})]


class PageAnswer(Struct, frozen=True):
    """A page of messages, links to its neighbours, and the mailbox at the same instant."""

    results: Annotated[Sequence[MessageRecord], Meta(description="The messages, in the order asked for.")]
    next: Annotated[UrlOrNull, Meta(description="The URL of the next page; null at the end. Use it unchanged.")]
    previous: Annotated[UrlOrNull, Meta(description="The URL of the previous page; null at the beginning.")]
    mailbox: MailboxRecord


class ChangesAnswer(Struct, frozen=True):
    """What has changed in a mailbox since a version. Replace by id, then remove by id; the last of each id counts."""

    messages: Annotated[
        Sequence[MessageRecord],
        Meta(description="Messages that arrived or were marked, as they now stand, in the order of the changes."),
    ]
    deleted: Annotated[Sequence[Id], Meta(description="The ids of messages deleted or expired.")]
    since: Annotated[Count, Meta(description="The `since` of the request.")]
    until: Annotated[
        Count, Meta(description="The version up to which this is complete: the next `since`, once `next` is null.")
    ]
    next: Annotated[UrlOrNull, Meta(description="The URL of the next changes; null at the end. Use it unchanged.")]
    mailbox: MailboxRecord


class BatchAnswer(Struct, frozen=True):
    """The messages of a batch, in the order given."""

    results: Sequence[MessageRecord]


class TicketAnswer(Struct, frozen=True):
    """A ticket for the live endpoints."""

    ticket: Annotated[str, Meta(description="For `?ticket=`; opaque.")]
    expires_at: Annotated[Instant, Meta(description="Streams that were opened with it continue after that.")]


def answer(data: Any, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> HttpResponse:
    """A response with `data` as its body.

    A rendered HttpResponse and not DRF's Response, which is rendered after the view: the outcome under an
    Idempotency-Key is stored in the transaction of its change.
    """
    return rendered_answer(to_json(data), status, headers)


def rendered_answer(body: bytes, status: int, headers: Mapping[str, str] | None = None) -> HttpResponse:
    """A response with a body that is JSON, or without body and Content-Type."""
    response = HttpResponse(body, status=status, headers={"Content-Type": MEDIA_TYPE, **(headers or {})})
    if not body:
        del response.headers["Content-Type"]
    return response


def empty_answer(status: int, headers: Mapping[str, str] | None = None) -> HttpResponse:
    return rendered_answer(b"", status, headers)


def version_headers(mailbox: MailboxRecord) -> dict[str, str]:
    """The headers of whatever is read from a mailbox."""
    return {"ETag": mailbox.etag, VERSION: str(mailbox.version)}
