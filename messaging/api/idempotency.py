"""Idempotency-Key: the first outcome of a request is kept in the transaction of its change, and given again.

After draft-ietf-httpapi-idempotency-key-header. A refused request keeps nothing: its transaction is rolled back.
"""

import hashlib
import time
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from django.http import HttpRequest, HttpResponse
from rest_framework.request import Request

from messaging.api.answers import rendered_answer
from messaging.api.authentication import caller_of
from messaging.database import fetch, in_transaction
from messaging.errors import (
    DatabaseUnavailableError,
    Fault,
    IdempotencyKeyInUseError,
    IdempotencyKeyReusedError,
    InvalidInputError,
)
from messaging.models import IdempotencyRecord
from messaging.postgresql.sqlstates import LOCK_NOT_AVAILABLE, QUERY_CANCELED, sqlstate

P = ParamSpec("P")

LIFETIME = timedelta(hours=24)
WAIT_SECONDS = 10.0  # for the first request with the same key
MAX_KEY_LENGTH = 255

_TABLE = IdempotencyRecord._meta.db_table

# Waits for the request that holds the key, if there is one; returns nothing if that one has left its outcome. An
# outcome past its lifetime is replaced as if it were not there.
_CLAIM = f"""
INSERT INTO {_TABLE} AS r (caller, key, fingerprint, location, body, created_at)
VALUES (%s, %s, %s, '', '', clock_timestamp())
ON CONFLICT (caller, key) DO UPDATE
    SET fingerprint = excluded.fingerprint, status = NULL, location = '', body = '', created_at = excluded.created_at
    WHERE r.created_at < excluded.created_at - make_interval(secs => %s)
RETURNING id"""

_OUTCOME = f"SELECT fingerprint, status, location, body FROM {_TABLE} WHERE caller = %s AND key = %s"

_KEEP = f"UPDATE {_TABLE} SET status = %s, location = %s, body = %s WHERE id = %s RETURNING id"


def idempotent(
    action: Callable[Concatenate[Any, Request, P], HttpResponse],
) -> Callable[..., HttpResponse]:
    """Make an action of a view keep its first outcome under the request's Idempotency-Key, where it has one."""

    @wraps(action)
    def replayable(view: Any, request: Request, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
        key = request._request.META.get("HTTP_IDEMPOTENCY_KEY")
        if key is None:
            return action(view, request, *args, **kwargs)
        _check(key)
        return _once(key, request, lambda: action(view, request, *args, **kwargs))

    return replayable


def _check(key: str) -> None:
    # Header values are bytes that WSGI hands over as Latin-1; PostgreSQL must be able to keep them.
    if not 0 < len(key) <= MAX_KEY_LENGTH or not key.isprintable() or not key.isascii():
        detail = f"Idempotency-Key must be 1 to {MAX_KEY_LENGTH} printable ASCII characters."
        raise InvalidInputError([Fault("", "invalid_idempotency_key", detail)])


def _once(key: str, request: Request, action: Callable[[], HttpResponse]) -> HttpResponse:
    """The stored outcome, or that of `action`, stored with its change."""
    caller = caller_of(request)
    fingerprint = _fingerprint(request._request)
    deadline = time.monotonic() + WAIT_SECONDS

    is_claimed = False

    def work() -> HttpResponse:
        nonlocal is_claimed
        is_claimed = False
        claimed = fetch(_CLAIM, (caller.account, key, fingerprint, LIFETIME.total_seconds()))
        is_claimed = True
        if not claimed:
            return _replayed(fetch(_OUTCOME, (caller.account, key)), fingerprint)
        response = action()
        kept = (response.status_code, response.headers.get("Location", ""), response.content)
        fetch(_KEEP, (*kept, claimed[0][0]))
        return response

    while True:
        try:
            return in_transaction(work)
        except DatabaseUnavailableError as error:
            # Locked before it was claimed: the first request is still running.
            if is_claimed or sqlstate(error) not in {LOCK_NOT_AVAILABLE, QUERY_CANCELED}:
                raise
            if error.at_once or time.monotonic() >= deadline:
                raise IdempotencyKeyInUseError from error


def _fingerprint(request: HttpRequest) -> bytes:
    """What makes two requests the same: method, path with its query (a trailing slash means nothing), and body."""
    target = f"{request.method} {request.path.rstrip('/')}?{request.META.get('QUERY_STRING', '')}\n"
    return hashlib.sha256(target.encode() + request.body).digest()


def _replayed(rows: list[tuple[Any, ...]], fingerprint: bytes) -> HttpResponse:
    if not rows:
        # The outcome was purged between the two statements: rare enough to let the client try again.
        raise IdempotencyKeyInUseError
    stored, status, location, body = rows[0]
    if bytes(stored) != fingerprint:
        raise IdempotencyKeyReusedError
    headers = {"Location": location} if location else {}
    return rendered_answer(bytes(body), status, headers | {"Idempotency-Replayed": "true"})
