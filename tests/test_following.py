"""A crowd of clients follows mailboxes while others write and processes fail: none misses a version."""

import asyncio
from collections.abc import Callable

import pytest

from benchmarks.crowd import Crowd
from tests.live_servers import RunningLive
from tests.postgres_servers import PostgresServer
from tests.redis_servers import RedisServer
from tests.servers import RunningServer, wait_until

OPEN = {"MESSAGES_ACCESS": "open", "MESSAGES_RATE_LIMIT_READ": "", "MESSAGES_RATE_LIMIT_WRITE": ""}


@pytest.mark.parametrize("web_server", ["gunicorn"])
def test_no_stream_misses_a_version_whatever_fails(
    run_server: Callable[..., RunningServer], run_live: Callable[..., RunningLive]
) -> None:
    with PostgresServer() as postgres, RedisServer() as redis:
        variables = OPEN | postgres.variables | {"REDIS_URL": redis.url, "ACCESS_LOG": "false"}
        server = run_server(**variables)
        lives = [run_live(**variables), run_live(**variables)]
        wait_until(lambda: redis.client.pubsub_numsub("messages:changed")[0][1] == 2, what="two subscriptions")

        def live_killed() -> None:
            lives[0].kill()
            lives[0].restart()

        def live_replaced() -> None:
            assert lives[1].stop() == 0
            lives[1].restart()

        def postgresql_restarted() -> None:
            postgres.stop()
            postgres.start()

        def redis_restarted() -> None:
            redis.wake()
            redis.stop()
            redis.start()

        async def run() -> None:
            crowd = Crowd(server.port, [live.port for live in lives], streams=160, mailboxes=40, writers=8)
            async with crowd.at_work():
                for fault in (live_killed, postgresql_restarted, live_replaced, redis.hang, redis_restarted):
                    await asyncio.to_thread(fault)
                    await crowd.progress()
            assert all(follower.connections > 1 for follower in crowd.followers)

        asyncio.run(run())
