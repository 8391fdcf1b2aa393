"""Rate limit windows in Redis, with a circuit breaker for a Redis that does not answer.

limits.py has the policies, and counts in PostgreSQL without Redis.
"""

import logging
import threading
import time

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

# The timeout of connecting, and of a command. A Redis that has stopped answering delays the first requests by up to
# 0.2 s (both steps), and later requests not at all.
_STEP_SECONDS = 0.09
_FIRST_CONTACT_SECONDS = 0.2
_PROBE_PAUSE_SECONDS = 2.0

# Atomic, and by the clock of Redis: the window ends when the key expires.
_SCRIPT = """
local used, cost = tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[1])
if used + cost > tonumber(ARGV[2]) then
    return {0, used, redis.call('PTTL', KEYS[1])}
end
if used == 0 then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
    return {1, cost, tonumber(ARGV[3])}
end
return {1, redis.call('INCRBY', KEYS[1], ARGV[1]), redis.call('PTTL', KEYS[1])}
"""

logger = logging.getLogger(__name__)


class RedisWindows:
    """The windows in one Redis, for all threads of a process.

    While Redis does not answer, a background thread probes it, so that no request waits for a connection, a name lookup
    or a timeout. `close` ends that thread.
    """

    def __init__(self, url: str) -> None:
        # RESP 2 without CLIENT SETINFO: each command of a handshake would take another step. A command is retried once
        # if Redis has closed the idle connection, and never after a timeout. A retry may count a request twice.
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=_STEP_SECONDS,
            socket_connect_timeout=_STEP_SECONDS,
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            protocol=2,
            driver_info=None,
        )
        self._script = self._client.register_script(_SCRIPT)
        self._is_available = threading.Event()
        self._is_closed = threading.Event()
        self._first_contact_ends = time.monotonic() + _FIRST_CONTACT_SECONDS
        self._start_probe(is_reported=False)

    def take(self, bucket: str, *, cost: int, quota: int, seconds: int) -> tuple[bool, int, float] | None:
        """Count `cost` in the window of `bucket` if that stays within `quota`; None while Redis is unavailable.

        Returns whether it was counted, how much of the window is used, and the seconds until the window ends.
        """
        if not self._is_available.wait(max(0.0, self._first_contact_ends - time.monotonic())):
            return None
        try:
            return self._run(bucket, cost, quota, seconds)
        except (redis.RedisError, OSError) as error:
            # If several threads fail at once, one starts the probe.
            if self._is_available.is_set():
                self._is_available.clear()
                _warn(error)
                self._start_probe(is_reported=True)
            return None

    def close(self) -> None:
        self._is_closed.set()
        self._is_available.clear()
        self._prober.join()
        self._client.close()

    def _run(self, bucket: str, cost: int, quota: int, seconds: int) -> tuple[bool, int, float]:
        allowed, used, milliseconds = self._script([f"messages:rate:{bucket}"], [cost, quota, seconds * 1000])
        return allowed == 1, used, milliseconds / 1000

    def _start_probe(self, *, is_reported: bool) -> None:
        self._prober = threading.Thread(target=self._probe, args=(is_reported,), name="redis-probe", daemon=True)
        self._prober.start()

    def _probe(self, is_reported: bool) -> None:  # noqa: FBT001 - a thread's target
        while not self._is_closed.is_set():
            try:
                # The same script as for requests, so that a Redis that refuses writes counts as unavailable.
                self._run("probe", 1, 1_000_000, 1)
            except (redis.RedisError, OSError) as error:
                if not is_reported:
                    _warn(error)
                    is_reported = True
                self._is_closed.wait(_PROBE_PAUSE_SECONDS)
                continue
            self._is_available.set()
            logger.info("Redis answers: rate limits are counted there")
            return


def _warn(error: Exception) -> None:
    # The text of an error may quote the URL with its password.
    logger.warning(
        "Redis cannot count rate limits (%s): PostgreSQL does until Redis answers again", type(error).__name__
    )
