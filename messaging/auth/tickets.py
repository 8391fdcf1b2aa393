"""Tickets: what a browser's EventSource, which cannot send a header, puts into the URL of a live endpoint instead.

A ticket is signed with SECRET_KEY and stored nowhere, so each process that has the key takes it. It opens one mailbox,
for reading, and is worth no more than the key or token it was made with: it ends with that.
"""

import time
from datetime import UTC, datetime

from django.core import signing

from messaging.access import Caller, Scope
from messaging.auth import keys

LIFETIME_SECONDS = 60
_LEEWAY_SECONDS = 5  # for clocks that differ
_SALT = "messaging.auth.tickets"


def create(*, recipient: str, caller: Caller) -> tuple[str, datetime]:
    """A ticket for the mailbox of `recipient`, and when it ends."""
    now = time.time()
    ends_at = now + LIFETIME_SECONDS if caller.ends_at is None else min(now + LIFETIME_SECONDS, caller.ends_at)
    ticket = signing.dumps([recipient, caller.identity, caller.ends_at], salt=_SALT, compress=True)
    return ticket, datetime.fromtimestamp(ends_at, UTC)


def caller_of(ticket: str) -> Caller | None:
    """The holder of the key or token that the ticket was made with, bound to its mailbox; None for one that has ended.

    Raises:
        DatabaseUnavailableError: whether the key still works cannot be asked.
    """
    try:
        signed = signing.loads(ticket, salt=_SALT, max_age=LIFETIME_SECONDS + _LEEWAY_SECONDS)
    except signing.BadSignature:
        return None
    recipient, identity, ends_at = signed
    if ends_at is not None and ends_at <= time.time():
        return None
    caller = Caller(identity, frozenset({Scope.READ}), recipient, ends_at=ends_at)
    prefix = keys.prefix_of(caller)
    return None if prefix is not None and keys.ended([prefix]) else caller
