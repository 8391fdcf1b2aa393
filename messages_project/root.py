"""`GET /`: leads a browser to the documentation, and tells a program where things are."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect

from messages_project.health import read_only
from messaging.api.pagination import base_url

_PATHS = {
    "messages": "/messages/",
    "mailbox": "/mailbox",
    "changes": "/changes",
    "ticket": "/mailbox/ticket",
    "health": "/health",
    "livez": "/livez",
    "readyz": "/readyz",
    "metrics": "/metrics",
    "docs": "/docs",
    "redoc": "/redoc",
    "openapi": "/openapi.json",
    "inbox": "/inbox",
    "admin": "/admin/",
}


@read_only
def root(request: HttpRequest) -> HttpResponse:
    """A redirect, or `{"service", "version"}` and an absolute URL for each name of `_PATHS`."""
    response: HttpResponse
    if "text/html" in request.headers.get("Accept", ""):
        response = redirect("docs")
    else:
        base = base_url(request)
        urls = {name: base + path for name, path in _PATHS.items()}
        response = JsonResponse({"service": "messages", "version": settings.SPECTACULAR_SETTINGS["VERSION"], **urls})
    response.headers["Vary"] = "Accept"
    return response
