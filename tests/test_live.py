"""The live process: who may follow a mailbox, what a stream says and when it ends, and long polls."""

import asyncio
import math
import re
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta
from functools import partial
from threading import Barrier, BrokenBarrierError
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from django.db import connection
from django.utils import timezone

from benchmarks.crowd import pass_by
from messaging import hints
from messaging.access import EVERYONE, Caller, Scope
from messaging.auth import keys, tickets, tokens
from messaging.ids import bucket_of
from messaging.live.followers import COMMENT_SECONDS, SECONDS_BETWEEN_EVENTS, EventStream, Following
from messaging.live.hub import Hub
from messaging.live.places import MAX_PER_CALLER_AND_MAILBOX
from messaging.records import MailboxRecord
from tests.conftest import MakeKey
from tests.helpers import PATIENCE_SECONDS, Answer, Api
from tests.live_servers import TOKEN_SECRET, RunningLive, Stream
from tests.postgres_servers import PostgresServer
from tests.programs import without
from tests.redis_servers import NOT_OF_REDIS, RedisServer, no_redis
from tests.servers import RunningServer, wait_until


@pytest.fixture
def in_thread() -> Any:
    """Start a call in a thread: in_thread(work) is the Future of its answer."""
    with ThreadPoolExecutor(16) as threads:
        yield threads.submit


def prefix(key: str) -> str:
    return key.split("_")[1]


def status_of_stream(live: RunningLive, bearer: str | None, **query: Any) -> int:
    with Stream(live.port, bearer, **query) as stream:
        return stream.status


# --- access


def test_a_target_in_absolute_form_is_served(run_live: Callable[..., RunningLive]) -> None:
    live = run_live(MESSAGES_ACCESS="open")
    answer = live.api().get(f"{live.url}/mailbox/wait?recipient=ada&version=1&seconds=0")
    assert answer.expect(200).json["version"] == 0


