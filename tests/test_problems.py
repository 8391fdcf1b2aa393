"""One error of each kind, raised over HTTP: every `code` that the document names, with the text that it shows for it,
and every code of a fault in the input.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import psycopg
import pytest
from django.db import connection

from messaging.ids import bucket_of
from tests import document
from tests.conftest import MakeKey
from tests.helpers import Answer, Api
from tests.servers import RunningServer, wait_until
from tests.state import nothing_changes
from tests.test_access import ROUTES, call

KEY = {"Idempotency-Key": "k"}
MISSING = "/messages/019b5c3e-7a10-7c32-9d5e-0b8f4a6d2c91"
DRAFT = {"recipient": "alice@example.com", "content": "Hello"}

Case = Callable[[Api], Answer]
RAISED: set[str] = set()


def _examples() -> dict[str, dict[str, Any]]:
    components = document.load()["components"]["responses"].values()
    found = [component["content"]["application/problem+json"] for component in components if "content" in component]
    return {code: example["value"] for media in found for code, example in media["examples"].items()}


def _is_documented(answer: Answer, code: str, *, same_text: bool = True) -> None:
    """Fail unless the answer is the documented example of this code, but for what differs between requests."""
    assert answer.code == code, answer.body
    example = _examples()[code]
    shown = {name: value for name, value in answer.json.items() if name not in {"instance", "request_id"}}
    assert shown.keys() == example.keys() - {"instance", "request_id"}
    names = {"type", "title", "status", "code"} | ({"detail", "errors"} & shown.keys() if same_text else set())
    assert {name: shown[name] for name in names} == {name: example[name] for name in names}


def raises(*codes: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Names the codes that a test raises, so that the last test can tell which ones no test does."""
    RAISED.update(codes)
    return lambda test: test


SIMPLE: dict[str, Case] = {
    "invalid_input": lambda api: api.post("/messages/", {"recipient": "alice@example.com"}),
    "bad_request": lambda api: api.get("/mailbox?recipient=a", headers={"Host": "elsewhere.example"}),
    "not_authenticated": lambda api: api.holding(None).get("/mailbox?recipient=a"),
    "invalid_key": lambda api: api.holding("msg_0123456789_no").get("/mailbox?recipient=a"),
    "not_found": lambda api: api.get(MISSING),
    "not_acceptable": lambda api: api.get("/mailbox?recipient=a", headers={"Accept": "text/html"}),
    "body_too_large": lambda api: api.post("/messages/", body=b" " * 1_048_577),
    "unsupported_media_type": lambda api: api.post("/messages/", body=b"{}", headers={"Content-Type": "text/plain"}),
}
RAISED.update(SIMPLE)


@pytest.mark.parametrize("code", SIMPLE)
def test_each_kind_of_refusal_is_as_documented(api: Api, code: str) -> None:
    _is_documented(SIMPLE[code](api), code)


@raises("insufficient_scope")
def test_a_scope_that_is_missing(api: Api, make_key: MakeKey) -> None:
    _is_documented(api.holding(make_key("read")).post("/messages/", DRAFT), "insufficient_scope")


@raises("method_not_allowed")
def test_a_method_that_a_path_does_not_have(api: Api) -> None:
    refused = api.request("PUT", "/messages/", {}).expect(405, "method_not_allowed")
    assert {"GET", "POST"} <= set(refused.headers["Allow"].split(", "))


@raises("unknown_path")
def test_a_path_that_leads_nowhere(api: Api, anonymous: Api) -> None:
    for client in (api, anonymous):
        for path in ("/nowhere", "/messages/a/b", "/openapi.yaml", "/%ff"):
            client.get(path).expect(404, "unknown_path")


@raises("idempotency_key_reused")
def test_a_key_used_for_another_request(api: Api) -> None:
    api.post("/messages/", DRAFT, headers=KEY).expect(201)
    _is_documented(api.post("/messages/", DRAFT | {"sender": "bob"}, headers=KEY), "idempotency_key_reused")


@raises("outcome_deleted")
def test_a_replay_of_what_has_been_deleted(api: Api) -> None:
    sent = api.post("/messages/", DRAFT, headers=KEY).expect(201).json
    api.delete(f"/messages/{sent['id']}").expect(204)
    _is_documented(api.post("/messages/", DRAFT, headers=KEY), "outcome_deleted")


