"""PostgreSQL as others run it: settings of a database or role, a role with few privileges, a primary made read-only."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from tests.helpers import Answer, Api
from tests.partitions import reconnect
from tests.servers import RunningServer, wait_until
from tests.sessions import another_session
from tests.state import miscounted


def administer(*statements: str) -> None:
    with another_session() as session:
        session.autocommit = True
        session.execute("SET default_transaction_read_only = off")
        for statement in statements:
            session.execute(statement.format(database=f'"{connection.settings_dict["NAME"]}"'))


@contextmanager
def database_setting(name: str, value: str) -> Iterator[None]:
    """What ALTER DATABASE sets for new connections."""
    administer(f"ALTER DATABASE {{database}} SET {name} = {value}")
    reconnect()
    try:
        yield
    finally:
        administer(f"ALTER DATABASE {{database}} RESET {name}")


def readiness() -> tuple[int, str | None]:
    from messages_project import health

    health._database._probe = None  # an answer is repeated for half a second
    response = Client().get("/readyz")
    return response.status_code, response.json().get("reason")


@pytest.mark.django_db(transaction=True)
def test_a_table_that_somebody_locks_does_not_make_an_instance_unready(api: Api) -> None:
    assert readiness() == (200, None)
    with another_session() as session:
        session.execute("LOCK TABLE messaging_mailbox")
        assert readiness() == (200, None)


def writes(api: Api, id_: str) -> list[Callable[[], Answer]]:
    """A change of each kind."""
    return [
        lambda: api.post("/messages/", {"recipient": "ada", "content": "x"}),
        lambda: api.post("/messages/", {"recipient": "ada", "content": "x"}, headers={"Idempotency-Key": "k"}),
        lambda: api.post("/messages/batch", {"messages": [{"recipient": "ada", "content": "x"}]}),
        lambda: api.patch("/messages/mark-read", {"ids": [id_]}),
        lambda: api.patch("/messages/mark-unread", {"recipient": "ada", "up_to": id_}),
        lambda: api.delete(f"/messages/{id_}"),
    ]


def assert_refused(call: Callable[[], Answer]) -> None:
    answer = call().expect(503, "database_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1


def test_a_database_that_may_only_be_read_and_may_be_written_again(transactional_db: None, api: Api) -> None:
    id_ = api.send("ada")["id"]
    assert readiness() == (200, None)
    with database_setting("default_transaction_read_only", "on"):
        for write in writes(api, id_):
            assert_refused(write)
        assert api.mailbox("ada")["total"] == 1
        api.get("/messages/?recipient=ada").expect(200)
        assert readiness() == (503, "the database is read-only")
        opened_at = time.monotonic()
    wait_until(lambda: time.monotonic() > opened_at + 1, what="the age from which a session may be outdated")
    # The sessions that were opened meanwhile are still read-only; whoever meets one replaces it.
    for write in writes(api, id_):
        assert write().status in {200, 201, 204}
    assert readiness() == (200, None)
    assert miscounted() == []


@pytest.fixture
def limited_role(transactional_db: None) -> Iterator[None]:
    """The service's role is one that may do what is needed, but for inserting messages, and reading sessions."""
    administer(
        "CREATE ROLE limited LOGIN",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO limited",
        "REVOKE INSERT ON messaging_message FROM limited",
        "REVOKE SELECT ON django_session FROM limited",  # metrics and upkeep count them
    )
    known: Any = connection.settings_dict
    user = known["USER"]
    known["USER"] = "limited"
    reconnect()
    try:
        yield
    finally:
        known["USER"] = user
        reconnect()
        administer("DROP OWNED BY limited", "DROP ROLE limited")