def test_a_path_is_taken_as_it_stands(run_live: Callable[..., RunningLive]) -> None:
    live = run_live(MESSAGES_ACCESS="open")
    for path in (
        "//[",
        "//x/mailbox/wait",
        "//%E2%84%80",
        "/mailbox/wait%3Fx",
        "/mailbox/wait%23x",
        "/mailbox/w%0Aait",
    ):
        # Not by a client that would take the path apart itself.
        with socket.create_connection(("127.0.0.1", live.port), timeout=PATIENCE_SECONDS) as client:
            query = b"?recipient=ada&version=1&seconds=0"
            client.sendall(b"GET %b%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % (path.encode(), query))
            assert client.recv(12) == b"HTTP/1.1 404", path


def test_the_host_of_its_own_url_is_allowed(run_live: Callable[..., RunningLive]) -> None:
    api = run_live(MESSAGES_ACCESS="open", LIVE_URL="https://live.example.com").api()
    for host, status in (("live.example.com", 200), ("other.example.com", 400)):
        answer = api.get("/mailbox/wait?recipient=ada&version=1", headers={"Host": host})
        assert answer.status == status


def test_access_is_that_of_the_api(run_live: Callable[..., RunningLive], make_key: MakeKey, settings: Any) -> None:
    live = run_live(MESSAGES_TOKEN_SECRET=TOKEN_SECRET)
    settings.MESSAGES_TOKEN_SECRET = TOKEN_SECRET
    reader, sender, ada = make_key("read"), make_key("send", "manage"), make_key("read", recipient="ada")
    token = tokens.create(recipient="ada", scopes=["read"], lifetime=timedelta(minutes=1))
    ticket, _ = tickets.create(recipient="ada", caller=Caller(f"key:{prefix(reader)}", frozenset({Scope.READ})))
    statuses = {
        "no key": status_of_stream(live, None, recipient="ada"),
        "unknown key": status_of_stream(live, reader[:-1] + "_", recipient="ada"),
        "key without the scope": status_of_stream(live, sender, recipient="ada"),
        "key": status_of_stream(live, reader, recipient="ada"),
        "key without a recipient": status_of_stream(live, reader),
        "bound key": status_of_stream(live, ada),
        "bound key, its own": status_of_stream(live, ada, recipient="ada"),
        "bound key, another's": status_of_stream(live, ada, recipient="bob"),
        "token": status_of_stream(live, token),
        "token, another's": status_of_stream(live, token, recipient="bob"),
        "ticket": status_of_stream(live, None, ticket=ticket),
        "ticket, its own": status_of_stream(live, None, ticket=ticket, recipient="ada"),
        "ticket, another's": status_of_stream(live, None, ticket=ticket, recipient="bob"),
        "ticket, damaged": status_of_stream(live, None, ticket=f"{ticket[:-1]}!"),
        "key in the URL": status_of_stream(live, None, recipient="ada", key=reader),
        "token in the URL": status_of_stream(live, None, recipient="ada", access_token=token),
        "key as a ticket": status_of_stream(live, None, recipient="ada", ticket=reader),
        "token as a ticket": status_of_stream(live, None, recipient="ada", ticket=token),
    }

    assert statuses == {
        "no key": 401,
        "unknown key": 401,
        "key without the scope": 403,
        "key": 200,
        "key without a recipient": 400,
        "bound key": 200,
        "bound key, its own": 200,
        "bound key, another's": 404,
        "token": 200,
        "token, another's": 404,
        "ticket": 200,
        "ticket, its own": 200,
        "ticket, another's": 404,
        "ticket, damaged": 401,
        "key in the URL": 401,
        "token in the URL": 401,
        "key as a ticket": 401,
        "token as a ticket": 401,
    }
    polls = {
        "no key": live.api().get("/mailbox/wait?recipient=ada&version=7").status,
        "key without the scope": live.api(sender).get("/mailbox/wait?recipient=ada&version=7").status,
        "key": live.api(reader).get("/mailbox/wait?recipient=ada&version=7").status,
        "bound key, another's": live.api(ada).get("/mailbox/wait?recipient=bob&version=7").status,
        "ticket": live.api().get("/mailbox/wait", {"version": 7, "ticket": ticket}).status,
        "ticket, another's": live.api()
        .get("/mailbox/wait", {"recipient": "bob", "version": 7, "ticket": ticket})
        .status,
    }
    assert polls == {
        "no key": 401,
        "key without the scope": 403,
        "key": 200,
        "bound key, another's": 404,
        "ticket": 200,
        "ticket, another's": 404,
    }


def test_refusals_are_problem_documents_and_every_answer_has_an_id(live: RunningLive, make_key: MakeKey) -> None:
    api = live.api(make_key("read"))

    api.get("/mailbox/wait?recipient=ada").expect(400, "invalid_input")
    api.get("/mailbox/wait?recipient=ada&version=x&seconds=-1").expect(400, "invalid_input")
    api.get("/mailbox/wait?recipient=ada&version=0&limit=1").expect(400, "invalid_input")
    api.get(f"/mailbox/wait?recipient=ada&version={2**63 - 1}").expect(200)
    api.post("/mailbox/wait", {}).expect(405, "method_not_allowed")
    for path in ("/messages/", "/admin/", "/admin/login/", "/docs"):
        api.get(path).expect(404, "unknown_path")
    api.get("/mailbox/wait?recipient=ada&version=1", headers={"Host": "elsewhere.example"}).expect(400, "bad_request")
    found = api.get("/mailbox/wait?recipient=ada&version=1", headers={"X-Request-ID": "mine"}).expect(200)
    assert found.headers["X-Request-ID"] == "mine"
    api.get("/livez").expect(200)
    api.get("/readyz").expect(200)


def test_a_body_that_is_no_http_ends_its_connection_without_an_error_in_the_log(live: RunningLive) -> None:
    head = b"POST /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        connection.sendall(head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 405 ")
        connection.sendall(b"no length\r\n\r\n")
        while connection.recv(65536):
            pass
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        connection.sendall(b"no request\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
    assert " ERROR " not in live.log


def test_pages_of_allowed_origins_may_read(run_live: Callable[..., RunningLive], make_key: MakeKey) -> None:
    live = run_live(MESSAGES_CORS_ORIGINS="https://app.example.com")
    api = live.api(make_key("read"))
    path = "/mailbox/wait?recipient=ada&version=1"

    allowed = api.get(path, headers={"Origin": "https://app.example.com"}).expect(200)
    foreign = api.get(path, headers={"Origin": "https://other.example.com"}).expect(200)

    assert allowed.headers["Access-Control-Allow-Origin"] == "https://app.example.com"
    assert "Access-Control-Allow-Origin" not in foreign.headers


# --- tickets


def test_a_ticket_grants_only_what_its_creator_may_read(api: Api, anonymous: Api, make_key: MakeKey) -> None:
    made = api.post("/mailbox/ticket", {"recipient": "ada"}).expect(200).json
    again = api.post("/mailbox/ticket?recipient=ada").expect(200).json
    bound = api.holding(make_key("read", recipient="bob"))

    assert [tickets.caller_of(found["ticket"]).recipient for found in (made, again)] == ["ada", "ada"]  # type: ignore[union-attr]
    ends_in = datetime.fromisoformat(made["expires_at"]).timestamp() - time.time()
    assert ends_in == pytest.approx(tickets.LIFETIME_SECONDS, abs=30)
    for body in ({}, {"recipient": "bob"}):
        caller = tickets.caller_of(bound.post("/mailbox/ticket", body).expect(200).json["ticket"])
        assert caller is not None
        assert (caller.recipient, caller.scopes) == ("bob", frozenset({Scope.READ}))
    api.post("/mailbox/ticket?recipient=ada", {"recipient": None}).expect(200)
    api.post("/mailbox/ticket?recipient=ada", {"seconds": None}).expect(400, "invalid_input")
    api.post("/mailbox/ticket?recipient=ada", {"recipient": "ada"}).expect(200)
    two = api.post("/mailbox/ticket?recipient=ada", {"recipient": "bob"}).expect(400, "invalid_input")
    assert [(fault["pointer"], fault["code"]) for fault in two.json["errors"]] == [("?recipient", "repeated_parameter")]
    bound.post("/mailbox/ticket").expect(200)
    bound.post("/mailbox/ticket", {"recipient": "ada"}).expect(404, "not_found")
    api.post("/mailbox/ticket", {}).expect(400, "invalid_input")
    api.post("/mailbox/ticket", {"recipient": "ada", "seconds": 9}).expect(400, "invalid_input")
    api.post("/mailbox/ticket", [1]).expect(400, "invalid_input")
    api.holding(make_key("send", "manage")).post("/mailbox/ticket", {"recipient": "ada"}).expect(403)
    anonymous.post("/mailbox/ticket", {"recipient": "ada"}).expect(401)


def test_a_ticket_ends_after_a_minute_and_with_its_token(
    monkeypatch: pytest.MonkeyPatch, db: None, settings: Any
) -> None:
    settings.MESSAGES_ACCESS = "open"
    now = time.time()
    maker = Caller("token:x", frozenset({Scope.READ}), "ada", ends_at=now + 40)

    ticket, ends_at = tickets.create(recipient="ada", caller=maker)
    eternal, _ = tickets.create(recipient="ada", caller=Caller("open:127.0.0.1", frozenset(Scope)))

    assert ends_at.timestamp() == pytest.approx(now + 40)
    caller = tickets.caller_of(ticket)
    assert caller is not None
    assert (caller.recipient, caller.scopes, caller.ends_at) == ("ada", frozenset({Scope.READ}), now + 40)
    monkeypatch.setattr(time, "time", lambda: now + 41)
    assert tickets.caller_of(ticket) is None
    assert tickets.caller_of(eternal) is not None
    settings.MESSAGES_ACCESS = "keys"
    assert tickets.caller_of(eternal) is None
    settings.MESSAGES_ACCESS = "open"
    monkeypatch.setattr(time, "time", lambda: now + 70)
    assert tickets.caller_of(eternal) is None


def test_a_ticket_ends_with_its_key(make_key: MakeKey) -> None:
    key = make_key("read")
    ticket, _ = tickets.create(recipient="ada", caller=Caller(f"key:{prefix(key)}", frozenset(Scope)))
    assert tickets.caller_of(ticket) is not None

    keys.revoke(prefix=prefix(key))

    assert tickets.caller_of(ticket) is None


# --- events


def test_a_stream_sends_the_mailbox_at_once_and_after_every_change(
    live: RunningLive, api: Api, make_key: MakeKey
) -> None:
    sent = api.send("ada")

    with Stream(live.port, api.key, recipient="ada") as stream, Stream(live.port, api.key, recipient="bob") as other:
        assert stream.response.headers["Content-Type"] == "text/event-stream"
        assert stream.response.headers["Cache-Control"] == "no-store"
        assert stream.wait_for(1).events[0].mailbox == api.mailbox("ada")
        api.patch("/messages/mark-read", {"ids": [sent["id"]]}).expect(200)
        stream.wait_for(2)
        metrics = live.api(make_key("metrics")).get("/metrics").expect(200).body
        assert b"messages_live_streams 2.0" in metrics
        api.delete(f"/messages/{sent['id']}").expect(204)
        stream.wait_for(3)

        assert stream.events[-1].mailbox == {"recipient": "ada", "version": 3, "total": 0, "unread": 0}
        assert len(stream.retries) == 1
        assert [event.mailbox["version"] for event in other.wait_for(0).events] == [0]


def test_only_an_event_ends_with_an_empty_line() -> None:
    sent: list[bytes] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("body", b""))

    async def life() -> None:
        stream = EventStream(Following(EVERYONE, MailboxRecord("ada", 1), None), 60.0, send)
        await stream.open(200, [])
        now = time.monotonic()
        steps: list[Callable[[], None]] = [
            partial(stream.tell, now), partial(stream.tend, now + COMMENT_SECONDS), stream.end,
        ]  # fmt: skip
        for step in steps:
            step()
            while not stream.is_ready(math.inf):
                await asyncio.sleep(0)

    asyncio.run(life())
    retry, event, comment, end = sent[1:]
    assert comment == b":\n"
    assert event.count(b"\n\n") == 1
    for line in (retry, end):
        assert re.fullmatch(rb"retry: \d+\n", line)


