"""Keyset paging in both directions: the cursor, the strict query parameters of a page, and its links.

A cursor names a `seq` and a direction, so the cost of a page does not depend on how deep it is, and a message that
was there all along is seen exactly once whatever arrives or goes meanwhile.
"""

import base64
import binascii
import hashlib
import re
import struct
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import parse_qsl, quote, urlencode

from django.conf import settings
from django.http import HttpRequest
from rest_framework.pagination import BasePagination

from messaging.errors import Fault, InvalidInputError
from messaging.records import Page
from messaging.validation import name_fault, printable, text_fault

DEFAULT_PAGE_SIZE = 50
NEWEST_FIRST, OLDEST_FIRST = "-created_at", "created_at"

_CURSOR = struct.Struct(">?q8s")  # towards newer messages, seq, what the cursor is bound to
_SEQ_END = 2**62  # room for a step beyond any position
_MAX_PARAMETERS = 50
# What a byte that is not UTF-8 has become by then is a lone surrogate.
_NOT_UTF8 = Fault("", "invalid_utf8", "This is not UTF-8. Percent-encode the UTF-8 bytes of the text.")
_DIGITS = re.compile(r"0*([1-9][0-9]*)")


def query_parameters(request: HttpRequest, *known: str) -> dict[str, str]:
    """The query parameters, each of which must be known, stand once and hold text that PostgreSQL can keep.

    Raises:
        InvalidInputError: naming each parameter that is not so.
    """
    raw: str = request.META.get("QUERY_STRING", "")
    if not raw:
        return {}
    if not raw.isascii():
        # WSGI hands over bytes as Latin-1 (PEP 3333).
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


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in a mailbox and the direction to read from there."""

    newer: bool
    seq: int

    def encoded(self, binding: bytes) -> str:
        """The opaque text that clients send back."""
        return base64.urlsafe_b64encode(_CURSOR.pack(self.newer, self.seq, binding)).rstrip(b"=").decode()

    @classmethod
    def decoded(cls, text: str, binding: bytes) -> Self:
        """The cursor that `text` stands for.

        Raises:
            InvalidInputError: it is none, or one of another mailbox, filter or order.
        """
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            newer, seq, bound_to = _CURSOR.unpack(raw)
        except (binascii.Error, struct.error, ValueError):
            detail = "This is not a cursor. Take the links `next` and `previous` of a page as they are."
            raise InvalidInputError([Fault("?cursor", "invalid_cursor", detail)]) from None
        if bound_to != binding or not 0 <= seq < _SEQ_END:
            detail = "This cursor belongs to another list: its recipient, filters and ordering must stay the same."
            raise InvalidInputError([Fault("?cursor", "foreign_cursor", detail)])
        return cls(newer, seq)


class MailboxPagination(BasePagination):
    """One request for a page: its parameters, and the answer built from what was found."""

    parameters = ("recipient", "limit", "cursor", "ordering")

    def __init__(self, request: HttpRequest, query: dict[str, str], *, recipient: str | None, unread: bool) -> None:
        """Check the parameters; `recipient` is the one mailbox of a bound caller, who may leave it out.

        Raises:
            InvalidInputError: naming each parameter that is malformed.
        """
        self.request = request
        self.query = query
        faults: list[Fault] = []
        self.recipient = required_recipient(query, recipient, faults)
        self.limit = _limit(query, faults)
        ordering = query.get("ordering", NEWEST_FIRST)
        if ordering not in (NEWEST_FIRST, OLDEST_FIRST):
            detail = f"This must be {NEWEST_FIRST} or {OLDEST_FIRST}."
            faults.append(Fault("?ordering", "invalid_ordering", detail))
        if faults:
            raise InvalidInputError(faults)
        self.newest_first = ordering == NEWEST_FIRST
        filters = sorted((name, value) for name, value in query.items() if name not in self.parameters)
        bound_to = repr((self.recipient, unread, self.newest_first, filters)).encode()
        self.binding = hashlib.blake2b(bound_to, digest_size=8, person=b"cursor").digest()
        self.cursor = Cursor.decoded(query["cursor"], self.binding) if "cursor" in query else None

    @property
    def reading_newest_first(self) -> bool:
        """The order in which to read: that of the page, or its reverse when going back."""
        return self.newest_first if self.cursor is None else not self.cursor.newer

    @property
    def position(self) -> int | None:
        """The `seq` to read on from."""
        return None if self.cursor is None else self.cursor.seq

    def answer(self, page: Page) -> tuple[dict[str, Any], dict[str, str]]:
        """The body and the headers of the answer."""
        messages = page.messages
        back = self.cursor is not None and self.cursor.newer == self.newest_first
        if back:
            messages = messages[::-1]
        # Whoever came with a cursor came from the other side of it, so there is a way back.
        after = page.more if not back else True
        before = page.more if back else self.cursor is not None
        if messages:
            first, last = messages[0].seq, messages[-1].seq
        else:
            # Nothing on this side any more. The way back begins with the message that the cursor stands at.
            seq = self.cursor.seq if self.cursor else 0
            first = last = seq + 1 if back == self.newest_first else seq - 1
            before, after = before and not back, after and back
        previous_url = self._url(Cursor(self.newest_first, first)) if before else None
        next_url = self._url(Cursor(not self.newest_first, last)) if after else None
        links = [f'<{url}>; rel="{rel}"' for url, rel in ((next_url, "next"), (previous_url, "prev")) if url]
        body = {"results": messages, "next": next_url, "previous": previous_url, "mailbox": page.mailbox}
        return body, {"Link": ", ".join(links)} if links else {}

    def _url(self, cursor: Cursor) -> str:
        query = self.query | {"cursor": cursor.encoded(self.binding)}
        return f"{origin(self.request)}{quote(self.request.path)}?{urlencode(query)}"


def origin(request: HttpRequest) -> str:
    """Scheme and host as the client wrote them.

    `build_absolute_uri` would parse and join what is known here, and `get_host` check once more a header that the
    process has checked for every request (ALLOWED_HOSTS).
    """
    return f"{request.scheme}://{request.META.get('HTTP_HOST') or request.get_host()}"


def required_recipient(query: dict[str, str], bound: str | None, faults: list[Fault]) -> str:
    """The recipient asked for, or a bound caller's own; appends a fault where there is none."""
    recipient = query.get("recipient", bound)
    if recipient is None:
        detail = "Say whose messages you mean, as in ?recipient=alice@example.com."
        faults.append(Fault("?recipient", "required", detail))
    elif fault := name_fault(recipient, "?recipient"):
        faults.append(fault)
    return recipient or ""


def _limit(query: dict[str, str], faults: list[Fault]) -> int:
    largest: int = settings.MESSAGES_MAX_PAGE_SIZE
    text = query.get("limit")
    if text is None:
        return min(DEFAULT_PAGE_SIZE, largest)
    number = _DIGITS.fullmatch(text)
    if number is None:
        faults.append(Fault("?limit", "invalid_limit", f"This must be a whole number from 1 to {largest}."))
        return 1
    # However many digits it has: Python converts 4,300 of them and no more.
    return min(int(number[1][:9]), largest)
