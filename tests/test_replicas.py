"""Read replicas, by real streaming replication: who answers which read, and what happens when replicas fail."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from messaging.postgresql.replicas import Replicas
from tests.helpers import Answer, Api
from tests.live_servers import TOKEN_SECRET, RunningLive, Stream, token
from tests.postgres_servers import PostgresServer
from tests.servers import PROJECT_DIR, RunningServer, wait_until

LONG = "60000"  # ms: no replica of these tests ever lags so much
SHORT = "400"


class Cluster:
    """A primary and two replicas."""

    def __init__(self, running: ExitStack) -> None:
        self._running = running
        # Enough WAL for a replica that was away: it has no slot.
        self.primary = running.enter_context(PostgresServer(wal_keep_size="1GB"))
        self.replicas = [self.another() for _ in range(2)]

    def another(self) -> PostgresServer:
        """One more replica."""
        return self._running.enter_context(
            PostgresServer(standby_of=self.primary.conninfo, wal_retrieve_retry_interval="100ms")
        )

    def configure(self, change: str) -> None:
        """ALTER SYSTEM on the replicas."""
        for replica in self.replicas:
            replica.run(f"ALTER SYSTEM {change}")
            replica.run("SELECT pg_reload_conf()")

    def variables(self, replicas: list[PostgresServer] | None = None) -> dict[str, str]:
        """The settings that name them."""
        servers = self.replicas if replicas is None else replicas
        return self.primary.variables | {"POSTGRES_REPLICAS": ",".join(f"127.0.0.1:{each.port}" for each in servers)}

    def pause(self) -> None:
        """Let the replicas receive, and replay nothing."""
        for replica in self.replicas:
            replica.run("SELECT pg_wal_replay_pause()")
            wait_until(
                lambda replica=replica: replica.run("SELECT pg_get_wal_replay_pause_state()") == "paused",  # type: ignore[misc]
                what="a pause",
            )

    def resume(self) -> None:
        """Let them replay."""
        for replica in self.replicas:
            replica.run("SELECT pg_wal_replay_resume()")

    def catch_up(self) -> None:
        """Return when the replicas have all that the primary has."""
        position = self.primary.run("SELECT pg_current_wal_flush_lsn()")
        for replica in self.replicas:
            wait_until(
                lambda replica=replica: replica.run(f"SELECT pg_last_wal_replay_lsn() >= '{position}'"),  # type: ignore[misc]
                what="a replica",
            )

    def heal(self) -> None:
        """Let all of them run and replay."""
        for server in (self.primary, *self.replicas):
            if server.process.poll() is None:
                server.wake()
            else:
                server.start()
        self.resume()
        self.catch_up()


class Service:
    """The service on a cluster, with open access, and what it says of its replicas."""

    def __init__(self, cluster: Cluster, server: RunningServer) -> None:
        self.cluster, self.server = cluster, server
        self.api = server.api()

    def outcomes(self) -> dict[str, int]:
        """How many reads a replica might have answered, by outcome."""
        text = self.api.get("/metrics").expect(200).body.decode()
        found = re.findall(r'^messages_replica_reads_total\{outcome="(\w+)"\} (\d+)', text, re.MULTILINE)
        return {outcome: int(float(count)) for outcome, count in found}

    def outcome_of(self, call: Callable[[], Answer]) -> tuple[Answer, str | None]:
        """The answer, and the outcome of its one read; None if it was the primary's from the start."""
        before = self.outcomes()
        answer = call()
        after = self.outcomes()
        new = [outcome for outcome, count in after.items() for _ in range(count - before.get(outcome, 0))]
        assert len(new) <= 1
        return answer, new[0] if new else None

    def wait_for(self, outcome: str, seconds: float = 30.0) -> None:
        """Return when reads that may go to a replica have this outcome."""

        def has_it() -> bool:
            return self.outcome_of(lambda: read(self.api, 0).expect(200))[1] == outcome

        wait_until(has_it, seconds, what=f"the outcome {outcome}")


def read(api: Api, at_least: int, path: str = "/mailbox?recipient=nobody") -> Answer:
    return api.get(path, headers={"Messages-Min-Version": str(at_least)})


@pytest.fixture(scope="module")
def servers() -> Iterator[Cluster]:
    with ExitStack() as running:
        yield Cluster(running)


@pytest.fixture
def cluster(servers: Cluster) -> Iterator[Cluster]:
    yield servers
    servers.heal()