def test_a_client_that_has_not_received_an_event_is_sent_no_other_one() -> None:
    """So what waits for it is the newest state, and no row of old ones."""

    async def life() -> None:
        received = asyncio.Event()

        async def send(message: dict[str, Any]) -> None:
            if b"event" in message.get("body", b""):
                await received.wait()

        stream = EventStream(Following(EVERYONE, MailboxRecord("ada", 1), None), 60.0, send)
        await stream.open(200, [])
        stream.tell(time.monotonic())
        await asyncio.sleep(0)
        assert not stream.is_ready(math.inf)
        received.set()
        while not stream.is_ready(math.inf):
            await asyncio.sleep(0)

    asyncio.run(life())


def test_the_newest_state_that_any_stream_was_opened_with_is_that_of_all() -> None:
    """A stream is opened with what a read found, which may be older than what a later read has found."""

    async def nothing(*_: Any) -> None:
        pass

    hub = Hub(nothing)
    streams = [EventStream(Following(EVERYONE, MailboxRecord("ada", n), n), 60.0, nothing) for n in (1, 2, 1)]
    for stream in streams:
        hub.add(stream)
    assert [stream.mailbox.version for stream in streams] == [2, 2, 2]


def test_a_client_that_has_the_version_hears_of_the_next_one_only(live: RunningLive, api: Api) -> None:
    api.send("ada")
    with (
        Stream(live.port, api.key, last_event_id=1, recipient="ada") as current,
        Stream(live.port, api.key, last_event_id=0, recipient="ada") as behind,
    ):
        behind.wait_for(1)
        api.send("ada")
        behind.wait_for(2)
        current.wait_for(2)

        assert [event.id for event in current.events] == [2]
        assert [event.id for event in behind.events] == [1, 2]


