"""The service behind a real PgBouncer in transaction mode, with fewer server connections than there are clients."""

import asyncio
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from django.db import connection

from benchmarks.crowd import Crowd
from tests.conftest import MakeKey
from tests.helpers import Api
from tests.live_servers import RunningLive, Stream
from tests.programs import program
from tests.servers import RunningServer, free_port, wait_until
from tests.test_process import SECRET, run

SERVER_CONNECTIONS = 2
CLIENTS = 8

CONFIGURATION = """
[databases]
* = {target}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {server_connections}
max_client_conn = 100
admin_users = bouncer
"""


@pytest.fixture
def pgbouncer(tmp_path: Path, transactional_db: None) -> Iterator[int]:
    """The port of a PgBouncer in front of the test server."""
    bouncer = program("pgbouncer")
    known = connection.settings_dict
    target = {"host": known["HOST"], "port": known["PORT"], "user": known["USER"], "password": known["PASSWORD"]}
    port = free_port()
    configuration = tmp_path / "pgbouncer.ini"
    configuration.write_text(
        CONFIGURATION.format(
            target=" ".join(f"{name}={value}" for name, value in target.items() if value),
            port=port,
            server_connections=SERVER_CONNECTIONS,
        )
    )
    # It refuses to run as root; and the socket of the test server is its owner's alone.
    socket = Path(str(known["HOST"]))
    owner = ["-u", socket.owner() if socket.is_absolute() else "nobody"] if os.geteuid() == 0 else []
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([bouncer, *owner, str(configuration)], stdout=output, stderr=output)
    try:
        wait_until(lambda: "process up" in log.read_text() or process.poll() is not None, what="PgBouncer")
        assert process.poll() is None, log.read_text()
        yield port
    finally:
        process.terminate()
        process.wait(10)


def test_a_pgbouncer_that_was_not_declared_is_reported_with_the_setting(pgbouncer: int) -> None:
    ended = run(
        "manage.py", "check_mailboxes", SECRET_KEY=SECRET, POSTGRES_HOST="127.0.0.1", POSTGRES_PORT=str(pgbouncer)
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("That is PgBouncer: set POSTGRES_BEHIND_PGBOUNCER=true")


def administer(port: int, *commands: str) -> None:
    with psycopg.connect(f"host=127.0.0.1 port={port} user=bouncer dbname=pgbouncer", autocommit=True) as operator:
        for command in commands:
            operator.execute(command.encode())


def test_a_pgbouncer_that_ignores_start_up_options_is_told_by_the_start(pgbouncer: int) -> None:
    administer(pgbouncer, "SET ignore_startup_parameters = 'options'")
    ended = run(
        "-m", "messages_project", SECRET_KEY=SECRET, POSTGRES_HOST="127.0.0.1", POSTGRES_PORT=str(pgbouncer),
        POSTGRES_DB=str(connection.settings_dict["NAME"]), PORT=str(free_port()),
    )  # fmt: skip
    assert ended.returncode == 1
    assert "the server ignores start-up options" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("That is PgBouncer: set POSTGRES_BEHIND_PGBOUNCER=true")


def test_everything_works_with_fewer_connections_than_clients(
    pgbouncer: int, run_server: Callable[..., RunningServer], make_key: MakeKey
) -> None:
    server = run_server(
        POSTGRES_HOST="127.0.0.1",
        POSTGRES_PORT=str(pgbouncer),
        POSTGRES_BEHIND_PGBOUNCER="true",
        MIGRATE_ON_START="false",
        WEB_CONCURRENCY="2",
        WEB_THREADS=str(CLIENTS // 2),
        MESSAGES_RATE_LIMIT_READ="1000000/min",
        MESSAGES_RATE_LIMIT_WRITE="1000000/min",
    )
    key = make_key()

    def use(client: int) -> None:
        api = server.api(key)
        recipient = f"client-{client % 3}"
        for _ in range(5):
            # Many round trips in one transaction: the claim of the key, the change, and what is kept of it.
            once = {"Idempotency-Key": str(uuid.uuid4())}
            sent = api.post("/messages/", {"recipient": recipient, "content": "hello"}, headers=once).expect(201).json
            again = api.post("/messages/", {"recipient": recipient, "content": "hello"}, headers=once).expect(201)
            assert again.json == sent
            api.patch("/messages/mark-read", {"ids": [sent["id"]]}).expect(200)
            api.get("/messages/", query={"recipient": recipient, "limit": 2}).expect(200)
            api.get("/messages/", query={"recipient": recipient, "sender": "", "limit": 2}).expect(200)
            api.get("/mailbox", query={"recipient": recipient}).expect(200)
        api.post("/messages/batch", {"messages": [{"recipient": recipient, "content": "x"}] * 10}).expect(201)

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(use, range(CLIENTS)))

    api = server.api(key)
    mailboxes = [api.get("/mailbox", query={"recipient": f"client-{n}"}).expect(200).json for n in range(3)]
    assert sum(mailbox["total"] for mailbox in mailboxes) == CLIENTS * 15
    assert sum(mailbox["unread"] for mailbox in mailboxes) == CLIENTS * 10


def test_mailboxes_are_followed_through_it(pgbouncer: int, run_live: Callable[..., RunningLive], api: Api) -> None:
    live = run_live(
        POSTGRES_HOST="127.0.0.1",
        POSTGRES_PORT=str(pgbouncer),
        POSTGRES_BEHIND_PGBOUNCER="true",
        MIGRATE_ON_START="false",
    )
    with ExitStack() as stack:
        # More streams than there are connections.
        streams = [stack.enter_context(Stream(live.port, api.key, recipient=f"r{n}")) for n in range(CLIENTS)]
        for n, stream in enumerate(streams):
            stream.wait_for(0)
            api.send(f"r{n}")
        for stream in streams:
            stream.wait_for(1)


@pytest.mark.parametrize("web_server", ["gunicorn"])
def test_no_stream_misses_a_version_though_it_cuts_all_connections(
    pgbouncer: int, run_server: Callable[..., RunningServer], run_live: Callable[..., RunningLive]
) -> None:
    variables = {
        "POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(pgbouncer), "POSTGRES_BEHIND_PGBOUNCER": "true",
        "MIGRATE_ON_START": "false", "MESSAGES_ACCESS": "open",
        "MESSAGES_RATE_LIMIT_READ": "", "MESSAGES_RATE_LIMIT_WRITE": "",
    }  # fmt: skip
    server, lives = run_server(**variables), [run_live(**variables), run_live(**variables)]

    def connections_cut() -> None:
        administer(pgbouncer, *(f"{command} {connection.settings_dict['NAME']}" for command in ("KILL", "RESUME")))

    def live_killed() -> None:
        lives[0].kill()
        lives[0].restart()

    async def run() -> None:
        crowd = Crowd(server.port, [live.port for live in lives], streams=60, mailboxes=20, writers=4)
        async with crowd.at_work():
            for fault in (connections_cut, live_killed):
                await asyncio.to_thread(fault)
                await crowd.progress()

    asyncio.run(run())
