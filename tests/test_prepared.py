"""Prepared statements: few enough for the server, and never a reason to fail."""

from typing import Any

import pytest
from django.db import connection, transaction
from django.db.backends.signals import connection_created
from psycopg.errors import InvalidSqlStatementName

from messaging.database import fetch
from messaging.postgresql.prepared import MAX_STATEMENTS
from tests.helpers import Api


def prepared_there() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_prepared_statements")
        count: int = cursor.fetchone()[0]
        return count


def test_a_connection_prepares_so_many_statements_and_no_more(api: Api) -> None:
    for limit in range(1, MAX_STATEMENTS + 30):
        api.get(f"/messages/?recipient=ada&limit={limit}").expect(200)
    assert prepared_there() == MAX_STATEMENTS
    # Those that had to go are prepared anew.
    api.get("/messages/?recipient=ada&limit=1").expect(200)
    assert prepared_there() == MAX_STATEMENTS


def test_parameters_by_place_by_name_and_a_percent_sign(db: None) -> None:
    assert fetch("SELECT %s::int, %s || '%%'", (1, "a")) == [(1, "a%")]
    assert fetch("SELECT %(b)s::text, %(a)s::int, %(b)s::text", {"a": 1, "b": "x"}) == [("x", 1, "x")]
    # Of another type, so another statement.
    assert [fetch("SELECT %s + 1", (number,)) for number in (1, 2**40)] == [[(2,)], [(2**40 + 1,)]]


def test_a_statement_that_a_migration_has_changed_is_prepared_anew(transactional_db: None) -> None:
    connection.ensure_connection()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE changing AS SELECT 1 AS value")
        assert fetch("SELECT * FROM changing") == [(1,)]
        cursor.execute("ALTER TABLE changing ALTER value TYPE text")
        assert fetch("SELECT * FROM changing") == [("1",)]


def test_a_statement_that_the_server_has_forgotten_is_prepared_anew(transactional_db: None) -> None:
    connection.ensure_connection()
    with connection.cursor() as cursor:
        assert fetch("SELECT 7") == [(7,)]
        cursor.execute("DEALLOCATE ALL")
        assert fetch("SELECT 7") == [(7,)]
        # In a transaction that has failed with it nothing can be done but to say so; the next one works.
        cursor.execute("DEALLOCATE ALL")
        with pytest.raises(Exception, match="does not exist") as failure, transaction.atomic():
            fetch("SELECT 7")
        cause: Any = failure.value.__cause__
        assert isinstance(cause, InvalidSqlStatementName)
        assert fetch("SELECT 7") == [(7,)]


def test_a_connection_is_announced_once_however_often_it_is_given_out(transactional_db: None) -> None:
    announced: list[int] = []
    pooled: Any = connection

    def note(connection: Any, **_signal: Any) -> None:
        announced.append(connection.connection.info.backend_pid)

    pooled.close()
    pooled.close_pool()
    connection_created.connect(note)
    try:
        used = set()
        for _ in range(5):
            connection.close()
            connection.ensure_connection()
            used.add(connection.connection.info.backend_pid)
        # Ended by the server, so that a new one takes its place.
        with connection.cursor() as cursor, pytest.raises(Exception, match="terminat"):
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        connection.close()
        connection.ensure_connection()
        used.add(connection.connection.info.backend_pid)
    finally:
        connection_created.disconnect(note)
    assert len(used) >= 2
    assert sorted(announced) == sorted(used)