def test_many_changes_are_few_events_and_the_last_one_is_the_newest(live: RunningLive, api: Api) -> None:
    with Stream(live.port, api.key, recipient="ada") as stream:
        stream.wait_for(0)
        started = time.monotonic()
        for _ in range(60):
            api.send("ada")
        stream.wait_for(60)
        took = time.monotonic() - started

        assert len(stream.events) <= 2 + took / SECONDS_BETWEEN_EVENTS
        assert [event.id for event in stream.events] == sorted({event.id for event in stream.events})


def test_head_has_no_body(live: RunningLive, api: Api) -> None:
    found = live.api(api.key).request("HEAD", "/mailbox/events?recipient=ada").expect(200)
    assert (found.headers["Content-Type"], found.body) == ("text/event-stream", b"")
    assert found.headers.get("Content-Length") is None


def test_a_stream_ends_by_itself_and_says_when_to_come_back(run_live: Callable[..., RunningLive], api: Api) -> None:
    live = run_live(LIVE_STREAM_SECONDS="1")
    with Stream(live.port, api.key, recipient="ada") as stream:
        stream.wait_for_end()
        assert len(stream.retries) == 2
        assert all(1_000 <= retry <= 10_000 for retry in stream.retries)


def test_streams_end_when_the_process_stops(live: RunningLive, api: Api, in_thread: Any) -> None:
    with Stream(live.port, api.key, recipient="ada") as stream:
        stream.wait_for(0)
        poll: Future[Answer] = in_thread(lambda: live.api(api.key).get("/mailbox/wait?recipient=ada&version=0"))
        wait_until(lambda: live.log.count("/mailbox/wait") == 1, what="a long poll")

        assert live.stop() == 0

        stream.wait_for_end()
        assert len(stream.retries) == 2
        assert poll.result().expect(200).json["version"] == 0


