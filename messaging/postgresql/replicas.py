"""Which replicas are within POSTGRES_REPLICA_MAX_LAG_MS of the primary, as each process finds out by itself.

Threads ask every server for its position in the WAL a few times a second. A replica that has replayed the position that
the primary had at some instant has everything that was committed by then; the newest such instant says how far it is
behind. An idle primary makes no replica look late, and no clock but this process's is used. Any role may ask for
positions; the columns of pg_stat_wal_receiver need pg_read_all_stats.

Positions are comparable only within one timeline of one cluster. A former primary that starts as a standby may have
commits that its successor lacks, until pg_rewind removes them. So a server is used once its control file has named the
cluster and the timeline of the primary. The control file of a standby is updated by its restartpoints, minutes after a
failover: a standby that has not been restarted since it was confirmed stays confirmed.
https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES
"""

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import psycopg
from cachetools import LRUCache, cached
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections

from messaging.postgresql.base import Connection
from messaging.postgresql.sqlstates import first_line

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_ANSWER_SECONDS = 0.3
_SILENT_SECONDS = 0.9  # without an answer for so long, a replica is left out

# The position of the primary; its cluster and timeline. What is flushed is committed. A position that is only inserted
# may stay unflushed, and so unsent, for long.
FLUSHED = """
SELECT pg_wal_lsn_diff(position, '0/0')::bigint,
    ARRAY[system_identifier, ('x' || left(pg_walfile_name(position), 8))::bit(32)::integer]
FROM pg_current_wal_flush_lsn() AS position, pg_control_system()
"""
# The same of a replica, and when it was started. No row from a server that is no replica (any more).
REPLAYED = """
SELECT pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint, ARRAY[system_identifier, timeline_id],
    pg_postmaster_start_time()
FROM pg_control_checkpoint(), pg_control_system() WHERE pg_is_in_recovery()
"""

Row = tuple[Any, ...]
Note = Callable[[float, Row | None], None]  # takes when a server was asked, and its answer


class Sample(NamedTuple):
    """A position in the WAL, and an instant of the monotonic clock."""

    at: float
    position: int


class _Replica:
    def __init__(self) -> None:
        self.replayed: Sample | None = None  # its position, and when that was first seen; None while it is left out
        self.answered_at = 0.0
        # Whether the primary was at or beyond its position, and never behind it: if not, it follows another server.
        self.is_follower = False
        # Its start, and the primary's timeline, when it was ahead of the primary.
        self.ahead: object = None
        self.timeline: object = None  # its cluster and timeline
        self.started_at: object = None
        self.confirmed: object = None  # `started_at` when it was last seen on the primary's timeline

    def note(self, _asked_at: float, found: Row | None) -> None:
        now = time.monotonic()
        self.answered_at = now
        if found is None:
            self.replayed = None
            return
        position, self.timeline, self.started_at = found
        if self.replayed is None or self.replayed.position != position:
            self.replayed = Sample(now, position)


class Replicas:
    """The replicas of this process. Safe to use from several threads."""

    def __init__(self) -> None:
        self._max_lag_seconds = settings.POSTGRES_REPLICA_MAX_LAG_MS / 1000
        self._poll_seconds = min(_POLL_SECONDS, self._max_lag_seconds / 4)
        # Positions of the primary from before it was asked, the newest last. Replaced and never changed.
        self._flushed: tuple[Sample, ...] = ()
        self._primary_is_away = True
        self._replicas = {alias: _Replica() for alias in settings.POSTGRES_REPLICAS}
        polls: list[tuple[str, str, Note]] = [(DEFAULT_DB_ALIAS, FLUSHED, self._note_primary)]
        polls += [(alias, REPLAYED, replica.note) for alias, replica in self._replicas.items()]
        for poll in polls:
            threading.Thread(target=self._poll, args=poll, name=f"lag of {poll[0]}", daemon=True).start()

    def choose(self) -> list[str]:
        """The aliases of the replicas to ask, one after another: one that is in time, or all while the primary is away.

        After the primary has died, perhaps only one of its standbys has its last commit.
        """
        usable = [alias for alias, replica in self._replicas.items() if self._is_usable(replica)]
        random.shuffle(usable)
        return usable if self._primary_is_away else usable[:1]

    def leave_out(self, alias: str) -> None:
        """Leave a replica out that has failed, until it answers again."""
        self._replicas[alias].replayed = None

    def _is_usable(self, replica: _Replica) -> bool:
        now, replayed, flushed = time.monotonic(), replica.replayed, self._flushed
        if replayed is None or not replica.is_follower or replica.confirmed != replica.started_at:
            return False
        if now - replica.answered_at > _SILENT_SECONDS:
            return False
        caught_up_at = next((sample.at for sample in reversed(flushed) if sample.position <= replayed.position), None)
        # While the primary cannot be reached, its position is unknown, so the lag is that of the last known position.
        until = flushed[-1].at if self._primary_is_away else now
        return caught_up_at is not None and until - caught_up_at < self._max_lag_seconds

    def _note_primary(self, asked_at: float, found: Row | None) -> None:
        self._primary_is_away = found is None
        if found is not None:
            position, timeline = found
            kept = int(self._max_lag_seconds / self._poll_seconds) + 1
            self._flushed = (*self._flushed[-kept:], Sample(asked_at, position))
            for replica in self._replicas.values():
                if (replayed := replica.replayed) is not None and replayed.at < asked_at:
                    if replayed.position > position:
                        replica.ahead = (replica.started_at, timeline)
                    # If so once, always: the primary will pass the position, and its history will still be another.
                    replica.is_follower = replica.ahead != (replica.started_at, timeline)
                    if replica.timeline == timeline:
                        replica.confirmed = replica.started_at

    def _poll(self, alias: str, statement: str, note: Note) -> None:
        server = connections[alias].settings_dict
        was_fine = True
        connection: psycopg.Connection[Any] | None = None
        while True:
            found: Row | None = None
            asked_at, reason = time.monotonic(), "it is no replica"
            try:
                connection = connection or _connect(alias)
                found = connection.execute(statement).fetchone()
            except psycopg.Error as error:
                reason = first_line(error)
                if connection is not None:
                    connection.close()
                    connection = None
            note(asked_at, found)
            if was_fine != (found is not None):
                was_fine = found is not None
                what = "tells its position in the WAL" if was_fine else f"tells no position in the WAL: {reason}"
                logger.warning("%s:%s %s", server["HOST"], server["PORT"], what)
            # Not in step with the other threads, so that one asks now before and now after another.
            time.sleep(self._poll_seconds * random.uniform(0.8, 1.2))  # noqa: S311 - not for secrets


def _connect(alias: str) -> psycopg.Connection[Any]:
    connection = Connection.connect(**connections[alias].get_connection_params(), autocommit=True)
    connection.timeout_seconds = _ANSWER_SECONDS
    return connection


@cached(LRUCache(1), key=os.getpid, condition=threading.Condition())
def replicas() -> Replicas:
    """The replicas as this process sees them; asking for them begins to watch them. Threads do not survive a fork."""
    return Replicas()
