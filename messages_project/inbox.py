"""/inbox: a page that shows one mailbox. The page is the same for all; the token is in the fragment of its URL."""

from urllib.parse import urlsplit

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from messages_project.health import read_only


@read_only
def inbox(request: HttpRequest) -> HttpResponse:
    """The page. Its Content-Security-Policy allows requests to this service and the live process only."""
    live = _live_url(request)
    response = render(request, "messaging/inbox.html", {"live": live})
    response.headers["Content-Security-Policy"] = (
        f"default-src 'none'; base-uri 'none'; connect-src 'self' {live}; form-action 'none'; frame-ancestors 'none';"
        " img-src 'self'; script-src 'self'; style-src 'self'"
    )
    return response


def _live_url(request: HttpRequest) -> str:
    """The URL at which browsers reach the live process; empty for the origin of this page."""
    url: str = settings.LIVE_URL
    if not url and settings.PLAIN_HTTP:
        # In development no proxy routes the paths of the live process to its port.
        url = f"http://{urlsplit(f'//{request.get_host()}').hostname}:{settings.LIVE_PORT}"
    return url
