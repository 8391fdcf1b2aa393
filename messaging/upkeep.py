"""Upkeep deletes rows that have expired, in small batches, and counts those that are left.

Several processes may run it at once: a batch skips rows that another transaction has locked (SKIP LOCKED), so it waits
neither for another upkeep nor for a request. messages_project/upkeep.py and `manage.py upkeep` run it.
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
MESSAGES_BATCH = 200  # smaller, since it locks their mailboxes
COUNTED = 10_001  # the largest number of rows that is counted of each kind

# statement_timestamp() is stable, so an index finds the rows. clock_timestamp() is volatile: all rows would be read.
_PURGE_RATE_WINDOWS = """
DELETE FROM messaging_ratewindow WHERE id IN (
    SELECT id FROM messaging_ratewindow WHERE ends_at <= statement_timestamp()
    ORDER BY ends_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
) RETURNING 1"""

_PURGE_SESSIONS = """
DELETE FROM django_session WHERE session_key IN (
    SELECT session_key FROM django_session WHERE expire_date <= statement_timestamp()
    ORDER BY expire_date LIMIT %(limit)s FOR UPDATE SKIP LOCKED
) RETURNING 1"""

_BACKLOG = """
SELECT 'messages', count(*) FROM (
    SELECT 1 FROM messaging_message WHERE expires_at <= statement_timestamp() LIMIT %(limit)s) rows
UNION ALL SELECT 'outcomes', count(*) FROM (
    SELECT 1 FROM messaging_outcome WHERE expires_at <= statement_timestamp() LIMIT %(limit)s) rows
UNION ALL SELECT 'changes', count(*) FROM (
    SELECT 1 FROM messaging_change WHERE created_at < statement_timestamp() - make_interval(days => %(changes_days)s)
    LIMIT %(limit)s) rows
UNION ALL SELECT 'rate_windows', count(*) FROM (
    SELECT 1 FROM messaging_ratewindow WHERE ends_at <= statement_timestamp() LIMIT %(limit)s) rows
UNION ALL SELECT 'sessions', count(*) FROM (
    SELECT 1 FROM django_session WHERE expire_date <= statement_timestamp() LIMIT %(limit)s) rows"""


def _messages(messages: MessageQuerySet) -> int:
    return discard(messages, limit=MESSAGES_BATCH).deleted


def _rows(statement: str) -> Callable[[], int]:
    return lambda: len(change(statement, {"limit": BATCH}))


def _kinds() -> Iterator[tuple[str, Callable[[], int]]]:
    """Each kind of row, with a function that deletes a batch of it and returns its size."""
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
    """Delete everything that has expired; returns the number of rows of each kind.

    Messages in a mailbox that another transaction has locked are left for the next run.

    Raises:
        DatabaseUnavailableError: the database could not be reached. The batches before are committed.
    """
    deleted = {}
    for kind, delete_batch in _kinds():
        deleted[kind] = 0
        while count := delete_batch():
            deleted[kind] += count
    observations.record("upkeep", sum(deleted.values()))
    return deleted


def backlog() -> dict[str, int]:
    """The number of rows of each kind that have expired and are not deleted yet, at most COUNTED.

    Raises:
        DatabaseUnavailableError: the database could not be reached.
    """
    found: dict[str, int] = dict(
        read(lambda: fetch(_BACKLOG, {"limit": COUNTED, "changes_days": settings.MESSAGES_CHANGES_DAYS}))
    )
    if days := settings.MESSAGES_RETENTION_DAYS:
        old = older_messages(timezone.now() - timedelta(days=days))
        found["old_messages"] = read(old[:COUNTED].count)
    return found