def test_streams_end_with_their_key(live: RunningLive, api: Api, make_key: MakeKey, in_thread: Any) -> None:
    key = make_key("read")
    ticket, _ = tickets.create(recipient="ada", caller=Caller(f"key:{prefix(key)}", frozenset(Scope)))
    with (
        Stream(live.port, key, recipient="ada") as by_key,
        Stream(live.port, ticket=ticket) as by_ticket,
        Stream(live.port, api.key, recipient="ada") as other,
    ):
        poll: Future[Answer] = in_thread(lambda: live.api(key).get("/mailbox/wait?recipient=ada&version=0"))
        wait_until(lambda: live.log.count("/mailbox/wait") == 1, what="a long poll")
        keys.revoke(prefix=prefix(key))
        revoked_at = time.monotonic()

        by_key.wait_for_end()
        by_ticket.wait_for_end()
        poll.result()
        # The promise is 5 s; the rest is for a busy machine.
        assert time.monotonic() - revoked_at < 15
        assert not other.has_ended
    assert status_of_stream(live, key, recipient="ada") == 401


def test_streams_end_with_a_key_that_expires_and_with_a_token(
    run_live: Callable[..., RunningLive], make_key: MakeKey, settings: Any
) -> None:
    live = run_live(MESSAGES_TOKEN_SECRET=TOKEN_SECRET)
    settings.MESSAGES_TOKEN_SECRET = TOKEN_SECRET
    key = make_key("read", expires_at=timezone.now() + timedelta(seconds=2))
    token = tokens.create(recipient="ada", scopes=["read"], lifetime=timedelta(seconds=1))
    with Stream(live.port, key, recipient="ada") as by_key, Stream(live.port, token) as by_token:
        by_key.wait_for_end()
        by_token.wait_for_end()
    assert status_of_stream(live, token) == 401


# --- long polls


def test_a_long_poll_answers_when_the_version_is_another(live: RunningLive, api: Api, in_thread: Any) -> None:
    poller = live.api(api.key)
    assert poller.get("/mailbox/wait?recipient=ada&version=9").expect(200).json == api.mailbox("ada")

    poll: Future[Answer] = in_thread(lambda: live.api(api.key).get("/mailbox/wait?recipient=ada&version=0"))
    wait_until(lambda: live.log.count("/mailbox/wait") == 2, what="a long poll")
    assert not poll.done()
    api.send("ada")

    assert poll.result().expect(200).json == {"recipient": "ada", "version": 1, "total": 1, "unread": 1}