@pytest.fixture
def serve(cluster: Cluster) -> Iterator[Callable[..., Service]]:
    """Start the service on the cluster, and wait until it uses the replicas."""
    with ExitStack() as running:

        def start(**variables: str) -> Service:
            defaults = {"MESSAGES_ACCESS": "open", "WEB_CONCURRENCY": "1", "POSTGRES_REPLICA_MAX_LAG_MS": LONG}
            server = running.enter_context(RunningServer(**cluster.variables() | defaults | variables))
            service = Service(cluster, server)
            if variables.get("MESSAGES_ACCESS") != "keys":
                service.wait_for("answered")
            return service

        yield start


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A recipient of this test's own."""
    return str(request.node.name)[:200]


def paths(message: dict[str, Any]) -> list[str]:
    """One read of each kind."""
    name = message["recipient"]
    return [
        f"/messages/?recipient={name}",
        f"/messages/?recipient={name}&sender=",
        f"/messages/unread/?recipient={name}",
        f"/messages/{message['id']}",
        f"/mailbox?recipient={name}",
        f"/changes?recipient={name}&since=0",
    ]


# --- who answers


def test_reads_that_say_how_new_they_must_be_are_answered_by_a_replica(
    serve: Callable[..., Service], name: str
) -> None:
    service = serve()
    message = service.api.send(name)
    service.cluster.catch_up()
    for path in paths(message):
        first = service.api.get(path).expect(200)
        assert first.headers["Messages-Version"] == "1"
        for version in (0, 1):
            for method in ("GET", "HEAD"):
                headers = {"Messages-Min-Version": str(version)}
                answer, outcome = service.outcome_of(lambda: service.api.request(method, path, headers=headers))  # noqa: B023
                assert (answer.status, outcome) == (200, "answered"), path
                assert answer.headers["Messages-Version"] == "1"
                assert method == "HEAD" or answer.body == first.body
        tag = {"If-None-Match": f'"x", W/{first.headers["ETag"]}'}
        answer, outcome = service.outcome_of(lambda: service.api.get(path, headers=tag))  # noqa: B023
        assert (answer.status, outcome) == (304, "answered"), path
        assert answer.headers["Messages-Version"] == "1"
    since = f"/changes?recipient={name}&since=1"
    assert service.outcome_of(lambda: service.api.get(since).expect(200))[1] == "answered"


def test_all_other_reads_are_the_primarys(serve: Callable[..., Service], name: str) -> None:
    service = serve()
    service.api.send(name, "old")
    service.cluster.catch_up()
    service.cluster.pause()
    message = service.api.send(name, "new")
    for path in paths(message)[:-1]:
        answer, outcome = service.outcome_of(lambda: service.api.get(path).expect(200))  # noqa: B023
        assert (answer.headers["Messages-Version"], outcome) == ("2", None), path
        for tag in ('"x"', '"abc-1"', "*"):
            answer, outcome = service.outcome_of(lambda: service.api.get(path, headers={"If-None-Match": tag}))  # noqa: B023
            assert (answer.headers["Messages-Version"], outcome) == ("2", "behind"), (path, tag)


def test_a_replica_that_lacks_the_version_leaves_the_read_to_the_primary(
    serve: Callable[..., Service], name: str
) -> None:
    service = serve()
    old = service.api.send(name)
    tag = service.api.get(f"/mailbox?recipient={name}").headers["ETag"]
    service.cluster.catch_up()
    service.cluster.pause()
    new = service.api.send(name)
    for path in paths(old):
        answer, outcome = service.outcome_of(lambda: read(service.api, 1, path).expect(200))  # noqa: B023
        assert (answer.headers["Messages-Version"], outcome) == ("1", "answered"), path
        answer = service.api.get(path, headers={"If-None-Match": tag}).expect(304)
        assert answer.headers["ETag"] == tag
    for path in paths(new):
        # From what the page cache has from a replica, the primary's answers do not come.
        assert service.api.get(path).headers["Messages-Version"] == "2" or "since" in path
        answer, outcome = service.outcome_of(lambda: read(service.api, 2, path).expect(200))  # noqa: B023
        assert (answer.headers["Messages-Version"], outcome) == ("2", "behind"), path
        # One that is still to come, as after a restore: what there is.
        answer, outcome = service.outcome_of(lambda: read(service.api, 9, path).expect(200))  # noqa: B023
        assert (answer.headers["Messages-Version"], outcome) == ("2", "behind"), path
        both = {"Messages-Min-Version": "2", "If-None-Match": tag}
        assert service.api.get(path, headers=both).expect(200).headers["Messages-Version"] == "2"
    # What has just arrived is there, and what has just been deleted is gone, for a client that has seen that version.
    assert read(service.api, 0, f"/messages/{new['id']}").expect(200).json == new
    gone = service.api.delete(f"/messages/{old['id']}").expect(204).headers["Messages-Version"]
    assert gone == "3"
    read(service.api, int(gone), f"/messages/{old['id']}").expect(404)


