"""Windows of requests counted in Redis, and the patience with a Redis that is gone or hangs.

Which limits there are, and where they are counted without Redis, stands in limits.py.
"""

import logging
import threading
import time
from hashlib import sha1
from typing import Any

import redis

# Each bounds one step; a connection in use has one step, a new one seldom more than two. So a Redis that has stopped
# answering costs the requests that find out at most 0.2 s, and later ones nothing.
_STEP_SECONDS = 0.09
_FIRST_CONTACT_SECONDS = 0.2
_PROBE_PAUSE_SECONDS = 2.0

# Reads and counts as one, by Redis's own clock: the key's time to live is the window.
_SCRIPT = b"""
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
_SHA = sha1(_SCRIPT, usedforsecurity=False).hexdigest().encode()

logger = logging.getLogger(__name__)


class RedisWindows:
    """The windows in one Redis, shared by all threads of a process; `close` it to stop what it has running.

    Connections are made by redis-py, which knows about TLS, passwords and URLs; a request then speaks on one directly,
    at two thirds of the client's price. While Redis is away a thread in the background tries to reach it, so that no
    request waits for a connection, a name server or a time limit again.
    """

    def __init__(self, url: str) -> None:
        # RESP 2, no CLIENT SETINFO and no retries: each would be one more step to wait for.
        self._pool = redis.ConnectionPool.from_url(
            url, socket_timeout=_STEP_SECONDS, socket_connect_timeout=_STEP_SECONDS, protocol=2, driver_info=None
        )
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self._answers = threading.Event()
        self._closed = threading.Event()
        self._patience_ends = time.monotonic() + _FIRST_CONTACT_SECONDS
        self._start_probe(warned=False)

    def take(self, bucket: str, *, cost: int, quota: int, seconds: int) -> tuple[bool, int, float] | None:
        """Count `cost` in the window of `bucket` if that stays within `quota`; None while Redis is away.

        Returns whether it did, how much of the window is used then, and the seconds until it ends.
        """
        if not self._answers.is_set() and not self._answers.wait(max(0.0, self._patience_ends - time.monotonic())):
            return None
        try:
            allowed, used, milliseconds = self._ask(_arguments(bucket, cost, quota, seconds))
        except (redis.RedisError, OSError) as error:
            self._give_up(error)
            return None
        return allowed == 1, used, milliseconds / 1000

    def close(self) -> None:
        """Stop trying, and close what is open."""
        self._closed.set()
        self._answers.clear()
        self._disconnect_idle()

    def _ask(self, arguments: bytes) -> Any:
        try:
            connection, reused = self._idle.pop(), True
        except IndexError:
            connection, reused = self._pool.make_connection(), False
        try:
            answer = _run(connection, arguments)
        except redis.ConnectionError:
            # Redis may have closed it while it lay idle, or have been started anew. Had it counted before the
            # connection broke, this counts again: too much is the safe side.
            connection.disconnect()
            if not reused:
                raise
            answer = _run(connection, arguments)
        except (redis.RedisError, OSError):
            # An answer that comes too late must not be taken for the next one's.
            connection.disconnect()
            raise
        self._idle.append(connection)
        return answer

    def _give_up(self, error: Exception) -> None:
        with self._lock:
            if not self._answers.is_set():
                return
            self._answers.clear()
        self._disconnect_idle()
        _warn(error)
        self._start_probe(warned=True)

    def _disconnect_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.disconnect()

    def _start_probe(self, *, warned: bool) -> None:
        threading.Thread(target=self._probe, args=(warned,), name="redis-probe", daemon=True).start()

    def _probe(self, warned: bool) -> None:  # noqa: FBT001 - a thread's target
        while not self._closed.is_set():
            connection: Any = self._pool.make_connection()
            try:
                # What requests do, so that a Redis which answers but may not write counts as away.
                _run(connection, _arguments("probe", 1, 1_000_000, 1))
            except (redis.RedisError, OSError) as error:
                connection.disconnect()
                if not warned:
                    _warn(error)
                    warned = True
                self._closed.wait(_PROBE_PAUSE_SECONDS)
                continue
            self._idle.append(connection)
            self._answers.set()
            logger.info("Redis answers: counting rate limits there")
            return


def _warn(error: Exception) -> None:
    # The text of an error may quote the URL; the class says enough.
    logger.warning(
        "Redis cannot count rate limits (%s): PostgreSQL does, until Redis answers again", type(error).__name__
    )


def _arguments(bucket: str, cost: int, quota: int, seconds: int) -> bytes:
    """Number of keys, the key and the script's arguments, in RESP."""
    return b"$1\r\n1\r\n%b%b%b%b" % (
        _bulk(b"messages:rate:%b" % bucket.encode()),
        _bulk(b"%d" % cost),
        _bulk(b"%d" % quota),
        _bulk(b"%d" % (seconds * 1000)),
    )


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


_EVALSHA = b"*7\r\n" + _bulk(b"EVALSHA") + _bulk(_SHA)
_EVAL = b"*7\r\n" + _bulk(b"EVAL") + _bulk(_SCRIPT)


def _run(connection: Any, arguments: bytes) -> Any:
    """The script's answer. It connects by itself."""
    connection.send_packed_command((_EVALSHA + arguments,), check_health=False)
    try:
        return connection.read_response()
    except redis.exceptions.NoScriptError:
        connection.send_packed_command((_EVAL + arguments,), check_health=False)
        return connection.read_response()
