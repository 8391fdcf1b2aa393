"""When the database is away, hung, slow or full: a 503 in time that says what to do, and then health by itself."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from tests.helpers import Answer, Api
from tests.postgres_servers import PostgresServer
from tests.servers import RunningServer, wait_until
from tests.test_reading import MISSING

PATIENCE_SECONDS = 3.0
# What a busy machine may add to it: two processors run PostgreSQL, the service and the tests.
SLACK_SECONDS = 1.0

RunServer = Callable[..., RunningServer]


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer(max_connections="12", superuser_reserved_connections="2") as server:
        yield server


@pytest.fixture
def serve(postgres: PostgresServer, web_server: str) -> Iterator[RunServer]:
    """Start the service on that PostgreSQL."""
    with ExitStack() as running:
        yield lambda **variables: running.enter_context(
            RunningServer(
                **postgres.variables,
                WEB_SERVER=web_server,
                **{"MESSAGES_ACCESS": "open", "WEB_CONCURRENCY": "1", "WEB_THREADS": "8", "ACCESS_LOG": "false"}
                | variables,
            )
        )


def calls(api: Api) -> list[Callable[[], Answer]]:
    """One of each kind."""
    return [
        lambda: api.get("/messages/?recipient=ada"),
        lambda: api.get("/mailbox?recipient=ada", headers={"If-None-Match": '"x"'}),
        lambda: api.get(f"/messages/{MISSING}"),
        lambda: api.post("/messages/", {"recipient": "ada", "content": "x"}),
        lambda: api.post("/messages/", {"recipient": "ada", "content": "x"}, headers={"Idempotency-Key": "k"}),
        lambda: api.post("/messages/batch", {"messages": [{"recipient": "ada", "content": "x"}]}),
        lambda: api.patch("/messages/mark-read", {"ids": [MISSING]}),
        lambda: api.delete(f"/messages/{MISSING}"),
    ]


def timed(call: Callable[[], Answer]) -> tuple[Answer, float]:
    started = time.monotonic()
    answer = call()
    return answer, time.monotonic() - started


def assert_unavailable(call: Callable[[], Answer]) -> None:
    answer, seconds = timed(call)
    assert answer.expect(503).code in {"database_unavailable", "outcome_unknown"}
    assert int(answer.headers["Retry-After"]) >= 1
    assert seconds < PATIENCE_SECONDS + SLACK_SECONDS


def assert_all_unavailable(works: list[Callable[[], Answer]]) -> None:
    # Together, since each may take its time; the service has a thread for each of them.
    with ThreadPoolExecutor(len(works)) as pool:
        for future in [pool.submit(assert_unavailable, work) for work in works]:
            future.result()


def assert_heals(api: Api) -> None:
    """Everything answers again, without intervention."""
    wait_until(lambda: api.get("/health").status == 200, what="health")
    wait_until(lambda: api.get("/messages/?recipient=ada").status == 200, seconds=5, what="a page")
    for call in calls(api):
        assert call().status in {200, 201, 404}


def test_a_database_that_is_stopped_and_started(postgres: PostgresServer, serve: RunServer) -> None:
    server = serve()
    api = server.api()
    api.send("ada", "kept")
    postgres.stop()

    assert_all_unavailable(calls(api))
    health, seconds = timed(lambda: api.get("/health"))
    assert health.json == {"status": "unavailable", "database": "unavailable"}
    assert (health.status, seconds < PATIENCE_SECONDS + SLACK_SECONDS) == (503, True)
    assert api.get("/readyz").status == 503
    assert api.get("/livez").status == 200

    postgres.start()
    assert_heals(api)
    assert "kept" in [m["content"] for m in api.pages("/messages/", {"recipient": "ada"})]


def test_a_database_that_hangs(postgres: PostgresServer, serve: RunServer) -> None:
    api = serve().api()
    api.send("ada", "kept")
    postgres.hang()
    try:
        assert_all_unavailable(calls(api))
        assert api.get("/health").status == 503
        assert api.get("/livez").status == 200
    finally:
        postgres.wake()
    assert_heals(api)


def test_a_crowd_before_a_database_that_hangs_is_refused_in_time(postgres: PostgresServer, serve: RunServer) -> None:
    api = serve(WEB_THREADS="2").api()
    api.send("ada", "kept")
    postgres.hang()
    try:
        # Five for each thread: those that queue up must not wait as long as the first ones did, once more.
        assert_all_unavailable(
            [lambda: api.get("/mailbox?recipient=ada")] * 9 + [lambda: api.get("/messages/?recipient=a")]
        )
    finally:
        postgres.wake()
    assert_heals(api)


def test_sessions_that_are_cut_off_while_idle_cost_no_error(postgres: PostgresServer, serve: RunServer) -> None:
    api = serve().api()
    with postgres.session() as session:
        for call in calls(api):
            call()
            session.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = 'messages' AND pid <> pg_backend_pid()"
            )
            assert call().status in {200, 201, 404}


def test_a_statement_over_its_time_limit(postgres: PostgresServer, serve: RunServer) -> None:
    server = serve(POSTGRES_LOCK_TIMEOUT_MS="300", POSTGRES_STATEMENT_TIMEOUT_MS="400")
    api = server.api()
    id_ = api.send("ada")["id"]
    with psycopg.connect(host="127.0.0.1", port=postgres.port, user="messages", dbname="messages") as session:
        session.execute("SELECT 1 FROM messaging_mailbox FOR UPDATE")
        for call in (
            lambda: api.post("/messages/", {"recipient": "ada", "content": "x"}),
            lambda: api.patch("/messages/mark-read", {"ids": [id_]}),
        ):
            assert_unavailable(call)
        # Requests that need no lock are not delayed, and reads never wait for writes.
        assert api.mailbox("ada")["total"] == 1
        api.send("bob")
        session.execute("LOCK messaging_message")
        assert_unavailable(lambda: api.get("/messages/?recipient=ada"))
        session.rollback()
    assert_heals(api)
    assert "database_unavailable: LockNotAvailable: canceling statement due to lock timeout" in server.log


def test_a_database_without_room_for_another_session(postgres: PostgresServer, serve: RunServer) -> None:
    api = serve().api()
    api.send("ada")
    with ExitStack() as guests, postgres.session() as operator:
        operator.execute("CREATE ROLE guest LOGIN SUPERUSER")
        operator.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = 'messages' AND pid <> pg_backend_pid()"
        )
        try:
            while True:
                guests.enter_context(postgres.session())
        except psycopg.OperationalError as error:
            assert "remaining connection slots" in str(error) or "too many" in str(error)  # noqa: PT017 - any number fit
        assert_all_unavailable(calls(api)[:4])
    assert_heals(api)


def test_more_requests_than_connections_wait_their_turn(postgres: PostgresServer, serve: RunServer) -> None:
    api = serve(WEB_THREADS="4").api()

    def request(number: int) -> Any:
        return api.send("ada", f"{number}")["seq"]

    with ThreadPoolExecutor(24) as pool:
        assert sorted(pool.map(request, range(96))) == list(range(1, 97))
    with postgres.session() as session:
        row = session.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = 'messages' AND pid <> pg_backend_pid()"
        ).fetchone()
    assert row is not None
    assert 1 <= row[0] <= 4
