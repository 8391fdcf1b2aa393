"""The rules of input: what a recipient, a sender, a content, metadata and a list of ids may be.

Every rule reports faults with the pointer of the value, so that one answer names all of them. The database states
the same limits as constraints where it can (models.py); here they get their explanation.
"""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from django.conf import settings

from messaging.access import Caller
from messaging.errors import Fault, InvalidInputError
from messaging.records import NewMessage

MAX_NAME_LENGTH = 255  # characters, of a recipient or a sender

# Unicode category Cc: the C0 and C1 controls and DEL.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
# What `str.isspace` takes for white space, spelled out for the document: regular expressions elsewhere differ on it.
WHITE_SPACE = r"\u0009-\u000d\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_VISIBLE = re.compile(f"[^{WHITE_SPACE}]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_is_uuid = re.compile(_UUID).fullmatch
_are_uuids = re.compile(f"{_UUID}(?:,{_UUID})*").fullmatch
_UUID_LENGTH = 36  # characters
_FIELDS = frozenset({"recipient", "sender", "content", "metadata"})
_MISSING: Any = object()
_NO_FAULTS = (None, None, None, None)


def text_fault(value: object, pointer: str) -> Fault | None:
    """The fault of a value that PostgreSQL could not keep as text, whatever the field."""
    if not isinstance(value, str) or isinstance(value, InexactNumber):
        return Fault(pointer, "not_a_string", "This must be a string.")
    if "\x00" in value:
        return Fault(pointer, "nul_character", "U+0000 cannot be stored. Remove it.")
    # isascii is a flag on the string, so the common case costs no search.
    if not value.isascii() and _SURROGATE.search(value):
        return Fault(pointer, "lone_surrogate", "This holds a lone surrogate, which is not a character. Remove it.")
    return None


def name_fault(value: object, pointer: str, *, may_be_empty: bool = False) -> Fault | None:
    """The fault of a recipient or sender: 1 to 255 characters (a sender may be empty), no control characters."""
    if fault := text_fault(value, pointer):
        return fault
    assert isinstance(value, str)
    if not value and not may_be_empty:
        return Fault(pointer, "blank", "This must not be empty.")
    if len(value) > MAX_NAME_LENGTH:
        return Fault(pointer, "too_long", f"This has {len(value)} characters; at most {MAX_NAME_LENGTH} are allowed.")
    if not value.isprintable() and _CONTROL.search(value):
        return Fault(pointer, "control_character", "Control characters are not allowed here. Remove them.")
    return None


def content_fault(value: object, pointer: str) -> Fault | None:
    """The fault of a content: 1 to MESSAGES_MAX_CONTENT_LENGTH characters, not only white space."""
    if fault := text_fault(value, pointer):
        return fault
    assert isinstance(value, str)
    if not _VISIBLE.search(value):
        return Fault(pointer, "blank", "This must hold more than white space.")
    if len(value) > (limit := settings.MESSAGES_MAX_CONTENT_LENGTH):
        return Fault(pointer, "too_long", f"This has {len(value)} characters; at most {limit} are allowed.")
    return None


class InexactNumber(str):
    """A number in a client's JSON, as written, that would not come back equal: too precise, too large or no number."""

    __slots__ = ()


MAX_DEPTH = 64  # levels of nesting in a client's JSON


def _faults_inside(value: Any, pointer: str) -> Fault | None:
    """The first fault of a JSON value at any depth: a string or key that cannot be kept, an inexact number."""
    limit = settings.MESSAGES_MAX_METADATA_BYTES
    pending = [(value, pointer)]
    while pending:
        node, at = pending.pop()
        if isinstance(node, InexactNumber):
            return Fault(at, "inexact_number", f"{node[:40]} cannot be kept exactly. Send it as a string.")
        if isinstance(node, str) and (fault := text_fault(node, at)):
            return fault
        if not isinstance(node, dict | list):
            continue
        if len(pending) + len(node) > limit:
            # Every value takes a byte at least. A body may hold millions of them, and each would get a pointer.
            return Fault(pointer, "too_large", f"This is more than {limit} bytes as compact JSON.")
        for key, item in node.items() if isinstance(node, dict) else enumerate(node):
            inner = f"{at}/{escaped(str(key))}"
            if isinstance(key, str) and (fault := text_fault(key, inner)):
                return fault
            pending.append((item, inner))
    return None


def metadata_text(value: object, pointer: str) -> str | Fault:
    """Metadata as the compact JSON text that is stored, or its fault.

    An object of at most MESSAGES_MAX_METADATA_BYTES bytes as compact JSON in UTF-8, whose numbers come back equal.
    """
    if not isinstance(value, dict):
        return Fault(pointer, "not_an_object", "This must be a JSON object.")
    if not value:
        return "{}"
    if fault := _faults_inside(value, pointer):
        return fault
    compact = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    size, limit = len(compact.encode()), settings.MESSAGES_MAX_METADATA_BYTES
    if size > limit:
        return Fault(pointer, "too_large", f"This is {size} bytes as compact JSON; at most {limit} are allowed.")
    return compact


def unknown_fields(body: dict[str, Any], known: Iterable[str], pointer: str = "") -> list[Fault]:
    """A fault for each field that the call does not take."""
    return [
        Fault(
            f"{pointer}/{escaped(name)}",
            "unknown_field",
            f"This call takes no such field. It takes: {', '.join(sorted(known))}.",
        )
        for name in body
        if name not in known
    ]


def printable(text: str) -> str:
    """`text` as an answer may show it: lone surrogates and U+0000 replaced, at most 255 characters."""
    return _SURROGATE.sub("\ufffd", text[:MAX_NAME_LENGTH]).replace("\x00", "\ufffd")