def test_a_missing_privilege_is_logged(
    transactional_db: None, api: Api, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    api.send("ada")
    request.getfixturevalue("limited_role")
    assert_refused(lambda: api.post("/messages/", {"recipient": "ada", "content": "x"}))
    assert "permission denied for table messaging_message" in caplog.text
    lacking = "SELECT on django_session; INSERT on messaging_message"
    assert readiness() == (503, f"the database role lacks {lacking}")
    assert api.mailbox("ada")["total"] == 1


def test_missing_tables_are_503(transactional_db: None, api: Api, caplog: pytest.LogCaptureFixture) -> None:
    id_ = api.send("ada")["id"]
    administer("ALTER TABLE messaging_mailbox RENAME TO away")
    try:
        for call in (*writes(api, id_), lambda: api.get("/mailbox?recipient=ada")):
            assert_refused(call)
    finally:
        administer("ALTER TABLE away RENAME TO messaging_mailbox")
    assert 'relation "messaging_mailbox" does not exist' in caplog.text
    assert api.mailbox("ada")["total"] == 1


REFUSES_TWICE = (
    "CREATE SEQUENCE refusals",
    """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN IF nextval(''refusals'') <= 2 THEN RAISE unique_violation; END IF; RETURN NEW; END'""",
    "CREATE TRIGGER refuse BEFORE INSERT ON messaging_mailbox FOR EACH ROW EXECUTE FUNCTION refuse()",
)


def test_a_unique_index_that_is_being_replaced_costs_no_request(transactional_db: None, api: Api) -> None:
    """The new index of REINDEX CONCURRENTLY may refuse what ON CONFLICT allows. That is rare: here a trigger does."""
    id_ = api.send("ada")["id"]
    administer(*REFUSES_TWICE)
    try:
        for send in writes(api, id_)[:3]:
            administer("ALTER SEQUENCE refusals RESTART")
            assert send().status == 201
    finally:
        administer("DROP FUNCTION refuse CASCADE", "DROP SEQUENCE refusals")
    assert (api.mailbox("ada")["total"], miscounted()) == (4, [])


FOREIGN = {
    "datestyle": "'German, DMY'",
    "intervalstyle": "'iso_8601'",
    "timezone": "'Asia/Kathmandu'",
    "bytea_output": "'escape'",
    "extra_float_digits": "-15",
    "default_transaction_isolation": "'serializable'",
    "default_transaction_deferrable": "on",
    "client_min_messages": "'error'",
    "standard_conforming_strings": "off",
    "client_encoding": "'LATIN1'",
    "idle_session_timeout": "'1ms'",
}


def test_settings_of_the_database_change_nothing(run_server: Callable[..., RunningServer]) -> None:
    administer(*(f"ALTER DATABASE {{database}} SET {name} = {value}" for name, value in FOREIGN.items()))
    try:
        api = run_server(MESSAGES_ACCESS="open", WEB_CONCURRENCY="1").api()
        sent = api.send("ada", "a\\b € 'quoted'", metadata={"a": "\\"})
        assert sent["created_at"].endswith("Z")
        for write in writes(api, sent["id"])[:-1]:
            assert write().status in {200, 201}
        since = sent["created_at"]
        found = api.pages("/messages/", {"recipient": "ada", "created_after": since, "ordering": "created_at"})
        assert found[0] | {"read_at": None, "is_read": False} == sent
        assert len(found) == api.mailbox("ada")["total"] == 4
        connection.close()
    finally:
        administer(*(f"ALTER DATABASE {{database}} RESET {name}" for name in FOREIGN))
    with another_session() as session:
        assert session.execute("SHOW datestyle").fetchone() == ("ISO, MDY",)


def test_variables_of_libpq_change_nothing(run_server: Callable[..., RunningServer]) -> None:
    variables = {"PGDATESTYLE": "German", "PGTZ": "Asia/Kathmandu", "PGHOSTADDR": "127.0.0.9", "PGSERVICE": "none"}
    api = run_server(MESSAGES_ACCESS="open", WEB_CONCURRENCY="1", **variables).api()
    sent = api.send("ada")
    assert api.pages("/messages/", {"recipient": "ada", "created_after": sent["created_at"]}) == [sent]


def test_unconfirmed_commits_are_noticed_whatever_client_min_messages_says(transactional_db: None) -> None:
    with database_setting("client_min_messages", "error"), connection.cursor() as cursor:
        cursor.execute("SHOW client_min_messages")
        assert cursor.fetchone() == ("notice",)
    reconnect()
