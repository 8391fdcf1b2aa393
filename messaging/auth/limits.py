"""Rate limits: the policies, and the counting that makes them exact for all threads, processes and machines together.

A window opens with a bucket's first request and lasts the policy's period. It is counted in Redis where REDIS_URL is
set (limits_redis.py), else, and while Redis is away, in PostgreSQL. What a client sees of it stands in throttling.py.
"""

import itertools
import logging
import os
import threading
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from django.conf import settings
from django.db import Error

from messaging.database import fetch, read
from messaging.models import RateWindow
from messaging.recent import Recent

if TYPE_CHECKING:
    from messaging.auth.limits_redis import RedisWindows

HUNDREDTHS = 100  # of a request: the unit of every cost, so that bulk calls can be charged by the item

_SECONDS_IN = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}
_MAX_QUOTA = 999_999_999

_CLEAR_AFTER_OPENED = 500  # windows opened by this process
_CLEAR_AT_MOST = 1_000  # windows in one statement: twice as many as were opened, so that the table cannot grow

logger = logging.getLogger(__name__)

PolicyName = Literal["read", "write"]
NAMES: tuple[PolicyName, ...] = ("read", "write")


class Policy(NamedTuple):
    """`quota` requests in each window of `seconds`."""

    name: PolicyName
    text: str
    quota: int
    seconds: int


class Decision(NamedTuple):
    """What became of a request: whether it is within the limit, how many requests are left, and for how long."""

    allowed: bool
    policy: Policy
    remaining: int
    reset_seconds: float


class _Used(NamedTuple):
    """A window after a request asked for its share: hundredths of requests used, and seconds until the window ends."""

    allowed: bool
    used: int
    reset_seconds: float


class _Full(NamedTuple):
    """A window that had no room for `cost`, until the process's clock shows `until`."""

    cost: int
    remaining: int
    until: float


@lru_cache(maxsize=64)
def parsed(name: PolicyName, text: str) -> Policy | None:
    """The policy that a setting such as `600/min` or `20/s` writes (units s, min, h, d); None for an empty one.

    Raises:
        ValueError: it writes none.
    """
    if not text:
        return None
    number, _, unit = text.partition("/")
    if not (number.isascii() and number.isdigit() and 0 < int(number) <= _MAX_QUOTA and unit in _SECONDS_IN):
        raise ValueError(f"{text!r} is no rate. Write it like 600/min or 20/s (units s, min, h, d), or leave it empty.")
    return Policy(name, text, int(number), _SECONDS_IN[unit])


def policy(name: PolicyName) -> Policy | None:
    """The policy in force, or None for no limit."""
    return parsed(name, settings.MESSAGES_RATE_LIMIT_READ if name == "read" else settings.MESSAGES_RATE_LIMIT_WRITE)


# One statement: it counts if there is room, and says what the window looks like either way. Its start is its time
# throughout, so that it cannot find a window both over and not. The second part reads the snapshot of that start.
_TAKE = f"""
WITH taken AS (
    INSERT INTO {RateWindow._meta.db_table} AS w (bucket, used, ends_at)
    VALUES (%(bucket)s, %(cost)s, statement_timestamp() + make_interval(secs => %(seconds)s))
    ON CONFLICT (bucket) DO UPDATE SET
        used = CASE WHEN w.ends_at <= statement_timestamp() THEN excluded.used ELSE w.used + excluded.used END,
        ends_at = CASE WHEN w.ends_at <= statement_timestamp() THEN excluded.ends_at ELSE w.ends_at END
    WHERE w.ends_at <= statement_timestamp() OR w.used + excluded.used <= %(quota)s
    RETURNING used, ends_at
)
SELECT true, used, extract(epoch FROM ends_at - statement_timestamp())::float8 FROM taken
UNION ALL
SELECT false, used, extract(epoch FROM ends_at - statement_timestamp())::float8
FROM {RateWindow._meta.db_table} WHERE bucket = %(bucket)s AND NOT EXISTS (SELECT FROM taken)"""

_CLEAR = f"""
DELETE FROM {RateWindow._meta.db_table} WHERE id IN (
    SELECT id FROM {RateWindow._meta.db_table} WHERE ends_at < statement_timestamp()
    ORDER BY ends_at LIMIT {_CLEAR_AT_MOST} FOR UPDATE SKIP LOCKED)
RETURNING 1"""


class _Share:
    """Part of a window's quota that this process has counted already and not yet given out."""

    __slots__ = ("left", "remaining", "until")

    def __init__(self, left: int, remaining: int, until: float) -> None:
        self.left = left
        self.remaining = remaining
        self.until = until


