"""The backup scripts: what they write while the service works, the restore brings back whole."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.helpers import Api
from tests.postgres_servers import PostgresServer
from tests.servers import PROJECT_DIR, RunningServer

SCRIPTS = PROJECT_DIR / "deploy" / "backup"


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer(wal_level="replica", max_wal_senders="4") as server:
        yield server


def script(
    postgres: PostgresServer, name: str, *arguments: str | Path, folder: Path
) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {
        "PATH": f"{postgres.bin}:{os.environ['PATH']}", "BACKUP_DIR": str(folder), "OWNER": "messages",
        "PGHOST": "127.0.0.1", "PGPORT": str(postgres.port), "PGUSER": "messages",
    }  # fmt: skip
    return subprocess.run([SCRIPTS / name, *arguments], env=environment, capture_output=True, text=True, check=False)


def run(postgres: PostgresServer, name: str, *arguments: str | Path, folder: Path) -> str:
    done = script(postgres, name, *arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def manage(postgres: PostgresServer, *arguments: str) -> str:
    command = [sys.executable, "manage.py", *arguments]
    done = subprocess.run(
        command, cwd=PROJECT_DIR, env=os.environ | postgres.variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fill(api: Api) -> None:
    for number in range(5):
        api.post("/messages/batch", {"messages": [{"recipient": f"r{n}", "content": "x"} for n in range(20)]})
        api.delete(f"/messages/{api.send('r1', content=str(number))['id']}").expect(204)


def test_a_dump_comes_back_whole_and_no_version_means_something_else(postgres: PostgresServer, tmp_path: Path) -> None:
    with RunningServer(**postgres.variables, MESSAGES_ACCESS="open") as service:
        api = service.api()
        fill(api)
        before = [api.mailbox(f"r{n}") for n in range(20)]
        dump = run(postgres, "backup", "dump", folder=tmp_path)
        later = api.send("r1")
        seen = api.get("/mailbox", {"recipient": "r1"}).headers["ETag"]
        copied = api.mailbox("r1")["version"]
    run(postgres, "restore", dump, folder=tmp_path)
    assert "nothing is wrong" in manage(postgres, "check_mailboxes")
    with RunningServer(**postgres.variables, MESSAGES_ACCESS="open") as service:
        api = service.api()
        after = [api.mailbox(f"r{n}") for n in range(20)]
        assert [box | {"version": 0} for box in after] == [box | {"version": 0} for box in before]
        api.get(f"/messages/{later['id']}").expect(404)
        # A copy holds what is gone, and no log says so.
        assert api.get("/changes", {"recipient": "r1", "since": copied}).expect(410).code == "changes_expired"
        for _ in range(3):
            api.send("r1")
            api.get("/mailbox", {"recipient": "r1"}, headers={"If-None-Match": seen}).expect(200)


def test_no_version_of_a_mailbox_that_a_restore_has_lost_is_used_again(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    def send(recipient: str) -> None:
        message = {"recipient": recipient, "content": "x"}
        match recipient:
            case "keyed":
                api.post("/messages/", message, headers={"Idempotency-Key": uuid4().hex}).expect(201)
            case "batch":
                api.post("/messages/batch", {"messages": [message]}).expect(201)
            case _:
                api.post("/messages/", message).expect(201)

    dump = ""
    known: list[tuple[str, str, int]] = []
    for _ in range(3):  # twice the same dump, which knows nothing of the first restore
        with RunningServer(**postgres.variables, MESSAGES_ACCESS="open", WEB_CONCURRENCY="1") as service:
            api = service.api()
            api.send("old")
            dump = dump or run(postgres, "backup", "dump", folder=tmp_path)
            for recipient in ("single", "keyed", "batch"):
                send(recipient)
            for recipient, etag, version in known:
                api.get("/mailbox", {"recipient": recipient}, headers={"If-None-Match": etag}).expect(200)
                api.get("/changes", {"recipient": recipient, "since": version}).expect(410, "changes_expired")
            for recipient in ("single", "keyed", "batch"):
                answer = api.get("/mailbox", {"recipient": recipient}).expect(200)
                version = answer.json["version"]
                known.append((recipient, answer.headers["ETag"], version))
                assert len(api.get("/changes", {"recipient": recipient, "since": 0}).json["messages"]) == 1
                send(recipient)
                assert api.mailbox(recipient) == {**answer.json, "version": version + 1, "total": 2, "unread": 2}
        run(postgres, "restore", dump, folder=tmp_path)
    assert "nothing is wrong" in manage(postgres, "check_mailboxes")


def test_a_dump_that_is_cut_off_replaces_nothing(postgres: PostgresServer, tmp_path: Path) -> None:
    with RunningServer(**postgres.variables, MESSAGES_ACCESS="open") as service:
        fill(service.api())
        dump = Path(run(postgres, "backup", "dump", folder=tmp_path))
        dump.write_bytes(dump.read_bytes()[:-500])
        assert script(postgres, "restore", dump, folder=tmp_path).returncode != 0
        service.api().send("r1")
    assert "nothing is wrong" in manage(postgres, "check_mailboxes")


def test_a_base_backup_comes_back_whole(postgres: PostgresServer, tmp_path: Path) -> None:
    with RunningServer(**postgres.variables, MESSAGES_ACCESS="open") as service:
        api = service.api()
        fill(api)
        backup = run(postgres, "backup", "base", folder=tmp_path)
        before = [api.mailbox(f"r{n}") for n in range(20)]
    postgres.stop()
    postgres.replace_data(lambda data: run(postgres, "restore", backup, data, folder=tmp_path))
    postgres.start()
    with RunningServer(**postgres.variables, MESSAGES_ACCESS="open") as service:
        assert [service.api().mailbox(f"r{n}") for n in range(20)] == before
    psql = f"psql --host=127.0.0.1 --port={postgres.port} --username=messages --file=raise-versions.sql".split()
    subprocess.run([postgres.bin / psql[0], *psql[1:]], cwd=SCRIPTS, check=True, capture_output=True)
    assert "nothing is wrong" in manage(postgres, "check_mailboxes")
    with RunningServer(**postgres.variables, MESSAGES_ACCESS="open") as service:
        box = service.api().mailbox("r1")
        service.api().get("/changes", {"recipient": "r1", "since": box["version"] - 1}).expect(410, "changes_expired")
    assert box == before[1] | {"version": box["version"]}


def test_a_failed_backup_leaves_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"BACKUP_DIR": str(tmp_path), "PGHOST": "127.0.0.1", "PGPORT": "1"}
    done = subprocess.run([SCRIPTS / "backup", "dump"], env=environment, capture_output=True, check=False)
    assert done.returncode != 0
    assert list(tmp_path.iterdir()) == []