def test_a_long_poll_answers_when_its_time_is_over(live: RunningLive, api: Api) -> None:
    poller = live.api(api.key)
    for seconds in (0, 1):
        query = {"recipient": "ada", "version": 0, "seconds": seconds}
        assert poller.get("/mailbox/wait", query).expect(200).json["version"] == 0


# --- limits


def test_each_request_counts_whatever_its_conditions(run_live: Callable[..., RunningLive], api: Api) -> None:
    poller = run_live(MESSAGES_RATE_LIMIT_READ="2/h").api(api.key)
    for condition in ('"x"', "*"):
        poller.get("/mailbox/wait?recipient=ada&version=1", headers={"If-None-Match": condition}).expect(200)
    poller.get("/mailbox/wait?recipient=ada&version=1", headers={"If-None-Match": "*"}).expect(429, "rate_limited")


def test_a_caller_has_eight_streams_of_a_mailbox(live: RunningLive, api: Api, make_key: MakeKey) -> None:
    with ExitStack() as streams:
        opened = [
            streams.enter_context(Stream(live.port, api.key, recipient="ada"))
            for _ in range(MAX_PER_CALLER_AND_MAILBOX)
        ]
        assert [stream.status for stream in opened] == [200] * MAX_PER_CALLER_AND_MAILBOX
        refused = live.api(api.key).get("/mailbox/wait?recipient=ada&version=0").expect(429, "too_many_streams")
        assert int(refused.headers["Retry-After"]) >= 1
        assert status_of_stream(live, api.key, recipient="ada") == 429
        assert status_of_stream(live, api.key, recipient="bob") == 200
        assert status_of_stream(live, make_key("read"), recipient="ada") == 200
        opened[0].close()

        wait_until(lambda: status_of_stream(live, api.key, recipient="ada") == 200, what="the place of a closed stream")


def test_a_process_has_a_number_of_streams(run_live: Callable[..., RunningLive], api: Api) -> None:
    live = run_live(LIVE_MAX_STREAMS="2")
    with Stream(live.port, api.key, recipient="a") as first, Stream(live.port, api.key, recipient="b"):
        refused = live.api(api.key).get("/mailbox/wait?recipient=c&version=0").expect(503, "streams_exhausted")
        assert int(refused.headers["Retry-After"]) >= 1
        first.close()
        wait_until(lambda: status_of_stream(live, api.key, recipient="c") == 200, what="the place of a closed stream")


class WithFewFiles(RunningLive):
    launcher = ("sh", "-c", 'ulimit -n 200; exec "$@"', "sh")


def test_more_clients_than_files_may_be_open(transactional_db: None, database: str, api: Api) -> None:
    with WithFewFiles(POSTGRES_DB=database) as live, ExitStack() as clients:
        assert "only 200 files may be open" in live.log
        quiet = len(live.log.splitlines())
        connections = [
            clients.enter_context(socket.create_connection(("127.0.0.1", live.port), timeout=10)) for _ in range(300)
        ]
        # Those that were accepted too many are closed; the first ones are served.
        assert connections[-1].recv(1) == b""
        connections[0].sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connections[0].recv(12) == b"HTTP/1.1 200"
        clients.close()
        # A new connection is closed too while the process has not yet noticed the end of these.
        wait_until(lambda: len(psutil.Process(live.process.pid).net_connections()) < 100, what="the end of the clients")
        assert status_of_stream(live, api.key, recipient="ada") == 200
        assert [line for line in live.log.splitlines()[quiet:] if " 200 " not in line] == []


