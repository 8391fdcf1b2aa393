"""The faults. Each is a function that lets one happen to a service under load, and returns once it is over."""

import os
import resource
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, get_args

import psutil
import psycopg

from tests.faults.ledger import Ledger
from tests.postgres_servers import PostgresServer
from tests.redis_servers import RedisServer
from tests.servers import RunningServer
from tests.tcp_proxy import Moment, TcpProxy

SECONDS = 3.0  # how long most faults last


class NotPossibleError(Exception):
    """The machine does not allow this fault; the text says why."""


class Stage:
    """The service behind a TCP proxy, and another proxy between it and its PostgreSQL."""

    def __init__(self, web_server: str, open_things: ExitStack, disk: Path | None, redis: RedisServer | None) -> None:
        self.disk = disk
        self.redis = redis
        self.ledger = Ledger()
        self._open = open_things
        if disk:
            tempfile.tempdir = str(disk)  # so that PostgreSQL's files are there
        self.postgres = open_things.enter_context(
            PostgresServer(max_connections="40", max_wal_size="64MB", min_wal_size="32MB", wal_recycle="off")
        )
        tempfile.tempdir = None
        self.proxy = open_things.enter_context(TcpProxy(("127.0.0.1", self.postgres.port)))
        self.variables = self.postgres.variables | {
            "POSTGRES_PORT": str(self.proxy.port), "WEB_SERVER": web_server, "WEB_CONCURRENCY": "2", "WEB_THREADS": "4",
            "SECRET_KEY": "only-for-faults-1f0c7d6b9a8e5c4d3f2a1b0c9d8e7f6a", "MESSAGES_ACCESS": "open",
            "ACCESS_LOG": "false", "LOG_LEVEL": "ERROR",
        }  # fmt: skip
        if redis:
            limits = dict.fromkeys(("MESSAGES_RATE_LIMIT_READ", "MESSAGES_RATE_LIMIT_WRITE"), "100000/s")
            self.variables |= {"REDIS_URL": redis.url} | limits
        self.server = self.serve()
        self.front = open_things.enter_context(TcpProxy(("127.0.0.1", self.server.port), reads_statements=False))
        self.url = f"http://127.0.0.1:{self.front.port}"

    def serve(self) -> RunningServer:
        """Another process of the service."""
        return self._open.enter_context(RunningServer(**self.variables))

    def end_sessions(self, operator: "psycopg.Connection[Any]") -> None:
        operator.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = 'messages' AND pid <> pg_backend_pid()"
        )


# --- the service


def worker_killed(at: Stage) -> None:
    at.server.workers()[0].kill()


def all_of_the_service_killed_started_again(at: Stage) -> None:
    at.server.kill()
    at.server.restart()


def its_first_process_killed_started_again(at: Stage) -> None:
    at.server.process.kill()
    at.server.process.wait()
    at.server.restart()


def stopped_by_sigterm_started_again(at: Stage) -> None:
    assert at.server.stop() == 0
    at.server.restart()


def worker_suspended(at: Stage) -> None:
    worker = at.server.workers()[0]
    worker.suspend()
    time.sleep(SECONDS)
    worker.resume()


def replaced_behind_a_proxy(at: Stage) -> None:
    old, at.server = at.server, at.serve()
    at.front.target = ("127.0.0.1", at.server.port)
    assert old.stop() == 0


def out_of_descriptors(at: Stage) -> None:
    limits = {worker: worker.rlimit(resource.RLIMIT_NOFILE) for worker in at.server.workers()}
    for worker, (_soft, hard) in limits.items():
        worker.rlimit(resource.RLIMIT_NOFILE, (worker.num_fds(), hard))
    at.front.cut()  # so that everybody has to connect anew
    time.sleep(SECONDS)
    for worker, before in limits.items():
        with suppress(psutil.NoSuchProcess):
            worker.rlimit(resource.RLIMIT_NOFILE, before)


