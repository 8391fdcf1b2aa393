"""The caller of a request or command, and what it may do.

How a caller proves who they are lives in authentication.py; what a refusal looks like over HTTP in problems.py.
"""

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a key or token permits."""

    SEND = "send"
    READ = "read"
    MANAGE = "manage"  # mark and delete
    METRICS = "metrics"  # of the whole service: GET /metrics


@dataclass(frozen=True, slots=True)
class Caller:
    """One caller, by whatever proof.

    `identity` is stable for the life of the proof and never secret: it scopes idempotency keys and rate limits and
    may appear in logs. A caller bound to a `recipient` reaches that mailbox only; one bound to a `sender` sends as
    that sender only. `ends_at` is when the proof ends, in seconds since 1970; None where only the database knows.
    """

    identity: str
    scopes: frozenset[Scope]
    recipient: str | None = None
    sender: str | None = None
    ends_at: float | None = None

    @property
    def account(self) -> str:
        """Whose requests these are, from whatever address: where access is open, everybody's.

        A retry must find its first attempt although the client's address has changed in between.
        """
        return "open" if self.identity.startswith("open:") else self.identity

    def reaches(self, recipient: str) -> bool:
        """Whether this caller may know anything about the mailbox of `recipient`."""
        return self.recipient is None or self.recipient == recipient


# Staff in the admin, operators' commands, and everybody where access is open.
EVERYONE = Caller(identity="open", scopes=frozenset(Scope))
