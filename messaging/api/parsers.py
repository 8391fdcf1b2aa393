"""Parses request bodies: size limits, strict UTF-8 and strict JSON (RFC 8259, and I-JSON of RFC 7493)."""

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import IO, Any, NoReturn

from django.http import HttpRequest
from rest_framework.exceptions import APIException, UnsupportedMediaType
from rest_framework.parsers import BaseParser

from messaging.errors import Fault, InvalidInputError
from messaging.validation import escaped

_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # a byte that `surrogateescape` has decoded
MAX_DEPTH = 64  # levels of nesting in a client's JSON
_BATCH_DEPTH = MAX_DEPTH + 2  # a message of a batch is in an array in an object
BATCH_BODY_FACTOR = 16  # a batch may be that many times MESSAGES_MAX_BODY_BYTES


class BodyTooLarge(APIException):
    """The body is larger than `limit` bytes, the maximum of the call."""

    status_code = 413
    default_code = "body_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The body is larger than {limit:,} bytes. Send less in one call.")


def _malformed(detail: str, pointer: str = "", code: str = "malformed_json") -> NoReturn:
    raise InvalidInputError([Fault(pointer, code, detail)])


def _too_deep(max_depth: int) -> NoReturn:
    _malformed(f"The JSON is nested more than {max_depth} levels deep.", code="too_deep")


class InexactNumber(str):
    """The text of a number in a client's JSON that would not come back equal: too precise, too large, or NaN."""

    __slots__ = ()


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
        # An exponent beyond the limits of decimal.
        return InexactNumber(text)


def parse_json(raw: bytes, *, max_depth: int = MAX_DEPTH) -> Any:
    """The value of a JSON text. A number that has no equal Python value becomes an `InexactNumber`.

    Raises InvalidInputError: not JSON, not UTF-8, a duplicate key, or more than `max_depth` levels of nesting.
    """
    raw = raw.removeprefix(codecs.BOM_UTF8)
    if raw.startswith(b"\x1f\x8b"):
        _malformed("This is compressed by gzip. Send JSON as it is.", code="invalid_utf8")
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in raw[:4]:
        _malformed("This is UTF-16 or UTF-32. Send JSON in UTF-8.", code="invalid_utf8")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        # Parsed nevertheless, so that the fault can name the field.
        value = _parsed(raw.decode(errors="surrogateescape"), max_depth)
        found = (
            path
            for path, item in members(value)
            for text in (path[1], item)
            if isinstance(text, str) and _NOT_UTF8.search(text)
        )
        _malformed("This is not UTF-8. Send JSON in UTF-8.", pointer_of(next(found, None)), "invalid_utf8")
    return _parsed(text, max_depth)


def _parsed(text: str, max_depth: int) -> Any:
    repeated: list[tuple[dict[str, Any], str]] = []

    def objects(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            repeated.append((found, next(key for key, _ in pairs if key in seen or seen.add(key))))  # type: ignore[func-returns-value]
        return found

    try:
        # Python's parser in C. Its hooks are called for objects and numbers only.
        value = json.loads(
            text, object_pairs_hook=objects, parse_int=_integer, parse_float=_float, parse_constant=InexactNumber
        )
    except json.JSONDecodeError as error:
        # Some of these messages end in "at".
        fault = error.msg.removesuffix(" at")
        _malformed(f"The body is not JSON: {fault} at line {error.lineno}, column {error.colno}.")
    except RecursionError:
        _too_deep(max_depth)
    # Counting brackets is cheap, and most bodies have fewer of them.
    if text.count("[") + text.count("{") > max_depth and _is_deeper(value, max_depth):
        _too_deep(max_depth)
    if repeated:
        # A hook does not know the position of its object. The last call is for the outermost one, which is in `value`.
        where, key = repeated[-1]
        path = next((path for path, item in members(value) if item is where), None)
        _malformed("A key stands twice in one JSON object.", pointer_of((path, key)), "duplicate_key")
    return value


def _is_deeper(value: Any, max_depth: int) -> bool:
    level = [value]
    for _ in range(max_depth):
        level = [
            item
            for node in level
            if isinstance(node, dict | list)
            for item in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return False
    return any(isinstance(node, dict | list) for node in level)


# The path of a member: that of its object or array (None for the outermost), and its key or index.
Path = tuple[Any, str | int]


def members(value: Any) -> Iterator[tuple[Path, Any]]:
    """The members of a JSON value at any depth, each with its path, in document order. Nothing for a string or number.

    Depth-first, since a body may hold millions of containers, but few of them in one another.
    """
    inside: list[tuple[Path | None, Iterator[tuple[Any, Any]]]] = [(None, _items(value))]
    while inside:
        at, items = inside[-1]
        for key, item in items:
            path = (at, key)
            yield path, item
            if isinstance(item, dict | list):
                inside.append((path, _items(item)))
                break
        else:
            inside.pop()


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        return iter(value.items())
    return enumerate(value) if isinstance(value, list) else iter(())


def pointer_of(path: Path | None) -> str:
    """The JSON Pointer of a member; empty for the whole value."""
    return f"{pointer_of(path[0])}/{escaped(str(path[1]))}" if path else ""


def read_body(request: HttpRequest, limit: int) -> None:
    """Read the whole body, at most `limit` bytes, and keep it as `request.body`.

    Raises:
        BodyTooLarge: the body is longer. A declared length is checked before anything is read.
        InvalidInputError: the body ended before its declared length.
        UnsupportedMediaType: the body is compressed.
    """
    meta = request.META
    if meta.get("HTTP_CONTENT_ENCODING", "").lower() not in {"", "identity"}:
        raise UnsupportedMediaType(
            meta["HTTP_CONTENT_ENCODING"], detail="Compressed bodies are not taken. Send the body as it is."
        )
    # Django ignores a body without Content-Length. The server decodes chunks and ends the stream.
    chunked = "HTTP_TRANSFER_ENCODING" in meta and meta.get("wsgi.input_terminated")
    declared = 0 if chunked else int(meta.get("CONTENT_LENGTH") or 0)
    if declared > limit:
        raise BodyTooLarge(limit)
    try:
        raw = meta["wsgi.input"].read(limit + 1) if chunked else request.read(declared)
    except Exception:  # noqa: BLE001 - the client disconnected, or sent invalid chunks: each server has its own exceptions
        _malformed("The connection ended within the body. Send it again.", code="incomplete_body")
    if len(raw) > limit:
        raise BodyTooLarge(limit)
    if len(raw) < declared:
        _malformed("The body ended before its declared length. Send it again.", code="incomplete_body")
    if chunked:
        meta["CONTENT_LENGTH"] = str(len(raw))  # DRF checks it to see whether there is a body
    request._body = raw  # Django's own attribute for a body that was read


class StrictJSONParser(BaseParser):
    """DRF's parser for JSON: `parse_json`. The view has read the body (`read_body`), within the limit of its call."""

    media_type = "application/json"

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        assert parser_context is not None
        max_depth = _BATCH_DEPTH if parser_context["view"].action == "batch" else MAX_DEPTH
        return parse_json(parser_context["request"]._request.body, max_depth=max_depth)