@raises("changes_expired")
def test_changes_since_a_version_that_is_still_to_come(api: Api) -> None:
    answer = api.get("/changes?recipient=a&since=9")
    assert (answer.status, answer.code) == (410, "changes_expired")


@raises("rate_limited")
def test_a_limit_that_is_reached(api: Api, settings: Any) -> None:
    settings.MESSAGES_RATE_LIMIT_WRITE = "1/h"
    api.post("/messages/", DRAFT).expect(201)
    _is_documented(api.post("/messages/", DRAFT), "rate_limited", same_text=False)


@raises("internal_error")
def test_an_unexpected_exception_is_500(api: Api) -> None:
    # A column of another type, until this test's transaction is rolled back.
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE messaging_message ALTER COLUMN created_at TYPE text")
    answer = api.get(MISSING)
    _is_documented(answer, "internal_error")
    assert b"messaging" not in answer.body


@raises("token_keys_unavailable")
def test_a_token_whose_keys_cannot_be_fetched(api: Api, settings: Any, tmp_path: Any) -> None:
    settings.MESSAGES_TOKEN_JWKS = str(tmp_path / "none.json")
    # A header that asks for a key of the set: {"alg": "EdDSA", "typ": "JWT"}
    token = "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9.e30.AAAA"
    _is_documented(api.holding(token).get("/mailbox?recipient=a"), "token_keys_unavailable")


# --- with a second connection to the database


@contextmanager
def _neighbour(statement: str) -> Iterator[psycopg.Connection]:
    """Another session that has just run a statement, and whose transaction is still open."""
    settings = connection.settings_dict
    with psycopg.connect(
        host=settings["HOST"],
        port=settings["PORT"],
        user=settings["USER"],
        password=settings["PASSWORD"],
        dbname=settings["NAME"],
    ) as other:
        other.execute(statement)
        yield other
        other.rollback()


@pytest.fixture
def impatient(transactional_db: None) -> Iterator[None]:
    """This thread's statements wait at most 50 ms for a lock."""
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '50ms'")
    yield
    connection.close()