def escaped(key: str) -> str:
    """`key` as a token of a JSON Pointer (RFC 6901, 3)."""
    return printable(key).replace("~", "~0").replace("/", "~1")


def object_body(body: object, pointer: str = "") -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        InvalidInputError: it is something else.
    """
    if not isinstance(body, dict):
        raise InvalidInputError([Fault(pointer, "not_an_object", "This must be a JSON object.")])
    return body


def draft_from(body: object, *, caller: Caller, pointer: str = "") -> NewMessage | list[Fault]:
    """A draft from a client's JSON value, or all its faults. A bound caller's own names fill what is left out."""
    if not isinstance(body, dict):
        return [Fault(pointer, "not_an_object", "This must be a JSON object.")]
    recipient = body.get("recipient", _MISSING if caller.recipient is None else caller.recipient)
    sender = body.get("sender", caller.sender or "")
    content = body.get("content", _MISSING)
    metadata = metadata_text(body.get("metadata", {}), f"{pointer}/metadata")
    found = (
        _missing_or(name_fault, recipient, f"{pointer}/recipient"),
        _sender_fault(sender, caller, f"{pointer}/sender"),
        _missing_or(content_fault, content, f"{pointer}/content"),
        metadata if isinstance(metadata, Fault) else None,
    )
    if found == _NO_FAULTS and isinstance(metadata, str) and body.keys() <= _FIELDS:
        return NewMessage(recipient=recipient, sender=sender, content=content, metadata=metadata)
    return unknown_fields(body, _FIELDS, pointer) + [fault for fault in found if fault]


def _missing_or(rule: Callable[[object, str], Fault | None], value: object, pointer: str) -> Fault | None:
    return Fault(pointer, "required", "This field is required.") if value is _MISSING else rule(value, pointer)


def _sender_fault(sender: object, caller: Caller, pointer: str) -> Fault | None:
    if fault := name_fault(sender, pointer, may_be_empty=True):
        return fault
    if caller.sender is not None and sender != caller.sender:
        return Fault(pointer, "sender_mismatch", "Your key sends as another sender. Leave this out, or match it.")
    return None


def drafts_from(body: object, *, caller: Caller) -> list[NewMessage]:
    """The drafts of a batch, `{"messages": [...]}`, 1 to MESSAGES_MAX_BULK of them.

    Raises:
        InvalidInputError: with the faults of all messages.
    """
    body = object_body(body)
    if faults := unknown_fields(body, {"messages"}):
        raise InvalidInputError(faults)
    messages = _bounded_list(body, "messages")
    drafts: list[NewMessage] = []
    for index, item in enumerate(messages):
        draft = draft_from(item, caller=caller, pointer=f"/messages/{index}")
        if isinstance(draft, NewMessage):
            drafts.append(draft)
        else:
            faults += draft
    if faults:
        raise InvalidInputError(faults)
    return drafts


def ids_from(body: dict[str, Any]) -> list[str]:
    """The distinct ids of `{"ids": [...]}` in the order given and in lower case, 1 to MESSAGES_MAX_BULK of them.

    As text, which PostgreSQL reads and writes: a UUID object of each costs more than finding its message.

    Raises:
        InvalidInputError: none, too many, or something that is no UUID.
    """
    if faults := unknown_fields(body, {"ids"}):
        raise InvalidInputError(faults)
    values = _bounded_list(body, "ids")
    try:
        joined = ",".join(values)
    except TypeError:  # not all of them are strings
        joined = ""
    # One match for all is three times as fast as one for each. The length tells that no value brought its own comma.
    if len(joined) != len(values) * (_UUID_LENGTH + 1) - 1 or not _are_uuids(joined):
        wrong = [index for index, value in enumerate(values) if not _is_id(value)]
        raise InvalidInputError([_not_an_id(f"/ids/{index}") for index in wrong])
    return list(dict.fromkeys(joined.lower().split(",")))


def up_to_from(body: dict[str, Any], *, caller: Caller) -> tuple[str, str]:
    """The recipient and the last message meant by `{"recipient": R, "up_to": ID}`.

    Raises:
        InvalidInputError: one is missing or malformed, or the body names ids too.
    """
    recipient = body.get("recipient", _MISSING if caller.recipient is None else caller.recipient)
    up_to = body.get("up_to", _MISSING)
    faults = unknown_fields(body, {"recipient", "up_to"})
    faults += filter(None, (_missing_or(name_fault, recipient, "/recipient"), _missing_or(_id_fault, up_to, "/up_to")))
    if faults:
        raise InvalidInputError(faults)
    return recipient, up_to.lower()


def _is_id(value: object) -> bool:
    return type(value) is str and _is_uuid(value) is not None


def _not_an_id(pointer: str) -> Fault:
    return Fault(pointer, "not_a_uuid", "This must be a UUID, as the id of a message is.")


def _id_fault(value: object, pointer: str) -> Fault | None:
    return None if _is_id(value) else _not_an_id(pointer)


def id_from(text: str) -> str | None:
    """The UUID that `text` writes in its usual form (RFC 9562, section 4), in lower case; None where it writes none."""
    return text.lower() if _is_uuid(text) else None


def _bounded_list(body: dict[str, Any], name: str) -> list[Any]:
    if name not in body:
        raise InvalidInputError([Fault(f"/{name}", "required", "This field is required.")])
    values = body[name]
    if not isinstance(values, list):
        raise InvalidInputError([Fault(f"/{name}", "not_a_list", "This must be a list.")])
    if not values:
        raise InvalidInputError([Fault(f"/{name}", "blank", "This must not be empty.")])
    if len(values) > (limit := settings.MESSAGES_MAX_BULK):
        raise InvalidInputError(
            [Fault(f"/{name}", "too_many", f"This holds {len(values)} entries; at most {limit} are allowed.")]
        )
    return values
