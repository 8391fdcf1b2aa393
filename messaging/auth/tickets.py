"""Tickets for the URL of a live endpoint, since a browser's EventSource cannot send a header.

A ticket is signed with SECRET_KEY and not stored, so every process with that key accepts it. It grants reading of one
mailbox, and ends with the key or token that it was made with.
"""

import time
from datetime import UTC, datetime

from django.conf import settings
from django.core import signing

from messaging.access import EVERYONE, Caller, Scope
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
    """The caller who made the ticket, bound to its mailbox; None if the ticket, key, token or open access has ended."""
    try:
        signed = signing.loads(ticket, salt=_SALT, max_age=LIFETIME_SECONDS + _LEEWAY_SECONDS)
    except signing.BadSignature:
        return None
    recipient, identity, ends_at = signed
    if ends_at is not None and ends_at <= time.time():
        return None
    caller = Caller(identity, frozenset({Scope.READ}), recipient, ends_at=ends_at)
    if caller.account == EVERYONE.identity and settings.MESSAGES_ACCESS != "open":
        return None
    prefix = keys.prefix_of(caller)
    return None if prefix is not None and keys.ended([prefix]) else caller
