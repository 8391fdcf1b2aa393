"""Hints that mailboxes have changed, published to Redis after commit where REDIS_URL is set.

Hints only make the live processes query sooner, so they may be lost. A request adds a name to a queue, and a thread
publishes the queue. So a Redis that is unavailable or hangs delays no request.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable

from cachetools import LRUCache, cached
from django.conf import settings
from django.db import transaction

from messaging.errors import redis_error_name

CHANNEL = "messages:changed"
SEPARATOR = "\n"  # no recipient has control characters
_MAX_QUEUED = 10_000
# Between two publications, so that a busy process publishes the names of many changes together.
_PAUSE_SECONDS = 0.01
_TIMEOUT_SECONDS = 1.0
_RETRY_SECONDS = 2.0

logger = logging.getLogger(__name__)


def mailboxes_changed(recipients: Iterable[str]) -> None:
    """Publish, after the commit of the current transaction, that these mailboxes have new versions."""
    if settings.REDIS_URL:
        names = tuple(recipients)
        transaction.on_commit(lambda: _publisher(settings.REDIS_URL).put(names))


# One for each process, since threads do not survive a fork.
@cached(LRUCache(1), key=lambda url: (url, os.getpid()), condition=threading.Condition())
def _publisher(url: str) -> "_Publisher":
    return _Publisher(url)


class _Publisher:
    """A queue of names, and the thread that sends them."""

    def __init__(self, url: str) -> None:
        # Imported only with REDIS_URL: the client takes 6 MiB of each process.
        import redis

        self._redis = redis.Redis.from_url(
            url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS, retry=None, protocol=2
        )
        self._names: deque[str] = deque(maxlen=_MAX_QUEUED)
        self._has_names = threading.Event()
        threading.Thread(target=self._run, name="hints", daemon=True).start()

    def put(self, names: Iterable[str]) -> None:
        self._names.extend(names)
        self._has_names.set()

    def _run(self) -> None:
        is_away = False
        while True:
            self._has_names.wait()
            self._has_names.clear()
            names = {self._names.popleft() for _ in range(len(self._names))}
            try:
                self._redis.publish(CHANNEL, SEPARATOR.join(names))
                is_away = False
            except Exception as error:  # noqa: BLE001 - the client does not catch some of Python's errors
                if not is_away:
                    logger.warning(
                        "Redis takes no hints of changes (%s): live updates come later", redis_error_name(error)
                    )
                is_away = True
            time.sleep(_RETRY_SECONDS if is_away else _PAUSE_SECONDS)