# The ten-thousandth part of a large quota is counted at once and given out here, so that a request within it asks
# nobody. Limits of up to 10,000 requests a window are exact to the request; above that a process may keep one share
# unspent when the window fills up, never spend one twice.
_SHARES = 10_000
_shares: Recent[str, _Share] = Recent(10_000)
_shares_lock = threading.Lock()

# A window's use only grows, so what it had no room for once it has no room for until it ends: a flood of refused
# requests is refused without asking anybody.
_full: Recent[str, _Full] = Recent(10_000)
_opened = itertools.count(1)


def take(name: PolicyName, caller: str, cost: int = HUNDREDTHS) -> Decision | None:
    """Count a request of `cost` hundredths for a caller, if the limit has room for it; None where there is no limit.

    `cost` is at most the whole quota. A refused request does not count.

    Raises:
        DatabaseUnavailableError: neither Redis nor PostgreSQL can be asked.
    """
    limit = policy(name)
    if limit is None:
        return None
    quota = limit.quota * HUNDREDTHS
    # A changed setting begins new windows.
    bucket = f"{name}:{limit.text}:{caller}"
    now = time.monotonic()
    full = _full.get(bucket)
    if full is not None and now < full.until and cost >= full.cost:
        return Decision(allowed=False, policy=limit, remaining=full.remaining, reset_seconds=full.until - now)
    share = _shares.get(bucket)
    if share is not None and now < share.until:
        with _shares_lock:
            if share.left >= cost:
                share.left -= cost
                return Decision(
                    allowed=True,
                    policy=limit,
                    remaining=(share.remaining + share.left) // HUNDREDTHS,
                    reset_seconds=share.until - now,
                )
    wanted = max(cost, quota // _SHARES)
    used = _count(bucket, cost=wanted, quota=quota, seconds=limit.seconds)
    if wanted > cost and not used.allowed:
        wanted = cost
        used = _count(bucket, cost=cost, quota=quota, seconds=limit.seconds)
    reset_seconds = min(max(used.reset_seconds, 0.0), float(limit.seconds))
    # From before the answer's way, so never longer than the window itself.
    until = now + reset_seconds
    unused, kept = max(0, quota - used.used), wanted - cost
    if not used.allowed:
        _full.put(bucket, _Full(cost, unused // HUNDREDTHS, until))
    elif kept:
        with _shares_lock:
            # Another thread may have fetched one meanwhile.
            share = _shares.get(bucket)
            if share is not None and now < share.until:
                kept += share.left
            if share is not None:
                share.left = 0  # a third one may hold it, and wait for the lock
            _shares.put(bucket, _Share(kept, unused, until))
        unused += kept
    return Decision(used.allowed, limit, unused // HUNDREDTHS, reset_seconds)


def _count(bucket: str, *, cost: int, quota: int, seconds: int) -> _Used:
    if url := settings.REDIS_URL:
        found = _redis(url).take(bucket, cost=cost, quota=quota, seconds=seconds)
        if found is not None:
            return _Used(*found)
    return _count_in_postgresql(bucket, cost=cost, quota=quota, seconds=seconds)


def _count_in_postgresql(bucket: str, *, cost: int, quota: int, seconds: int) -> _Used:
    parameters = {"bucket": bucket, "cost": cost, "quota": quota, "seconds": seconds}
    # Run again if its connection is lost, though it may have counted: too much is the safe side.
    rows = read(lambda: fetch(_TAKE, parameters))
    if not rows:
        # Refused by a window that another request opened meanwhile, which the statement's snapshot does not show.
        return _Used(allowed=False, used=quota, reset_seconds=0.0)
    used = _Used(*rows[0])
    if used.allowed and used.used == cost and next(_opened) % _CLEAR_AFTER_OPENED == 0:
        _clear_ended()
    return used


def _clear_ended() -> None:
    """Remove windows that have ended. A failure costs room and no request."""
    try:
        fetch(_CLEAR)
    except Error as error:
        logger.warning("ended rate limit windows cannot be cleared away (%s)", type(error).__name__)


@lru_cache(maxsize=1)
def _redis(url: str) -> "RedisWindows":
    # Imported where there is a Redis: its client takes 6 MiB of each process.
    from messaging.auth.limits_redis import RedisWindows

    return RedisWindows(url)


# A child must not share its parent's connections, nor does it have the thread that reconnects them.
os.register_at_fork(after_in_child=_redis.cache_clear)
# What a parent has counted for itself is not a child's to give out.
os.register_at_fork(after_in_child=_shares.clear)
