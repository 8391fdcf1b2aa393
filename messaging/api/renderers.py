"""From records to an answer."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from django.http import HttpResponse
from rest_framework.renderers import BaseRenderer

from messaging.records import to_json

MEDIA_TYPE = "application/json"
PROBLEM_MEDIA_TYPE = "application/problem+json"


def answer(data: Any, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> HttpResponse:
    """An answer with `data` as its body.

    A finished answer and not DRF's Response: there is one media type, so nothing is left to choose or render later.
    """
    return rendered_answer(to_json(data), status, headers)


def empty_answer(status: int, headers: Mapping[str, str] | None = None) -> HttpResponse:
    """An answer without content."""
    return rendered_answer(b"", status, headers)


def rendered_answer(body: bytes, status: int, headers: Mapping[str, str] | None = None) -> HttpResponse:
    """An answer with a body that is JSON already, or with none and so without a type."""
    response = HttpResponse(body, status=status, headers={"Content-Type": MEDIA_TYPE, **(headers or {})})
    if not body:
        del response.headers["Content-Type"]
    return response


class RecordRenderer(BaseRenderer):
    """JSON for DRF: what its negotiation and the OpenAPI document know of."""

    media_type = MEDIA_TYPE
    format = "json"
    charset = None
    render_style = "text"

    def render(
        self, data: Any, accepted_media_type: str | None = None, renderer_context: Mapping[str, Any] | None = None
    ) -> bytes:
        """The bytes of the answer; none for an answer without content."""
        return b"" if data is None else to_json(data)
