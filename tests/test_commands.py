"""Commands and the database: migrations run one at a time, time limits are lifted, failures are one clear message."""

import json
import os
import signal
import subprocess
import sys
import threading
from io import StringIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection
from psycopg import sql

from messaging.database import without_time_limits
from messaging.management.commands.migrate import LOCK_KEY
from messaging.models import ApiKey, Message
from tests.commands import ended, process, read_until
from tests.helpers import Api
from tests.postgres_servers import PostgresServer
from tests.servers import PROJECT_DIR, wait_until

LIMITS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")


def limits() -> list[str]:
    """The limits of this session."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT " + ", ".join(f"current_setting('{name}')" for name in LIMITS))
        return list(cursor.fetchone())


def other_session(database: str | None = None) -> psycopg.Connection[Any]:
    """Another connection to the test database, or to another one. Its waits for locks are limited."""
    parameters = connection.get_connection_params()
    names = ("host", "port", "user", "password", "dbname")
    named = {name: parameters[name] for name in names if name in parameters}
    named |= {"dbname": database} if database else {}
    return psycopg.connect(**named, options="-c lock_timeout=20s", autocommit=True)


# migrate


@pytest.mark.django_db(transaction=True)
def test_a_second_migrate_says_that_it_waits_and_goes_on_when_the_first_ends() -> None:
    out = StringIO()

    def migrate() -> None:
        try:
            call_command("migrate", stdout=out)
        finally:
            connection.close()

    waiting = threading.Thread(target=migrate)
    with other_session() as first:
        first.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
        waiting.start()
        wait_until(lambda: "waiting for it to finish" in out.getvalue())
        assert "No migrations to apply" not in out.getvalue()
    waiting.join(30)
    assert "No migrations to apply" in out.getvalue()
    assert out.getvalue().count("waiting for it") == 1
    # The lock is free again, and the pooled connection under its limits.
    with other_session() as next_one:
        assert next_one.execute("SELECT pg_try_advisory_lock(%s)", (LOCK_KEY,)).fetchone() == (True,)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("question", ["--plan", "--check"])
def test_a_question_about_migrations_does_not_wait(question: str) -> None:
    with other_session() as first:
        first.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
        with process("migrate", question) as asking:
            asking.communicate(timeout=30)
        assert asking.returncode == 0


@pytest.mark.django_db(transaction=True)
def test_several_may_migrate_an_empty_database_at_once() -> None:
    name = f"{connection.settings_dict['NAME']}_empty"
    with other_session() as administrator:
        administrator.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            with (
                process("migrate", POSTGRES_DB=name) as first,
                process("migrate", POSTGRES_DB=name) as second,
                process("migrate", POSTGRES_DB=name) as third,
            ):
                printed = [running.communicate() for running in (first, second, third)]
                assert [running.returncode for running in (first, second, third)] == [0, 0, 0], printed
        finally:
            administrator.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
    applied = [out.count(b"Applying messaging.0001") for out, _ in printed]
    assert sorted(applied) == [0, 0, 1]


@pytest.mark.django_db(transaction=True)
def test_a_migration_that_waits_for_a_lock_lets_requests_pass_and_says_so() -> None:
    name = f"{connection.settings_dict['NAME']}_locked"
    with other_session() as administrator:
        administrator.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            with process("migrate", "messaging", "0003", POSTGRES_DB=name) as first:
                assert first.wait(120) == 0
            with other_session(name) as reader, other_session(name) as request:
                holder = f"process {reader.info.backend_pid} "
                reader.execute("BEGIN")
                reader.execute("SELECT FROM messaging_apikey")
                # Undone, since that drops the table which the reader has used.
                with process("migrate", "messaging", "0002", POSTGRES_DB=name) as second:
                    told = read_until(second, b"letting requests pass")
                    # Shorter than a request waits for a lock.
                    request.execute("SET lock_timeout = '250ms'")
                    for _ in range(50):
                        request.execute("SELECT FROM messaging_apikey")
                    told += read_until(second, b"letting requests pass")
                    reader.execute("COMMIT")
                    out, err = second.communicate(timeout=60)
                    assert second.returncode == 0, err
            assert "Unapplying messaging.0003" in out.decode()
            assert holder in told.decode()
        finally:
            administrator.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_a_migration_that_waits_for_a_prepared_transaction_names_it(db: None) -> None:
    with PostgresServer(max_prepared_transactions="1") as postgres, postgres.session() as holder:
        assert ended("migrate", "messaging", "0003", **postgres.variables).returncode == 0
        for statement in ("BEGIN", "SELECT FROM messaging_apikey", "PREPARE TRANSACTION 'left'"):
            holder.execute(statement)
        with process("migrate", "messaging", "0002", nohup=False, **postgres.variables) as waiting:
            told = read_until(waiting, b"letting requests pass") + read_until(waiting, b" s.")
            assert b"in its way: prepared, 'left', for " in told
            holder.execute("COMMIT PREPARED 'left'")
            assert waiting.wait(60) == 0


REFUSED = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE disk_full; END';
CREATE TRIGGER refused BEFORE INSERT OR DELETE ON django_migrations FOR EACH ROW EXECUTE FUNCTION refuse()"""