def slow_and_silent_clients(at: Stage) -> None:
    with ExitStack() as clients:
        for number in range(40):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", at.server.port)))
            if number % 2:
                client.sendall(b"POST /messages/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        time.sleep(SECONDS)


def redis_stopped_for_a_while(at: Stage) -> None:
    if at.redis is None:
        raise NotPossibleError("redis-server is not installed")
    at.redis.stop()
    time.sleep(SECONDS)
    at.redis.start()


def clock_set_back_and_forth(at: Stage) -> None:
    raise NotPossibleError("the clock belongs to the whole machine")


# --- PostgreSQL


def postgresql_restarted(at: Stage) -> None:
    at.postgres.stop()
    at.postgres.start()


def postgresql_killed_started_again(at: Stage) -> None:
    at.postgres.kill()
    at.postgres.start()


def postgresql_stopped_for_a_while(at: Stage) -> None:
    at.postgres.stop()
    time.sleep(SECONDS)
    at.postgres.start()


def postgresql_hangs(at: Stage) -> None:
    at.postgres.hang()
    time.sleep(2 * SECONDS)
    at.postgres.wake()


def postgresql_read_only(at: Stage) -> None:
    with at.postgres.session() as operator:
        operator.execute("SET default_transaction_read_only = off")
        operator.execute("ALTER DATABASE messages SET default_transaction_read_only = on")
        at.end_sessions(operator)
        time.sleep(SECONDS)
        operator.execute("ALTER DATABASE messages RESET default_transaction_read_only")


def disk_full(at: Stage) -> None:
    if at.disk is None:
        raise NotPossibleError("mounting a small disk takes root")
    filler = at.disk / "filler"
    with filler.open("wb") as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
            file.flush()
    time.sleep(SECONDS)
    filler.unlink()
    # PostgreSQL ends where it cannot write its log, and does not always come back by itself.
    time.sleep(1)
    if at.postgres.process.poll() is not None:
        at.postgres.start()


def out_of_connections(at: Stage) -> None:
    with ExitStack() as guests, at.postgres.session() as operator:
        at.end_sessions(operator)
        with suppress(psycopg.OperationalError):
            while True:
                guests.enter_context(at.postgres.session())
        time.sleep(SECONDS)


def sessions_terminated_again_and_again(at: Stage) -> None:
    with at.postgres.session() as operator:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            at.end_sessions(operator)
            time.sleep(0.1)


def no_such_standby(at: Stage) -> None:
    with at.postgres.session() as operator:
        operator.execute("ALTER SYSTEM SET synchronous_standby_names = 'ghost'")
        operator.execute("SELECT pg_reload_conf()")
        time.sleep(2 * SECONDS)
        operator.execute("ALTER SYSTEM RESET synchronous_standby_names")
        operator.execute("SELECT pg_reload_conf()")


def mailbox_locked(at: Stage) -> None:
    with at.postgres.session() as operator, operator.transaction():
        operator.execute("SELECT FROM messaging_mailbox WHERE recipient = 'shared-0' FOR UPDATE")
        time.sleep(SECONDS)


# --- the network between them


def cut(at: Stage, sql: str, when: Moment) -> None:
    fault = at.proxy.fault(sql, when, times=20)
    end = time.monotonic() + SECONDS
    while fault.happened < fault.times and time.monotonic() < end:
        time.sleep(0.05)
    at.proxy.faults.clear()
    assert fault.happened


def network_silent(at: Stage) -> None:
    at.proxy.silence()
    time.sleep(2 * SECONDS)
    at.proxy.release()


_FAULTS: tuple[Callable[[Stage], None], ...] = (
    worker_killed, all_of_the_service_killed_started_again, its_first_process_killed_started_again,
    stopped_by_sigterm_started_again, worker_suspended, replaced_behind_a_proxy, out_of_descriptors,
    slow_and_silent_clients, redis_stopped_for_a_while, clock_set_back_and_forth, postgresql_restarted,
    postgresql_killed_started_again, postgresql_stopped_for_a_while, postgresql_hangs, postgresql_read_only,
    disk_full, out_of_connections, sessions_terminated_again_and_again, no_such_standby, mailbox_locked,
    network_silent,
)  # fmt: skip

# By their names.
SCENARIOS: Mapping[str, Callable[[Stage], None]] = {fault.__name__.replace("_", " "): fault for fault in _FAULTS} | {
    f"cut {when} {what}": partial(cut, sql=sql, when=when)
    for what, sql in (("COMMIT", "COMMIT"), ("a statement", "messaging_mailbox"))
    for when in get_args(Moment)[:2]
}


@contextmanager
def small_disk() -> Iterator[Path | None]:
    """A file system of 400 MB in memory; None without the right to mount one."""
    if os.geteuid():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="messages-disk-") as name:
        folder = Path(name)
        if os.spawnlp(os.P_WAIT, "mount", "mount", "-t", "tmpfs", "-o", "size=400m,mode=755", "faults", name):
            yield None
            return
        try:
            yield folder
        finally:
            os.spawnlp(os.P_WAIT, "umount", "umount", "--lazy", name)