def test_changes_never_expire_because_a_replica_is_behind(serve: Callable[..., Service], name: str) -> None:
    service = serve()
    draft = {"recipient": name, "content": "x"}
    service.api.post("/messages/batch", {"messages": [draft] * 6}).expect(201)
    service.cluster.catch_up()
    service.cluster.pause()
    sent = service.api.send(name)
    changes = f"/changes?recipient={name}&since="
    answer, outcome = service.outcome_of(lambda: service.api.get(f"{changes}7").expect(200))
    assert (answer.json["until"], outcome) == (7, "behind")
    service.api.get(f"{changes}8").expect(410, "changes_expired")
    # A walk that began on the primary does not go on with an older state.
    page = read(service.api, 7, f"{changes}0&limit=3").expect(200).json
    found = page["messages"]
    while page["next"]:
        page = service.api.get(page["next"].replace(service.server.url, "")).expect(200).json
        assert page["mailbox"]["version"] == 7
        found += page["messages"]
    assert found[-1] == sent
    assert page["until"] == 7


@pytest.mark.parametrize("value", ["", "-1", "1.0", "x", "9" * 19, "\u0661"])
def test_a_malformed_version_is_named(api: Api, value: str) -> None:
    message = api.send("ada")
    for path in paths(message):
        for _ in range(2):
            answer = api.get(path, headers={"Messages-Min-Version": value}).expect(400, "invalid_input")
            assert answer.faults == {"": "invalid_min_version"}
            assert "Messages-Min-Version" in answer.json["errors"][0]["detail"]
            api.get(path).expect(200)


def test_without_replicas_the_header_changes_nothing(api: Api) -> None:
    message = api.send("ada")
    for path in paths(message):
        for version in (0, 1, 2):
            assert read(api, version, path).expect(200).headers["Messages-Version"] == "1"


# --- lag


def test_a_replica_that_lags_is_left_out_and_an_idle_primary_causes_no_lag(
    serve: Callable[..., Service], name: str
) -> None:
    service = serve(POSTGRES_REPLICA_MAX_LAG_MS=SHORT)
    idle_until = time.monotonic() + 3 * int(SHORT) / 1000
    while time.monotonic() < idle_until:
        service.wait_for("answered")
    service.cluster.pause()
    service.api.send(name)
    service.wait_for("none_in_time")
    assert read(service.api, 0, f"/mailbox?recipient={name}").expect(200).json["version"] == 1
    service.cluster.resume()
    service.wait_for("answered")


def test_a_replica_that_is_cut_off_from_the_primary_lags(serve: Callable[..., Service], name: str) -> None:
    service = serve(POSTGRES_REPLICA_MAX_LAG_MS=SHORT)
    before = [replica.run("SHOW primary_conninfo") for replica in service.cluster.replicas]
    try:
        service.cluster.configure("SET primary_conninfo = 'host=127.0.0.1 port=1'")
        service.api.send(name)
        wait_until(
            lambda: (
                service.api.send(name)["seq"] > 0
                and service.outcome_of(lambda: read(service.api, 0))[1] == "none_in_time"
            ),
            what="a lag",
        )
    finally:
        for replica, conninfo in zip(service.cluster.replicas, before, strict=True):
            replica.run(f"ALTER SYSTEM SET primary_conninfo = '{conninfo.replace(chr(39), chr(39) * 2)}'")
            replica.run("SELECT pg_reload_conf()")
    service.wait_for("answered")


# --- failures


def test_replicas_that_are_killed_cost_no_read(serve: Callable[..., Service], name: str) -> None:
    service = serve()
    service.api.send(name)
    for replica in service.cluster.replicas:
        replica.kill()
        for _ in range(20):
            assert read(service.api, 0, f"/mailbox?recipient={name}").expect(200).json["version"] == 1
    service.wait_for("none_in_time")
    for replica in service.cluster.replicas:
        replica.start()
    service.wait_for("answered")


