"""Rate limits let exactly as much pass as they say: for threads and processes together, with Redis and without."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from cachetools import LRUCache
from django.core import checks
from django.db import connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from messages_project.env import Env, SettingsError
from messaging.access import EVERYONE
from messaging.api import throttling
from messaging.auth import limits
from messaging.auth.limits import Decision, Policy
from messaging.auth.limits_redis import RedisWindows
from messaging.models import RateWindow
from tests.helpers import Answer, Api
from tests.redis_servers import NOT_OF_REDIS, RedisServer, no_redis
from tests.servers import PROJECT_DIR, free_port, wait_until


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """One Redis for the tests that leave it running."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis that the test may stop."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def use_redis(settings: Any) -> Iterator[Callable[[str], None]]:
    """Count in the Redis at this URL; what it has running ends with the test."""
    used = []

    def use(url: str) -> None:
        settings.REDIS_URL = url
        used.append(url)

    yield use
    for url in used:
        limits._redis(url)._is_away.clear()  # ends the thread that probes
    limits._redis.cache_clear()


@pytest.fixture(params=["postgresql", "redis"])
def store(
    request: pytest.FixtureRequest, settings: Any, transactional_db: None, use_redis: Callable[[str], None]
) -> str:
    """Where is counted: each test that takes this runs with both."""
    if request.param == "redis":
        use_redis(request.getfixturevalue("redis_server").url)
    else:
        settings.REDIS_URL = ""
    return str(request.param)


@pytest.fixture
def caller() -> str:
    """A caller without a window."""
    return f"key:{uuid.uuid4().hex}"


def take(caller: str, cost: int = 100) -> Decision:
    decision = limits.take("read", caller, cost)
    assert decision is not None
    return decision