def test_a_migration_is_recorded_by_the_transaction_that_applies_it(db: None) -> None:
    """Else a process that is killed in between leaves tables with which every later migration ends."""
    with PostgresServer() as postgres:
        assert ended("migrate", "messaging", "0002", **postgres.variables).returncode == 0
        for target, is_there in (("0003", False), ("0002", True)):
            postgres.run(REFUSED)
            assert ended("migrate", "messaging", target, **postgres.variables).returncode == 1
            assert postgres.run("SELECT to_regclass('messaging_apikey') IS NOT NULL") is is_there
            postgres.run("DROP FUNCTION refuse CASCADE")
            assert ended("migrate", "messaging", target, **postgres.variables).returncode == 0


def test_buckets_are_added_without_reading_all_mailboxes_for_each_message(db: None) -> None:
    with PostgresServer() as postgres:
        assert ended("migrate", "messaging", "0005", **postgres.variables).returncode == 0
        postgres.run("INSERT INTO messaging_mailbox SELECT n, 'r' || n, 1, 1, 1 FROM generate_series(1, 2000) n")
        postgres.run(
            "INSERT INTO messaging_message (id, seq, sender, content, metadata, created_at, mailbox_id)"
            " SELECT gen_random_uuid(), 1, '', 'x', '{}', now(), n FROM generate_series(1, 2000) n"
        )
        for target in ("0006", "0005", "0006"):
            assert ended("migrate", "messaging", target, **postgres.variables).returncode == 0
        read = "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'messaging_mailbox'"
        assert postgres.run(read) < 2000 * 100


# without_time_limits


@pytest.mark.django_db(transaction=True)
def test_limits_of_time_are_lifted_for_the_block_only() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        before = limits()
        with without_time_limits():
            assert limits() == ["0", "0", "0"]
        assert limits() == before

        with pytest.raises(ZeroDivisionError), without_time_limits():
            _ = 1 / 0
        assert limits() == before
    assert "0" not in before


@pytest.mark.django_db(transaction=True)
def test_a_limit_of_transactions_is_lifted_too() -> None:
    with connection.cursor() as cursor:
        if connection.pg_version < 170000:  # type: ignore[attr-defined]
            pytest.skip("PostgreSQL has transaction_timeout since 17")
        cursor.execute("SET transaction_timeout = '1min'")
        with without_time_limits():
            cursor.execute("SHOW transaction_timeout")
            assert cursor.fetchone() == ("0",)


@pytest.mark.django_db(transaction=True)
def test_a_connection_lost_in_the_block_is_reported_as_such() -> None:
    def lose() -> None:
        with without_time_limits():
            connection.close()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lose()


# What a terminal, a shell or the database may be like


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "locale", [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}]
)
def test_commands_take_and_print_utf_8_in_every_locale(api: Api, locale: dict[str, str]) -> None:
    sent = api.send("Zo\xeb", "\N{EURO SIGN}")
    exported = ended("export", "--recipient", "Zo\xeb".encode(), **locale).stdout
    assert json.loads(exported.decode())["content"] == sent["content"]
    assert "recipient: Zo\xeb\n" in ended("erase", "Zo\xeb".encode(), **locale).stdout.decode()


@pytest.mark.django_db(transaction=True)
def test_an_argument_that_is_not_utf_8_is_refused() -> None:
    for name in ("erase", "revoke_api_key"):
        done = ended(name, b"caf\xe9")
        assert (done.returncode, b"invalid utf8 value" in done.stderr) == (2, True)


