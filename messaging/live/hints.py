"""Receives the hints of messaging/hints.py from Redis: which mailboxes have changed."""

import asyncio
import logging

import redis.asyncio
from django.conf import settings

from messaging.errors import redis_error_name
from messaging.hints import CHANNEL, SEPARATOR
from messaging.live.hub import Hub

_PING_SECONDS = 5.0
_RETRY_SECONDS = 2.0

logger = logging.getLogger(__name__)


async def listen(hub: Hub) -> None:
    """Forward hints to the hub, until cancelled. Without Redis, the hub only polls."""
    is_away = False
    while settings.REDIS_URL:
        try:
            async with redis.asyncio.Redis.from_url(
                settings.REDIS_URL, socket_timeout=_PING_SECONDS, socket_connect_timeout=_PING_SECONDS, protocol=2
            ) as client:
                await _pass_on(client, hub)
        except Exception as error:  # noqa: BLE001 - also of what is not Redis, or of others who publish here
            hub.gets_hints = False
            if not is_away:
                logger.warning("Redis gives no hints of changes (%s): live updates come later", redis_error_name(error))
            is_away = True
        await asyncio.sleep(_RETRY_SECONDS)


async def _pass_on(client: "redis.asyncio.Redis", hub: Hub) -> None:
    """Forward hints until Redis does not answer a ping in time."""
    async with client.pubsub() as subscription:
        await subscription.subscribe(CHANNEL)
        is_asked = False
        while True:
            message = await subscription.get_message(timeout=_PING_SECONDS)
            if message is None:
                if is_asked:
                    raise TimeoutError
                await subscription.ping()
                is_asked = True
                continue
            is_asked, hub.gets_hints = False, True
            if message["type"] == "message":
                # Text already if REDIS_URL has `decode_responses=true`.
                data = message["data"]
                hub.hint((data if isinstance(data, str) else data.decode()).split(SEPARATOR))
