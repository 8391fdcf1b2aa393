"""/metrics: what Prometheus reads, who may read it, and that several processes are one instance."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.db import OperationalError, connection
from prometheus_client.parser import text_string_to_metric_families

from messaging import database, metrics
from messaging.api import metrics as api_metrics
from messaging.auth import keys
from messaging.errors import DatabaseUnavailableError, InvalidInputError
from messaging.statements import SEND_ONCE
from tests.conftest import MakeKey
from tests.helpers import Answer, Api
from tests.servers import RunningServer, wait_until

NAMES = {
    "messages_http_requests_total", "messages_http_request_duration_seconds_bucket", "messages_sent_total",
    "messages_marked_total", "messages_deleted_total", "messages_idempotent_replays_total",
    "messages_rate_limited_total", "messages_database_connections", "messages_live_streams", "messages_database_up",
    "messages_database_retries_total", "messages_upkeep_backlog",
}  # fmt: skip

Labels = frozenset[tuple[str, str]]


def samples(answer: Answer) -> dict[tuple[str, Labels], float]:
    """The values by name and labels."""
    families = text_string_to_metric_families(answer.expect(200).body.decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


class Change:
    """How far the numbers have moved since this was made."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._before = samples(api.get("/metrics"))

    def __call__(self, name: str, **labels: str) -> float:
        key = (name, frozenset(labels.items()))
        return samples(self._api.get("/metrics")).get(key, 0.0) - self._before.get(key, 0.0)


@pytest.fixture
def reader(anonymous: Api, make_key: MakeKey) -> Api:
    return anonymous.holding(make_key("metrics"))


# Access


def test_it_needs_the_scope_metrics(api: Api, reader: Api, anonymous: Api) -> None:
    answer = reader.get("/metrics").expect(200)
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.headers["Cache-Control"] == "no-store"
    anonymous.get("/metrics").expect(401, "not_authenticated")
    api.get("/metrics").expect(403, "insufficient_scope")
    reader.post("/metrics").expect(405, "method_not_allowed")


def test_the_scope_opens_nothing_else(reader: Api) -> None:
    reader.get("/mailbox", {"recipient": "a"}).expect(403, "insufficient_scope")
    reader.post("/messages/", {"recipient": "a", "content": "x"}).expect(403, "insufficient_scope")


def test_open_access_opens_it(anonymous: Api, open_access: None) -> None:
    anonymous.get("/metrics").expect(200)
    anonymous.get("/metrics/").expect(200)


@pytest.mark.parametrize("binding", [{"recipient": "ada"}, {"sender": "bob"}])
def test_a_bound_key_cannot_have_the_scope(db: None, binding: Any) -> None:
    with pytest.raises(InvalidInputError):
        keys.create(name="x", scopes=["read", "metrics"], **binding)


def test_prometheus_may_ask_for_openmetrics(reader: Api) -> None:
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"
    answer = reader.get("/metrics", headers={"Accept": accept}).expect(200)
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")


# Numbers


@pytest.mark.django_db(transaction=True)
def test_changes_are_counted_by_what_they_changed(api: Api, reader: Api) -> None:
    change = Change(reader)
    ids = [api.send("ada")["id"] for _ in range(2)]
    api.post("/messages/batch", {"messages": [{"recipient": "ada", "content": "x"}] * 3}).expect(201)
    assert change("messages_sent_total") == 5
    for _ in range(2):  # the second time nothing changes
        api.patch("/messages/mark-read", {"ids": ids}).expect(200)
    api.patch("/messages/mark-unread", {"ids": ids[:1]}).expect(200)
    assert change("messages_marked_total", state="read") == 2
    assert change("messages_marked_total", state="unread") == 1
    api.post("/messages/bulk-delete", {"ids": ids}).expect(200)
    api.delete(f"/messages/{ids[0]}").expect(404)
    assert change("messages_deleted_total") == 2


@pytest.mark.django_db(transaction=True)
def test_a_replay_counts_as_one_and_sends_nothing(api: Api, reader: Api) -> None:
    change = Change(reader)
    for _ in range(3):
        api.post("/messages/", {"recipient": "ada", "content": "x"}, headers={"Idempotency-Key": "k"}).expect(201)
    assert change("messages_idempotent_replays_total") == 2
    assert change("messages_sent_total") == 1