def test_clients_that_come_and_go_leave_no_descriptor_and_no_memory(
    live: RunningLive, api: Api, make_key: MakeKey
) -> None:
    metrics_key = make_key("metrics")
    process = psutil.Process(live.process.pid)

    async def come_and_go(times: int) -> None:
        for start in range(0, times, 40):
            clients = (pass_by(live.port, f"r{n}", str(api.key), n % 4) for n in range(start, start + 40))
            await asyncio.gather(*clients)

    def resident() -> int:
        return int(process.memory_info().rss)

    def streams() -> int:
        found = live.api(metrics_key).get("/metrics").expect(200).body
        return int(float(found.partition(b"\nmessages_live_streams ")[2].split()[0]))

    with ExitStack() as silent, Stream(live.port, api.key, recipient="ada") as stream:
        stream.wait_for(0)
        asyncio.run(come_and_go(800))
        wait_until(lambda: streams() == 1, what="the end of all other streams")
        before, warm = process.num_fds(), resident()
        for half in (b"", b"GET /mailbox/events HTTP/1.1\r\nHost: "):
            for _ in range(20):
                silent.enter_context(socket.create_connection(("127.0.0.1", live.port))).sendall(half)
        asyncio.run(come_and_go(2_400))

        # The pool may have opened more connections to PostgreSQL meanwhile; the silent clients were 40.
        wait_until(lambda: process.num_fds() < before + 20, 60, what="as many open files as before")
        assert streams() == 1
        assert resident() - warm < 8 * 2**20
        api.send("ada")
        stream.wait_for(1)


# --- what else may fail


def test_every_stream_ends_at_the_true_version(run_live: Callable[..., RunningLive], api: Api) -> None:
    lives = [run_live(), run_live()]
    recipients = [f"reader-{n}" for n in range(8)]

    def write(writer: int) -> None:
        try:
            for turn in range(16):
                sent = api.send(recipients[(writer + turn) % len(recipients)])
                if turn % 2:
                    api.patch("/messages/mark-read", {"ids": [sent["id"]]}).expect(200)
                if turn % 3 == 0:
                    api.delete(f"/messages/{sent['id']}").expect(204)
        finally:
            connection.close()

    with ExitStack() as stack:
        streams = [
            stack.enter_context(Stream(lives[n % 2].port, api.key, recipient=recipient))
            for n, recipient in enumerate(recipients * 6)
        ]
        # As many as the pool of this process has connections for, beside the one of this thread.
        with ThreadPoolExecutor(3) as writers:
            list(writers.map(write, range(3)))
        for stream, recipient in zip(streams, recipients * 6, strict=True):
            truth = api.mailbox(recipient)
            assert stream.wait_for(truth["version"]).events[-1].mailbox == truth
        # Killed, started again, and every client comes back with the version that it has.
        lives[0].kill()
        api.send(recipients[0])
        lives[0].restart()
        again = stack.enter_context(
            Stream(lives[0].port, api.key, last_event_id=streams[0].version, recipient=recipients[0])
        )
        again.wait_for(streams[0].version + 1)


def test_streams_outlast_a_restart_of_postgresql(run_live: Callable[..., RunningLive]) -> None:
    with PostgresServer() as postgres:
        live = run_live(MESSAGES_ACCESS="open", **postgres.variables)
        with Stream(live.port, recipient="ada") as stream:
            stream.wait_for(0)
            postgres.stop()
            wait_until(lambda: "cannot be read" in live.log, what="a tick that failed")
            assert "cannot be read (The database" not in live.log  # which is not the cause
            assert status_of_stream(live, None, recipient="bob") == 503
            postgres.start()
            with postgres.session() as session:
                session.execute(
                    "INSERT INTO messaging_mailbox (recipient, bucket, version, total, unread)"
                    " VALUES (%s, %s, 5, 0, 0)",
                    ("ada", bucket_of("ada")),
                )

            stream.wait_for(5)
            assert not stream.has_ended