def test_replicas_that_hang_cost_a_bounded_wait(serve: Callable[..., Service], name: str) -> None:
    service = serve()
    service.api.send(name)
    for replica in service.cluster.replicas:
        replica.hang()

    def timed(_number: int) -> float:
        started = time.monotonic()
        assert read(service.api, 0, f"/mailbox?recipient={name}").expect(200).json["version"] == 1
        return time.monotonic() - started

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(timed, range(32))) < 5
    service.wait_for("none_in_time")
    for replica in service.cluster.replicas:
        replica.wake()
    service.wait_for("answered")


def test_a_replica_that_is_promoted_is_left_out(serve: Callable[..., Service], name: str) -> None:
    cluster = serve().cluster
    other = cluster.another()
    service = serve(**cluster.variables([other]))
    service.api.send(name)
    other.run("SELECT pg_promote()")
    other.run("UPDATE messaging_mailbox SET version = 1000 RETURNING 1")
    service.wait_for("none_in_time")
    assert read(service.api, 0, f"/mailbox?recipient={name}").expect(200).json["version"] == 1


def test_a_replica_of_another_primary_is_left_out(serve: Callable[..., Service], name: str) -> None:
    cluster = serve().cluster
    other = cluster.another()
    other.run("SELECT pg_promote()")
    wait_until(lambda: not other.run("SELECT pg_is_in_recovery()"), what="a promotion")
    other.run("SELECT pg_switch_wal()")
    other.run("UPDATE messaging_mailbox SET version = 1000 RETURNING 1")
    with PostgresServer(standby_of=other.conninfo) as foreign:
        service = Service(cluster, RunningServer(**cluster.variables([foreign]), MESSAGES_ACCESS="open"))
        with service.server:
            service.api.send(name)
            service.wait_for("none_in_time")
            tries = [service.outcome_of(lambda: read(service.api, 0))[1] for _ in range(10)]
            assert set(tries) == {"none_in_time"}
            assert read(service.api, 0, f"/mailbox?recipient={name}").expect(200).json["version"] == 1


def test_a_replica_of_another_cluster_is_left_out(serve: Callable[..., Service], name: str) -> None:
    cluster = serve().cluster
    write = "SELECT pg_logical_emit_message(true, '', repeat('x', 1000000))"
    position = "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint"
    with PostgresServer() as alone, PostgresServer(standby_of=alone.conninfo) as foreign:
        while alone.run(position) <= cluster.primary.run(position):
            alone.run(write)
        reached = alone.run(position)
        replayed = f"SELECT pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0') >= {reached}"
        wait_until(lambda: foreign.run(replayed), what="a replica")
        variables = cluster.variables([foreign])
        lag = {"POSTGRES_REPLICA_MAX_LAG_MS": LONG}
        with RunningServer(**variables | lag, MESSAGES_ACCESS="open", WEB_CONCURRENCY="1") as server:
            service = Service(cluster, server)
            service.api.send(name)
            service.wait_for("none_in_time")
            # Now its position is one that the primary had a moment ago, as that of a replica is.
            while cluster.primary.run(position) <= reached:
                cluster.primary.run(write)
            for _ in range(50):
                answer, outcome = service.outcome_of(lambda: read(service.api, 0, f"/mailbox?recipient={name}"))
                assert (answer.expect(200).json["version"], outcome) == (1, "none_in_time")
        found = ("warn", "a replica of another cluster, which is not used")
        assert doctor(variables)[f"replica 127.0.0.1:{foreign.port}"] == found