def test_a_full_disk_and_a_refusal_of_the_database_are_reported_in_one_line(db: None) -> None:
    with PostgresServer() as postgres:
        variables = postgres.variables | {"SECRET_KEY": "x" * 50, "MESSAGES_ACCESS": "open"}
        assert ended("migrate", **variables).returncode == 0
        with Path("/dev/full").open("wb") as full:
            assert b"No space left on device" in ended("list_api_keys", stdout=full, **variables).stderr
        postgres.run(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN RAISE disk_full USING MESSAGE = ''could not extend file''; END'"
        )
        postgres.run("CREATE TRIGGER full_disk BEFORE INSERT ON messaging_apikey EXECUTE FUNCTION fail()")
        done = ended("create_api_key", "a", "--scopes", "send", **variables)
        assert (done.returncode, done.stderr) == (1, b"The database refuses this: could not extend file.\n")
        # As PgBouncer tells of a server that it lost, perhaps in COMMIT.
        postgres.run(
            "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN RAISE protocol_violation USING MESSAGE = ''server conn crashed?''; END'"
        )
        assert b"may have been made" in ended("create_api_key", "a", "--scopes", "send", **variables).stderr
        postgres.run("ALTER DATABASE messages SET default_transaction_read_only = on")
        for command in (["create_api_key", "a", "--scopes", "send"], ["revoke_api_key", "x"]):
            assert b"in a read-only transaction.\n" in ended(*command, **variables).stderr
        # It reads only, but for the note of its result.
        done = ended("check_mailboxes", **variables)
        assert (done.returncode, done.stdout) == (0, b"Compared 0 mailboxes with their messages: nothing is wrong.\n")
        assert b"in a read-only transaction." in done.stderr


def test_commands_that_delete_say_why_the_database_does_not_let_them(db: None) -> None:
    commands = [["upkeep", "--once"], ["purge", "--older-than", "1s"]]
    with PostgresServer() as postgres:
        variables = postgres.variables | {"SECRET_KEY": "x" * 50, "MESSAGES_ACCESS": "open"}
        assert ended("migrate", **variables).returncode == 0
        assert ended("seed", "--messages", "1", "--recipients", "1", **variables).returncode == 0
        postgres.run("UPDATE messaging_message SET expires_at = now() - interval '1 day'")
        postgres.run("ALTER DATABASE messages SET default_transaction_read_only = on")
        for command in commands:
            done = ended(*command, **variables)
            assert (done.returncode, done.stderr.count(b"in a read-only transaction.\n")) == (1, 1), done.stderr
    for command in commands:
        done = ended(*command, **variables)
        assert (done.returncode, b"No connection to PostgreSQL database" in done.stderr) == (1, True), done.stderr


@pytest.mark.django_db(transaction=True)
def test_a_key_that_cannot_be_printed_is_not_created() -> None:
    for arguments in (["--scopes", "read"], ["--scopes", "read", "--json"]):
        with Path("/dev/full").open("wb") as full:
            assert ended("create_api_key", "unseen", *arguments, stdout=full).returncode == 1
    assert not ApiKey.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("arguments", [("seed", "--messages", "3", "--recipients", "1"), ("load", "-"), ("export",)])
def test_a_command_works_without_standard_streams(api: Api, arguments: tuple[str, ...]) -> None:
    """As a daemon starts it, that has closed them."""
    environment = os.environ | {"POSTGRES_DB": str(connection.settings_dict["NAME"])}
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "manage.py", *arguments],
        cwd=PROJECT_DIR, check=False, timeout=120, env=environment,
    )  # fmt: skip
    assert done.returncode == 0
    assert Message.objects.count() == (3 if arguments[0] == "seed" else 0)


@pytest.mark.process
def test_sigterm_ends_a_command_also_as_process_1_of_a_container() -> None:
    asking = "SELECT FROM pg_stat_activity WHERE query LIKE '%pg_try_advisory_lock%' AND pid <> pg_backend_pid()"
    with (
        PostgresServer() as postgres,
        postgres.session() as other,
        process("migrate", nohup=False, **postgres.variables) as waiting,
    ):
        other.execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])
        wait_until(lambda: other.execute(asking).rowcount == 1, seconds=30, what="the wait for the lock")
        waiting.send_signal(signal.SIGTERM)
        # Ended by the command itself: as process 1 it has no default action.
        assert waiting.wait(20) == 128 + signal.SIGTERM