def test_a_keyed_send_that_its_retry_finds_is_counted(
    transactional_db: None, api: Api, reader: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = Change(reader)
    fetch = database.fetch

    def lose_the_answer(*arguments: Any) -> Any:
        rows = fetch(*arguments)
        if arguments[0] == SEND_ONCE and rows:
            connection.connection.close()
            raise OperationalError
        return rows

    monkeypatch.setattr(database, "fetch", lose_the_answer)
    answer = api.post("/messages/", {"recipient": "ada", "content": "x"}, headers={"Idempotency-Key": "k"}).expect(201)
    assert "Idempotency-Replayed" not in answer.headers
    assert change("messages_sent_total") == 1
    assert change("messages_database_retries_total", sqlstate="") == 1


def test_refusals_by_limits_are_counted_by_policy(api: Api, reader: Api, settings: Any) -> None:
    change = Change(reader)
    settings.MESSAGES_RATE_LIMIT_READ, settings.MESSAGES_RATE_LIMIT_INVALID_KEYS = "1/h", "1/h"
    api.get("/mailbox?recipient=a").expect(200)
    api.get("/mailbox?recipient=a").expect(429)
    for status in (401, 429):
        api.holding("msg_nobody0000_x").get("/mailbox?recipient=a").expect(status)
    settings.MESSAGES_RATE_LIMIT_READ = ""
    assert change("messages_rate_limited_total", policy="read") == 1
    assert change("messages_rate_limited_total", policy="invalid_keys") == 1


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/messages/01890000-0000-7000-8000-000000000000", "/messages/{id}", 404),
        ("GET", "/messages/nothing/", "/messages/{id}", 404),
        ("PATCH", "/messages/mark-read", "/messages/mark-read", 400),
        ("GET", "/nowhere/0123", "unmatched", 404),
        ("GET", "/livez", "/livez", 200),
        ("GET", "/admin/messaging/message/7/", "/admin", 302),
        ("GET", "/static/no.css", "/static", 404),
        ("PUT", "/mailbox", "/mailbox", 405),
        ("BREW", "/mailbox", "/mailbox", 405),
    ],
)
def test_a_request_is_counted_by_its_template(  # noqa: PLR0917 - a table
    api: Api, reader: Api, method: str, path: str, route: str, status: int
) -> None:
    change = Change(reader)
    api.request(method, path, {} if method == "PATCH" else "x").expect(status)
    labels = {"route": route, "method": "OTHER" if method == "BREW" else method}
    assert change("messages_http_requests_total", **labels, status=str(status)) == 1
    assert change("messages_http_request_duration_seconds_count", **labels) == 1


def test_without_the_database_the_other_metrics_are_there(
    anonymous: Api, open_access: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: Any) -> None:
        raise DatabaseUnavailableError

    monkeypatch.setattr(api_metrics, "read", refuse)
    found = samples(anonymous.get("/metrics"))
    assert found["messages_database_up", frozenset()] == 0
    assert "messages_sent_total" in {name for name, _ in found}
    assert "messages_database_connections" not in {name for name, _ in found}


def test_a_change_that_is_rolled_back_is_not_counted(transactional_db: None) -> None:
    from django.db import transaction

    before = metrics.sent._value.get()
    with transaction.atomic():
        metrics.count_after_commit(metrics.sent, 7)
        transaction.set_rollback(True)
    assert metrics.sent._value.get() == before


# Several processes


def directory_of(worker: psutil.Process) -> Path:
    """Where a worker that has answered a request keeps its metrics."""
    [directory] = {Path(file.path).parent for file in worker.memory_maps() if "/messages-metrics-" in file.path}
    return directory


@pytest.mark.parametrize("web_server", ["gunicorn", "granian"])
def test_all_processes_of_an_instance_count_together(run_server: Callable[..., RunningServer], web_server: str) -> None:
    server = run_server(WEB_SERVER=web_server, MESSAGES_ACCESS="open", WEB_CONCURRENCY="2", WEB_THREADS="2")

    def send(number: int) -> int:
        # A connection of its own for each, so that both workers get some.
        return len([server.api().send(f"m{number}") for _ in range(5)])

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(send, range(8))) == 40
    api = server.api()
    for _ in range(4):
        found = samples(server.api().get("/metrics"))
        assert found["messages_sent_total", frozenset()] == 40
        posts = {"route": "/messages", "method": "POST", "status": "201"}
        assert found["messages_http_requests_total", frozenset(posts.items())] == 40
        assert {name for name, _ in found} >= NAMES
    # A worker that dies takes no counts with it.
    processes = psutil.Process(server.process.pid).children(recursive=True)
    worker = next(process for process in processes if not process.children())
    directory = directory_of(worker)
    worker.kill()
    wait_until(lambda: not worker.is_running(), what="its end")
    wait_until(lambda: api.get("/readyz").status == 200, what="a ready server")
    assert samples(server.api().get("/metrics"))["messages_sent_total", frozenset()] == 40
    assert directory.is_dir()
    server.stop()
    assert not directory.exists()


def test_a_start_removes_the_metrics_of_killed_instances_alone(run_server: Callable[..., RunningServer]) -> None:
    running, killed = (run_server(WEB_CONCURRENCY="1") for _ in range(2))
    [kept], [stale] = ([directory_of(worker) for worker in server.workers()] for server in (running, killed))
    killed.kill()
    assert stale.is_dir()
    run_server(WEB_CONCURRENCY="1")
    assert not stale.exists()
    assert kept.is_dir()
