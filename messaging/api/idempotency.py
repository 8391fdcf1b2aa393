"""The header Idempotency-Key, and the fingerprint of a request. outcomes.py stores and replays outcomes."""

import hashlib
from collections.abc import Callable
from functools import partial, wraps
from http import HTTPStatus
from typing import Any, Concatenate, NoReturn, ParamSpec

from django.http import HttpRequest, HttpResponse
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request

from messaging.api.answers import VERSION, empty_answer, rendered_answer
from messaging.api.authentication import caller_of
from messaging.errors import Fault, InvalidInputError
from messaging.outcomes import KeyedRequest, StoredOutcome, once

P = ParamSpec("P")

MAX_KEY_LENGTH = 255
REPLAYED = {"Idempotency-Replayed": "true"}


def keyed(request: Request) -> KeyedRequest | None:
    """The key and fingerprint of a request; None without a key. Raises InvalidInputError for a malformed key."""
    key = request._request.META.get("HTTP_IDEMPOTENCY_KEY")
    if key is None:
        return None
    # WSGI decodes header values as Latin-1. PostgreSQL must be able to store them.
    if not 0 < len(key) <= MAX_KEY_LENGTH or not key.isprintable() or not key.isascii():
        detail = f"Idempotency-Key must be 1 to {MAX_KEY_LENGTH} printable ASCII characters."
        raise InvalidInputError([Fault("", "invalid_idempotency_key", detail)])
    return KeyedRequest(caller_of(request).account, key, _fingerprint(request._request))


def idempotent(action: Callable[Concatenate[Any, Request, P], HttpResponse]) -> Callable[..., HttpResponse]:
    """Decorate an action of a view: under an Idempotency-Key its first outcome is stored and replayed."""

    @wraps(action)
    def replayable(view: Any, request: Request, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
        keyed_request = keyed(request)
        if keyed_request is None:
            return action(view, request, *args, **kwargs)
        result = once(keyed_request, lambda: action(view, request, *args, **kwargs), _outcome_of)
        if not isinstance(result, StoredOutcome):
            return result
        if result.status == HTTPStatus.NO_CONTENT:
            version = {VERSION: result.body.decode()} if result.body else {}
            return empty_answer(result.status, REPLAYED | version)
        return rendered_answer(result.body, result.status, REPLAYED)

    return replayable


def replayed_though_invalid(action: Callable[[Any, Request], HttpResponse]) -> Callable[[Any, Request], HttpResponse]:
    """Decorate an action that sends: if its request is invalid, and its key was used, the key decides the response.

    The same request may have been valid before: its `expires_at` may have passed since. Another one is refused as such.
    It waits for the first one as any other request with a key does.
    """

    @wraps(action)
    def replayable(view: Any, request: Request) -> HttpResponse:
        try:
            return action(view, request)
        except (ValidationError, InvalidInputError) as error:
            keyed_request = keyed(request)
            if keyed_request is None:
                raise
            earlier = once(keyed_request, partial(_raise, error), _outcome_of)
            response: HttpResponse = view.created(earlier.messages, is_replayed=True)
            return response

    return replayable


def _raise(error: Exception) -> NoReturn:
    raise error


def _outcome_of(response: HttpResponse) -> StoredOutcome:
    # A response without content has the mailbox's version in its header alone.
    version: str = response.headers.get(VERSION, "")
    return StoredOutcome(response.status_code, response.content or version.encode())


def _fingerprint(request: HttpRequest) -> bytes:
    """A hash of method, path without trailing slash, query and body: equal for the same request.

    The path is without the prefix of PUBLIC_URL, so that a retry after that setting has changed is the same request.
    """
    target = f"{request.method} {request.path_info.rstrip('/')}?{request.META.get('QUERY_STRING', '')}\n"
    return hashlib.sha256(target.encode() + request.body).digest()
