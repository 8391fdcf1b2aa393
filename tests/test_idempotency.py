"""Idempotency-Key: one change and one outcome, whatever is repeated, in parallel, or cut off in the middle."""

import json
import socket
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.utils import timezone

from messaging import attempts, outcomes, upkeep
from messaging.ids import bucket_of
from messaging.models import Mailbox, Message, Outcome
from tests.conftest import MakeKey
from tests.helpers import Answer, Api
from tests.routes import api_routes
from tests.servers import RunningServer, wait_until
from tests.sessions import another_session, in_a_thread, lock_mailbox, somebody_waits_for_a_lock
from tests.state import miscounted, nothing_changes

KEY = {"Idempotency-Key": "order-1"}
REPLAYED = "Idempotency-Replayed"


def draft(content: str = "Hello", **fields: Any) -> dict[str, Any]:
    return {"recipient": "ada", "content": content, **fields}


# Every call that changes something, with what makes it do so, given the id of an unread and of a read message.
CALLS: dict[tuple[str, str], Callable[[str, str], Any]] = {
    ("POST", "/messages"): lambda unread, read: draft(),
    ("POST", "/messages/batch"): lambda unread, read: {
        "messages": [draft("1"), draft("2"), draft("3", recipient="bob")]
    },
    ("PATCH", "/messages/mark-read"): lambda unread, read: {"ids": [unread, read]},
    ("PATCH", "/messages/mark-unread"): lambda unread, read: {"recipient": "ada", "up_to": read},
    ("POST", "/messages/mark-read"): lambda unread, read: {"ids": [unread, read]},
    ("POST", "/messages/mark-unread"): lambda unread, read: {"recipient": "ada", "up_to": read},
    ("DELETE", "/messages/{id}"): lambda unread, read: None,
    ("DELETE", "/messages/bulk"): lambda unread, read: {"ids": [unread, read]},
    ("POST", "/messages/bulk-delete"): lambda unread, read: {"ids": [unread, read]},
}


def test_every_call_that_changes_something_is_tested() -> None:
    # A ticket changes no mailbox.
    assert {route for route in api_routes() if route[0] != "GET"} - {("POST", "/mailbox/ticket")} == set(CALLS)


def once(api: Api, method: str, path: str, body: Any, key: str = "order-1") -> Answer:
    """The answer to a request with a key."""
    options = {} if body is None else {"json": body}
    return api.request(method, path, headers={"Idempotency-Key": key}, **options)


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_a_repeated_request_has_the_first_outcome_and_changes_nothing(api: Api, method: str, path: str) -> None:
    unread, read = (api.send("ada")["id"] for _ in range(2))
    api.patch("/messages/mark-read", {"ids": [read]}).expect(200)
    body = CALLS[method, path](unread, read)
    target = path.format(id=unread)
    version = api.mailbox("ada")["version"]

    first = once(api, method, target, body)
    assert first.status in {200, 201, 204}
    assert REPLAYED not in first.headers
    assert api.mailbox("ada")["version"] > version
    with nothing_changes():
        for form in (target, f"{target}/"):
            again = once(api, method, form, body)
            assert (again.status, again.body, again.headers[REPLAYED]) == (first.status, first.body, "true")
            for name in ("Location", "Content-Type", "Messages-Version"):
                assert again.headers.get(name) == first.headers.get(name)
    # What happens meanwhile does not show in it.
    api.send("ada", "later")
    assert once(api, method, target, body).body == first.body


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/messages/", draft("another")),
        ("POST", "/messages/", draft(metadata={})),
        ("POST", "/messages/", draft("")),
        ("POST", "/messages/batch", draft()),
        ("POST", "/messages/bulk-delete", draft()),
        ("PATCH", "/messages/mark-read", draft()),
        ("DELETE", "/messages/bulk", draft()),
        ("DELETE", f"/messages/{uuid.UUID(int=7)}", draft()),
        ("DELETE", f"/messages/{uuid.UUID(int=7)}?allow_missing=true", draft()),
    ],
)
def test_a_key_used_for_another_request_is_refused(api: Api, method: str, path: str, body: Any) -> None:
    first = once(api, "POST", "/messages/", draft())
    with nothing_changes():
        once(api, method, path, body).expect(422, "idempotency_key_reused")
    assert once(api, "POST", "/messages/", draft()).body == first.body