@raises("idempotency_key_in_use")
def test_the_first_request_with_a_key_still_runs(impatient: None, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("messaging.outcomes.WAIT_SECONDS", 0.1)
    api.get("/mailbox?recipient=a").expect(200)
    assert api.key is not None
    caller = f"key:{api.key.split('_')[1]}"
    row = (
        "INSERT INTO messaging_outcome (caller, key, bucket, fingerprint, body, expires_at)"
        f" VALUES ('{caller}', 'k', {bucket_of(f'{caller}{chr(10)}k')}, '', '', now() + interval '1 day')"
    )
    with _neighbour(row):
        answer = api.post("/messages/", DRAFT, headers=KEY)
    _is_documented(answer, "idempotency_key_in_use")
    assert api.mailbox(DRAFT["recipient"])["total"] == 0


@raises("database_unavailable")
def test_the_database_takes_too_long(impatient: None, api: Api) -> None:
    api.get("/mailbox?recipient=a").expect(200)
    with _neighbour("LOCK TABLE messaging_mailbox"):
        answers = [api.get("/mailbox?recipient=a"), api.post("/messages/", DRAFT), api.delete(MISSING)]
    for answer in answers:
        _is_documented(answer, "database_unavailable")
    assert api.mailbox(DRAFT["recipient"])["total"] == 0


@raises("outcome_unknown")
def test_the_database_is_lost_while_it_commits(transactional_db: None, api: Api) -> None:
    api.get("/mailbox?recipient=a").expect(200)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        [process] = cursor.fetchone()
        cursor.execute("SET lock_timeout = 0")  # or a busy machine would end the wait before the connection
    with _neighbour("LOCK TABLE messaging_mailbox") as other, _neighbour("SELECT 1") as watcher:

        def lose() -> None:
            def waits() -> bool:
                found = watcher.execute("SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s", [process])
                watcher.commit()
                return found.fetchone() == ("Lock",)

            wait_until(waits, what="the wait for the lock")
            other.execute("SELECT pg_terminate_backend(%s)", [process])

        thread = Thread(target=lose)
        thread.start()
        answer = api.post("/messages/", DRAFT)
        thread.join()
    connection.close()
    _is_documented(answer, "outcome_unknown")


# --- the faults of an input


def _send(**fields: Any) -> Case:
    return lambda api: api.post("/messages/", DRAFT | fields)


def _raw(body: bytes) -> Case:
    return lambda api: api.post("/messages/", body=body)


def _list(query: str) -> Case:
    return lambda api: api.get(f"/messages/?recipient=alice@example.com&{query}")


def _mark(ids: Any) -> Case:
    return lambda api: api.patch("/messages/mark-read", {"ids": ids})


FAULTS: dict[str, tuple[Case, str]] = {
    "blank": (_send(content=" \n"), "/content"),
    "control_character": (_send(recipient="a\tb"), "/recipient"),
    "duplicate_key": (_raw(b'{"recipient": "a", "content": "b", "content": "c"}'), "/content"),
    "foreign_cursor": (_list("sender=bob&cursor=AAAAAAAAAAALI-GhIMDUS6_qoudK"), "?cursor"),
    "inexact_number": (_raw(b'{"recipient": "a", "content": "b", "metadata": {"n": [1e999]}}'), "/metadata/n/0"),
    "invalid": (_list("is_read=maybe"), "?is_read"),
    "invalid_cursor": (_list("cursor=first"), "?cursor"),
    "invalid_idempotency_key": (
        lambda api: api.post("/messages/", DRAFT, headers={"Idempotency-Key": "k" * 256}),
        "",
    ),
    "invalid_instant": (_list("created_after=yesterday"), "?created_after"),
    "not_in_future": (_send(expires_at="2020-01-01T00:00:00Z"), "/expires_at"),
    "invalid_limit": (_list("limit=0"), "?limit"),
    "invalid_min_version": (
        lambda api: api.get("/mailbox?recipient=a", headers={"Messages-Min-Version": "new"}),
        "",
    ),
    "invalid_ordering": (_list("ordering=sender"), "?ordering"),
    "invalid_utf8": (_raw(b'{"recipient": "a", "content": "\xff"}'), "/content"),
    "lone_surrogate": (_raw(b'{"recipient": "a", "content": "\\ud800"}'), "/content"),
    "malformed_json": (_raw(b"{"), ""),
    "not_a_list": (_mark("all"), "/ids"),
    "not_a_string": (_send(sender=7), "/sender"),
    "not_a_uuid": (_mark(["1"]), "/ids/0"),
    "not_an_object": (_send(metadata=[]), "/metadata"),
    "nul_character": (_send(content="a\0"), "/content"),
    "repeated_parameter": (_list("limit=1&limit=2"), "?limit"),
    "required": (lambda api: api.post("/messages/", {"content": "a"}), "/recipient"),
    "too_deep": (_raw(b"[" * 65 + b"]" * 65), ""),
    "too_large": (_send(metadata={"a": "b" * 4096}), "/metadata"),
    "too_long": (_send(content="a" * 10_001), "/content"),
    "too_many": (_mark([MISSING[-36:]] * 1_001), "/ids"),
    "too_many_parameters": (_list("limit=1&" * 50), "?"),
    "unknown_field": (_send(seq=1), "/seq"),
    "unknown_parameter": (_list("page=2"), "?page"),
}


@pytest.mark.parametrize("code", FAULTS)
def test_each_kind_of_fault_has_its_code_and_its_place(api: Api, code: str) -> None:
    case, pointer = FAULTS[code]
    assert case(api).expect(400, "invalid_input").faults == {pointer: code}


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_a_parameter_that_a_call_does_not_know(api: Api, route: tuple[str, str]) -> None:
    sent = api.send("ada")
    with nothing_changes():
        answer = call(api, route, "ada", sent["id"], query={"nonsense": "1"})
        assert answer.expect(400, "invalid_input").faults == {"?nonsense": "unknown_parameter"}


def test_a_sender_that_is_not_that_of_the_key(api: Api, make_key: MakeKey) -> None:
    bob = api.holding(make_key("send", sender="bob"))
    refused = bob.post("/messages/", DRAFT | {"sender": "mallory"}).expect(400, "invalid_input")
    assert refused.faults == {"/sender": "sender_mismatch"}


def test_a_body_that_ends_too_soon(server: RunningServer, make_key: MakeKey) -> None:
    head = f"POST /messages/ HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {make_key()}\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{}}".encode())
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"incomplete_body"' in answer


def test_no_code_of_the_document_is_without_a_test() -> None:
    # The last two: tests/test_live.py.
    assert document.problem_codes() == RAISED | {"too_many_streams", "streams_exhausted"}
    faults = set(document.load()["components"]["schemas"]["Fault"]["properties"]["code"]["x-extensible-enum"])
    assert faults == FAULTS.keys() | {"sender_mismatch", "incomplete_body"}
