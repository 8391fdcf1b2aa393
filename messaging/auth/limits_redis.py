"""Rate limit windows in Redis, with a circuit breaker for a Redis that does not answer."""

import logging
import threading
import time

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from messaging.errors import redis_error_name

# The timeout of connecting, and of a command. A Redis that has stopped answering delays the first requests by up to
# 0.2 s (both steps), and later requests not at all.
_STEP_SECONDS = 0.09
_PROBE_PAUSE_SECONDS = 2.0

# Atomic, and by the clock of Redis: the window ends when the key expires, or when that clock was set back.
_SCRIPT = """
if redis.call('PTTL', KEYS[1]) > tonumber(ARGV[3]) then
    redis.call('DEL', KEYS[1])
end
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

    Once Redis has failed a request, a background thread probes it until it answers, so that no other request waits for
    a connection, a name lookup or a timeout.
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
        self._is_away = threading.Event()

    def take(self, bucket: str, *, cost: int, quota: int, seconds: int) -> tuple[bool, int, float] | None:
        """Count `cost` in the window of `bucket` if that stays within `quota`; None while Redis is unavailable.

        Returns whether it was counted, how much of the window is used, and the seconds until the window ends.
        """
        if self._is_away.is_set():
            return None
        try:
            return self._run(bucket, cost, quota, seconds)
        except Exception as error:  # noqa: BLE001 - what is not Redis may answer anything
            # Of several threads that fail at once, usually one starts a probe; a second one would do no harm.
            if not self._is_away.is_set():
                self._is_away.set()
                logger.warning(
                    "Redis cannot count rate limits (%s): PostgreSQL does until Redis answers again",
                    redis_error_name(error),
                )
                threading.Thread(target=self._probe_until_back, name="redis-probe", daemon=True).start()
            return None

    def _run(self, bucket: str, cost: int, quota: int, seconds: int) -> tuple[bool, int, float]:
        allowed, used, milliseconds = self._script([f"messages:rate:{bucket}"], [cost, quota, seconds * 1000])
        return allowed == 1, used, milliseconds / 1000

    def probe(self) -> None:
        """Raise if Redis cannot count now: it may answer, and refuse to write. The client has many kinds of errors."""
        self._run("probe", 1, 1_000_000, 1)

    def _probe_until_back(self) -> None:
        while self._is_away.is_set():
            try:
                self.probe()
            except Exception:  # noqa: BLE001 - as above
                # The address may lead to another Redis by now.
                self._client.connection_pool.disconnect()
                time.sleep(_PROBE_PAUSE_SECONDS)
            else:
                self._is_away.clear()
                logger.info("Redis answers: rate limits are counted there again")
