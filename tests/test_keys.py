"""API keys: what is stored of them, whom they let in, when they stop, and that none of it costs a read a request."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.test import Client
from django.utils import timezone
from rest_framework.exceptions import AuthenticationFailed, NotAuthenticated
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from messaging.access import EVERYONE, Caller, Scope
from messaging.api.authentication import BearerAuthentication, client_address
from messaging.api.permissions import HasScope
from messaging.auth import keys
from messaging.auth.keys import Verifier
from messaging.database import fetch
from messaging.errors import DatabaseUnavailableError, InsufficientScopeError, InvalidInputError, NotFoundError
from messaging.models import ApiKey
from tests.servers import PROJECT_DIR, wait_until


class Clock:
    """A monotonic clock that a test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verifier(clock: Clock) -> Verifier:
    """A process's view of the keys."""
    return Verifier(clock)


def made(*scopes: str, **description: Any) -> tuple[ApiKey, str]:
    return keys.create(name="test", scopes=scopes or ("read",), **description)


# What is stored


def test_of_a_key_only_its_prefix_and_a_hash_are_stored(db: None) -> None:
    key, text = made("read")
    found = re.fullmatch(r"msg_([a-z0-9]{10})_([A-Za-z0-9]{43})", text)
    assert found
    assert found[1] == key.prefix
    stored = ApiKey.objects.values().get()
    assert bytes(stored["secret_sha256"]) == hashlib.sha256(found[2].encode()).digest()
    assert found[2] not in repr(stored)


def test_no_two_keys_are_alike(db: None) -> None:
    texts = {made()[1] for _ in range(20)}
    assert len({text.split("_")[1] for text in texts}) == len({text.split("_")[2] for text in texts}) == 20


@pytest.mark.parametrize(
    ("description", "pointer"),
    [
        ({"name": ""}, "/name"),
        ({"name": "n" * 256}, "/name"),
        ({"name": "a\nb"}, "/name"),
        ({"scopes": []}, "/scopes"),
        ({"scopes": ["read", "admin"]}, "/scopes"),
        ({"recipient": ""}, "/recipient"),
        ({"recipient": "a\x00"}, "/recipient"),
        ({"sender": "s" * 256}, "/sender"),
        ({"expires_at": timezone.now() - timedelta(seconds=1)}, "/expires_at"),
    ],
)
def test_an_invalid_key_is_not_created(db: None, description: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        keys.create(**({"name": "test", "scopes": ["read"]} | description))
    assert {fault.pointer for fault in refusal.value.faults} == {pointer}
    assert not ApiKey.objects.exists()


# Whom it lets in


def test_a_key_identifies_its_caller(db: None, verifier: Verifier) -> None:
    key, text = made("manage", "send", recipient="ada", sender="bob")
    assert key.scopes == ["send", "manage"]
    expected = Caller(f"key:{key.prefix}", frozenset({Scope.SEND, Scope.MANAGE}), "ada", "bob")
    assert [verifier.caller_of(text) for _ in range(2)] == [expected] * 2


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda text, _: text[:-1],
        lambda text, _: text + "x",
        lambda text, _: text + "_",
        lambda text, _: text[:-1] + ("a" if text[-1] != "a" else "b"),
        lambda text, _: text.swapcase().replace("MSG_", "msg_"),
        lambda text, _: text.replace("_", "-", 2),
        lambda text, _: text[:15],
        lambda _, other: other[:14] + other[14:][::-1],
        lambda text, other: text[:14] + other[14:],
        lambda text, _: "msg_zzzzzzzzzz" + text[14:],
        lambda text, _: text[:4] + "\xe9" + text[5:],
        lambda text, _: text + "\xe9",
        lambda _text, _other: "msg_",
        lambda _text, _other: "msg__",
        lambda _text, _other: "msg_" + "a" * 5000 + "_b",
        lambda text, _: text[:14] + "_" + hashlib.sha256(text[15:].encode()).hexdigest(),
    ],
)
def test_a_wrong_key_is_refused(db: None, verifier: Verifier, change: Any, cached: bool) -> None:
    text, other = made()[1], made()[1]
    if cached:
        assert verifier.caller_of(text)
        assert verifier.caller_of(other)
    assert verifier.caller_of(change(text, other)) is None
    # And it spoils nothing for the key itself.
    assert verifier.caller_of(text)


