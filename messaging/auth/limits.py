"""Rate limits: fixed windows, which admit no more than their quota for all threads, processes and machines together.

A window opens with a caller's first request and lasts the policy's period. It is counted in Redis where REDIS_URL is
set (limits_redis.py), else, and while Redis is unavailable, in PostgreSQL. Headers and refusals: api/throttling.py.
"""

import logging
import os
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from cachetools import LRUCache
from django.conf import settings

from messaging.database import fetch, read

if TYPE_CHECKING:
    from messaging.auth.limits_redis import RedisWindows

HUNDREDTHS = 100  # of a request: the unit of every cost, so that bulk calls can be charged by the item

_SECONDS_IN = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}
_MAX_QUOTA = 999_999_999

logger = logging.getLogger(__name__)

PolicyName = Literal["read", "write", "invalid_keys"]
NAMES: tuple[PolicyName, ...] = get_args(PolicyName)


class Policy(NamedTuple):
    """`quota` requests in each window of `seconds`."""

    name: PolicyName
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
    """What this process knows of a window until its clock shows `until`, in hundredths of requests."""

    left: int  # of the shares that this process has counted, and not given out yet
    remaining: int  # of the quota, counted by nobody when it was last read: an upper bound, since use only grows
    until: float


@lru_cache(maxsize=64)
def parsed(name: PolicyName, text: str) -> Policy | None:
    """The policy that a setting such as `600/min` or `20/s` writes (units s, min, h, d); None for an empty one.

    Raises:
        ValueError: the text is not a rate.
    """
    if not text:
        return None
    number, _, unit = text.partition("/")
    if not (number.isascii() and number.isdigit() and 0 < int(number) <= _MAX_QUOTA and unit in _SECONDS_IN):
        raise ValueError(f"{text!r} is no rate. Write it like 600/min or 20/s (units s, min, h, d), or leave it empty.")
    return Policy(name, text, int(number), _SECONDS_IN[unit])


def policy(name: PolicyName) -> Policy | None:
    """The policy in force, from MESSAGES_RATE_LIMIT_<name>; None for no limit."""
    return parsed(name, getattr(settings, f"MESSAGES_RATE_LIMIT_{name.upper()}"))


# One statement: it counts if there is room, and returns the window either way. `statement_timestamp()` is one instant
# throughout, so a window cannot be both over and not. The second part reads the snapshot of the statement's start.
_TAKE = """
WITH taken AS (
    INSERT INTO messaging_ratewindow AS w (bucket, used, ends_at)
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
FROM messaging_ratewindow WHERE bucket = %(bucket)s AND NOT EXISTS (SELECT FROM taken)"""

# A process counts a share of a large quota in one statement and gives it out by itself. A share is a thirtieth of what
# remains above the last 100 requests, which are counted one by one. So never more than the quota is admitted, and less
# only by what other processes hold, at most a share each, when the window fills up.
_COUNTED_EXACTLY = 100 * HUNDREDTHS
_SHARES = 30

_windows: LRUCache[str, _Window] = LRUCache(10_000)
_windows_lock = threading.Lock()


def take(name: PolicyName, caller: str, cost: int = HUNDREDTHS) -> Decision | None:
    """Count a request of `cost` hundredths for a caller, if the limit has room for it; None where there is no limit.

    `cost` is at most the whole quota. A refused request does not count, and costs no query once the window is known to
    be full.

    Raises:
        DatabaseUnavailableError: neither Redis nor PostgreSQL answers.
    """
    limit = policy(name)
    if limit is None:
        return None
    quota = limit.quota * HUNDREDTHS
    # A changed setting begins new windows.
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
            # Spent by this request, together with what is counted now.
            left, window.left, remaining = window.left, 0, window.remaining
    needed = cost - left
    share = max(needed, (remaining - _COUNTED_EXACTLY) // _SHARES)
    allowed, used, seconds_left = _count(bucket, cost=share, quota=quota, seconds=limit.seconds)
    if not allowed and share > needed:
        share = needed
        allowed, used, seconds_left = _count(bucket, cost=share, quota=quota, seconds=limit.seconds)
    unspent = share - needed if allowed else left
    # From before the query, so never longer than the window itself.
    until = now + min(max(seconds_left, 0.0), float(limit.seconds))
    with _windows_lock:
        window = _windows.get(bucket)
        if window is None or now >= window.until:
            window = _windows[bucket] = _Window(0, quota, until)
        window.left += unspent
        window.remaining = min(window.remaining, max(0, quota - used))
        return _decision(allowed, limit, window, now)


def _decision(allowed: bool, limit: Policy, window: _Window, now: float) -> Decision:  # noqa: FBT001 - a field
    return Decision(allowed, limit, (window.remaining + window.left) // HUNDREDTHS, window.until - now)


def _count(bucket: str, *, cost: int, quota: int, seconds: int) -> tuple[bool, int, float]:
    """Whether `cost` was counted, how much of the window is used, and the seconds until it ends."""
    if url := settings.REDIS_URL:
        counted = _redis(url).take(bucket, cost=cost, quota=quota, seconds=seconds)
        if counted is not None:
            return counted
    # Repeated if its connection is lost, though it may have counted: too much is the safe side.
    rows = read(lambda: fetch(_TAKE, {"bucket": bucket, "cost": cost, "quota": quota, "seconds": seconds}))
    if not rows:
        # Refused by a window that another request opened meanwhile, which the statement's snapshot does not show.
        return False, quota, 0.0
    [(allowed, used, seconds_left)] = rows
    return allowed, used, seconds_left


@lru_cache(maxsize=1)
def _redis(url: str) -> "RedisWindows":
    # Imported where there is a Redis: its client takes 6 MiB of each process.
    from messaging.auth.limits_redis import RedisWindows

    return RedisWindows(url)


# The probe's thread does not exist in a forked child.
os.register_at_fork(after_in_child=_redis.cache_clear)
# What a parent has counted is not a child's to give out.
os.register_at_fork(after_in_child=_windows.clear)
