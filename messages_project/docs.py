"""The OpenAPI document, Swagger UI and Redoc, from the application's own static files under a strict content policy.

What they show is generated from the API's views; nothing here describes it.
"""

import json
from functools import cache
from hashlib import sha256

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import condition

from messages_project.health import read_only


@cache
def _generated(*, open_access: bool) -> tuple[bytes, str]:
    """The document as JSON and its entity tag. Made once in each process: it takes tenths of a second."""
    # Here, since whoever is never asked for it needs no generator in memory.
    from messaging.api.schema import document

    text = json.dumps(document(open_access=open_access), ensure_ascii=False, separators=(",", ":")).encode()
    return text, f'"{sha256(text).hexdigest()[:16]}"'


def _served() -> tuple[bytes, str]:
    return _generated(open_access=settings.MESSAGES_ACCESS == "open")


@read_only
@condition(etag_func=lambda _request: _served()[1])
def openapi(_request: HttpRequest) -> HttpResponse:
    """The OpenAPI document."""
    return HttpResponse(_served()[0], content_type="application/json", headers={"Cache-Control": "no-cache"})


@read_only
def swagger(request: HttpRequest) -> HttpResponse:
    """Swagger UI."""
    return render(request, "messages_project/swagger.html")


@read_only
def redoc(request: HttpRequest) -> HttpResponse:
    """Redoc."""
    return render(request, "messages_project/redoc.html")
