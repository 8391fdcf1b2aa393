"""Keyset paging in both directions: strict query parameters, the cursor, and the links of a page.

A cursor is a `seq` and a direction, so the cost of a page does not depend on its position, and each message that exists
throughout is returned exactly once, whatever is sent or deleted in between.
"""

import base64
import hashlib
import re
import struct
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import parse_qsl, quote, urlencode

from django.conf import settings
from django.http import HttpRequest, HttpResponse
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
            faults.append(_NOT_UTF8._replace(pointer=pointer) if fault.code == "lone_surrogate" else fault)
        found[name] = value
    if faults:
        raise InvalidInputError(faults)
    return found


_CHECK_BYTES = 4
_is_base64url = re.compile("[A-Za-z0-9_-]*").fullmatch


def sealed(packed: bytes) -> str:
    """The opaque text of a cursor: its packed values and a checksum, of a length that base64 needs not pad."""
    return base64.urlsafe_b64encode(packed + _checksum(packed)).decode()


def unsealed(text: str, packing: struct.Struct) -> tuple[Any, ...]:
    """The values of a cursor.

    Raises:
        InvalidInputError: it is damaged.
    """
    is_whole = len(text) * 3 == (packing.size + _CHECK_BYTES) * 4 and _is_base64url(text)
    raw = base64.urlsafe_b64decode(text) if is_whole else b""
    packed = raw[:-_CHECK_BYTES]
    if not raw or raw[-_CHECK_BYTES:] != _checksum(packed):
        raise InvalidInputError([INVALID_CURSOR])
    return packing.unpack(packed)


def _checksum(packed: bytes) -> bytes:
    return hashlib.blake2b(packed, digest_size=_CHECK_BYTES, person=b"cursor").digest()


_PACKED = struct.Struct(">?q8s")  # direction (towards newer messages), seq, binding
_SEQ_END = 2**62  # so that a step beyond any position is still a bigint


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in a mailbox and the direction to read from there.

    Encoded with a hash of the list that it belongs to (the binding), and a checksum. They detect mistakes and are not
    secret: a cursor grants nothing that its caller could not request.
    """

    newer: bool
    seq: int

    def encoded(self, binding: bytes) -> str:
        """The opaque text that clients send back."""
        return sealed(_PACKED.pack(self.newer, self.seq, binding))

    @classmethod
    def decoded(cls, text: str, binding: bytes) -> Self:
        """Decode a cursor.

        Raises:
            InvalidInputError: it is damaged, or belongs to another mailbox, filter or order.
        """
        newer, seq, bound_to = unsealed(text, _PACKED)
        if not 0 <= seq < _SEQ_END:
            raise InvalidInputError([INVALID_CURSOR])
        if bound_to != binding:
            raise InvalidInputError([FOREIGN_CURSOR])
        return cls(newer, seq)


class MailboxPagination(BasePagination):
    """The pages of a mailbox. The view has validated the parameters, which `serializers.PageParameters` declares."""

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[MessageRecord]:  # type: ignore[override]
        """The messages of the page. `queryset` has the filters, or is None without filters.

        Raises:
            InvalidInputError: the cursor is damaged, or belongs to another list.
        """
        parameters = view.parameters
        self.request, self.given = request._request, view.given
        unread, self.newest_first = view.action == "unread", parameters["ordering"] == NEWEST_FIRST
        filters = sorted(
            (name, value) for name, value in self.given.items() if name in view.filterset_class.base_filters
        )
        bound_to = repr((parameters["recipient"], unread, self.newest_first, filters)).encode()
        self.binding = hashlib.blake2b(bound_to, digest_size=8, person=b"cursor").digest()
        self.cursor = Cursor.decoded(parameters["cursor"], self.binding) if "cursor" in parameters else None
        # A page before the cursor is read backwards from there, and reversed.
        self.is_backwards = self.cursor is not None and self.cursor.newer == self.newest_first
        self.page = view.read(
            lambda: queries.page(
                parameters["recipient"],
                newest_first=self.newest_first != self.is_backwards,
                limit=parameters["limit"],
                position=None if self.cursor is None else self.cursor.seq,
                unread=unread,
                filtered=queryset,
            ),
            lambda page: page.mailbox,
        )
        return list(reversed(self.page.messages) if self.is_backwards else self.page.messages)

    def get_paginated_response(self, data: Any) -> HttpResponse:  # type: ignore[override]  # rendered at once
        """The response: messages, links to the pages before and after, and the mailbox."""
        back = self.is_backwards
        # A cursor comes from the page on its other side, so that page exists.
        after = self.page.more if not back else True
        before = self.page.more if back else self.cursor is not None
        if data:
            first, last = data[0].seq, data[-1].seq
        else:
            # The page is empty. The link back begins with the message at the cursor.
            seq = self.cursor.seq if self.cursor else 0
            first = last = seq + 1 if back == self.newest_first else seq - 1
            before, after = before and not back, after and back
        previous_url = self._url(Cursor(self.newest_first, first)) if before else None
        next_url = self._url(Cursor(not self.newest_first, last)) if after else None
        links = [f'<{url}>; rel="{rel}"' for url, rel in ((next_url, "next"), (previous_url, "prev")) if url]
        headers = version_headers(self.page.mailbox) | ({"Link": ", ".join(links)} if links else {})
        return answer(PageAnswer(data, next_url, previous_url, self.page.mailbox), headers=headers)

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The schema of the response: that of its struct."""
        return {"$ref": "#/components/schemas/Page"}

    def _url(self, cursor: Cursor) -> str:
        query = self.given | {"cursor": cursor.encoded(self.binding)}
        return f"{base_url(self.request)}{quote(self.request.path_info)}?{urlencode(query)}"


def base_url(request: HttpRequest) -> str:
    """The beginning of every link: PUBLIC_URL, or scheme and host of the request.

    Faster than `build_absolute_uri`, which would also validate the Host again that HostMiddleware has validated.
    """
    return settings.PUBLIC_URL or f"{request.scheme}://{request.META.get('HTTP_HOST') or request.get_host()}"
