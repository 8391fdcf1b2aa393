"""From a request's bytes to JSON: size limits, strict UTF-8 and strict JSON (RFC 8259, with the advice of RFC 7493).

What the values mean is checked in drafts.py.
"""

import json
from collections import deque
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import IO, Any, NoReturn

from django.conf import settings
from django.http import HttpRequest
from rest_framework.exceptions import APIException, UnsupportedMediaType
from rest_framework.parsers import BaseParser

from messaging.errors import Fault, InvalidInputError
from messaging.validation import MAX_DEPTH, InexactNumber, escaped

BATCH_BODY_FACTOR = 16  # a batch may be that many times MESSAGES_MAX_BODY_BYTES


class BodyTooLarge(APIException):
    """The body is larger than this call takes."""

    status_code = 413
    default_code = "body_too_large"


def _malformed(detail: str, pointer: str = "", code: str = "malformed_json") -> NoReturn:
    raise InvalidInputError([Fault(pointer, code, detail)])


def _too_large(limit: int) -> NoReturn:
    raise BodyTooLarge(f"The body is larger than {limit:,} bytes. Send less in one call.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                _malformed("A key stands twice in one JSON object.", f"/{escaped(key)}", "duplicate_key")
            seen.add(key)
    return found


def _integer(text: str) -> int | InexactNumber:
    try:
        return int(text)
    except ValueError:
        # Python's limit of 4,300 digits (sys.set_int_max_str_digits).
        return InexactNumber(text)


def _float(text: str) -> float | InexactNumber:
    value = float(text)
    try:
        return value if Decimal(repr(value)) == Decimal(text) else InexactNumber(text)
    except InvalidOperation:
        # An exponent beyond even decimal's.
        return InexactNumber(text)


# Python's parser itself, in C; the hooks only see objects and numbers.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=InexactNumber
)


def parse_json(raw: bytes) -> Any:
    """The value of a JSON text. Numbers that no Python value equals become `InexactNumber`.

    Raises:
        InvalidInputError: no JSON, no UTF-8, a key that stands twice, more than MAX_DEPTH levels of nesting.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        # Parsed all the same, so that the answer can name the field.
        value = _parsed(raw.decode(errors="surrogateescape"))
        _malformed("This is not UTF-8. Send JSON in UTF-8.", _not_utf8(value), "invalid_utf8")
    value = _parsed(text)
    # Fewer brackets than levels allowed is the common case, and counting them costs next to nothing.
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _is_too_deep(value):
        _malformed(f"The JSON is nested more than {MAX_DEPTH} levels deep.", code="too_deep")
    return value


def _parsed(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        _malformed(f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.")
    except RecursionError:
        _malformed(f"The JSON is nested more than {MAX_DEPTH} levels deep.", code="too_deep")


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for node in level
            if isinstance(node, dict | list)
            for item in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return False
    return any(isinstance(node, dict | list) for node in level)


def _not_utf8(value: Any) -> str:
    """The pointer of the first string that holds bytes that are not UTF-8; the whole body's where none is found."""
    pending: deque[tuple[str, Any]] = deque([("", value)])
    while pending:
        at, node = pending.popleft()
        items: Any = ()
        if isinstance(node, Mapping):
            items = node.items()
        elif isinstance(node, list):
            items = enumerate(node)
        # A body may hold millions of values: only containers are kept for later, and only faults get a pointer.
        for key, item in items:
            if isinstance(item, str):
                if any("\udc80" <= char <= "\udcff" for char in item):
                    return f"{at}/{escaped(str(key))}"
            elif isinstance(item, Mapping | list):
                pending.append((f"{at}/{escaped(str(key))}", item))
    return ""


def read_body(request: HttpRequest, limit: int) -> bytes:
    """The whole body, at most `limit` bytes of it, kept as `request.body` for whoever asks again.

    Raises:
        BodyTooLarge: the body is longer; a declared length is refused before anything is read.
        InvalidInputError: the body ended before its declared length.
        UnsupportedMediaType: the body is compressed.
    """
    if hasattr(request, "_body"):
        return request.body
    meta = request.META
    if meta.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
        raise UnsupportedMediaType(
            meta["HTTP_CONTENT_ENCODING"], detail="Compressed bodies are not taken. Send the body as it is."
        )
    # Django takes a body without a declared length for empty; the server has undone the chunks and ends the stream.
    chunked = "HTTP_TRANSFER_ENCODING" in meta and meta.get("wsgi.input_terminated")
    declared = 0 if chunked else int(meta.get("CONTENT_LENGTH") or 0)
    if declared > limit:
        _too_large(limit)
    try:
        raw = meta["wsgi.input"].read(limit + 1) if chunked else request.read(declared)
    except Exception:  # noqa: BLE001 - the client went away, or sent no chunks: each server has exceptions of its own
        _malformed("The body broke off. Send it again.", code="incomplete_body")
    if len(raw) > limit:
        _too_large(limit)
    if len(raw) < declared:
        _malformed("The body ended before its declared length. Send it again.", code="incomplete_body")
    if chunked:
        meta["CONTENT_LENGTH"] = str(len(raw))  # what DRF goes by to see whether there is a body
    request._body = raw  # where Django keeps a body that was read
    return raw


class StrictJSONParser(BaseParser):
    """JSON for DRF. The view has read the body by then (`read_body`), within the limit of its call."""

    media_type = "application/json"

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        """The parsed body; raises as `parse_json` does."""
        assert parser_context is not None
        return parse_json(parser_context["request"]._request.body)


def body_limit(*, batch: bool) -> int:
    """Bytes that the body of a call may have."""
    limit: int = settings.MESSAGES_MAX_BODY_BYTES
    return limit * BATCH_BODY_FACTOR if batch else limit
