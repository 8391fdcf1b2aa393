"""The routes that there are, read from the URL map, so that a test that goes through them cannot forget one."""

import re
from collections.abc import Iterator
from typing import Any

from django.urls import URLPattern, URLResolver, get_resolver


def _patterns(resolver: URLResolver, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for pattern in resolver.url_patterns:
        route = prefix + str(pattern.pattern)
        if isinstance(pattern, URLPattern):
            yield route, pattern.callback
        elif not route.startswith("admin"):
            yield from _patterns(pattern, route)


def _path(route: str) -> str:
    return "/" + re.sub(r"\(\?P<\w+>.*?\)", "{id}", route.strip("^$").removesuffix("/?")).replace("\\", "")


def api_routes() -> set[tuple[str, str]]:
    """(method, path) of every call of the API, `{id}` for the id of a message."""
    return {
        (method.upper(), _path(route))
        for route, view in _patterns(get_resolver())
        for method in getattr(view, "actions", {})
        if method != "head"
    }


def other_paths() -> set[str]:
    """Every path that is no call of the API and not below /admin/."""
    return {_path(route) for route, view in _patterns(get_resolver()) if not hasattr(view, "actions")}