def passed(caller: str, attempts: int, threads: int = 8) -> int:
    """How many of so many parallel requests passed."""
    gate = threading.Barrier(threads)

    def some(count: int) -> int:
        gate.wait()
        try:
            return sum(take(caller).allowed for _ in range(count))
        finally:
            connection.close()

    assert attempts % threads == 0
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(some, [attempts // threads] * threads))


# Policies


@pytest.mark.parametrize(
    ("text", "quota", "seconds"),
    [("600/min", 600, 60), ("20/s", 20, 1), ("1/h", 1, 3600), ("999999999/d", 999_999_999, 86_400)],
)
def test_rates_are_read(text: str, quota: int, seconds: int) -> None:
    assert limits.parsed(text) == Policy(text, quota, seconds)


@pytest.mark.parametrize(
    "text",
    ["600", "/min", "0/min", "-1/s", "1.5/s", "600/minute", "600 /min", "1000000000/s", "٣/s", "²/s", "a/s"],
)
def test_an_invalid_rate_is_refused(text: str) -> None:
    env = Env({"MESSAGES_RATE_LIMIT_READ": text})
    env.rate("MESSAGES_RATE_LIMIT_READ")
    with pytest.raises(SettingsError, match="600/min"):
        env.verify()


def test_without_a_policy_nothing_is_counted(settings: Any, django_assert_num_queries: Any, db: None) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = ""
    with django_assert_num_queries(0):
        assert limits.take("read", "key:any") is None


# Counting


def test_a_limit_lets_its_quota_pass_and_no_more(settings: Any, store: str, caller: str) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "5/h"
    assert [take(caller).remaining for _ in range(5)] == [4, 3, 2, 1, 0]
    refused = take(caller)
    assert (refused.allowed, refused.remaining) == (False, 0)
    assert 3590 < refused.reset_seconds <= 3600


def test_a_window_opens_with_its_first_request_and_ends_after_its_period(
    settings: Any, store: str, caller: str
) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "3/s"
    began = time.monotonic()
    assert take(caller).reset_seconds == 1
    assert [take(caller).allowed for _ in range(3)] == [True, True, False]
    wait_until(lambda: take(caller).allowed, 3, what="a new window")
    assert time.monotonic() - began > 0.9
    assert take(caller).remaining == 1


def test_a_window_from_before_the_clock_was_set_back_counts_as_ended(
    settings: Any, store: str, caller: str, redis_server: RedisServer
) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "2/min"
    assert [take(caller).allowed for _ in range(3)] == [True, True, False]
    limits._windows.clear()
    assert not take(caller).allowed
    limits._windows.clear()
    # As a clock that was six hours ahead leaves it.
    if store == "redis":
        assert redis_server.client.pexpire(f"messages:rate:read:2/min:{caller}", 6 * 3_600_000)
    else:
        RateWindow.objects.update(ends_at=F("ends_at") + timedelta(hours=6))
    assert [take(caller).allowed for _ in range(3)] == [True, True, False]
    assert take(caller).reset_seconds <= 60


def test_requests_do_not_prolong_their_window(settings: Any, store: str, caller: str) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "9000/min"
    wait_until(lambda: take(caller).reset_seconds < 59.9, 5, what="a part of the window")


def test_of_parallel_requests_exactly_the_quota_passes(settings: Any, store: str, caller: str) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "50/h"
    assert passed(caller, 160) == 50


def test_many_windows_opened_by_parallel_requests_are_one_each(settings: Any, store: str, caller: str) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "1/h"
    assert [passed(f"{caller}:{number}", 8) for number in range(20)] == [1] * 20


_PROCESS = """
import sys
import django
django.setup()
from messaging.auth import limits
from tests.test_limits import passed
limits.take("read", "key:warm")
print("ready", flush=True)
sys.stdin.readline()
print(passed(sys.argv[1], 800, threads=8))
"""


# Small limits are exact; of larger ones a process may still hold a share when it has no more requests.
@pytest.mark.parametrize(("quota", "least"), [(20, 20), (100, 100), (600, 582), (1000, 970)])
def test_two_processes_share_a_limit(settings: Any, store: str, caller: str, quota: int, least: int) -> None:
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "messages_project.settings",
        "POSTGRES_DB": str(connection.settings_dict["NAME"]),
        "MESSAGES_RATE_LIMIT_READ": f"{quota}/h",
        "REDIS_URL": settings.REDIS_URL,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, caller],
            cwd=PROJECT_DIR, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        shares = [int(process.communicate(timeout=60)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait(10)
    assert least <= sum(shares) <= quota


def test_a_refused_request_does_not_count(settings: Any, store: str, caller: str) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "3/h"
    assert take(caller, 250).allowed
    assert not take(caller, 51).allowed
    assert take(caller, 50).allowed
    assert not take(caller, 1).allowed


def test_a_window_ends_within_its_length(
    settings: Any, transactional_db: None, caller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.REDIS_URL, settings.MESSAGES_RATE_LIMIT_READ = "", "9/min"
    now = next(now for now in itertools.count(10_000.1, 0.1) if now + 60.0 - now > 60)  # as floats are rounded
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: now))
    assert take(caller).reset_seconds == 60


def test_callers_and_policies_are_counted_apart(settings: Any, store: str, caller: str) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = settings.MESSAGES_RATE_LIMIT_WRITE = "1/h"
    assert take(caller).allowed
    assert not take(caller).allowed
    assert take(f"{caller}x").allowed
    write = limits.take("write", caller)
    assert write is not None
    assert write.allowed


def test_a_changed_limit_begins_new_windows(settings: Any, store: str, caller: str) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "1/h"
    assert take(caller).allowed
    assert not take(caller).allowed
    settings.MESSAGES_RATE_LIMIT_READ = "2/h"
    assert take(caller).remaining == 1


def test_a_flood_of_refused_requests_reaches_no_store(
    settings: Any, store: str, caller: str, redis_server: RedisServer, django_assert_num_queries: Any
) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "1/h"
    assert [take(caller).allowed for _ in range(2)] == [True, False]

    def asked_of_redis() -> Any:
        return redis_server.client.info("commandstats").get("cmdstat_evalsha")

    before = asked_of_redis()
    with django_assert_num_queries(0):
        assert not any(take(caller).allowed for _ in range(1000))
    assert asked_of_redis() == before


def test_a_name_beyond_ascii_has_a_window_too(settings: Any, store: str) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "1/h"
    caller = f"open:ü\r\n{uuid.uuid4()}"
    assert [take(caller).allowed for _ in range(2)] == [True, False]


# PostgreSQL


def test_one_statement_counts(
    settings: Any, transactional_db: None, caller: str, django_assert_num_queries: Any
) -> None:
    settings.REDIS_URL, settings.MESSAGES_RATE_LIMIT_READ = "", "2/h"
    for statements in (1, 1, 0):  # a window that is known to be full is not asked again
        with django_assert_num_queries(statements):
            take(caller)
    assert RateWindow.objects.get(bucket__endswith=caller).used == 200


def test_the_counters_write_no_log_ahead_and_need_no_sequence(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT relkind, relname FROM pg_class WHERE relpersistence = 'u' AND relkind IN ('r', 'S')")
        assert cursor.fetchall() == [("r", RateWindow._meta.db_table)]


def test_a_process_takes_shares_of_a_large_limit_and_counts_the_last_100_requests_one_by_one(
    settings: Any, transactional_db: None, caller: str
) -> None:
    settings.REDIS_URL, settings.MESSAGES_RATE_LIMIT_READ = "", "600/h"
    with CaptureQueriesContext(connection) as statements:
        decisions = [take(caller) for _ in range(500)]
    assert [decision.remaining for decision in decisions] == list(range(599, 99, -1))
    assert len(statements) < 150
    with CaptureQueriesContext(connection) as statements:
        assert [take(caller).allowed for _ in range(101)] == [True] * 100 + [False]
    assert len(statements) > 90
    assert RateWindow.objects.get(bucket__endswith=caller).used == 60_000


def test_callers_that_a_process_has_forgotten_lose_nothing_of_their_limits(
    settings: Any, transactional_db: None, caller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.REDIS_URL, settings.MESSAGES_RATE_LIMIT_READ = "", "1000/h"
    monkeypatch.setattr(limits, "_windows", LRUCache(1))
    for _ in range(60):
        assert take(caller).allowed
        assert take(f"another {caller}").allowed
    assert set(RateWindow.objects.values_list("used", flat=True)) == {6_000}


def test_a_share_is_spent_before_the_window_is_asked_again(settings: Any, transactional_db: None, caller: str) -> None:
    settings.REDIS_URL, settings.MESSAGES_RATE_LIMIT_READ = "", "130/h"
    assert take(caller, 100).allowed  # a share is a request here
    assert take(caller, 12_850).allowed
    assert take(caller, 50).allowed
    assert not take(caller, 1).allowed


# A Redis that is not there


_number = itertools.count()


def take_as_another(caller: str) -> Decision:
    """As `take`, by a caller of its own each time: a share of a window that was counted before would hide the store."""
    return take(f"{next(_number)}:{caller}")


def counted_in_postgresql(caller: str) -> int:
    return RateWindow.objects.filter(bucket__endswith=caller).count()


def timed(caller: str) -> float:
    """Seconds that a request took, which passed."""
    began = time.perf_counter()
    assert take_as_another(caller).allowed
    return time.perf_counter() - began


def nearly_all(seconds: list[float]) -> float:
    """What nine of ten stay below: a busy machine makes any single one slow."""
    return sorted(seconds)[len(seconds) * 9 // 10]


def test_a_redis_that_stops_costs_no_error_and_is_found_again(
    settings: Any, transactional_db: None, own_redis: RedisServer, use_redis: Callable[[str], None], caller: str
) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "10/h"
    use_redis(own_redis.url)
    take_as_another(caller)
    assert own_redis.used(caller) == 100
    own_redis.stop()
    assert timed(caller) < 1
    assert nearly_all([timed(caller) for _ in range(50)]) < 0.1
    assert counted_in_postgresql(caller) == 51
    own_redis.start()
    wait_until(lambda: take_as_another(caller).allowed and own_redis.used(caller) > 0, 10, what="counting in Redis")


def test_a_redis_that_hangs_delays_a_request_once(
    settings: Any, transactional_db: None, own_redis: RedisServer, use_redis: Callable[[str], None], caller: str
) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "10/h"
    use_redis(own_redis.url)
    take_as_another(caller)
    own_redis.hang()
    try:
        assert timed(caller) < 1
        assert nearly_all([timed(caller) for _ in range(50)]) < 0.1
    finally:
        own_redis.wake()
    used = own_redis.used(caller)
    wait_until(lambda: take_as_another(caller).allowed and own_redis.used(caller) > used, 10, what="counting in Redis")


@pytest.mark.parametrize("kind", ["closed", "hanging", "silent"])
@pytest.mark.django_db(transaction=True)
def test_a_redis_that_is_missing_from_the_start_delays_no_request_longer(
    settings: Any, use_redis: Callable[[str], None], own_redis: RedisServer, kind: str, caller: str
) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "10/h"
    if kind == "hanging":
        own_redis.hang()
    # 192.0.2.0/24 (RFC 5737) leads nowhere: packets get no answer, not even a refusal.
    use_redis({
        "closed": f"redis://127.0.0.1:{free_port()}/0", "hanging": own_redis.url, "silent": "redis://192.0.2.1:6379/0"
    }[kind])  # fmt: skip
    assert timed(caller) < 1
    assert nearly_all([timed(caller) for _ in range(20)]) < 0.1
    assert counted_in_postgresql(caller) == 21
    if kind == "hanging":
        own_redis.wake()


def test_a_connection_that_redis_closed_is_opened_again(
    settings: Any, transactional_db: None, redis_server: RedisServer, use_redis: Callable[[str], None], caller: str
) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "10/h"
    use_redis(redis_server.url)
    take(caller)
    redis_server.client.client_kill_filter(_type="normal", skipme=True)
    assert take(caller).remaining == 8
    assert redis_server.used(caller) == 200


def test_a_redis_that_forgot_the_script_is_given_it_again(
    settings: Any, transactional_db: None, redis_server: RedisServer, use_redis: Callable[[str], None], caller: str
) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "10/h"
    use_redis(redis_server.url)
    take(caller)
    redis_server.client.script_flush()
    assert take(caller).remaining == 8
    assert redis_server.used(caller) == 200


@pytest.mark.django_db(transaction=True)
def test_a_redis_that_may_not_write_counts_as_away(
    settings: Any, own_redis: RedisServer, use_redis: Callable[[str], None], caller: str, caplog: Any
) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "10/h"
    use_redis(own_redis.url)
    own_redis.client.config_set("maxmemory", 1)
    assert all(take_as_another(caller).allowed for _ in range(100))
    assert counted_in_postgresql(caller) == 100
    assert caplog.text.count("cannot count") == 1
    own_redis.client.config_set("maxmemory", 0)
    wait_until(lambda: take_as_another(caller).allowed and own_redis.used(caller) > 0, 10, what="counting in Redis")


@pytest.mark.parametrize("answer", [*NOT_OF_REDIS, b"*2\r\n:1\r\n:2\r\n"])
def test_what_is_not_redis_counts_as_away(answer: bytes) -> None:
    with no_redis(answer) as url:
        windows = RedisWindows(url)
        assert windows.take("b", cost=1, quota=2, seconds=60) is None
        assert windows._is_away.is_set()
        windows._is_away.clear()  # ends the thread that probes


def test_a_password_of_redis_is_used_and_not_logged(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture, caller: str
) -> None:
    own_redis.client.config_set("requirepass", "hunter2-of-redis")
    right = RedisWindows(f"redis://:hunter2-of-redis@127.0.0.1:{own_redis.port}/3")
    wrong = RedisWindows(f"redis://:hunter3-of-redis@127.0.0.1:{own_redis.port}/3")
    assert right.take(caller, cost=1, quota=1, seconds=9) == (True, 1, 9)
    assert wrong.take(caller, cost=1, quota=1, seconds=9) is None
    wrong._is_away.clear()
    assert "cannot count rate limits (AuthenticationError)" in caplog.text
    assert "hunter" not in caplog.text


# What a client sees


def asked(method: str, caller: str) -> Request:
    """A request as the throttle finds it."""
    request = Request(APIRequestFactory().generic(method, "/messages/"))
    request.user = replace(EVERYONE, identity=caller)  # type: ignore[assignment]
    return request


def headers_of(request: Request) -> dict[str, str]:
    found: dict[str, str] = getattr(request._request, "rate_limit_headers", {})
    return found


def test_a_request_is_counted_and_says_what_is_left(settings: Any, store: str, caller: str) -> None:
    settings.MESSAGES_RATE_LIMIT_READ, settings.MESSAGES_RATE_LIMIT_WRITE = "2/min", "9/h"
    request = asked("GET", caller)
    assert throttling.CallerThrottle().allow_request(request, None)
    assert headers_of(request) == {"RateLimit-Policy": '"read";q=2;w=60', "RateLimit": '"read";r=1;t=60'}
    for method in ("POST", "PATCH", "DELETE"):
        request = asked(method, caller)
        assert throttling.CallerThrottle().allow_request(request, None)
    assert headers_of(request)["RateLimit-Policy"] == '"write";q=9;w=3600'
    assert headers_of(request)["RateLimit"].startswith('"write";r=6;t=3')


def test_a_refused_request_says_when_to_come_again(settings: Any, store: str, caller: str) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "1/min"
    throttling.CallerThrottle().allow_request(asked("GET", caller), None)
    throttle, request = throttling.CallerThrottle(), asked("HEAD", caller)
    assert not throttle.allow_request(request, None)
    assert 59 < (throttle.wait() or 0) <= 60
    assert headers_of(request)["RateLimit"] == '"read";r=0;t=60'


def test_without_a_limit_there_are_no_headers(settings: Any, db: None, caller: str) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = settings.MESSAGES_RATE_LIMIT_WRITE = ""
    request = asked("GET", caller)
    assert throttling.CallerThrottle().allow_request(request, None)
    throttling.charge_extra(request, 1000)
    assert headers_of(request) == {}


def test_a_call_of_many_items_costs_a_hundredth_more_for_each(api: Api, settings: Any, store: str) -> None:
    settings.MESSAGES_RATE_LIMIT_WRITE = "20/h"

    def left(answer: Answer) -> str:
        return answer.headers["RateLimit"].split(";")[1]

    def batch(size: int) -> Answer:
        return api.post("/messages/batch", {"messages": [{"recipient": "ada", "content": "x"}] * size})

    sent = batch(250).expect(201)
    ids = [message["id"] for message in sent.json["results"]]
    assert left(sent) == "r=16"  # 20 - 1 - 2.5
    assert left(api.patch("/messages/mark-read", {"ids": ids}).expect(200)) == "r=13"
    assert left(api.delete("/messages/bulk", {"ids": ids}).expect(200)) == "r=9"
    # Neither an invalid call nor one with a header for reads is free.
    assert left(api.post("/messages/bulk-delete", {"ids": ["x"] * 150}).expect(400)) == "r=7"
    condition = {"If-None-Match": "*"}
    assert left(api.post("/messages/", {"recipient": "ada", "content": "x"}, headers=condition).expect(201)) == "r=6"
    refused = batch(650).expect(429)
    assert 3590 < int(refused.headers["Retry-After"]) <= 3600
    assert api.mailbox("ada")["total"] == 1
    # The refused request itself is counted, and not its items.
    assert left(batch(400).expect(201)) == "r=0"


def test_a_call_beyond_the_whole_limit_takes_the_whole_limit(settings: Any, store: str, caller: str) -> None:
    settings.MESSAGES_RATE_LIMIT_WRITE = "5/h"
    request = asked("POST", caller)
    assert throttling.CallerThrottle().allow_request(request, None)
    throttling.charge_extra(request, 1000)
    assert headers_of(request)["RateLimit"].startswith('"write";r=0;')
    assert not throttling.CallerThrottle().allow_request(asked("POST", caller), None)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/mailbox?recipient=a", 200),
        ("/mailbox?recipient=a&x=1", 400),
        ("/mailbox", 400),
        ("/messages/?recipient=a&limit=x", 400),
        ("/messages/01890000-0000-7000-8000-000000000000", 404),
        ("/messages/nothing", 404),
    ],
)
def test_a_conditional_request_is_free_only_as_304(api: Api, settings: Any, path: str, status: int) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "2/h"
    api.get("/mailbox?recipient=a")
    condition = {"If-None-Match": '"x"'}
    assert api.get(path, headers=condition).expect(status).headers["RateLimit"].startswith('"read";r=0')
    api.get(path, headers=condition).expect(429)


def test_304_is_free_but_not_for_any_version(api: Api, settings: Any) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "2/h"
    tag = api.get("/mailbox?recipient=a").expect(200).headers["ETag"]
    for _ in range(5):
        assert "RateLimit" not in api.get("/mailbox?recipient=a", headers={"If-None-Match": tag}).expect(304).headers
    api.get("/mailbox?recipient=a", headers={"If-None-Match": "*"}).expect(304)
    api.get("/mailbox?recipient=a", headers={"If-None-Match": "*"}).expect(429)
    api.get("/mailbox?recipient=a", headers={"If-None-Match": tag}).expect(304)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/messages/?recipient=a&cursor=x", 400),
        ("/messages/unread?recipient=a&cursor=x", 400),
        ("/changes?recipient=a&since=0&cursor=x", 400),
        ("/changes?recipient=a&since=7", 410),
    ],
)
@pytest.mark.parametrize("condition", ["*", None])
def test_what_is_refused_is_no_304_and_not_free_to_a_client_that_has_the_mailbox(
    api: Api, settings: Any, path: str, status: int, condition: str | None
) -> None:
    settings.MESSAGES_RATE_LIMIT_READ = "2/h"
    tag = api.get("/mailbox?recipient=a").expect(200).headers["ETag"]
    headers = {"If-None-Match": condition or tag}
    assert api.get(path, headers=headers).expect(status).headers["RateLimit"].startswith('"read";r=0')
    api.get(path, headers=headers).expect(429)


# Settings


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("MESSAGES_RATE_LIMIT_WRITE", "10/s", "messaging.W001"),
        ("MESSAGES_RATE_LIMIT_WRITE", "11/s", None),
        ("MESSAGES_RATE_LIMIT_READ", "1/s", None),
        ("REDIS_URL", "http://:hunter2@example.org", "messaging.E004"),
        ("REDIS_URL", "redis://host:port/0", "messaging.E004"),
        ("REDIS_URL", "rediss://:hunter2@host/0?ssl_ca_cert=/run/secrets/ca.pem", "messaging.E004"),
        ("REDIS_URL", "rediss://:hunter2@host/0?ssl_cert_reqs=maybe", "messaging.E004"),
        ("REDIS_URL", "redis://:hunter2@host/0?encoding=utf8-nine", "messaging.E004"),
        ("REDIS_URL", "rediss://:hunter2@host/0?ssl_ca_certs=/run/secrets/ca.pem", None),
        ("REDIS_URL", "unix:///run/redis.sock?db=1", None),
        ("REDIS_URL", "rediss://:hunter2@example.org:6380/1", None),
    ],
)
def test_settings_of_limits_are_checked(settings: Any, name: str, value: str, expected: str | None) -> None:
    setattr(settings, name, value)
    found = [message for message in checks.run_checks() if (message.id or "").startswith("messaging.")]
    assert [message.id for message in found] == ([expected] if expected else [])
    assert "hunter2" not in json.dumps([str(message) for message in found])
