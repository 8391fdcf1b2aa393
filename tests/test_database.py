"""Statements are prepared, visible to Django's query wrappers, and never fail because they are prepared."""

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.db import DataError, OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext

from messaging.database import change, fetch, in_transaction, read
from tests.helpers import Api
from tests.partitions import reconnect
from tests.sessions import another_session

MAX_PREPARED = 100  # psycopg's `prepared_max`; each is memory in its server process


def prepared() -> list[str]:
    """The statements that PostgreSQL has prepared in this session."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement FROM pg_prepared_statements")
        return [row[0] for row in cursor.fetchall()]


@pytest.fixture
def table(transactional_db: None) -> Iterator[str]:
    """A table with one row, of which the next session knows too."""
    with another_session() as session:
        session.autocommit = True
        session.execute("CREATE TABLE changing AS SELECT 1 AS value")
        yield "changing"
        session.execute("DROP TABLE changing")


def test_the_number_of_prepared_statements_is_bounded(db: None) -> None:
    for number in range(MAX_PREPARED + 30):
        assert fetch(f"SELECT {number}") == [(number,)]
    assert len(prepared()) == MAX_PREPARED
    # The evicted ones are prepared again.
    assert fetch("SELECT 0") == [(0,)]
    assert len(prepared()) == MAX_PREPARED


def test_pages_of_any_size_are_one_prepared_statement(api: Api) -> None:
    api.get("/messages/?recipient=ada&limit=1").expect(200)
    before = prepared()
    for limit in range(2, 30):
        api.get(f"/messages/?recipient=ada&limit={limit}").expect(200)
    assert prepared() == before


def test_parameters_by_position_by_name_and_a_percent_sign(db: None) -> None:
    for prepare in (True, False):
        assert fetch("SELECT %s::int, %s || '%%'", (1, "a"), prepare=prepare) == [(1, "a%")]
        by_name = fetch("SELECT %(b)s::text, %(a)s::int, %(b)s::text", {"a": 1, "b": "x"}, prepare=prepare)
        assert by_name == [("x", 1, "x")]
        # The same text for another type is another prepared statement.
        assert [fetch("SELECT %s + 1", (number,), prepare=prepare) for number in (1, 2**40)] == [[(2,)], [(2**40 + 1,)]]


def test_query_instrumentation_sees_the_statement_that_runs(transactional_db: None) -> None:
    seen = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        seen.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note), CaptureQueriesContext(connection) as captured:
        assert fetch("SELECT %s + 41", (1,)) == [(42,)]
    assert seen == [("SELECT %s + 41", (1,))]
    assert [query["sql"] for query in captured.captured_queries] == ["SELECT 1 + 41"]
    assert "SELECT $1 + 41" in prepared()


def test_a_statement_whose_result_a_migration_changed_is_prepared_again(table: str) -> None:
    def value() -> Any:
        return read(lambda: fetch(f"SELECT * FROM {table}"))[0][0]

    assert value() == 1
    with another_session() as session:
        session.execute(f"ALTER TABLE {table} ALTER value TYPE text")
        session.commit()
    assert value() == "1"

    with another_session() as session:
        session.execute(f"ALTER TABLE {table} ADD other integer NOT NULL DEFAULT 2")
        session.commit()
    # In a transaction it fails the transaction, which is run again.
    assert in_transaction(lambda: fetch(f"SELECT * FROM {table}")) == [("1", 2)]


def test_a_statement_that_the_server_has_forgotten_is_prepared_again(transactional_db: None) -> None:
    for run in (change, lambda sql, values: in_transaction(lambda: fetch(sql, values))):
        assert run("SELECT %s + 7", (1,)) == [(8,)]
        # As a pooler between the two does, so psycopg does not notice.
        raw: Any = connection.connection
        raw.pgconn.exec_(b"DEALLOCATE ALL")
        assert run("SELECT %s + 7", (1,)) == [(8,)]


def test_prepared_statements_survive_a_rollback(transactional_db: None) -> None:
    for _ in range(3):
        with transaction.atomic():
            assert fetch("SELECT %s + 9", (1,)) == [(10,)]
            transaction.set_rollback(True)
        with pytest.raises(DataError), transaction.atomic():
            fetch("SELECT 9 / %s", (0,))
        assert fetch("SELECT %s + 9", (1,)) == [(10,)]


def test_an_error_of_the_statement_is_raised_without_a_retry(transactional_db: None) -> None:
    with pytest.raises(Exception, match="division by zero"):
        change("SELECT 1 / %s::int", (0,))
    with pytest.raises(Exception, match="not allowed"):
        # 0A000 too, but no new connection cures it.
        change("SELECT count(*) FROM messaging_mailbox FOR UPDATE", ())


@pytest.fixture
def serializable(transactional_db: None) -> Iterator[None]:
    """Connections as OPTIONS["isolation_level"] makes them."""
    options: Any = connection.settings_dict["OPTIONS"]
    reconnect()
    options["isolation_level"] = psycopg.IsolationLevel.SERIALIZABLE
    try:
        yield
    finally:
        del options["isolation_level"]
        reconnect()


def test_the_isolation_level_of_the_options_is_that_of_every_statement(serializable: None) -> None:
    question = "SELECT current_setting('transaction_isolation')"
    assert fetch(question) == change(question, ()) == [("serializable",)]
    assert in_transaction(lambda: fetch(question)) == [("serializable",)]
    with transaction.atomic():
        assert fetch(question, prepare=False) == [("serializable",)]


def test_a_pool_that_could_not_start_its_threads_is_opened_again(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if "-worker-" in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    reconnect()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OperationalError, match="can't start new thread"):
            fetch("SELECT 1")
    assert fetch("SELECT 1") == [(1,)]
