"""Rate limits: fixed windows, whose quota holds for all threads, processes and machines together.

A window begins with a caller's first request and lasts the period of the policy. It is counted in Redis if REDIS_URL is
set (limits_redis.py); otherwise, and while Redis is unavailable, in PostgreSQL.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from cachetools import LRUCache
from django.conf import settings

from messaging.database import fetch, read

if TYPE_CHECKING:
    from messaging.auth.limits_redis import RedisWindows

HUNDREDTHS = 100  # costs are in hundredths of a request, so that bulk calls can be charged by the item

_SECONDS_IN = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}

logger = logging.getLogger(__name__)

PolicyName = Literal["read", "write", "invalid_keys"]


class Policy(NamedTuple):
    """`quota` requests in each window of `seconds`."""

    text: str
    quota: int
    seconds: int


class Decision(NamedTuple):
    """Whether a request is within its limit, how many requests are left, and the seconds until the window ends."""

    allowed: bool
    policy: Policy
    remaining: int
    reset_seconds: float


@dataclass(slots=True)
class _Window:
    """What this process knows about a window that ends at `until`, in hundredths of requests."""

    left: int  # reserved by this process, and not used yet
    remaining: int  # of the quota, at the last query; an upper bound
    until: float


@lru_cache(maxsize=64)
def parsed(text: str) -> Policy | None:
    """The policy of a setting such as `600/min` or `20/s`, which env.py has validated; None for an empty one."""
    if not text:
        return None
    number, _, unit = text.partition("/")
    return Policy(text, int(number), _SECONDS_IN[unit])


def policy(name: PolicyName) -> Policy | None:
    """The policy in force, from MESSAGES_RATE_LIMIT_<name>; None for no limit."""
    return parsed(getattr(settings, f"MESSAGES_RATE_LIMIT_{name.upper()}"))


# Counts if the quota allows it, and returns the window in both cases. `statement_timestamp()` is the same instant
# throughout. The second SELECT reads the snapshot of the statement's start. A window that ends too far in the future
# was begun before PostgreSQL's clock was set back, and counts as ended. The 10 s are for statements that waited.
_TAKE = """
WITH taken AS (
    INSERT INTO messaging_ratewindow AS w (bucket, used, ends_at)
    VALUES (%(bucket)s, %(cost)s, statement_timestamp() + make_interval(secs => %(seconds)s))
    ON CONFLICT (bucket) DO UPDATE SET
        used = CASE WHEN w.ends_at BETWEEN statement_timestamp() AND excluded.ends_at + interval '10 seconds'
            THEN w.used + excluded.used ELSE excluded.used END,
        ends_at = CASE WHEN w.ends_at BETWEEN statement_timestamp() AND excluded.ends_at + interval '10 seconds'
            THEN w.ends_at ELSE excluded.ends_at END
    WHERE w.ends_at NOT BETWEEN statement_timestamp() AND excluded.ends_at + interval '10 seconds'
        OR w.used + excluded.used <= %(quota)s
    RETURNING used, ends_at
)
SELECT true, used, extract(epoch FROM ends_at - statement_timestamp())::float8 FROM taken
UNION ALL
SELECT false, used, extract(epoch FROM ends_at - statement_timestamp())::float8
FROM messaging_ratewindow WHERE bucket = %(bucket)s AND NOT EXISTS (SELECT FROM taken)"""

# A process reserves a share of a large quota in one statement, and then counts in memory, for a caller whose window it
# has counted before. A share is a thirtieth of what remains above the last 100 requests, which are counted one by one.
# So never more than the quota is admitted, and less by at most one share for each other process.
_COUNTED_EXACTLY = 100 * HUNDREDTHS
_SHARES = 30

_windows: LRUCache[str, _Window] = LRUCache(10_000)
_windows_lock = threading.Lock()


def take(name: PolicyName, caller: str, cost: int = HUNDREDTHS) -> Decision | None:
    """Count a request of `cost` hundredths for a caller, if the quota allows it; None if there is no limit.

    `cost` is at most the quota. A refused request does not count, and costs no query if the window is known to be full.
    """
    limit = policy(name)
    if limit is None:
        return None
    quota = limit.quota * HUNDREDTHS
    # The limit is part of the name, so that a changed setting starts new windows.
    bucket = f"{name}:{limit.text}:{caller}"
    now = time.monotonic()
    left, remaining = 0, quota
    with _windows_lock:
        window = _windows.get(bucket)
        if window is not None and now < window.until:
            allowed = window.left >= cost
            if allowed:
                window.left -= cost
            if allowed or cost - window.left > window.remaining:
                return _decision(allowed, limit, window, now)
            # Used by this request, in addition to what is reserved now.
            left, window.left, remaining = window.left, 0, window.remaining
    needed = cost - left
    # No share for a caller without a window here: of many callers, it might be forgotten before the share is used.
    share = needed if window is None else max(needed, (remaining - _COUNTED_EXACTLY) // _SHARES)
    allowed, used, seconds_left = _count(bucket, cost=share, quota=quota, seconds=limit.seconds)
    if not allowed and share > needed:
        share = needed
        allowed, used, seconds_left = _count(bucket, cost=share, quota=quota, seconds=limit.seconds)
    unspent = share - needed if allowed else left
    # From the time before the query, so never later than the end of the window.
    until = now + min(max(seconds_left, 0.0), float(limit.seconds))
    with _windows_lock:
        window = _windows.get(bucket)
        if window is None or now >= window.until:
            window = _windows[bucket] = _Window(0, quota, until)
        window.left += unspent
        window.remaining = min(window.remaining, max(0, quota - used))
        return _decision(allowed, limit, window, now)


def _decision(allowed: bool, limit: Policy, window: _Window, now: float) -> Decision:  # noqa: FBT001 - a field
    # The sum and the difference of two instants may be a little more than the seconds of the window.
    reset_seconds = min(window.until - now, limit.seconds)
    return Decision(allowed, limit, (window.remaining + window.left) // HUNDREDTHS, reset_seconds)


def _count(bucket: str, *, cost: int, quota: int, seconds: int) -> tuple[bool, int, float]:
    """Whether `cost` was counted, how much of the window is used, and the seconds until it ends."""
    if url := settings.REDIS_URL:
        counted = _redis(url).take(bucket, cost=cost, quota=quota, seconds=seconds)
        if counted is not None:
            return counted
    # Retried after a lost connection, although it may have counted: counting twice is safe, not counting is not.
    rows = read(lambda: fetch(_TAKE, {"bucket": bucket, "cost": cost, "quota": quota, "seconds": seconds}))
    if not rows:
        # Refused by a window that began after the statement's snapshot.
        return False, quota, 0.0
    [(allowed, used, seconds_left)] = rows
    return allowed, used, seconds_left


@lru_cache(maxsize=1)
def _redis(url: str) -> "RedisWindows":
    # Imported where there is a Redis: its client takes 6 MiB of each process.
    from messaging.auth.limits_redis import RedisWindows

    return RedisWindows(url)


# A forked child has no probe thread.
os.register_at_fork(after_in_child=_redis.cache_clear)
# The share of a parent must not be used by its children too.
os.register_at_fork(after_in_child=_windows.clear)


class InvalidKeyCounter:
    """Requests with an invalid key or token, counted for each client address in this process.

    An invalid key costs a query, which no caller's limit can count. Above MESSAGES_RATE_LIMIT_INVALID_KEYS such
    requests of an address are refused with 429 instead of 401, and cost no query each. A valid key is never refused for
    this, since other clients may share the address. A window begins with an address's first invalid key; `clock` is
    monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: LRUCache[str, tuple[int, float]] = LRUCache(10_000)  # count, end

    def seconds_to_wait(self, address: str) -> float | None:
        """Seconds until the window of an address ends, if its limit is reached; else None."""
        limit = policy("invalid_keys")
        if limit is None or not self._windows:
            return None
        with self._lock:
            count, ends = self._windows.get(address, (0, 0.0))
        seconds = ends - self._clock()
        return seconds if count >= limit.quota and seconds > 0 else None

    def add(self, address: str) -> None:
        limit = policy("invalid_keys")
        if limit is None:
            return
        now = self._clock()
        with self._lock:
            count, ends = self._windows.get(address, (0, 0.0))
            self._windows[address] = (count + 1, ends) if now < ends else (1, now + limit.seconds)


invalid_keys = InvalidKeyCounter()
