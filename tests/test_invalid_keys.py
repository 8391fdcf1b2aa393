"""A client that sends invalid keys is limited by its address, without effect on other clients."""

from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from messaging.auth.limits import InvalidKeyCounter
from tests.conftest import MakeKey
from tests.helpers import Api


@pytest.fixture(autouse=True)
def limit(settings: Any) -> None:
    settings.MESSAGES_RATE_LIMIT_INVALID_KEYS = "5/min"


def flood(api: Api, attempts: int, key: str = "msg_nobody{:04d}_x") -> list[int]:
    return [api.holding(key.format(n)).get("/mailbox", {"recipient": "a"}).status for n in range(attempts)]


@pytest.mark.parametrize("key", ["msg_nobody{:04d}_x", "a.b.{}", "msg_", "Basic {}"])
def test_many_invalid_keys_of_an_address_are_429(anonymous: Api, key: str) -> None:
    assert flood(anonymous, 7, key) == [401] * 5 + [429] * 2
    refused = anonymous.holding(key).get("/mailbox", {"recipient": "a"}).expect(429, "rate_limited")
    assert 0 < int(refused.headers["Retry-After"]) <= 60


def test_a_flood_of_made_up_keys_costs_no_query_each(anonymous: Api) -> None:
    flood(anonymous, 5)
    with CaptureQueriesContext(connection) as statements:
        flood(anonymous, 200)
    # A prefix is looked up again each second, so the number depends on the machine; each request would be 200.
    assert len(statements) < 100


def test_a_valid_key_is_never_refused_for_the_invalid_ones_of_its_address(anonymous: Api, make_key: MakeKey) -> None:
    unused = anonymous.holding(make_key())
    assert 429 in flood(anonymous, 10)
    unused.get("/mailbox", {"recipient": "a"}).expect(200)
    assert flood(anonymous, 1) == [429]


def test_a_revoked_key_counts_as_invalid(anonymous: Api, make_key: MakeKey) -> None:
    from messaging.auth import keys

    text = make_key()
    keys.revoke(prefix=text.split("_")[1])
    assert flood(anonymous, 6, text) == [401] * 5 + [429]


def test_addresses_are_counted_apart(anonymous: Api, settings: Any) -> None:
    settings.MESSAGES_TRUSTED_PROXIES = 1
    flood(anonymous, 6)
    other = anonymous.holding("msg_nobody9999_x")
    other.get("/mailbox", {"recipient": "a"}, headers={"X-Forwarded-For": "192.0.2.9"}).expect(401)


def test_requests_without_a_key_do_not_count(anonymous: Api) -> None:
    for _ in range(10):
        anonymous.get("/mailbox", {"recipient": "a"}).expect(401, "not_authenticated")


def test_a_window_ends_after_its_period_and_addresses_are_bounded() -> None:
    now = 1000.0
    counter = InvalidKeyCounter(lambda: now)
    for _ in range(5):
        counter.add("192.0.2.1")
    assert counter.seconds_to_wait("192.0.2.1") == 60
    now = 1060.0
    assert counter.seconds_to_wait("192.0.2.1") is None
    for number in range(10_100):
        counter.add(str(number))
    assert len(counter._windows) == 10_000