def test_a_new_key_works_at_once(db: None, verifier: Verifier) -> None:
    assert verifier.caller_of("msg_aaaaaaaaaa_b") is None
    assert verifier.caller_of(made()[1])


# When it stops


def test_a_revoked_key_is_believed_for_four_seconds_at_most(db: None, verifier: Verifier, clock: Clock) -> None:
    key, text = made()
    assert verifier.caller_of(text)
    keys.revoke(prefix=key.prefix)
    clock.now += 3.99
    assert verifier.caller_of(text)
    clock.now += 0.01
    assert verifier.caller_of(text) is None


def test_a_key_revoked_by_another_process_stops_within_five_seconds(transactional_db: None) -> None:
    key, text = made()
    verifier = Verifier()
    assert verifier.caller_of(text)
    command = [sys.executable, "manage.py", "revoke_api_key", key.prefix]
    subprocess.run(
        command, cwd=PROJECT_DIR, env=environment_of_test_database(), check=True, stderr=subprocess.DEVNULL, timeout=60
    )
    wait_until(lambda: verifier.caller_of(text) is None, 5, what="the key's end")


def environment_of_test_database() -> dict[str, str]:
    return os.environ | {"POSTGRES_DB": str(connection.settings_dict["NAME"])}


def test_a_key_ends_at_its_instant_and_not_when_its_cache_does(transactional_db: None) -> None:
    text = made(expires_at=timezone.now() + timedelta(seconds=0.5))[1]
    verifier = Verifier()
    assert verifier.caller_of(text)
    wait_until(lambda: verifier.caller_of(text) is None, 2, what="the key's end")


def test_an_expired_key_is_refused(db: None, verifier: Verifier) -> None:
    key, text = made(expires_at=timezone.now() + timedelta(days=1))
    ApiKey.objects.filter(pk=key.pk).update(expires_at=timezone.now() - timedelta(microseconds=1))
    assert verifier.caller_of(text) is None


def test_a_deleted_key_is_refused(db: None, verifier: Verifier, clock: Clock) -> None:
    text = made()[1]
    assert verifier.caller_of(text)
    ApiKey.objects.all().delete()
    clock.now += keys.CACHE_SECONDS
    assert verifier.caller_of(text) is None


def test_revoking_again_keeps_the_first_instant(db: None) -> None:
    key = made()[0]
    first = keys.revoke(prefix=key.prefix).revoked_at
    assert first
    assert keys.revoke(prefix=key.prefix).revoked_at == first
    with pytest.raises(NotFoundError):
        keys.revoke(prefix="nobodyhas1")


def test_a_key_is_revoked_by_its_whole_text_too_and_its_secret_is_not_repeated(db: None) -> None:
    key, text = made()
    assert keys.revoke(prefix=text).pk == key.pk
    with pytest.raises(NotFoundError, match="the prefix 'nobodyhas1'"):
        keys.revoke(prefix="msg_nobodyhas1_secret")


# What it costs


def test_a_key_in_use_is_read_every_four_seconds(
    db: None, verifier: Verifier, clock: Clock, django_assert_num_queries: Any
) -> None:
    text = made()[1]
    with django_assert_num_queries(2):  # its row, and last_used_at
        verifier.caller_of(text)
    with django_assert_num_queries(0):
        for _ in range(100):
            verifier.caller_of(text)
            verifier.caller_of(text + "x")
    clock.now += keys.CACHE_SECONDS
    with django_assert_num_queries(1):
        verifier.caller_of(text)
        verifier.caller_of(text)


def test_keys_in_use_are_read_again_together(
    db: None, verifier: Verifier, clock: Clock, django_assert_num_queries: Any
) -> None:
    made_keys = [made() for _ in range(20)]
    idle = made()[1]
    for text in [idle, *(text for _, text in made_keys)]:
        assert verifier.caller_of(text) is not None
    clock.now += keys.CACHE_SECONDS
    for _, text in made_keys:
        assert verifier.caller_of(text) is not None
    clock.now += keys.CACHE_SECONDS
    keys.revoke(prefix=made_keys[3][0].prefix)
    made_keys[4][0].delete()
    ApiKey.objects.update(last_used_at=timezone.now() - timedelta(hours=1))
    with django_assert_num_queries(2):  # the rows of all, and their last_used_at
        found = [verifier.caller_of(text) for _, text in made_keys]
    assert [number for number, caller in enumerate(found) if caller is None] == [3, 4]
    used = ApiKey.objects.filter(last_used_at__gt=timezone.now() - timedelta(minutes=1))
    assert set(used) == {key for number, (key, _) in enumerate(made_keys) if number not in {3, 4}}


