"""Many clients at once, over the network: nothing is lost, doubled, missed by a reader or miscounted; no errors."""

import contextlib
import itertools
import random
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPException
from typing import Any

import pytest
from django.core.management import call_command

from messaging.records import NewMessage
from messaging.services import send_parameters
from messaging.sharding import Layout, adapted
from messaging.statements import DELETE, MARK, SEND
from tests.helpers import Api
from tests.partitions import not_on_citus, patient
from tests.postgres_servers import PostgresServer
from tests.servers import RunningServer, wait_until
from tests.sessions import another_session, in_a_thread, somebody_waits_for_a_lock
from tests.state import miscounted


@pytest.fixture
def service(transactional_db: None, share_server: Callable[..., RunningServer], web_server: str) -> RunningServer:
    variables = {"MESSAGES_ACCESS": "open", "WEB_CONCURRENCY": "2", "WEB_THREADS": "4", "ACCESS_LOG": "false"}
    return share_server(web_server, WEB_SERVER=web_server, **variables)


def at_once(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each returns, all of them begun at the same moment."""
    start = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> Any:
        start.wait(30)
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(run, work) for work in works]]


def batch(api: Api, names: list[str]) -> list[dict[str, Any]]:
    """The messages of a batch, in the order sent."""
    sent: list[dict[str, Any]] = api.post("/messages/batch", {"messages": drafts_to(names)}).expect(201).json["results"]
    return sent


def drafts_to(names: list[str]) -> list[dict[str, str]]:
    return [{"recipient": name, "content": f"{i}"} for i, name in enumerate(names)]


def assert_consistent(api: Api, names: list[str]) -> None:
    """The counts agree with the messages: by the operators' command, a count of our own, and all pages read."""
    call_command("check_mailboxes", verbosity=0)
    assert miscounted() == []
    for name in names:
        mailbox = api.mailbox(name)
        messages = api.pages("/messages/", {"recipient": name, "limit": 200})
        assert len(messages) == len({m["id"] for m in messages}) == mailbox["total"]
        assert sum(not m["is_read"] for m in messages) == mailbox["unread"]
        assert len(api.pages("/messages/unread", {"recipient": name, "limit": 200})) == mailbox["unread"]
        assert [m["seq"] for m in messages] == sorted({m["seq"] for m in messages}, reverse=True)


def test_a_reader_walking_forward_sees_each_message_exactly_once(service: RunningServer) -> None:
    api, senders, each = patient(service.api()), 16, 25
    done = threading.Event()

    def send(number: int) -> list[str]:
        return [api.send("ada", f"{number}-{i}")["id"] for i in range(each)]

    def walk() -> list[dict[str, Any]]:
        """Follow `next`; where there is none yet, ask for the same page again and go on behind the last `seq` seen."""
        seen: list[dict[str, Any]] = []
        target = "/messages/?recipient=ada&ordering=created_at&limit=7"
        while True:
            is_last = done.is_set()
            page = api.get(target).expect(200).json
            seen += [m for m in page["results"] if not seen or m["seq"] > seen[-1]["seq"]]
            if page["next"]:
                target = page["next"].removeprefix(service.url)
            elif is_last:
                return seen

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(walk)
        try:
            ids = [id_ for part in at_once([partial(send, number) for number in range(senders)]) for id_ in part]
        finally:
            done.set()
        seen = reader.result(60)
    assert [message["seq"] for message in seen] == list(range(1, senders * each + 1))
    assert sorted(message["id"] for message in seen) == sorted(ids)
    assert [m["created_at"] for m in seen] == sorted(m["created_at"] for m in seen)
    for number in range(senders):
        own = [m["content"] for m in seen if m["content"].startswith(f"{number}-")]
        assert own == [f"{number}-{i}" for i in range(each)]
    assert_consistent(api, ["ada"])


def test_overlapping_bulk_calls_in_opposite_order(service: RunningServer) -> None:
    api, names = patient(service.api()), [f"r{i:02}" for i in range(20)]
    ids = [message["id"] for message in batch(api, names * 10)]
    doomed = ids[:60]

    def change(method: str, path: str, order: list[str]) -> int:
        outcome = api.request(method, path, {"ids": order}).expect(200).json
        assert outcome["changed"] + outcome["unchanged"] + outcome["not_found"] == len(order)
        changed: int = outcome["changed"]
        return changed

    works: list[Callable[[], Any]] = []
    for turn in range(4):
        order = random.Random(turn).sample(ids, len(ids))
        works += [
            partial(change, "PATCH", "/messages/mark-read", order),
            partial(change, "PATCH", "/messages/mark-unread", order[::-1]),
            partial(change, "PATCH", "/messages/mark-read", ids[::-1]),
            partial(change, "DELETE" if turn % 2 else "POST",
                    "/messages/bulk" if turn % 2 else "/messages/bulk-delete", doomed if turn % 2 else doomed[::-1]),
        ]  # fmt: skip
    changed = at_once(works)

    # Of all that deleted the same messages, each message was deleted by exactly one.
    assert sum(changed[3::4]) == len(doomed)
    assert_consistent(api, names)


def test_deleting_from_many_mailboxes_while_others_mark_there(service: RunningServer) -> None:
    """Messages may become unread between a deletion's snapshot and its lock: more of them than the snapshot counts."""
    api, names = patient(service.api()), [f"r{i:02}" for i in range(40)]
    for turn in range(6):
        ids = [message["id"] for message in batch(api, names * 5)]
        api.patch("/messages/mark-read", {"ids": ids}).expect(200)
        orders = [random.Random(turn * 8 + number).sample(ids, 120) for number in range(8)]
        works = [
            partial(api.request, *(("PATCH", "/messages/mark-unread") if number % 2 else ("DELETE", "/messages/bulk")),
                    {"ids": order})
            for number, order in enumerate(orders)
        ]  # fmt: skip
        for answer in at_once(works):
            answer.expect(200)
        assert miscounted() == []


@not_on_citus("the test sends by the statement of one server")
@pytest.mark.parametrize(("verb", "unread"), [("mark-read", 3), ("mark-unread", 4)])
def test_marking_waits_for_a_sender_and_counts_its_message(service: RunningServer, verb: str, unread: int) -> None:
    """The mailbox that the lock finds has more unread messages than its snapshot has messages."""
    api = patient(service.api())
    [message] = batch(api, ["ada"])
    if verb == "mark-unread":
        api.patch("/messages/mark-read", {"ids": [message["id"]]}).expect(200)
    with another_session() as sender:
        for _ in range(3):
            sender.execute(SEND, send_parameters(NewMessage("ada", "hello")))
        answer = in_a_thread(lambda: api.patch(f"/messages/{verb}", {"ids": [message["id"]]}))
        wait_until(somebody_waits_for_a_lock, what="a change that waits")
        sender.commit()
    [mailbox] = answer.result(30).expect(200).json["mailboxes"]
    assert (mailbox["total"], mailbox["unread"]) == (4, unread)
    assert_consistent(api, ["ada"])


@not_on_citus("the test marks by the statement of one server")
def test_marking_reports_the_state_after_its_wait(service: RunningServer) -> None:
    """While it waits for the mailbox, each message is brought into another state than its snapshot holds."""
    api = patient(service.api())
    was_unread, was_read, deleted, untouched = (message["id"] for message in batch(api, ["ada"] * 4))
    ids = [was_unread, was_read, deleted, untouched]
    api.patch("/messages/mark-read", {"ids": [was_read, untouched]}).expect(200)
    with another_session() as writer:
        for read, marked in ((True, was_unread), (False, was_read)):
            parameters = {"ids": [marked], "only_recipient": None, "read": read}
            writer.execute(*adapted(MARK, parameters, Layout.WHOLE))
        writer.execute(*adapted(DELETE, {"ids": [deleted], "only_recipient": None}, Layout.WHOLE))
        answer = in_a_thread(lambda: api.patch("/messages/mark-read", {"ids": ids}))
        wait_until(somebody_waits_for_a_lock, what="a change that waits")
        writer.commit()
    outcome = answer.result(30).expect(200).json
    assert {result["id"]: result["status"] for result in outcome["results"]} == {
        was_unread: "unchanged", was_read: "changed", deleted: "not_found", untouched: "unchanged",
    }  # fmt: skip
    assert outcome["mailboxes"] == [{"recipient": "ada", "version": 9, "total": 3, "unread": 0}]
    assert all(api.get(f"/messages/{id_}").json["is_read"] for id_ in (was_unread, was_read, untouched))
    assert_consistent(api, ["ada"])


@pytest.mark.parametrize("size", [20, 200])
def test_batches_to_new_and_old_mailboxes_in_opposite_order(service: RunningServer, size: int) -> None:
    api, names = patient(service.api()), [f"r{i:03}" for i in range(size)]
    batch(api, names[::2])
    orders = [names, names[::-1], *(random.Random(turn).sample(names, len(names)) for turn in range(6))]
    results = at_once([partial(batch, api, order) for order in orders])

    for order, sent in zip(orders, results, strict=True):
        assert [message["recipient"] for message in sent] == order
    assert {api.mailbox(name)["total"] for name in names[::2]} == {len(orders) + 1}
    assert {api.mailbox(name)["total"] for name in names[1::2]} == {len(orders)}
    assert_consistent(api, names[:10])


class Client:
    """Does at random what clients do, and counts how many messages it added to each mailbox, or took from it."""

    def __init__(self, api: Api, names: list[str], seed: int) -> None:
        self.api, self.names = api, names
        self.choose = random.Random(seed)
        self.tally = dict.fromkeys(names, 0)
        self.actions = [self.send, self.batch, self.mark, self.mark_up_to, self.delete, self.delete_many]

    def run(self) -> dict[str, int]:
        for _ in range(25):
            name = self.choose.choice(self.names)
            query = {"recipient": name, "limit": 20, "ordering": self.choose.choice(["created_at", "-created_at"])}
            ids = [m["id"] for m in self.api.get("/messages/", query).expect(200).json["results"]]
            self.choose.shuffle(ids)
            self.choose.choice(self.actions)(name, ids)
        return self.tally

    def send(self, name: str, _ids: list[str]) -> None:
        self.api.send(name)
        self.tally[name] += 1

    def batch(self, _name: str, _ids: list[str]) -> None:
        for message in batch(self.api, self.choose.choices(self.names, k=5)):
            self.tally[message["recipient"]] += 1

    def mark(self, _name: str, ids: list[str]) -> None:
        path = self.choose.choice(["/messages/mark-read", "/messages/mark-unread"])
        self.api.patch(path, {"ids": ids}).expect(200)

    def mark_up_to(self, name: str, ids: list[str]) -> None:
        # 404: somebody else has deleted it meanwhile.
        assert self.api.patch("/messages/mark-read", {"recipient": name, "up_to": ids[0]}).status in {200, 404}

    def delete(self, name: str, ids: list[str]) -> None:
        self.tally[name] -= self.api.delete(f"/messages/{ids[0]}").status == 204

    def delete_many(self, name: str, ids: list[str]) -> None:
        self.tally[name] -= self.api.post("/messages/bulk-delete", {"ids": ids[:2]}).expect(200).json["changed"]


def test_a_mixed_load_is_counted_exactly(service: RunningServer) -> None:
    api, names = patient(service.api()), ["ada", "bob", "eve"]
    # More than all of them together could delete.
    batch(api, names * 300)
    tallies = at_once([Client(api, names, seed).run for seed in range(8)])
    for name in names:
        assert api.mailbox(name)["total"] == 300 + sum(tally[name] for tally in tallies)
    assert_consistent(api, names)


def send_each_until_acknowledged(api: Api, number: int) -> list[str]:
    """Send 40 messages, each under a key of its own and until it is acknowledged; return their ids."""
    acknowledged = []
    for i in range(40):
        for attempt in itertools.count():
            assert attempt < 20_000
            try:
                answer = api.post(
                    "/messages/",
                    {"recipient": f"r{i % 2}", "content": f"{number}-{i}"},
                    headers={"Idempotency-Key": f"{number}-{i}"},
                )
            except (OSError, HTTPException):
                continue
            if answer.status == 201:
                acknowledged.append(answer.json["id"])
                break
            assert answer.status in {409, 503}
    return acknowledged


def assert_sent_once(api: Api, ids: list[str]) -> None:
    found = [m for name in ("r0", "r1") for m in api.pages("/messages/", {"recipient": name, "limit": 200})]
    assert sorted(m["id"] for m in found) == sorted(ids)
    assert len({m["content"] for m in found}) == len(found) == len(ids)
    for name in ("r0", "r1"):
        assert api.mailbox(name)["total"] == len(ids) / 2


def while_sending(api: Api, disturb: Callable[[threading.Event], int]) -> list[str]:
    """The ids of what eight clients sent while `disturb` did its worst, at least once."""
    finished = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        disturbing = pool.submit(disturb, finished)
        try:
            works = [partial(send_each_until_acknowledged, api, number) for number in range(8)]
            ids = [id_ for part in at_once(works) for id_ in part]
        finally:
            finished.set()
        assert disturbing.result(60) >= 1
    return ids


def test_no_acknowledged_message_is_lost_or_doubled_when_workers_are_killed(service: RunningServer) -> None:
    def kill_workers(finished: threading.Event) -> int:
        killed = 0
        # Granian ends if a worker dies within 5.5 s of replacing another, and has to be started again.
        pause = 0.15 if service.variables["WEB_SERVER"] == "gunicorn" else 6
        while not finished.is_set():
            if len(workers := service.workers()) == 2:
                workers[killed % 2].kill()
                killed += 1
            finished.wait(pause)
        return killed

    ids = while_sending(patient(service.api()), kill_workers)
    assert_sent_once(patient(service.api()), ids)
    assert_consistent(patient(service.api()), ["r0", "r1"])


def test_a_stop_does_not_wait_for_new_connections(run_server: Callable[..., RunningServer]) -> None:
    # A connection that was accepted and then forgotten would hold the process for all of its grace.
    server = run_server(GRACEFUL_TIMEOUT_SECONDS="300", ACCESS_LOG="false")
    for _ in range(2):
        finished = threading.Event()

        def keep_connecting(finished: threading.Event = finished) -> int:
            answers = 0
            while not finished.is_set():
                # Refused, once nobody listens any more.
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 10) as client:
                    client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    answers += client.recv(1024).startswith(b"HTTP/1.1 200 ")
            return answers

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(keep_connecting) for _ in range(8)]
            try:
                wait_until(lambda: server.api().get("/livez").status == 200)
                assert server.stop() == 0
            finally:
                finished.set()
        assert sum(client.result() for client in clients) > 0
        assert "Traceback" not in server.log
        server.restart()


@pytest.mark.process
def test_no_acknowledged_message_is_lost_or_doubled_when_postgresql_is_killed() -> None:
    with PostgresServer() as postgres:
        variables = postgres.variables | {"MESSAGES_ACCESS": "open", "WEB_CONCURRENCY": "2", "WEB_THREADS": "4"}
        with RunningServer(**variables, ACCESS_LOG="false") as service:
            patient(service.api()).send("warm")

            def kill_postgres(finished: threading.Event) -> int:
                killed = 0
                while not finished.wait(0.25) and killed < 3:
                    postgres.kill()
                    postgres.start()
                    killed += 1
                return killed

            ids = while_sending(patient(service.api()), kill_postgres)
            assert_sent_once(patient(service.api()), ids)
