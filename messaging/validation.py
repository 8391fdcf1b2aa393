"""Validation of text, names, ids and instants, for the fields of the API, keys, tokens and the admin."""

import re
from datetime import UTC, datetime, timedelta

from messaging.errors import Fault

MAX_NAME_LENGTH = 255  # characters, of a recipient or a sender

# Unicode category Cc: the C0 and C1 controls and DEL.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_is_uuid = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}").fullmatch
# RFC 3339, and what languages and generated clients write: an offset of ISO 8601's basic format (strftime's %z), a
# space for the T (Python's str), one before the offset and UTC (Ruby's to_s, Rust's chrono), no seconds where they
# are zero (toString of Java's OffsetDateTime).
_INSTANT = re.compile(
    r"(\d{4}-\d\d-\d\d[Tt ](?:[01]\d|2[0-3]):\d\d)(?:(:\d\d)(?:\.(\d+))?)? ?([Zz]|UTC|[+-]\d\d(?::?[0-5]\d)?)", re.ASCII
)


def text_fault(value: object, pointer: str = "") -> Fault | None:
    """The fault of a value that PostgreSQL cannot store as text: not a string, U+0000, a lone surrogate."""
    # Not isinstance: InexactNumber, by which the parser marks numbers, is a subclass of str.
    if type(value) is not str:
        return Fault(pointer, "not_a_string", "This must be a string.")
    if "\x00" in value:
        return Fault(pointer, "nul_character", "U+0000 cannot be stored. Remove it.")
    # isascii only reads a flag, so ASCII text is not searched.
    if not value.isascii() and _SURROGATE.search(value):
        return Fault(pointer, "lone_surrogate", "This holds a lone surrogate, which is not a character. Remove it.")
    return None


def name_fault(value: object, pointer: str = "", *, may_be_empty: bool = False) -> Fault | None:
    """The fault of a recipient or sender: 1 to 255 characters (a sender may be empty), no control characters."""
    if fault := text_fault(value, pointer):
        return fault
    assert isinstance(value, str)
    if not value and not may_be_empty:
        return Fault(pointer, "blank", "This must not be empty.")
    if len(value) > MAX_NAME_LENGTH:
        return Fault(pointer, "too_long", f"This has {len(value)} characters; at most {MAX_NAME_LENGTH} are allowed.")
    if not value.isprintable() and CONTROL.search(value):
        return Fault(pointer, "control_character", "Control characters are not allowed here. Remove them.")
    return None


def id_from(value: object) -> str | None:
    """A UUID in its canonical form (RFC 9562, section 4), in lower case; None for any other value.

    Text, not a UUID object: making one takes longer than reading its message.
    """
    return value.lower() if type(value) is str and _is_uuid(value) else None


def instant_from(text: str) -> datetime | None:
    """An instant (RFC 3339, or as `_INSTANT` has it), in UTC; None for any other text.

    PostgreSQL has microseconds, so further digits are rounded up. A comparison with the result is exact: a value in
    whole microseconds is at or after an instant if and only if it is at or after the next microsecond.
    """
    match = _INSTANT.fullmatch(text)
    if match is None:
        return None
    minute, seconds, fraction, offset = match[1], match[2] or "", match[3] or "", match[4]
    try:
        found = datetime.fromisoformat(minute.upper() + seconds + offset.upper().replace("UTC", "Z")).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    found += timedelta(microseconds=int(fraction[:6].ljust(6, "0")))
    if fraction[6:].strip("0"):
        found = min(found, datetime.max.replace(tzinfo=UTC) - timedelta(microseconds=1)) + timedelta(microseconds=1)
    return found


def printable(text: str) -> str:
    """`text` for a response: lone surrogates and U+0000 replaced, at most 255 characters."""
    return _SURROGATE.sub("\ufffd", text[:MAX_NAME_LENGTH]).replace("\x00", "\ufffd")


def escaped(key: str) -> str:
    """`key` as a token of a JSON Pointer (RFC 6901, 3)."""
    return printable(key).replace("~", "~0").replace("/", "~1")