def test_a_key_used_with_another_method_is_refused(api: Api) -> None:
    body = {"ids": [api.send("ada")["id"]]}
    once(api, "PATCH", "/messages/mark-read", body).expect(200)
    once(api, "POST", "/messages/mark-read", body).expect(422, "idempotency_key_reused")


def test_the_query_is_part_of_the_request(api: Api) -> None:
    id_ = api.send("ada")["id"]
    once(api, "DELETE", f"/messages/{id_}", None).expect(204)
    once(api, "DELETE", f"/messages/{id_}?allow_missing=true", None).expect(422, "idempotency_key_reused")


def test_a_retry_after_the_prefix_of_public_url_has_changed_is_the_same_request(api: Api, settings: Any) -> None:
    first = once(api, "POST", "/messages/", draft())
    settings.FORCE_SCRIPT_NAME = "/inbox"
    assert once(api, "POST", "/messages/", draft()).body == first.body


def test_callers_do_not_share_their_keys(api: Api, anonymous: Api, make_key: MakeKey, settings: Any) -> None:
    other = api.holding(make_key())
    settings.MESSAGES_ACCESS = "open"
    answers = [once(caller, "POST", "/messages/", draft()).expect(201) for caller in (api, other, anonymous)]

    assert len({answer.json["id"] for answer in answers}) == 3
    assert all(REPLAYED not in answer.headers for answer in answers)
    for caller, answer in zip((api, other, anonymous), answers, strict=True):
        assert once(caller, "POST", "/messages/", draft()).body == answer.body
    # What one caller asked for is no business of another's key.
    once(other, "POST", "/messages/", draft("else"), key="order-2").expect(201)
    once(api, "POST", "/messages/", draft(), key="order-2").expect(201)


def test_refused_requests_are_not_stored(transactional_db: None, api: Api, make_key: MakeKey) -> None:
    reader = api.holding(make_key("read"))
    refusals = [
        once(api, "POST", "/messages/", draft("")).expect(400),
        once(api, "POST", "/messages/", draft(colour="red")).expect(400),
        api.post("/messages/", body=b"{", headers=KEY).expect(400),
        api.post("/messages/", body=b"{}", headers=KEY | {"Content-Type": "text/plain"}).expect(415),
        api.post("/messages/", body=b" " * 1_048_577, headers=KEY).expect(413),
        once(api, "DELETE", f"/messages/{uuid.UUID(int=7)}", None).expect(404),
        once(api, "PATCH", "/messages/mark-read", {"recipient": "ada", "up_to": str(uuid.UUID(int=7))}).expect(404),
        once(api, "PATCH", "/messages/mark-read", {"ids": []}).expect(400),
        once(reader, "POST", "/messages/", draft()).expect(403),
        once(api, "PUT", "/messages/", draft()).expect(405),
    ]
    assert all(REPLAYED not in refusal.headers for refusal in refusals)
    assert not Outcome.objects.exists()

    assert REPLAYED not in once(api, "POST", "/messages/", draft()).expect(201).headers
    assert api.mailbox("ada")["total"] == 1


@pytest.mark.parametrize("path", ["/messages/", "/messages/batch"])
def test_a_retry_after_the_message_has_expired_has_the_first_outcome(api: Api, path: str) -> None:
    message = draft(expires_at=(timezone.now() + timedelta(seconds=1)).isoformat())
    body = message if path == "/messages/" else {"messages": [message]}
    first = once(api, "POST", path, body).expect(201)
    wait_until(lambda: api.post(path, body).status == 400, what="the end of the message")

    again = once(api, "POST", path, body).expect(201)
    assert (again.body, again.headers[REPLAYED]) == (first.body, "true")
    assert again.headers.get("Location") == first.headers.get("Location")
    once(api, "POST", path, body, key="another").expect(400)
    assert upkeep.run_once()["messages"] > 0
    once(api, "POST", path, body).expect(410, "outcome_deleted")