def test_a_standby_that_stayed_on_the_timeline_of_a_former_primary_is_left_out(
    serve: Callable[..., Service], name: str
) -> None:
    former = serve()
    successor = former.cluster.another()
    successor.run("SELECT pg_promote()")
    wait_until(lambda: not successor.run("SELECT pg_is_in_recovery()"), what="a promotion")
    former.api.send(name)  # which the successor does not have
    former.cluster.catch_up()
    former.cluster.pause()  # PostgreSQL writes by itself too, and the standby would pass the successor
    stayed = former.cluster.replicas[0]
    replicas = {"POSTGRES_REPLICAS": f"127.0.0.1:{stayed.port}", "POSTGRES_REPLICA_MAX_LAG_MS": LONG}
    with RunningServer(**successor.variables | replicas, MESSAGES_ACCESS="open", WEB_CONCURRENCY="1") as server:
        service = Service(former.cluster, server)
        service.wait_for("none_in_time")
        # Now the standby has a position that the successor had a moment ago, as one that follows it has.
        replayed = stayed.run("SELECT pg_last_wal_replay_lsn()")
        while successor.run(f"SELECT pg_current_wal_flush_lsn() <= '{replayed}'"):
            service.api.send("somebody")
        for _ in range(100):
            answer, outcome = service.outcome_of(lambda: read(service.api, 0, f"/mailbox?recipient={name}"))
            assert (answer.expect(200).json["version"], outcome) == (0, "none_in_time")
        state, found = doctor(successor.variables | replicas)[f"replica 127.0.0.1:{stayed.port}"]
        assert (state, "is on timeline 1, not 2" in found) == ("warn", True)


