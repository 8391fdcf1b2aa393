"""Keyset paging in both directions: strict query parameters, the cursor, and the links of a page.

A cursor is a `seq` and a direction, so the cost of a page does not depend on its position, and each message that exists
throughout is returned exactly once, whatever is sent or deleted in between.
"""

import base64
import hashlib
import re
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from msgspec.structs import replace
from rest_framework.pagination import BasePagination
from rest_framework.request import Request

from messaging import queries
from messaging.api.answers import PageAnswer, answer, version_headers
from messaging.api.parameters import NEWEST_FIRST
from messaging.errors import Fault, InvalidInputError
from messaging.records import MessageRecord
from messaging.validation import printable, text_fault

_MAX_PARAMETERS = 50
# A byte that is not UTF-8 was decoded as a lone surrogate.
_NOT_UTF8 = Fault("", "invalid_utf8", "This is not UTF-8. Percent-encode the UTF-8 bytes of the text.")

INVALID_CURSOR = Fault(
    "?cursor", "invalid_cursor", "This is not a cursor. Take the links `next` and `previous` of a page as they are."
)
FOREIGN_CURSOR = Fault(
    "?cursor",
    "foreign_cursor",
    "This cursor belongs to another list: its recipient, filters and ordering must stay the same.",
)


def query_parameters(request: HttpRequest, *known: str) -> dict[str, str]:
    """The query parameters. Each must be known, be given once, and be text that PostgreSQL can store.

    Raises:
        InvalidInputError: naming each other parameter.
    """
    raw: str = request.META.get("QUERY_STRING", "")
    if not raw:
        return {}
    if not raw.isascii():
        # WSGI decodes bytes as Latin-1 (PEP 3333).
        raw = raw.encode("latin-1").decode("utf-8", "surrogateescape")
    try:
        pairs = parse_qsl(raw, keep_blank_values=True, errors="surrogateescape", max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        detail = f"There are more than {_MAX_PARAMETERS} query parameters."
        raise InvalidInputError([Fault("?", "too_many_parameters", detail)]) from None
    found: dict[str, str] = {}
    faults: list[Fault] = []
    for name, value in pairs:
        pointer = f"?{printable(name)}"
        if name not in known:
            detail = f"There is no such parameter here. There are: {', '.join(sorted(known)) or 'none'}."
            faults.append(Fault(pointer, "unknown_parameter", detail))
        elif name in found:
            faults.append(Fault(pointer, "repeated_parameter", "This parameter stands more than once."))
        elif fault := text_fault(value, pointer):
            faults.append(replace(_NOT_UTF8, pointer=pointer) if fault.code == "lone_surrogate" else fault)
        found[name] = value
    if faults:
        raise InvalidInputError(faults)
    return found


class Cursors:
    """The cursors of one kind: values in a layout of `struct`, a hash of the list they belong to, and a checksum.

    Hash and checksum detect mistakes and are not secret: a cursor grants nothing that its caller could not request.
    The sizes add up to a length that base64 need not pad.
    """

    def __init__(self, kind: bytes, layout: str, hash_bytes: int) -> None:
        self._kind = kind
        self._packing = struct.Struct(f"{layout}{hash_bytes}s")
        self._hash_bytes = hash_bytes

    def encode(self, values: Sequence[Any], of: object) -> str:
        """The opaque text of a position in a list, which `of` names."""
        packed = self._packing.pack(*values, self._hash(of))
        return base64.urlsafe_b64encode(packed + _checksum(packed)).decode()

    def decode(self, text: str, of: object) -> tuple[Any, ...]:
        """The values of a cursor.

        Raises:
            InvalidInputError: it is damaged, or belongs to another list.
        """
        is_whole = len(text) * 3 == (self._packing.size + _CHECK_BYTES) * 4 and _is_base64url(text)
        raw = base64.urlsafe_b64decode(text) if is_whole else b""
        packed = raw[:-_CHECK_BYTES]
        if not raw or raw[-_CHECK_BYTES:] != _checksum(packed):
            raise InvalidInputError([INVALID_CURSOR])
        *values, hashed = self._packing.unpack(packed)
        if hashed != self._hash(of):
            raise InvalidInputError([FOREIGN_CURSOR])
        return tuple(values)

    def _hash(self, of: object) -> bytes:
        return hashlib.blake2b(repr(of).encode(), digest_size=self._hash_bytes, person=self._kind).digest()


_CHECK_BYTES = 4
_is_base64url = re.compile("[A-Za-z0-9_-]*").fullmatch


def _checksum(packed: bytes) -> bytes:
    return hashlib.blake2b(packed, digest_size=_CHECK_BYTES, person=b"cursor").digest()


class Cursor(NamedTuple):
    """A position in a mailbox and the direction to read from there."""

    newer: bool
    seq: int


PAGE_CURSORS = Cursors(b"cursor", ">?q", hash_bytes=8)
_SEQ_END = 2**62  # so that a step beyond any position is still a bigint


class MailboxPagination(BasePagination):
    """The pages of a mailbox. The view has validated the parameters, which `serializers.PageParameters` declares."""

    def read_cursor(self, request: Request, view: Any) -> None:
        """Validate the cursor. Called before `paginate_queryset`, since a conditional request may end in between.

        Raises:
            InvalidInputError: the cursor is damaged, or belongs to another list.
        """
        parameters = view.parameters
        self.request, self.given = request._request, view.given
        self.unread, self.newest_first = view.action == "unread", parameters["ordering"] == NEWEST_FIRST
        filters = sorted(
            (name, value) for name, value in self.given.items() if name in view.filterset_class.base_filters
        )
        self.list = (parameters["recipient"], self.unread, self.newest_first, filters)
        self.cursor = Cursor(*PAGE_CURSORS.decode(parameters["cursor"], self.list)) if "cursor" in parameters else None
        if self.cursor and not 0 <= self.cursor.seq < _SEQ_END:
            raise InvalidInputError([INVALID_CURSOR])

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[MessageRecord]:  # type: ignore[override]
        """The messages of the page. `queryset` has the filters, or is None without filters."""
        parameters = view.parameters
        # A page before the cursor is read backwards from there, and reversed.
        self.is_backwards = self.cursor is not None and self.cursor.newer == self.newest_first
        self.page = view.read(
            lambda: queries.page(
                parameters["recipient"],
                newest_first=self.newest_first != self.is_backwards,
                limit=parameters["limit"],
                position=None if self.cursor is None else self.cursor.seq,
                unread=self.unread,
                filtered=queryset,
            ),
            lambda page: page.mailbox,
        )
        return list(reversed(self.page.messages) if self.is_backwards else self.page.messages)

    def get_paginated_response(self, data: Any) -> HttpResponse:  # type: ignore[override]  # rendered at once
        back = self.is_backwards
        # A cursor comes from the page on its other side, so that page exists.
        after = back or self.page.more
        before = self.page.more if back else self.cursor is not None
        if data:
            first, last = data[0].seq, data[-1].seq
        else:
            # The page is empty. The link back begins with the message at the cursor.
            seq = self.cursor.seq if self.cursor else 0
            first = last = seq + 1 if back == self.newest_first else seq - 1
        previous_url = self._url(Cursor(self.newest_first, first)) if before else None
        next_url = self._url(Cursor(not self.newest_first, last)) if after else None
        links = [f'<{url}>; rel="{rel}"' for url, rel in ((next_url, "next"), (previous_url, "prev")) if url]
        headers = version_headers(self.page.mailbox) | ({"Link": ", ".join(links)} if links else {})
        return answer(PageAnswer(data, next_url, previous_url, self.page.mailbox), headers=headers)

    def _url(self, cursor: Cursor) -> str:
        return url_of(self.request, self.given | {"cursor": PAGE_CURSORS.encode(cursor, self.list)})


def url_of(request: HttpRequest, query: dict[str, str]) -> str:
    """The URL of the request with other query parameters."""
    return f"{base_url(request)}{quote(request.path_info)}?{urlencode(query)}"


def base_url(request: HttpRequest) -> str:
    """The beginning of every link: PUBLIC_URL, or scheme and host of the request.

    Faster than `build_absolute_uri`, which would also validate the Host again that HostMiddleware has validated.
    """
    return settings.PUBLIC_URL or f"{request.scheme}://{request.META.get('HTTP_HOST') or request.get_host()}"