def test_reading_needs_no_key_and_ignores_one(api: Api) -> None:
    with nothing_changes():
        for path in ("/mailbox?recipient=ada", "/messages/?recipient=ada", "/messages/unread?recipient=ada"):
            assert REPLAYED not in api.get(path, headers=KEY).expect(200).headers


def test_the_longest_key_and_every_printable_character(api: Api) -> None:
    for key in ("k" * 255, " ".join(map(chr, range(33, 127)))):
        first = once(api, "POST", "/messages/", draft(), key=key).expect(201)
        assert once(api, "POST", "/messages/", draft(), key=key).body == first.body
    assert api.mailbox("ada")["total"] == 2


def test_an_outcome_is_kept_for_24_hours(api: Api) -> None:
    first = once(api, "POST", "/messages/", draft()).expect(201)

    def age(hours: float) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT expires_at FROM messaging_outcome")
            [(expires_at,)] = cursor.fetchall()
            cursor.execute("UPDATE messaging_outcome SET expires_at = %s", [expires_at - timedelta(hours=hours)])

    age(23.99)
    assert once(api, "POST", "/messages/", draft()).body == first.body
    once(api, "POST", "/messages/", draft("another")).expect(422)
    age(0.011)
    # Forgotten: the key is free for any request.
    second = once(api, "POST", "/messages/", draft("another")).expect(201)
    assert REPLAYED not in second.headers
    assert once(api, "POST", "/messages/", draft("another")).body == second.body
    once(api, "POST", "/messages/", draft()).expect(422)
    assert Outcome.objects.count() == 1


