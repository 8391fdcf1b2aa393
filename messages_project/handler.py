"""The application as a worker of serving.py runs it: Django's, less what this service has no use for."""

import gc
from typing import Any

from django.core.cache import close_caches
from django.core.handlers.base import reset_urlconf
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished, request_started
from django.db import DEFAULT_DB_ALIAS, close_old_connections, connections, reset_queries
from django.http import HttpRequest
from django.urls import ResolverMatch

# Objects more than were freed; a request leaves next to none that only the collector could free.
_GARBAGE_THRESHOLD = 10_000


class Handler(WSGIHandler):
    """Django's handler, which remembers where a path without variable parts leads."""

    def __init__(self) -> None:
        super().__init__()
        self.known_paths: dict[str, ResolverMatch] = {}

    def resolve_request(self, request: HttpRequest) -> ResolverMatch:
        """The view of a request, with its arguments.

        Raises:
            Resolver404: there is none.
        """
        match = self.known_paths.get(request.path_info)
        if match is None:
            match = super().resolve_request(request)
            # As many as there are such patterns, each with and without its slash.
            if not match.args and not match.kwargs:
                self.known_paths[request.path_info] = match
        request.resolver_match = match
        return match


def settle(_worker: Any) -> None:
    """Spare each request what this service has no use for, once the application is loaded; gunicorn's hook."""
    # A request begins without a connection, since the one before gave it back; nobody lists its queries, there is no
    # cache to close, and all requests have the same URLs.
    request_started.disconnect(close_old_connections)
    request_started.disconnect(reset_queries)
    request_finished.disconnect(close_caches)
    request_finished.disconnect(reset_urlconf)
    # There is one database, so one connection to give back.
    request_finished.disconnect(close_old_connections)
    request_finished.connect(_give_back_connection)
    # What is loaded now stays: looking through it again and again finds nothing, and takes up to 50 ms each time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE_THRESHOLD, 20, 20)


def _give_back_connection(**_signal: Any) -> None:
    connections[DEFAULT_DB_ALIAS].close()