def test_a_wrong_key_is_looked_up_once_a_second(
    db: None, verifier: Verifier, clock: Clock, django_assert_num_queries: Any
) -> None:
    for _ in range(2):
        with django_assert_num_queries(1):
            for _ in range(100):
                assert verifier.caller_of("msg_aaaaaaaaaa_b") is None
        clock.now += 1
    with django_assert_num_queries(0):
        assert verifier.caller_of("msg_AAAAAAAAAA_b") is None


def test_made_up_keys_fill_no_memory_and_push_out_no_key(
    db: None, monkeypatch: pytest.MonkeyPatch, clock: Clock, django_assert_num_queries: Any
) -> None:
    monkeypatch.setattr(keys, "_CACHED_UNKNOWN", 10)
    monkeypatch.setattr(keys, "_CACHED_KEYS", 10)
    verifier, text = Verifier(clock), made()[1]
    assert verifier.caller_of(text)
    for number in range(100):
        assert verifier.caller_of(f"msg_nobody{number:04d}_x") is None
    assert len(verifier._unknown) <= 10
    with django_assert_num_queries(0):
        assert verifier.caller_of(text)


def test_threads_share_what_is_known(transactional_db: None) -> None:
    texts = [made()[1] for _ in range(4)]
    verifier, gate = Verifier(), threading.Barrier(8)

    def verify(offset: int) -> bool:
        gate.wait()
        try:
            return all(
                (verifier.caller_of(texts[(offset + turn) % 4]) is not None)
                and verifier.caller_of(texts[turn % 4] + "x") is None
                for turn in range(500)
            )
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(verify, range(8)))


# last_used_at


def test_use_is_noted_once_a_minute_for_all_processes(db: None, clock: Clock, django_assert_num_queries: Any) -> None:
    key, text = made()
    Verifier(clock).caller_of(text)
    key.refresh_from_db()
    first = key.last_used_at
    assert first
    assert abs(timezone.now() - first) < timedelta(seconds=30)
    with django_assert_num_queries(1):
        Verifier(clock).caller_of(text)
    # In the future, if the database's clock was set back.
    for stale in (timezone.now() - timedelta(seconds=61), timezone.now() + timedelta(hours=6)):
        ApiKey.objects.update(last_used_at=stale)
        Verifier(clock).caller_of(text)
        key.refresh_from_db()
        assert key.last_used_at
        assert abs(timezone.now() - key.last_used_at) < timedelta(seconds=30)


