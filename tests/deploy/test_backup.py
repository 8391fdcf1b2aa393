"""The backup scripts: what they write while the service works, the restore brings back whole."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from messages_project import embedded_cluster
from tests.helpers import Api
from tests.postgres_servers import PostgresServer
from tests.servers import PROJECT_DIR, RunningServer, wait_until

SCRIPTS = PROJECT_DIR / "deploy" / "backup"


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer(wal_level="replica", max_wal_senders="4") as server:
        server.run("CREATE ROLE app")  # no superuser, which the role of the tests is
        yield server


def script(
    postgres: PostgresServer, name: str, *arguments: str | Path, folder: Path, **variables: str
) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {
        "PATH": f"{postgres.bin}:{os.environ['PATH']}", "BACKUP_DIR": str(folder), "OWNER": "app",
        "PGHOST": "127.0.0.1", "PGPORT": str(postgres.port), "PGUSER": "messages",
    } | variables  # fmt: skip
    return subprocess.run([SCRIPTS / name, *arguments], env=environment, capture_output=True, text=True, check=False)


def run(postgres: PostgresServer, name: str, *arguments: str | Path, folder: Path, **variables: str) -> str:
    done = script(postgres, name, *arguments, folder=folder, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def restore(postgres: PostgresServer, backup: str, data: Path) -> None:
    """Unpack a base backup, with what was archived beside it."""
    run(postgres, "restore", backup, data, folder=Path(backup).parent)


def manage(postgres: PostgresServer, *arguments: str) -> str:
    command = [sys.executable, "manage.py", *arguments]
    done = subprocess.run(
        command, cwd=PROJECT_DIR, env=os.environ | postgres.variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def raise_versions(postgres: PostgresServer) -> None:
    psql = f"psql --host=127.0.0.1 --port={postgres.port} --username=messages --file=raise-versions.sql".split()
    subprocess.run([postgres.bin / psql[0], *psql[1:]], cwd=SCRIPTS, check=True, capture_output=True)


def fill(api: Api) -> None:
    for number in range(5):
        api.post("/messages/batch", {"messages": [{"recipient": f"r{n}", "content": "x"} for n in range(20)]})
        api.delete(f"/messages/{api.send('r1', content=str(number))['id']}").expect(204)


def test_a_dump_comes_back_whole_and_no_version_means_something_else(postgres: PostgresServer, tmp_path: Path) -> None:
    with RunningServer(**postgres.variables, MESSAGES_ACCESS="open") as service:
        api = service.api()
        fill(api)
        # Which the owner of the database may not make.
        postgres.run("CREATE PUBLICATION everything FOR ALL TABLES")
        postgres.run("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO app")
        before = [api.mailbox(f"r{n}") for n in range(20)]
        dump = run(postgres, "backup", "dump", folder=tmp_path)
        later = api.send("r1")
        seen = api.get("/mailbox", {"recipient": "r1"}).headers["ETag"]
        copied = api.mailbox("r1")["version"]
    run(postgres, "restore", dump, folder=tmp_path)
    assert (
        postgres.run("SELECT string_agg(DISTINCT tableowner, ',') FROM pg_tables WHERE schemaname = 'public'") == "app"
    )
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
    raise_versions(postgres)
    assert "nothing is wrong" in manage(postgres, "check_mailboxes")
    with RunningServer(**postgres.variables, MESSAGES_ACCESS="open") as service:
        box = service.api().mailbox("r1")
        service.api().get("/changes", {"recipient": "r1", "since": box["version"] - 1}).expect(410, "changes_expired")
    assert box == before[1] | {"version": box["version"]}


@pytest.fixture
def archive() -> Iterator[Path]:
    """A folder for backups and archived WAL, which the user of PostgreSQL can reach, with the script that archives."""
    with tempfile.TemporaryDirectory(prefix="messages-archive-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "wal").mkdir()
        if owner := embedded_cluster.service_ids():
            os.chown(folder / "wal", *owner)
        shutil.copy(SCRIPTS / "archive-wal", folder)
        yield folder


def archiving_to(folder: Path) -> dict[str, Any]:
    """The settings of a server."""
    return {"archive_mode": "on", "archive_command": f"BACKUP_DIR={folder} sh {folder}/archive-wal %p %f"}


@pytest.mark.process
def test_archived_wal_restores_any_moment_after_a_base_backup_more_than_once(archive: Path) -> None:
    def restored(*time: str, **variables: str) -> None:
        postgres.stop()
        postgres.replace_data(
            lambda data: run(postgres, "restore", f"{backup}/", data, *time, folder=archive, **variables)
        )
        postgres.start()
        wait_until(lambda: not postgres.run("SELECT pg_is_in_recovery()"), what="the end of recovery")
        raise_versions(postgres)
        assert "nothing is wrong" in manage(postgres, "check_mailboxes")

    message, key = {"recipient": "ada", "content": "x"}, {"Idempotency-Key": "one"}
    with PostgresServer(wal_level="replica", max_wal_senders="4", **archiving_to(archive)) as postgres:
        with RunningServer(**postgres.variables, MESSAGES_ACCESS="open") as service:
            api = service.api()
            fill(api)
            backup = run(postgres, "backup", "base", folder=archive)
            kept = api.post("/messages/", message, headers=key).expect(201).json
            box = api.mailbox("ada")
            time = postgres.run("SELECT clock_timestamp()::text")
            api.delete(f"/messages/{kept['id']}").expect(204)
            lost = api.send("ada")
            known = api.get("/mailbox", {"recipient": "ada"})
            walk = api.get("/changes", {"recipient": "r1", "since": 0, "limit": 1}).json["next"]
        restored(time)
        with RunningServer(**postgres.variables, MESSAGES_ACCESS="open") as service:
            api = service.api()
            assert api.mailbox("ada") | {"version": 0} == box | {"version": 0}
            assert api.post("/messages/", message, headers=key).expect(201).json == kept
            api.get(f"/messages/{lost['id']}").expect(404)
            api.get("/mailbox", {"recipient": "ada"}, headers={"If-None-Match": known.headers["ETag"]}).expect(200)
            since = {"recipient": "ada", "since": known.json["version"]}
            api.get("/changes", since).expect(410, "changes_expired")
            api.get(f"/changes?{walk.partition('?')[2]}").expect(410, "changes_expired")
            later = api.send("ada")
        # Its settings were for that recovery alone.
        assert postgres.run("SELECT count(*) FROM pg_file_settings WHERE name ~ '^(recovery|restore)_'") == 0
        # All that was archived, along the newest timeline.
        restored()
        with RunningServer(**postgres.variables, MESSAGES_ACCESS="open") as service:
            service.api().get(f"/messages/{later['id']}").expect(200)
            service.api().get(f"/messages/{lost['id']}").expect(404)
        # Or along the one that the backup was made of.
        restored(TIMELINE="1")
        with RunningServer(**postgres.variables, MESSAGES_ACCESS="open") as service:
            service.api().get(f"/messages/{lost['id']}").expect(200)
        postgres.run("SELECT pg_switch_wal()")
        wait_until(lambda: postgres.run("SELECT archived_count FROM pg_stat_archiver") > 0, what="archived WAL")
        assert postgres.run("SELECT failed_count FROM pg_stat_archiver") == 0


@pytest.mark.process
def test_a_server_that_is_made_anew_has_an_archive_of_its_own(archive: Path) -> None:
    for _server in range(2):
        with PostgresServer(wal_level="replica", max_wal_senders="4", **archiving_to(archive)) as postgres:
            backup = run(postgres, "backup", "base", folder=archive)
            postgres.run("CREATE TABLE later()")
            postgres.run("SELECT pg_switch_wal()")
            wait_until(lambda: postgres.run("SELECT archived_count FROM pg_stat_archiver") > 0, what="archived WAL")
            assert postgres.run("SELECT failed_count FROM pg_stat_archiver") == 0
            postgres.stop()
            postgres.replace_data(partial(restore, postgres, backup))
            postgres.start()
            wait_until(lambda: not postgres.run("SELECT pg_is_in_recovery()"), what="the end of recovery")
            assert postgres.run("SELECT count(*) FROM later") == 0
            shutil.rmtree(backup)  # the next one may get the same name
    assert len(list((archive / "wal").iterdir())) == 2


def test_archived_wal_is_never_replaced_by_another_of_its_name(tmp_path: Path) -> None:
    def archived(content: str) -> int:
        (tmp_path / "segment").write_text(content)
        command: list[str | Path] = [SCRIPTS / "archive-wal", tmp_path / "segment", "0001"]
        environment = os.environ | {"BACKUP_DIR": str(tmp_path)}
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False).returncode

    (tmp_path / "wal").mkdir()
    (tmp_path / "global").mkdir()
    (tmp_path / "global" / "pg_control").write_bytes((7).to_bytes(8, "little") + b"more")
    assert [archived("one"), archived("one"), archived("other")] == [0, 0, 1]
    assert {path.name: path.read_text() for path in (tmp_path / "wal" / "7").iterdir()} == {"0001": "one"}


def test_a_failed_backup_leaves_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"BACKUP_DIR": str(tmp_path), "PGHOST": "127.0.0.1", "PGPORT": "1"}
    done = subprocess.run([SCRIPTS / "backup", "dump"], env=environment, capture_output=True, check=False)
    assert done.returncode != 0
    assert list(tmp_path.iterdir()) == []
