"""What others hold up in the database: some threads wait for it, the rest go on serving."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from messaging.postgresql.waiting import _turns as turns
from messaging.postgresql.waiting import in_turn
from tests.helpers import Answer, Api
from tests.postgres_servers import PostgresServer
from tests.servers import PROJECT_DIR, RunningServer, wait_until
from tests.sessions import another_session, lock_mailbox

RunServer = Callable[..., RunningServer]


@contextmanager
def repeated(work: Callable[[], Answer], threads: int) -> Iterator[list[Answer]]:
    """Do it again and again in so many threads, until the block ends; the answers so far."""
    answers: list[Answer] = []
    is_over = threading.Event()

    def run() -> None:
        while not is_over.is_set():
            answers.append(work())

    with ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(run) for _ in range(threads)]
        try:
            yield answers
        finally:
            is_over.set()
        for future in running:
            future.result()


def seconds(call: Callable[[], Answer], status: int = 200) -> float:
    started = time.monotonic()
    call().expect(status)
    return time.monotonic() - started


def waiting_for_a_lock() -> int:
    """Sessions of the database that do."""
    with another_session() as session:
        return session.execute(
            "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ).rowcount


# So long that a read which has to wait for a lock cannot be taken for one that is slow.
LOCK_SECONDS = 30
FOUR_PATIENT_THREADS = {
    "MESSAGES_ACCESS": "open", "WEB_CONCURRENCY": "1", "WEB_THREADS": "4", "ACCESS_LOG": "false",
    "POSTGRES_LOCK_TIMEOUT_MS": f"{LOCK_SECONDS}000", "POSTGRES_STATEMENT_TIMEOUT_MS": f"{2 * LOCK_SECONDS}000",
}  # fmt: skip

WRITES: dict[str, Callable[[Api, str], Answer]] = {
    "send": lambda api, _: api.post("/messages/", {"recipient": "ada", "content": "x"}),
    "large batch": lambda api, _: api.post(
        "/messages/batch", {"messages": [{"recipient": "ada", "content": "x"}] * 100}
    ),
    "mark": lambda api, id_: api.patch("/messages/mark-unread", {"recipient": "ada", "up_to": id_}),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_locked_mailbox_leaves_threads_for_the_others(
    run_server: RunServer, write: Callable[[Api, str], Answer]
) -> None:
    api = run_server(**FOUR_PATIENT_THREADS).api()
    id_ = api.send("ada")["id"]
    api.send("bob")
    with another_session() as session:
        lock_mailbox(session, "ada")
        with repeated(lambda: write(api, id_), threads=16) as refused:
            # Two of the four threads wait, once each has tried for as long as any statement may wait for a lock.
            wait_until(lambda: len(refused) > 20, what="refusals")
            times = [seconds(lambda: api.get("/messages/?recipient=bob")) for _ in range(20)]
            assert waiting_for_a_lock() <= 4
            # Reading a locked mailbox waits for nothing either, and others can be written to.
            api.get("/mailbox?recipient=ada").expect(200)
            message = {"recipient": "bob", "content": "x"}
            wait_until(lambda: api.post("/messages/", message).status == 201, what="a send")
            large = {"messages": [message] * 100}
            wait_until(lambda: api.post("/messages/batch", large).status == 201, what="a large batch")
            session.rollback()
    assert max(times) < LOCK_SECONDS / 2
    unlocked = [answer for answer in refused if answer.status < 400]
    for answer in refused:
        if answer.status != 404 and answer not in unlocked:
            answer.expect(503, "database_unavailable")
            assert int(answer.headers["Retry-After"]) >= 1


def test_large_batches_take_turns(run_server: RunServer) -> None:
    api = run_server(MESSAGES_ACCESS="open", WEB_CONCURRENCY="1", WEB_THREADS="4", ACCESS_LOG="false").api()
    names = ["ada", *(f"user{number}" for number in range(99))]

    def send(recipients: list[str]) -> Answer:
        batch = {"messages": [{"recipient": name, "content": "x"} for name in recipients]}
        return api.post("/messages/batch", batch).expect(201)

    api.send("ada")
    with ThreadPoolExecutor(2) as pool, another_session() as session:
        lock_mailbox(session, "ada")
        first = pool.submit(send, names)
        wait_until(lambda: waiting_for_a_lock() == 1, what="a batch that waits for a mailbox")
        second = pool.submit(send, [f"other{number}" for number in range(100)])
        for _ in range(5):
            send(["bob"] * 99)  # a small one waits for nobody
        session.rollback()
        arrived = [future.result().json["results"][0]["created_at"] for future in (first, second)]
    assert arrived == sorted(arrived)
    with ThreadPoolExecutor(16) as pool:
        assert {answer.status for answer in pool.map(send, [names] * 60)} == {201}
    assert api.mailbox("user0")["total"] == 61


@pytest.mark.parametrize("lock_timeout_seconds", [2.0, 0.0])  # 0 for no limit
def test_turns_are_taken_in_the_order_in_which_they_came(settings: Any, lock_timeout_seconds: float) -> None:
    settings.POSTGRES_LOCK_TIMEOUT_SECONDS = lock_timeout_seconds
    order: list[int] = []

    def take(number: int) -> None:
        with in_turn():
            order.append(number)

    with ThreadPoolExecutor(8) as pool, in_turn():
        for number in range(8):
            pool.submit(take, number)
            wait_until(lambda: len(turns) == number + 2, what="another one that waits")  # noqa: B023 - called at once
    assert order == list(range(8))


def test_a_key_in_use_leaves_threads_for_the_others(run_server: RunServer) -> None:
    api = run_server(**FOUR_PATIENT_THREADS).api()
    api.send("bob")
    once = {"Idempotency-Key": "once"}

    def send(name: str) -> Answer:
        return api.post("/messages/", {"recipient": name, "content": "x"}, headers=once)

    send("learn").expect(201)
    with another_session() as session:
        # As its first request would hold it, while that one runs.
        session.execute("SELECT FROM messaging_outcome FOR UPDATE")
        session.execute("UPDATE messaging_outcome SET expires_at = expires_at - interval '25 hours'")
        with repeated(lambda: send("ada"), threads=16) as refused:
            wait_until(lambda: len(refused) > 20, what="refusals")
            times = [seconds(lambda: api.get("/messages/?recipient=bob")) for _ in range(20)]
            session.rollback()
    assert max(times) < LOCK_SECONDS / 2
    assert {(answer.status, answer.code) for answer in refused} <= {
        (409, "idempotency_key_in_use"),
        (422, "idempotency_key_reused"),
    }


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


def test_a_standby_that_is_gone_leaves_threads_for_reads_and_no_backend_behind(postgres: PostgresServer) -> None:
    variables = {"MESSAGES_ACCESS": "open", "WEB_CONCURRENCY": "1", "WEB_THREADS": "4", "ACCESS_LOG": "false"}
    with RunningServer(**postgres.variables, **variables) as server, postgres.session() as operator:
        api = server.api()
        ids = [api.send("ada")["id"], api.send("bob")["id"]]
        operator.execute("ALTER SYSTEM SET synchronous_standby_names = 'ghost'")
        operator.execute("SELECT pg_reload_conf()")

        counted: Counter[str | None] = Counter()

        def write() -> Answer:
            answer = api.post("/messages/", {"recipient": "eve", "content": "x"})
            counted[answer.code] += 1
            return answer

        wait_until(lambda: write().code == "outcome_unknown", what="a commit that waits for the standby")
        with repeated(write, threads=8) as answers:
            wait_until(lambda: any(answer.code == "database_unavailable" for answer in answers), what="a refusal")
            times = [seconds(lambda: api.get("/messages/?recipient=ada")) for _ in range(20)]
            assert api.get("/readyz").status == 200
        api.patch("/messages/mark-read", {"recipient": "ada", "up_to": ids[0]}).expect(503, "outcome_unknown")
        api.post("/messages/", {"recipient": "bob", "content": "x"}, headers={"Idempotency-Key": "k"}).expect(
            503, "outcome_unknown"
        )
        assert sorted(times)[10] < 1
        assert {answer.code for answer in answers} == {"outcome_unknown", "database_unavailable"}

        def left_behind() -> int:
            return operator.execute("SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'").rowcount

        wait_until(lambda: left_behind() == 0, what="the end of the waiting backends")
        operator.execute("ALTER SYSTEM RESET synchronous_standby_names")
        operator.execute("SELECT pg_reload_conf()")
        wait_until(lambda: write().status == 201, what="a confirmed send")
        # Each one that was unknown was made here, and no refused one.
        assert api.mailbox("eve")["total"] == counted["outcome_unknown"] + counted[None]


def test_a_read_does_not_wait_for_a_standby_to_confirm_when_its_key_was_last_used(postgres: PostgresServer) -> None:
    # Without a limit of time, so that a read that waits is not answered at all.
    variables = {"MESSAGES_ACCESS": "keys", "POSTGRES_STATEMENT_TIMEOUT_MS": "0"}
    with RunningServer(**postgres.variables, **variables) as server, postgres.session() as operator:
        create = [sys.executable, "manage.py", "create_api_key", "inbox", "--scopes", "read"]
        made = subprocess.run(
            create, cwd=PROJECT_DIR, env=os.environ | postgres.variables, capture_output=True, text=True, check=True
        )
        operator.execute("ALTER SYSTEM SET synchronous_standby_names = 'ghost'")
        operator.execute("SELECT pg_reload_conf()")
        server.api(made.stdout.strip()).get("/mailbox?recipient=ada").expect(200)
        used = operator.execute("SELECT FROM messaging_apikey WHERE last_used_at IS NOT NULL").rowcount
        assert used == 1
