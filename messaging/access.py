"""The caller of a request or command, and what it may do."""

from dataclasses import dataclass
from enum import StrEnum

from messaging.errors import NotFoundError


class Scope(StrEnum):
    """What a key or token permits."""

    SEND = "send"
    READ = "read"
    MANAGE = "manage"  # mark and delete
    METRICS = "metrics"  # of the whole service: GET /metrics


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of a key, token or ticket, or whoever calls where access is open.

    `identity` does not change while the credential is valid, and is not secret: it scopes idempotency keys and rate
    limits, and may appear in logs. A caller bound to a `recipient` reaches that mailbox only; one bound to a `sender`
    sends as that sender only. `ends_at` is when the credential ends, in seconds since 1970; None if only the database
    knows.
    """

    identity: str
    scopes: frozenset[Scope]
    recipient: str | None = None
    sender: str | None = None
    ends_at: float | None = None

    @property
    def account(self) -> str:
        """Whose idempotency keys these are. Where access is open, all addresses share them.

        So a retry finds its first attempt after the client's address has changed.
        """
        return "open" if self.identity.startswith("open:") else self.identity

    def require_reach(self, recipient: str) -> None:
        """Raise NotFoundError if this caller may not know anything about the mailbox of `recipient`."""
        if self.recipient is not None and self.recipient != recipient:
            raise NotFoundError


# Staff in the admin, operators' commands, and everybody where access is open.
EVERYONE = Caller(identity="open", scopes=frozenset(Scope))