def test_a_connection_lost_while_use_is_noted_fails_no_request(
    transactional_db: None, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = made()[1]
    # Ends its own session in place of the update: the server closes the connection in the middle of the statement.
    monkeypatch.setattr(keys, "_NOTE_USE", "SELECT pg_terminate_backend(pg_backend_pid()) WHERE %s <> ''")
    assert verifier.caller_of(text)
    # Not Django's wrapper, which would reconnect: what a statement of the request finds.
    assert connection.connection is None or not connection.connection.closed
    assert fetch("SELECT 1") == [(1,)]


@pytest.mark.parametrize("ending", ["revoked", "wrong"])
def test_a_refused_key_was_not_used(db: None, verifier: Verifier, ending: str) -> None:
    key, text = made()
    if ending == "revoked":
        keys.revoke(prefix=key.prefix)
    assert verifier.caller_of(text if ending == "revoked" else text + "x") is None
    key.refresh_from_db()
    assert key.last_used_at is None


def test_a_database_that_cannot_be_written_lets_keys_in(
    transactional_db: None, verifier: Verifier, clock: Clock, caplog: Any, django_assert_num_queries: Any
) -> None:
    text = made()[1]
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
    try:
        assert verifier.caller_of(text)
        assert "last_used_at" in caplog.text
        assert "read-only transaction" in caplog.text  # the cause
        clock.now += 5
        with django_assert_num_queries(1):  # not tried again at once
            assert verifier.caller_of(text)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SET default_transaction_read_only = off")
    clock.now += 60
    assert verifier.caller_of(text)
    assert ApiKey.objects.get().last_used_at


def test_a_locked_row_delays_no_request(
    transactional_db: None, verifier: Verifier, caplog: pytest.LogCaptureFixture
) -> None:
    text = made()[1]
    with psycopg.connect(**_parameters()) as other:
        other.execute(f"SELECT FROM {ApiKey._meta.db_table} FOR UPDATE")
        assert verifier.caller_of(text)
        other.rollback()
    # It did not wait: the lock timeout would have been logged.
    assert caplog.text == ""
    assert ApiKey.objects.get().last_used_at is None


def _parameters() -> dict[str, Any]:
    names = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD", "dbname": "NAME"}
    return {name: connection.settings_dict[key] for name, key in names.items() if connection.settings_dict[key]}


@contextmanager
def database_down() -> Iterator[None]:
    """No statement gets through."""

    def fail(*_: Any) -> None:
        raise OperationalError("the database is down")

    with connection.execute_wrapper(fail):
        yield


def test_a_cached_key_outlives_the_database_for_a_while(
    transactional_db: None, verifier: Verifier, clock: Clock
) -> None:
    text = made()[1]
    assert verifier.caller_of(text)
    with database_down():
        assert verifier.caller_of(text)
        clock.now += keys.CACHE_SECONDS
        with pytest.raises(DatabaseUnavailableError):
            verifier.caller_of(text)
        with pytest.raises(DatabaseUnavailableError):
            verifier.caller_of("msg_aaaaaaaaaa_b")
    assert verifier.caller_of(text)


# In a request


def asked(authorization: str | None = None, **meta: str) -> Request:
    if authorization is not None:
        meta["HTTP_AUTHORIZATION"] = authorization
    return Request(APIRequestFactory().get("/messages/", **meta))  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
def test_a_key_is_taken_from_the_header(db: None, scheme: str) -> None:
    key, text = made()
    request = asked(scheme + text)
    caller, proof = BearerAuthentication().authenticate(request)
    assert (caller.identity, proof) == (f"key:{key.prefix}", None)
    assert request._request.caller_name == f"key:{key.prefix}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("authorization", [None, "", "Basic dXNlcjpwYXNz", "msg_a_b", "BearerX a"])
def test_without_a_bearer_credential_there_is_no_caller(db: None, authorization: str | None) -> None:
    with pytest.raises(NotAuthenticated) as refusal:
        BearerAuthentication().authenticate(asked(authorization))
    assert refusal.value.get_codes() == "not_authenticated"


@pytest.mark.parametrize("access", ["keys", "open"])
def test_every_wrong_credential_is_refused_in_the_same_words(db: None, settings: Any, access: str) -> None:
    settings.MESSAGES_ACCESS = access
    revoked, text = made()
    keys.revoke(prefix=revoked.prefix)
    wrong = [
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Bearer a.b.c",
        "Bearer msg_a_b",
        f"Bearer {made()[1]}x",
        f"Bearer {text}",
    ]
    answers = set()
    for authorization in wrong:
        with pytest.raises(AuthenticationFailed) as refusal:
            BearerAuthentication().authenticate(asked(authorization))
        answers.add((str(refusal.value.detail), refusal.value.get_codes()))
    assert {code for _, code in answers} == {"invalid_key"}
    assert len(answers) == 1


def test_where_access_is_open_everybody_is_known_by_address(db: None, settings: Any) -> None:
    settings.MESSAGES_ACCESS = "open"
    for authorization in (None, "Basic dXNlcjpwYXNz"):
        caller, _ = BearerAuthentication().authenticate(asked(authorization, REMOTE_ADDR="198.51.100.7"))
        assert (caller.identity, caller.scopes, caller.recipient) == ("open:198.51.100.7", EVERYONE.scopes, None)
    caller, _ = BearerAuthentication().authenticate(asked(f"Bearer {made(recipient='ada')[1]}"))
    assert (caller.recipient, caller.scopes) == ("ada", frozenset({Scope.READ}))


@pytest.mark.parametrize(
    ("proxies", "peer", "forwarded", "address"),
    [
        (0, "198.51.100.7", None, "198.51.100.7"),
        (0, "198.51.100.7", "203.0.113.9", "198.51.100.7"),
        (1, "10.0.0.1", "203.0.113.9", "203.0.113.9"),
        (1, "10.0.0.1", "6.6.6.6, 203.0.113.9", "203.0.113.9"),
        (2, "10.0.0.1", "6.6.6.6, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        (2, "203.0.113.9", "6.6.6.6", "203.0.113.9"),
        (1, "203.0.113.9", None, "203.0.113.9"),
        (1, "10.0.0.1", "203.0.113.9:4711", "203.0.113.9"),
        (1, "10.0.0.1", "[2001:db8:1:2:3::4]:4711", "2001:db8:1:2::/64"),
        (1, "10.0.0.1", "nonsense\r\n", "10.0.0.1"),
        (1, "10.0.0.1", "6.6.6.6,", "10.0.0.1"),
        (0, "2001:db8:1:2:ffff::1", None, "2001:db8:1:2::/64"),
        (0, "::ffff:203.0.113.9", None, "203.0.113.9"),
        (0, "::1", None, "::/64"),
        (0, "", None, "unknown"),
    ],
)
def test_the_client_address_cannot_be_forged(
    settings: Any, proxies: int, peer: str, forwarded: str | None, address: str
) -> None:
    settings.MESSAGES_TRUSTED_PROXIES = proxies
    meta = {"REMOTE_ADDR": peer} | ({} if forwarded is None else {"HTTP_X_FORWARDED_FOR": forwarded})
    assert client_address(meta) == address


def test_an_action_needs_its_scope() -> None:
    reader: Any = SimpleNamespace(user=Caller("key:a", frozenset({Scope.READ})))
    view = SimpleNamespace(scopes={"list": Scope.READ, "create": Scope.SEND}, action="list")
    assert HasScope().has_permission(reader, view)
    view.action = "create"
    with pytest.raises(InsufficientScopeError, match="`send`"):
        HasScope().has_permission(reader, view)
    view.action = "forgotten"
    with pytest.raises(KeyError):
        HasScope().has_permission(reader, view)
    view.action = None
    assert HasScope().has_permission(reader, view)


# Commands


def run(*arguments: str) -> tuple[str, str]:
    """Standard output and standard error of a command."""
    out, err = io.StringIO(), io.StringIO()
    call_command(*arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def test_create_api_key_prints_the_key_alone(db: None, verifier: Verifier) -> None:
    out, err = run("create_api_key", "billing", "--scopes", "send, read", "--recipient", "ada", "--sender", "bob")
    text = out.removesuffix("\n")
    caller = verifier.caller_of(text)
    assert caller
    assert (caller.scopes, caller.recipient, caller.sender) == (frozenset({Scope.SEND, Scope.READ}), "ada", "bob")
    assert text not in err
    key = ApiKey.objects.get()
    assert (key.name, key.expires_at) == ("billing", None)


def test_create_api_key_takes_a_span_and_prints_json(db: None, verifier: Verifier) -> None:
    out, err = run("create_api_key", "billing", "--scopes", "manage", "--expires", "90d", "--json")
    answer = json.loads(out)
    assert verifier.caller_of(answer["key"])
    assert (answer["name"], answer["scopes"], answer["recipient"], err) == ("billing", ["manage"], None, "")
    expires_at = ApiKey.objects.get().expires_at
    assert expires_at
    assert abs(expires_at - timezone.now() - timedelta(days=90)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "--scopes"),
        (["x", "--scopes", "read,admin"], "'admin'"),
        (["x", "--scopes", ","], "needs a scope"),
        (["x", "--scopes", "read", "--recipient", ""], "recipient"),
        (["x", "--scopes", "read", "--expires", "90"], "15m or 90d"),
        (["x", "--scopes", "read", "--expires", "0d"], "15m or 90d"),
        (["x", "--scopes", "read", "--expires", "-1d"], "expires"),
    ],
)
def test_create_api_key_says_what_is_wrong(db: None, arguments: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=re.escape(message)):
        run("create_api_key", *arguments)
    assert not ApiKey.objects.exists()


def test_list_api_keys_shows_no_secret(db: None) -> None:
    texts = [made()[1], made("send", recipient="ada", expires_at=timezone.now() + timedelta(days=1))[1]]
    keys.revoke(prefix=texts[0].split("_")[1])
    table, listed = run("list_api_keys")[0], run("list_api_keys", "--json")[0]
    states = {entry["prefix"]: entry["state"] for entry in json.loads(listed)}
    assert states == {texts[0].split("_")[1]: "revoked", texts[1].split("_")[1]: "active"}
    for text in texts:
        _, prefix, secret = text.split("_")
        assert prefix in table
        for hidden in (secret, hashlib.sha256(secret.encode()).hexdigest()):
            assert hidden not in table + listed


def test_revoke_api_key_ends_a_key_and_says_when_there_is_none(db: None, verifier: Verifier) -> None:
    key, text = made()
    assert run("revoke_api_key", key.prefix)[0] == run("revoke_api_key", key.prefix)[0] == ""
    assert verifier.caller_of(text) is None
    with pytest.raises(CommandError, match="list_api_keys") as refusal:
        run("revoke_api_key", "nobodyhas1")
    assert refusal.value.returncode == 1


# In the admin


@pytest.fixture
def staff(admin_user: Any) -> Client:
    client = Client()
    client.force_login(admin_user)
    return client


def test_the_admin_shows_a_new_key_once(staff: Client, verifier: Verifier) -> None:
    answer = staff.post(
        "/admin/messaging/apikey/add/", {"name": "billing", "scopes": ["read"], "recipient": "ada"}, follow=True
    )
    [text] = set(re.findall(r"msg_[a-z0-9]{10}_[A-Za-z0-9]{43}", answer.content.decode()))
    caller = verifier.caller_of(text)
    assert caller
    assert (caller.recipient, caller.sender) == ("ada", None)
    key = ApiKey.objects.get()
    for path in ("/admin/messaging/apikey/", f"/admin/messaging/apikey/{key.pk}/change/"):
        page = staff.get(path)
        assert page.status_code == 200
        assert key.prefix in page.content.decode()
        assert text.split("_")[2] not in page.content.decode()


@pytest.mark.parametrize("name", [" ", " ada ", "ada\N{NO-BREAK SPACE}"])
def test_the_admin_keeps_the_spaces_of_a_name(staff: Client, name: str) -> None:
    key = {"name": "spaces", "scopes": ["read"], "recipient": name, "sender": name}
    assert staff.post("/admin/messaging/apikey/add/", key).status_code == 200
    assert ApiKey.objects.values_list("recipient", "sender").get() == (name, name)


def test_the_admin_says_what_is_wrong_with_a_key(staff: Client) -> None:
    answer = staff.post("/admin/messaging/apikey/add/", {"name": "a\x1bb", "scopes": ["read"]})
    assert "Control characters" in answer.content.decode()
    answer = staff.post("/admin/messaging/apikey/add/", {"name": "a", "scopes": ["admin"]})
    assert answer.status_code == 200
    assert not ApiKey.objects.exists()


def test_the_admin_revokes_keys_and_edits_none(staff: Client) -> None:
    key = made()[0]
    answer = staff.post(f"/admin/messaging/apikey/{key.pk}/change/", {"name": "other", "scopes": ["send"]})
    assert answer.status_code == 403
    staff.post("/admin/messaging/apikey/", {"action": "revoke_selected", "_selected_action": [key.pk]})
    key.refresh_from_db()
    assert key.revoked_at
    assert (key.name, key.scopes) == ("test", ["read"])


def test_staff_without_the_permission_revoke_nothing(django_user_model: Any, db: None) -> None:
    from django.contrib.auth.models import Permission

    clerk = django_user_model.objects.create_user("clerk", is_staff=True)
    clerk.user_permissions.add(Permission.objects.get(codename="view_apikey"))
    client, key = Client(), made()[0]
    client.force_login(clerk)
    assert client.get("/admin/messaging/apikey/").status_code == 200
    client.post("/admin/messaging/apikey/", {"action": "revoke_selected", "_selected_action": [key.pk]})
    key.refresh_from_db()
    assert key.revoked_at is None
    assert client.get("/admin/messaging/apikey/add/").status_code == 403