@pytest.mark.parametrize("query", ["", "?decode_responses=true"])
def test_hints_of_redis_make_it_sooner_and_nothing_depends_on_them(
    run_live: Callable[..., RunningLive], api: Api, settings: Any, query: str
) -> None:
    with RedisServer() as redis:
        settings.REDIS_URL = redis.url
        live = run_live(REDIS_URL=redis.url + query)
        wait_until(lambda: redis.client.pubsub_numsub("messages:changed")[0][1] == 1, what="a subscription")
        with redis.client.pubsub() as listener, Stream(live.port, api.key, recipient="ada") as stream:
            listener.subscribe("messages:changed")
            sent = api.send("ada")
            stream.wait_for(1)
            heard: list[bytes] = []

            def hears(count: int) -> bool:
                if (message := listener.get_message(ignore_subscribe_messages=True)) is not None:
                    heard.append(message["data"])
                return len(heard) == count

            wait_until(lambda: hears(1), what="a hint")
            redis.client.publish("messages:changed", b"\xff")  # by somebody else, who shares this Redis
            wait_until(lambda: hears(2), what="what is no hint")
            api.patch("/messages/mark-read", {"recipient": "ada", "up_to": sent["id"]}).expect(200)
            wait_until(lambda: hears(3), what="a hint")
            assert heard == [b"ada", b"\xff", b"ada"]
            stream.wait_for(2)
            redis.hang()
            api.send("ada")
            stream.wait_for(3)
            redis.wake()
            redis.stop()
            api.send("ada")
            stream.wait_for(4)
            redis.start()
            api.send("ada")
            stream.wait_for(5)


@pytest.mark.parametrize("answer", NOT_OF_REDIS)
def test_what_is_not_redis_ends_no_stream(
    run_live: Callable[..., RunningLive], api: Api, settings: Any, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with no_redis(answer) as url:
        settings.REDIS_URL = url
        live = run_live(REDIS_URL=url)
        wait_until(lambda: "Redis gives no hints of changes" in live.log, what="a message about Redis")
        with Stream(live.port, api.key, recipient="ada") as stream:
            api.send("ada")
            stream.wait_for(1)
        wait_until(lambda: "Redis takes no hints of changes" in caplog.text, what="a message of the publisher")


def test_a_process_has_one_publisher_of_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    others = Barrier(2)

    class Publisher:
        def __init__(self, _url: str) -> None:
            with suppress(BrokenBarrierError):
                others.wait(timeout=0.3)

    monkeypatch.setattr(hints, "_Publisher", Publisher)
    with ThreadPoolExecutor(2) as threads:
        assert len(set(threads.map(hints._publisher, ["redis://only"] * 2))) == 1


def test_a_client_that_does_not_read_is_dropped(live: RunningLive, api: Api) -> None:
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        without("TCP_USER_TIMEOUT", "a Linux kernel")
    # Long names make large events: the buffers between the two processes fill within seconds.
    recipient = "\N{GRINNING FACE}" * 255
    process = psutil.Process(live.process.pid)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        client.connect(("127.0.0.1", live.port))
        client.sendall(
            f"GET /mailbox/events?recipient={quote(recipient)} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {api.key}\r\n\r\n".encode()
        )
        wait_until(lambda: live.log.count("/mailbox/events") == 1, what="a stream")

        def is_dropped() -> bool:
            api.send(recipient)
            return all(each.raddr != client.getsockname() for each in process.net_connections("tcp4"))

        wait_until(is_dropped, 120, what="the end of a stream that nobody reads")


def test_a_live_process_on_all_addresses_prints_a_url_of_this_machine(run_live: Callable[..., RunningLive]) -> None:
    live = run_live(BIND="[::]")
    assert f"Following mailboxes on http://localhost:{live.port}/mailbox/events" in live.log


@pytest.mark.parametrize("web_server", ["gunicorn"])
def test_a_busy_port_is_one_message_while_the_api_serves(run_server: Callable[..., RunningServer]) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        server = run_server(WITH_COMPANIONS="true", LIVE_PORT=str(port))
        wait_until(lambda: f"LIVE_PORT={port + 1}" in server.log, what="a message about the port")
        server.api().get("/readyz").expect(200)
    wait_until(lambda: f"http://127.0.0.1:{port}/mailbox/events" in server.log, what="the live process")
    assert server.stop() == 0
    assert server.log.count("is in use by another process") == 1
    assert "Traceback" not in server.log  # nor from a companion that was stopped
