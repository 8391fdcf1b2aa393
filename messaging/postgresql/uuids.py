"""A parameter of the type uuid[], from the texts of UUIDs and without an object for each.

Nothing here knows about messages.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types import TypeInfo

_UUID: TypeInfo = psycopg.postgres.types["uuid"]
# PostgreSQL's array_send: one dimension, no nulls, the type of the elements, how many, the first index.
_HEADER = struct.Struct(">iiIii")
# In front of each element how many bytes it has: 16, here in hexadecimal digits.
_LENGTH = "00000010"


@dataclass(frozen=True, slots=True)
class UuidArray:
    """UUIDs in their usual form (RFC 9562, section 4)."""

    texts: Sequence[str]


class _Text(Dumper):
    """As PostgreSQL writes an array, for cursors that put values into the statement."""

    oid = _UUID.array_oid

    def dump(self, obj: UuidArray) -> bytes:
        return f"{{{','.join(obj.texts)}}}".encode()


class _Binary(Dumper):
    """As PostgreSQL keeps it: it would spend more on reading the digits of a UUID than on finding its row."""

    format = Format.BINARY
    oid = _UUID.array_oid

    def dump(self, obj: UuidArray) -> bytes:
        digits = _LENGTH.join(("", *obj.texts)).replace("-", "")
        return _HEADER.pack(1, 0, _UUID.oid, len(obj.texts), 1) + bytes.fromhex(digits)


def register() -> None:
    """Make UuidArray known to every connection opened from now on."""
    # The one registered last is preferred.
    for dumper in (_Text, _Binary):
        psycopg.adapters.register_dumper(UuidArray, dumper)