def test_the_outcome_and_the_change_are_one_transaction(
    transactional_db: None, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The statement that keeps the outcome fails: then nothing was changed either.
    monkeypatch.setattr(outcomes, "KEEP", "SELECT 1 / 0")
    once(api, "POST", "/messages/batch", {"messages": [draft()]}).expect(500)
    assert not Message.objects.exists()
    assert not Mailbox.objects.exists()
    assert not Outcome.objects.exists()


@pytest.mark.parametrize(
    ("path", "body"),
    [("/messages/", draft("secret")), ("/messages/batch", {"messages": [draft("1"), draft("secret"), draft("3")]})],
)
def test_a_deleted_message_is_removed_from_outcomes(api: Api, path: str, body: Any) -> None:
    first = once(api, "POST", path, body).expect(201).json
    [secret] = [m for m in first.get("results", [first]) if m["content"] == "secret"]
    api.patch("/messages/mark-read", {"ids": [secret["id"]]}).expect(200)
    # As it was first answered, whatever became of it since.
    assert once(api, "POST", path, body).expect(201).json == first

    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM messaging_outcome o WHERE position('secret' in o::text) > 0")
        assert cursor.fetchone() == (0,)
    api.delete(f"/messages/{secret['id']}").expect(204)
    with nothing_changes():
        for _ in range(2):
            once(api, "POST", path, body).expect(410, "outcome_deleted")


def test_a_batch_of_one_and_a_message_are_replayed_in_their_own_form(api: Api) -> None:
    single = once(api, "POST", "/messages/", draft(), key="single").expect(201)
    batch = once(api, "POST", "/messages/batch", {"messages": [draft()]}, key="batch").expect(201)
    assert once(api, "POST", "/messages/", draft(), key="single").body == single.body
    assert once(api, "POST", "/messages/batch", {"messages": [draft()]}, key="batch").body == batch.body


# --- at the same time


def hold_key(session: psycopg.Connection[Any], caller: str, *, fingerprint: bytes = b"", status: int = 201) -> None:
    """Claim the key as a request that is still running has."""
    session.execute(
        "INSERT INTO messaging_outcome (caller, key, bucket, fingerprint, status, body, expires_at)"
        " VALUES (%s, 'order-1', %s, %s, %s, %s, now() + interval '1 day')",
        [caller, bucket_of(f"{caller}\norder-1"), fingerprint, status, b'{"first": true}'],
    )


@pytest.fixture
def caller(transactional_db: None, api: Api) -> str:
    """The caller in the row of the client's key."""
    once(api, "POST", "/messages/", draft(), key="learn").expect(201)
    return Outcome.objects.get().caller


def test_a_second_request_waits_for_the_first_and_goes_on_when_that_one_failed(api: Api, caller: str) -> None:
    with another_session() as session:
        hold_key(session, caller)
        answer = in_a_thread(lambda: once(api, "POST", "/messages/", draft("second")))
        wait_until(somebody_waits_for_a_lock, what="a request that waits")
        session.rollback()
    assert REPLAYED not in answer.result(30).expect(201).headers
    assert api.mailbox("ada")["total"] == 2


@pytest.mark.parametrize("path", ["/messages/", "/messages/batch"])
def test_an_expired_message_waits_for_its_first_request_too(api: Api, caller: str, path: str) -> None:
    message = draft(expires_at=(timezone.now() + timedelta(seconds=1)).isoformat())
    body = message if path == "/messages/" else {"messages": [message]}
    first = once(api, "POST", path, body, key="template").expect(201)
    wait_until(lambda: api.post(path, body).status == 400, what="the end of the message")
    with another_session() as session:
        # What the same request under this key has done, and not committed yet.
        session.execute(
            "UPDATE messaging_outcome SET key = 'order-1', bucket = %s WHERE key = 'template'",
            [bucket_of(f"{caller}\norder-1")],
        )
        answer = in_a_thread(lambda: once(api, "POST", path, body))
        wait_until(somebody_waits_for_a_lock, what="a request that waits")
        session.commit()
    assert answer.result(30).expect(201).body == first.body


def test_a_second_request_waits_for_the_first_and_is_refused_if_that_was_another(api: Api, caller: str) -> None:
    with another_session() as session:
        hold_key(session, caller, fingerprint=b"another")
        answer = in_a_thread(lambda: once(api, "POST", "/messages/", draft("second")))
        wait_until(somebody_waits_for_a_lock, what="a request that waits")
        session.commit()
    answer.result(30).expect(422, "idempotency_key_reused")


def test_waiting_too_long_for_a_key_is_409_with_retry_after(
    api: Api, caller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outcomes.WAIT_SECONDS == 10
    monkeypatch.setattr(outcomes, "WAIT_SECONDS", 0.3)
    with another_session() as session:
        hold_key(session, caller)
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '100ms'")
        try:
            answer = once(api, "POST", "/messages/", draft("second")).expect(409, "idempotency_key_in_use")
        finally:
            connection.close()
        assert int(answer.headers["Retry-After"]) >= 1
        # A request with another key does not wait.
        once(api, "POST", "/messages/", draft("third"), key="order-2").expect(201)
        session.rollback()
    once(api, "POST", "/messages/", draft("second")).expect(201)
    assert api.mailbox("ada")["total"] == 3


def test_two_requests_with_one_key_at_once_send_one_message(transactional_db: None, api: Api) -> None:
    api.send("ada")
    for number in range(50):
        start = threading.Barrier(2)

        def request(start: threading.Barrier = start, number: int = number) -> Answer:
            start.wait(30)
            return once(api, "POST", "/messages/", draft(), key=f"order-{number}")

        answers = [answer.result(30).expect(201) for answer in [in_a_thread(request), in_a_thread(request)]]
        assert answers[0].body == answers[1].body
        assert sorted(REPLAYED in answer.headers for answer in answers) == [False, True]
    assert api.mailbox("ada") == {"recipient": "ada", "version": 51, "total": 51, "unread": 51}


def test_a_locked_mailbox_is_not_taken_for_a_request_that_is_still_running(
    api: Api, caller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def wait_for_lock(*arguments: Any) -> float:
        waits.append(_wait_for_lock(*arguments))
        return waits[-1]

    _wait_for_lock = attempts._wait_for_lock
    monkeypatch.setattr(attempts, "_wait_for_lock", wait_for_lock)
    with another_session() as session:
        lock_mailbox(session, "ada")
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '100ms'")
        try:
            once(api, "POST", "/messages/", draft()).expect(503, "database_unavailable")
        finally:
            connection.close()
        session.rollback()
    assert len(waits) == 1  # and not another one for the attempt that finds out which of the two is locked
    assert REPLAYED not in once(api, "POST", "/messages/", draft()).expect(201).headers


def test_fifty_parallel_requests_make_one_message_and_fifty_equal_answers(
    run_server: Callable[..., RunningServer], make_key: MakeKey
) -> None:
    api = run_server(WEB_CONCURRENCY="2", WEB_THREADS="4").api(make_key())
    start = threading.Barrier(50)

    def request(_number: int) -> Answer:
        start.wait(30)
        return once(api, "POST", "/messages/", draft())

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(request, range(50)))
    assert {answer.status for answer in answers} == {201}
    assert len({answer.body for answer in answers}) == 1
    assert len({answer.headers["Location"] for answer in answers}) == 1
    assert sum(REPLAYED not in answer.headers for answer in answers) == 1
    assert api.mailbox("ada") == {"recipient": "ada", "version": 1, "total": 1, "unread": 1}


def answers(api: Api) -> bool:
    try:
        return api.get("/livez").status == 200
    except OSError:
        return False


def test_a_worker_killed_between_change_and_answer_leaves_what_a_retry_completes(
    run_server: Callable[..., RunningServer], make_key: MakeKey
) -> None:
    server = run_server(WEB_CONCURRENCY="1")
    api = server.api(make_key())
    api.send("ada", "before")

    with another_session() as session, ThreadPoolExecutor(1) as pool:
        # The request has claimed its key and waits for the mailbox when its worker dies.
        lock_mailbox(session, "ada")
        lost = pool.submit(lambda: once(api, "POST", "/messages/", draft("after")))
        wait_until(somebody_waits_for_a_lock, what="a request in the middle")
        [worker] = server.workers()
        worker.kill()
        with pytest.raises((ConnectionError, EOFError, OSError)):
            lost.result(30)
        session.rollback()
    # Gone, with the connections that it held, this client's idle one among them.
    wait_until(lambda: server.workers() not in ([], [worker]), what="a worker in its place")
    wait_until(lambda: answers(api), what="an answer")
    # The statement of the lost request may have ended since, and then this is its outcome.
    answer = once(api, "POST", "/messages/", draft("after")).expect(201)
    assert once(api, "POST", "/messages/", draft("after")).body == answer.body
    assert [m["content"] for m in api.pages("/messages/", {"recipient": "ada"})] == ["after", "before"]
    assert miscounted() == []


def test_a_client_that_left_before_the_answer_finds_it_by_its_retry(
    run_server: Callable[..., RunningServer], make_key: MakeKey
) -> None:
    server, key = run_server(WEB_CONCURRENCY="1"), make_key()
    server.api(key).send("ada", "before")
    body = json.dumps(draft()).encode()
    with another_session() as session, socket.create_connection(("127.0.0.1", server.port)) as leaving:
        lock_mailbox(session, "ada")
        leaving.sendall(
            b"POST /messages/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Idempotency-Key: order-1\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s"
            % (key.encode(), len(body), body)
        )
        # Granian drops a request whose client has left before it is begun.
        wait_until(somebody_waits_for_a_lock, what="the request")
        leaving.close()
    wait_until(lambda: Message.objects.count() == 2, what="the message")
    answer = once(server.api(key), "POST", "/messages/", draft()).expect(201)
    assert answer.headers[REPLAYED] == "true"
    assert server.api(key).mailbox("ada")["total"] == 2
