"""The errors of the domain.

The first paragraph of a class's docstring is the default text for clients. `code` is stable and public.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from msgspec import Meta, Struct


class MessagingError(Exception):
    """The request could not be carried out."""

    code: ClassVar[str] = "error"
    advice: ClassVar[str] = ""  # follows the text in responses; commands give their own

    def __init__(self, detail: str | None = None) -> None:
        self.detail = detail or " ".join((self.__doc__ or "").partition("\n\n")[0].split())
        super().__init__(self.detail)


# The codes of faults in a request. docs/api.md says what each means.
FAULT_CODES = (
    "required", "blank", "too_long", "too_large", "too_many", "not_a_string", "not_a_list", "not_an_object",
    "not_a_uuid", "control_character", "nul_character", "lone_surrogate", "invalid_utf8", "inexact_number",
    "unknown_field", "unknown_parameter", "repeated_parameter", "duplicate_key", "too_many_parameters",
    "malformed_json", "too_deep", "incomplete_body", "not_in_future", "sender_mismatch", "invalid_limit",
    "invalid_ordering", "invalid_instant", "invalid", "invalid_cursor", "foreign_cursor", "invalid_idempotency_key",
    "invalid_min_version",
)  # fmt: skip

MAX_FAULTS = 100  # named in one answer: the rest would only repeat, and outgrow the request many times over


class Fault(Struct, frozen=True):
    """One fault of the input."""

    pointer: Annotated[
        str,
        Meta(
            description="The place of the fault: a JSON Pointer (RFC 6901) into the body, `?name` for a query "
            "parameter, or empty for the whole request."
        ),
    ]
    # No closed enum: a later version may have more, which must not break a generated client.
    code: Annotated[
        str,
        Meta(
            description="The kind of fault, for programs. Later versions may add codes.",
            extra_json_schema={"x-extensible-enum": sorted(FAULT_CODES)},
        ),
    ]
    detail: Annotated[str, Meta(description="What is wrong and how to correct it, for people.")]


class InvalidInputError(MessagingError):
    """The input is not valid; `errors` names each fault and where it is."""

    code = "invalid_input"

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults[:MAX_FAULTS])
        super().__init__(self.faults[0].detail if len(self.faults) == 1 else None)


class NotFoundError(MessagingError):
    """There is no such message or mailbox, or your key may not access it. Check the id, the recipient and the key."""

    code = "not_found"


class InsufficientScopeError(MessagingError):
    """The key or token lacks the scope that a call needs."""

    code = "insufficient_scope"

    def __init__(self, scope: str) -> None:
        super().__init__(
            f"This call needs the scope `{scope}`, which your key or token lacks. Ask the operator for one with it."
        )


class TooManyStreamsError(MessagingError):
    """You have the maximum number of streams of this mailbox. Close one first, or share one."""

    code = "too_many_streams"


class StreamsExhaustedError(MessagingError):
    """This process accepts no more streams. Connect again in a moment, or poll GET /mailbox meanwhile."""

    code = "streams_exhausted"


class IdempotencyKeyReusedError(MessagingError):
    """This Idempotency-Key was used for another request. Use a new key for each new request."""

    code = "idempotency_key_reused"


class IdempotencyKeyInUseError(MessagingError):
    """The first request with this Idempotency-Key is still running. Send the same request again in a moment."""

    code = "idempotency_key_in_use"


class ChangesExpiredError(MessagingError):
    """The changes since that version are no longer kept, or the mailbox is older than it. Start again with since=0."""

    code = "changes_expired"


class OutcomeDeletedError(MessagingError):
    """The request was carried out, and what it sent has been deleted since. Do not send it again."""

    code = "outcome_deleted"


class TokenKeysUnavailableError(MessagingError):
    """The keys that sign tokens cannot be fetched just now. Send the same request again in a moment."""

    code = "token_keys_unavailable"


class DatabaseUnavailableError(MessagingError):
    """The database cannot be reached or is too busy.

    Nothing was changed. `at_once`: it was not even waited for, since too many wait already.
    """

    code = "database_unavailable"
    advice = "Nothing was changed. Send the same request again in a moment."

    def __init__(self, detail: str | None = None, *, at_once: bool = False) -> None:
        super().__init__(detail)
        self.at_once = at_once


class OutcomeUnknownError(MessagingError):
    """The database was lost before it confirmed the change, so whether it was made is unknown."""

    code = "outcome_unknown"
    advice = (
        "If you sent an Idempotency-Key, send the same request with the same key again: it is made once only. Without "
        "a key, look whether the change is there before you repeat it."
    )


def redis_error_name(error: BaseException) -> str:
    """The class of an error of Redis's client, for logs: its text may quote the URL with its password.

    The client's ConnectionError replaces an error of the system that says more, such as ConnectionRefusedError or
    SSLCertVerificationError: then it is that one's class.
    """
    replaced = error.__context__
    return type(replaced if isinstance(replaced, OSError) else error).__name__
