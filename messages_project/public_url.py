"""Removes the path prefix of PUBLIC_URL from the paths of requests. Django adds it to links (FORCE_SCRIPT_NAME).

Some proxies strip the prefix before they forward a request, others do not. Both work: the prefix is removed if the path
begins with it. A prefix below which the service has paths of its own is refused at the start (checks.py). A path equal
to the prefix is kept if the service has such a path.
"""

from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from django.conf import settings
from django.urls import is_valid_path


def without_prefix(path: str) -> str:
    """The path inside the service, for the path of a request."""
    prefix = settings.FORCE_SCRIPT_NAME
    if not prefix or not (path == prefix or path.startswith(f"{prefix}/")):
        return path
    return path if path == prefix and is_valid_path(prefix) else path[len(prefix) :] or "/"


def below_public_url(application: WSGIApplication) -> WSGIApplication:
    """WSGI middleware (PEP 3333) for `application`."""
    if not settings.FORCE_SCRIPT_NAME:
        return application

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["PATH_INFO"] = without_prefix(environ["PATH_INFO"])
        return application(environ, start_response)

    return serve
