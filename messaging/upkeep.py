"""Upkeep: deletes what has ended, in small batches, and says how much of it is left.

Several processes may do so at once: a batch passes over rows that somebody else holds (SKIP LOCKED), so neither another
upkeep nor a request waits for one. Run by messages_project/upkeep.py and `manage.py upkeep`.
"""

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial

from django.conf import settings
from django.utils import timezone

from messaging import observations
from messaging.changes import purge_changes
from messaging.database import change, fetch, read
from messaging.models import MessageQuerySet
from messaging.retention import discard, expired_messages, older_messages, purge_outcomes

BATCH = 1_000
MESSAGES_BATCH = 200  # their mailboxes are locked meanwhile
COUNTED = 10_001  # rows of a backlog; more are not counted

_PURGE_RATE_WINDOWS = """
DELETE FROM messaging_ratewindow WHERE id IN (
    SELECT id FROM messaging_ratewindow WHERE ends_at <= clock_timestamp()
    ORDER BY ends_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
) RETURNING 1"""

_PURGE_SESSIONS = """
DELETE FROM django_session WHERE session_key IN (
    SELECT session_key FROM django_session WHERE expire_date <= clock_timestamp()
    ORDER BY expire_date LIMIT %(limit)s FOR UPDATE SKIP LOCKED
) RETURNING 1"""

_BACKLOG = """
SELECT 'messages', count(*) FROM (
    SELECT FROM messaging_message WHERE expires_at <= clock_timestamp() LIMIT %(limit)s) rows
UNION ALL SELECT 'outcomes', count(*) FROM (
    SELECT FROM messaging_outcome WHERE expires_at <= clock_timestamp() LIMIT %(limit)s) rows
UNION ALL SELECT 'changes', count(*) FROM (
    SELECT FROM messaging_change WHERE created_at < clock_timestamp() - make_interval(days => %(changes_days)s)
    LIMIT %(limit)s) rows
UNION ALL SELECT 'rate_windows', count(*) FROM (
    SELECT FROM messaging_ratewindow WHERE ends_at <= clock_timestamp() LIMIT %(limit)s) rows
UNION ALL SELECT 'sessions', count(*) FROM (
    SELECT FROM django_session WHERE expire_date <= clock_timestamp() LIMIT %(limit)s) rows"""


def _messages(messages: MessageQuerySet) -> int:
    return discard(messages, limit=MESSAGES_BATCH).deleted


def _rows(statement: str) -> Callable[[], int]:
    return lambda: len(change(statement, {"limit": BATCH}))


def _kinds() -> Iterator[tuple[str, Callable[[], int]]]:
    """What there is to delete, each with a function that deletes a batch of it and returns its size."""
    yield "messages", lambda: _messages(expired_messages())
    if days := settings.MESSAGES_RETENTION_DAYS:
        yield "old_messages", lambda: _messages(older_messages(timezone.now() - timedelta(days=days)))
    yield (
        "changes",
        partial(purge_changes, timezone.now() - timedelta(days=settings.MESSAGES_CHANGES_DAYS), limit=BATCH),
    )
    yield "outcomes", partial(purge_outcomes, limit=BATCH)
    yield "rate_windows", _rows(_PURGE_RATE_WINDOWS)
    yield "sessions", _rows(_PURGE_SESSIONS)


def run_once() -> dict[str, int]:
    """Delete everything that has ended; returns how many rows of each kind.

    Messages whose mailbox somebody is changing at that moment are left for the next time.

    Raises:
        DatabaseUnavailableError: the database stayed away; what was deleted until then is deleted.
    """
    deleted = {}
    for kind, delete_batch in _kinds():
        deleted[kind] = 0
        while count := delete_batch():
            deleted[kind] += count
    observations.record("upkeep", sum(deleted.values()))
    return deleted


def backlog() -> dict[str, int]:
    """How many rows of each kind have ended and are still there, up to COUNTED of each.

    Raises:
        DatabaseUnavailableError: the database stayed away.
    """
    found: dict[str, int] = dict(
        read(lambda: fetch(_BACKLOG, {"limit": COUNTED, "changes_days": settings.MESSAGES_CHANGES_DAYS}))
    )
    if days := settings.MESSAGES_RETENTION_DAYS:
        old = older_messages(timezone.now() - timedelta(days=days))
        found["old_messages"] = read(old[:COUNTED].count)
    return found
