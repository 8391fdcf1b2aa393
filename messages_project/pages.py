"""`/`, which says where things are, and /inbox, a page that shows one mailbox to a person."""

import re
from urllib.parse import urlsplit

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.vary import vary_on_headers

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
@vary_on_headers("Accept")
def root(request: HttpRequest) -> HttpResponse:
    """A redirect for a browser; else `{"service", "version"}` and an absolute URL for each name of `_PATHS`."""
    if "text/html" in request.headers.get("Accept", ""):
        return redirect("docs")
    base = base_url(request)
    urls = {name: base + path for name, path in _PATHS.items()}
    return JsonResponse({"service": "messages", "version": settings.SPECTACULAR_SETTINGS["VERSION"], **urls})


@read_only
def inbox(request: HttpRequest) -> HttpResponse:
    """The same page for all; the token is in the fragment of its URL.

    Its Content-Security-Policy allows requests to this service and the live process only.
    """
    live = _live_url(request)
    origin = live and "{0.scheme}://{0.netloc}".format(urlsplit(live))  # a path in a policy permits that path alone
    response = render(request, "messaging/inbox.html", {"live": live})
    response.headers["Content-Security-Policy"] = (
        f"default-src 'none'; base-uri 'none'; connect-src 'self' {origin}; form-action 'none'; frame-ancestors 'none';"
        " img-src 'self'; script-src 'self'; style-src 'self'"
    )
    return response


def _live_url(request: HttpRequest) -> str:
    """The URL at which browsers reach the live process; empty for the origin of this page."""
    url: str = settings.LIVE_URL
    if not url and settings.PLAIN_HTTP and not settings.PUBLIC_URL:
        # In development no proxy routes the paths of the live process to its port.
        host = re.sub(r":\d+$", "", request.get_host())  # keeps the brackets of an IPv6 address
        url = f"http://{host}:{settings.LIVE_PORT}"
    return url