def test_a_standby_that_was_ahead_of_the_primary_is_never_used(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # After a split, both new primaries and their standbys may be on timelines of the same number.
    settings.POSTGRES_REPLICAS, settings.POSTGRES_REPLICA_MAX_LAG_MS = ["replica1"], 60_000
    monkeypatch.setattr(Replicas, "_poll", lambda *_: None)
    watched = Replicas()

    def note(of_standby: int, started_at: str, of_primary: int) -> list[str]:
        watched._replicas["replica1"].note(time.monotonic(), (of_standby, "timeline 2", started_at))
        watched._note_primary(time.monotonic(), (of_primary, "timeline 2"))
        return watched.choose()

    assert note(100, "noon", 200) == []  # no position of the primary is known from before
    assert note(200, "noon", 300) == ["replica1"]
    assert note(400, "noon", 350) == []
    assert note(400, "noon", 500) == []
    assert note(500, "one o'clock", 600) == ["replica1"]


def test_while_the_primary_is_away_replicas_answer(serve: Callable[..., Service], name: str) -> None:
    service = serve(POSTGRES_REPLICA_MAX_LAG_MS="1000")
    closed = serve(MESSAGES_ACCESS="keys", MESSAGES_TOKEN_SECRET=TOKEN_SECRET)
    bearer = closed.server.api(token("read", recipient=name))
    message = service.api.send(name)
    service.cluster.catch_up()

    def has_read() -> bool:
        bearer.get("/changes?since=0").expect(200)
        found = (
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%messaging_change%' AND pid <> pg_backend_pid()"
        )
        return any(replica.run(found) for replica in service.cluster.replicas)

    wait_until(has_read, what="a read on a replica by a token")
    service.cluster.primary.kill()
    wait_until(lambda: service.api.get(f"/messages/{message['id']}").status == 503, what="a 503")
    for path in paths(message):
        wait_until(lambda: read(service.api, 1, path).status == 200, what=path)  # noqa: B023
    for _ in range(20):
        for path in paths(message):
            assert read(service.api, 1, path).expect(200).headers["Messages-Version"] == "1"
    assert read(bearer, 1, "/mailbox").expect(200).json["version"] == 1
    read(service.api, 2, f"/mailbox?recipient={name}").expect(503, "database_unavailable")
    service.api.post("/messages/", {"recipient": name, "content": "x"}).expect(503)
    service.api.get("/health").expect(503)
    service.api.get("/readyz").expect(503)
    service.cluster.primary.start()
    wait_until(lambda: service.api.get("/readyz").status == 200, what="readiness")
    # The worker that takes it may have found the primary away a moment ago.
    send = {"recipient": name, "content": "x"}
    wait_until(lambda: service.api.post("/messages/", send).status == 201, what="a send")
    service.wait_for("answered")


def test_a_read_in_conflict_with_recovery_goes_to_the_primary(serve: Callable[..., Service], name: str) -> None:
    service = serve()
    service.api.send(name)
    # None of them is read, so a page of those that are reads all of them, and holds its snapshot meanwhile.
    service.cluster.primary.run(
        "INSERT INTO messaging_message (id, bucket, mailbox_id, seq, sender, content, metadata, created_at)"
        " SELECT gen_random_uuid(), bucket, id, n, '', 'x', '{}', now()"
        f" FROM messaging_mailbox, generate_series(2, 20000) n WHERE recipient = '{name}'"
    )
    service.cluster.catch_up()
    ended = threading.Event()

    def reader(_number: int) -> int:
        api, reads = service.server.api(), 0
        while not ended.is_set():
            # No page twice, since a cached one is no read of messages.
            page = f"/messages/?recipient={name}&is_read=true&created_before=2100-01-01T00:00:00.{reads:06}Z"
            assert read(api, 0, page).expect(200).json["results"] == []
            reads += 1
        return reads

    def conflicts() -> int:
        found = (
            "SELECT confl_snapshot + confl_lock + confl_bufferpin FROM pg_stat_database_conflicts"
            " WHERE datname = 'messages'"
        )
        with suppress(psycopg.OperationalError):  # it may be in one itself, while it connects too
            return sum(int(replica.run(found)) for replica in service.cluster.replicas)
        return 0

    before = conflicts()
    service.cluster.configure("SET max_standby_streaming_delay = 0")
    with ThreadPoolExecutor(2) as pool:
        reading = [pool.submit(reader, number) for number in range(2)]
        try:
            with service.cluster.primary.session() as session:

                def clean() -> bool:
                    assert not [each.result() for each in reading if each.done()]
                    session.execute("UPDATE messaging_mailbox SET total = total")
                    session.execute("VACUUM messaging_mailbox")
                    return conflicts() > before and service.outcomes().get("failed", 0) > 0

                wait_until(clean, 60, what="a read that was cancelled")
        finally:
            ended.set()
            service.cluster.configure("RESET max_standby_streaming_delay")
        assert sum(each.result() for each in reading) > 0
    service.wait_for("answered")


# --- for operators


def doctor(variables: dict[str, str]) -> dict[str, tuple[str, str]]:
    """What `manage.py doctor` finds."""
    ended = subprocess.run(
        [sys.executable, "manage.py", "doctor", "--json"],
        cwd=PROJECT_DIR, env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {row["subject"]: (row["state"], row["found"]) for row in json.loads(ended.stdout)}


def test_doctor_lists_each_replica(serve: Callable[..., Service]) -> None:
    cluster = serve().cluster
    alone = PostgresServer()
    with alone:
        cluster.replicas[1].kill()
        known = doctor(cluster.variables([*cluster.replicas, alone]))
    first, second, third = (f"replica 127.0.0.1:{each.port}" for each in (*cluster.replicas, alone))
    assert known[first][0] == "ok"
    assert re.fullmatch(r"in recovery, \d+ bytes of WAL behind the primary", known[first][1])
    assert known[second][0] == "warn"
    assert "refused" in known[second][1]
    assert known[third] == ("warn", "not in recovery, so it is no replica and is not used")


# --- following a mailbox


def test_streams_show_what_no_replica_has_yet(serve: Callable[..., Service], name: str) -> None:
    service = serve()
    service.cluster.pause()
    service.api.send(name)
    variables = service.cluster.variables() | {"MESSAGES_ACCESS": "open", "POSTGRES_REPLICA_MAX_LAG_MS": LONG}
    with RunningLive(**variables) as live, Stream(live.port, recipient=name) as stream:
        stream.wait_for(1)
        service.api.send(name)
        stream.wait_for(2)


class Client:
    """A client that sends the newest version it has seen, or the tag that came with it, and keeps a copy."""

    def __init__(self, api: Api, recipient: str) -> None:
        self.api, self.recipient = api, recipient
        self.version, self.tag = 0, ""
        self.copy: dict[str, Any] = {}
        self.copied = 0  # the version as of which the copy is whole

    def see(self, answer: Answer) -> Answer:
        """Time does not go back."""
        version = int(answer.headers["Messages-Version"])
        assert version >= self.version
        self.version, self.tag = version, answer.headers["ETag"]
        return answer

    def get(self, path: str, *, by_tag: bool) -> Answer:
        headers = {"If-None-Match": self.tag} if by_tag else {"Messages-Min-Version": str(self.version)}
        return self.see(self.api.get(path, headers=headers))

    def follow(self, limit: int, *, at_least: bool) -> None:
        """Bring the copy up to date; with `at_least`, to the newest version seen."""
        url, until = f"/changes?recipient={self.recipient}&since={self.copied}&limit={limit}", self.copied
        while url:
            headers = {"Messages-Min-Version": str(self.version)} if at_least else None
            found = self.api.get(url, headers=headers).expect(200).json
            until = found["until"]
            assert until >= self.copied
            self.copy |= {message["id"]: message for message in found["messages"]}
            for id_ in found["deleted"]:
                self.copy.pop(id_, None)
            url = (found["next"] or "").partition("127.0.0.1")[2].partition("/")[2]
            url = f"/{url}" if url else ""
        self.copied = until
        assert not at_least or self.copied >= self.version


class Timeline(RuleBasedStateMachine):
    """One writer, clients that follow, and replicas that stop and go on."""

    service: Service
    name: str
    count = 0

    def __init__(self) -> None:
        super().__init__()
        Timeline.count += 1
        self.recipient = f"{self.name}-{Timeline.count}"
        self.api = self.service.api
        self.clients = [Client(self.api, self.recipient) for _ in range(3)]
        # Every state that there ever was: the mailbox and its messages, by version.
        self.states: dict[int, tuple[dict[str, Any], list[Any]]] = {0: (self.mailbox(0), [])}

    def mailbox(self, version: int) -> dict[str, Any]:
        return {"recipient": self.recipient, "version": version, "total": 0, "unread": 0}

    def ids(self) -> list[str]:
        return [message["id"] for message in self.states[max(self.states)][1]]

    def note(self) -> None:
        page = self.api.get(f"/messages/?recipient={self.recipient}&limit=200").expect(200).json
        self.states[page["mailbox"]["version"]] = (page["mailbox"], page["results"])

    @initialize()
    def begin(self) -> None:
        self.service.cluster.resume()
        self.send(3)

    @rule(count=st.integers(1, 3))
    def send(self, count: int) -> None:
        for _ in range(count):
            self.api.send(self.recipient)
            self.note()

    @rule(place=st.integers(0, 50), path=st.sampled_from(["mark-read", "mark-unread", "bulk-delete"]))
    def change(self, place: int, path: str) -> None:
        if ids := self.ids():
            self.api.post(f"/messages/{path}", {"ids": [ids[place % len(ids)]]}).expect(200)
            self.note()

    @rule(which=st.integers(0, 1), call=st.sampled_from(["pause", "pause", "resume"]))
    def replay(self, which: int, call: str) -> None:
        self.service.cluster.replicas[which].run(f"SELECT pg_wal_replay_{call}()")

    @rule()
    def catch_up(self) -> None:
        self.service.cluster.resume()
        self.service.cluster.catch_up()

    @rule(who=st.integers(0, 2), by_tag=st.booleans())
    def read_mailbox(self, who: int, by_tag: bool) -> None:
        answer = self.clients[who].get(f"/mailbox?recipient={self.recipient}", by_tag=by_tag)
        assert answer.status == 304 or answer.json == self.states[answer.json["version"]][0]

    @rule(who=st.integers(0, 2), by_tag=st.booleans())
    def read_page(self, who: int, by_tag: bool) -> None:
        answer = self.clients[who].get(f"/messages/?recipient={self.recipient}&limit=200", by_tag=by_tag)
        if answer.status == 200:
            page = answer.json
            assert (page["mailbox"], page["results"]) == self.states[page["mailbox"]["version"]]

    @rule(who=st.integers(0, 2), place=st.integers(0, 50))
    def read_message(self, who: int, place: int) -> None:
        if ids := self.ids():
            client = self.clients[who]
            answer = client.get(f"/messages/{ids[place % len(ids)]}", by_tag=False).expect(200)
            assert answer.json in self.states[client.version][1]

    @rule(who=st.integers(0, 2))
    def read_without_saying(self, who: int) -> None:
        answer = self.clients[who].see(self.api.get(f"/mailbox?recipient={self.recipient}"))
        assert answer.json["version"] == max(self.states)

    @rule(who=st.integers(0, 2), limit=st.integers(1, 4), at_least=st.booleans())
    def follow(self, who: int, limit: int, at_least: bool) -> None:
        client = self.clients[who]
        client.follow(limit, at_least=at_least)
        # Newest first, as pages are.
        copy = sorted(client.copy.values(), key=lambda message: -message["seq"])
        assert copy == self.states[client.copied][1]


def test_no_client_that_follows_its_versions_sees_time_go_back(serve: Callable[..., Service], name: str) -> None:
    service = serve()
    machine = type("Follow", (Timeline,), {"service": service, "name": name})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25, stateful_step_count=40, derandomize=True, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
    outcomes = service.outcomes()
    assert outcomes["answered"] > 0
    assert outcomes["behind"] > 0
