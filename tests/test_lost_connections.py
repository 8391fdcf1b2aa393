"""What the service says about a change whose connection to PostgreSQL is lost: the truth, and no more than it knows."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection

from messaging.auth import keys
from messaging.management import partitioning
from messaging.models import ApiKey
from tests.commands import process, run
from tests.conftest import MakeKey
from tests.helpers import Answer, Api
from tests.partitions import distribute, not_partitioned, reconnect
from tests.staff import KEYS, MESSAGES, get, log_in
from tests.state import miscounted
from tests.tcp_proxy import Moment, TcpProxy


@pytest.fixture
def proxy(transactional_db: None) -> Iterator[TcpProxy]:
    """A proxy between this process and the test server."""
    known: Any = connection.settings_dict
    before = {name: known[name] for name in ("HOST", "PORT")}
    port = int(known["PORT"] or 5432)
    host = str(known["HOST"])
    with TcpProxy(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)) as proxy:
        reconnect()
        known |= {"HOST": "127.0.0.1", "PORT": str(proxy.port)}
        try:
            yield proxy
        finally:
            proxy.release()
            known |= before
            reconnect()


@pytest.fixture
def messages(proxy: TcpProxy, api: Api) -> list[str]:
    """The ids of four messages to ada, the first and the third of them read."""
    ids = [api.send("ada", f"{number}")["id"] for number in range(4)]
    api.patch("/messages/mark-read", {"ids": ids[::2]}).expect(200)
    return ids


Change = Callable[..., Answer]


def send(api: Api, ids: list[str], **headers: str) -> Answer:
    return api.post("/messages/", {"recipient": "ada", "content": "new"}, headers=headers)


def batch(api: Api, ids: list[str], **headers: str) -> Answer:
    return api.post("/messages/batch", {"messages": [{"recipient": "ada", "content": "new"}] * 2}, headers=headers)


def mark(api: Api, ids: list[str], **headers: str) -> Answer:
    return api.patch("/messages/mark-read", {"ids": ids}, headers=headers)


def mark_unread(api: Api, ids: list[str], **headers: str) -> Answer:
    return api.patch("/messages/mark-unread", {"ids": ids}, headers=headers)


def mark_up_to(api: Api, ids: list[str], **headers: str) -> Answer:
    return api.patch("/messages/mark-read", {"recipient": "ada", "up_to": ids[-1]}, headers=headers)


def delete(api: Api, ids: list[str], **headers: str) -> Answer:
    return api.delete(f"/messages/{ids[0]}", headers=headers)


def bulk_delete(api: Api, ids: list[str], **headers: str) -> Answer:
    return api.post("/messages/bulk-delete", {"ids": ids[:2]}, headers=headers)


# Of a mailbox with 4 messages, 2 of them unread: total and unread after the change.
CHANGES: dict[Change, tuple[int, int]] = {
    send: (5, 3), batch: (6, 4), mark: (4, 0), mark_unread: (4, 4), mark_up_to: (4, 0), delete: (3, 2),
    bulk_delete: (2, 1),
}  # fmt: skip
KEY = {"Idempotency-Key": "once"}

changes = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


def counts(api: Api) -> tuple[int, int]:
    assert miscounted() == []
    mailbox = api.mailbox("ada")
    return mailbox["total"], mailbox["unread"]


@changes
@pytest.mark.parametrize("headers", [{}, KEY], ids=["plain", "keyed"])
def test_a_change_whose_confirmation_is_lost_is_unknown_or_repeated_safely(
    proxy: TcpProxy, api: Api, messages: list[str], change: Change, headers: dict[str, str]
) -> None:
    # A transaction's COMMIT, or the one statement that is its own transaction.
    commit = proxy.fault("COMMIT", "after")
    is_one_statement = change is send or (change is not mark_up_to and not headers)
    statement = proxy.fault("messaging_mailbox", "after") if is_one_statement else commit
    answer = change(api, messages, **headers)
    assert commit.happened + (statement is not commit) * statement.happened == 1
    if answer.status == 503:
        answer.expect(503, "outcome_unknown")
        assert int(answer.headers["Retry-After"]) >= 1
    else:
        # Under its key it can be run again, and be the first one's outcome still.
        assert headers
    assert counts(api) == CHANGES[change]
    if headers:
        again = change(api, messages, **headers)
        assert again.status in {200, 201, 204}
        assert again.headers["Idempotency-Replayed"] == "true"
        assert counts(api) == CHANGES[change]


@changes
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_keyed_change_whose_connection_is_lost_before_its_end_is_run_again(
    proxy: TcpProxy, api: Api, messages: list[str], change: Change, when: Moment
) -> None:
    fault = proxy.fault("messaging_mailbox", when)
    assert change(api, messages, **KEY).status in {200, 201, 204}
    assert fault.happened == 1
    assert counts(api) == CHANGES[change]


@pytest.mark.parametrize("sql", ["UPDATE messaging_message", "FOR NO KEY UPDATE"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_transaction_whose_connection_is_lost_before_commit_is_run_again(
    proxy: TcpProxy, api: Api, messages: list[str], sql: str, when: Moment
) -> None:
    fault = proxy.fault(sql, when)
    mark_up_to(api, messages).expect(200)
    assert fault.happened == 1
    assert counts(api) == (4, 0)


@changes
def test_a_statement_that_never_arrived_is_not_called_undone(
    proxy: TcpProxy, api: Api, messages: list[str], change: Change
) -> None:
    before = counts(api)
    # The service cannot know whether it broke before PostgreSQL or behind it.
    proxy.fault("messaging_mailbox" if change is not mark_up_to else "COMMIT", "before")
    change(api, messages).expect(503, "outcome_unknown")
    assert counts(api) == before
    assert change(api, messages).status in {200, 201, 204}
    assert counts(api) == CHANGES[change]


def test_a_database_that_stays_away_in_the_middle_of_a_transaction(
    proxy: TcpProxy, api: Api, messages: list[str], settings: Any
) -> None:
    settings.MESSAGES_RETRY_SECONDS = 0
    proxy.fault("UPDATE messaging_message", "before", times=100)
    mark_up_to(api, messages).expect(503, "database_unavailable")
    assert counts(api) == (4, 2)


def test_a_keyed_send_whose_outcome_cannot_be_looked_up_may_have_been_made(
    proxy: TcpProxy, api: Api, settings: Any
) -> None:
    api.send("ada")
    sending = proxy.fault("messaging_mailbox", "after")
    looking = proxy.fault("FROM messaging_outcome", "before")
    send(api, [], **KEY).expect(201)
    assert (sending.happened, looking.happened) == (1, 1)
    settings.MESSAGES_RETRY_SECONDS = 0.2
    proxy.fault("messaging_mailbox", "after")
    proxy.fault("FROM messaging_outcome", "before", times=100)
    send(api, [], **{"Idempotency-Key": "another"}).expect(503, "outcome_unknown")
    proxy.release()
    assert counts(api) == (3, 3)


def test_the_bookkeeping_of_a_key_costs_the_request_nothing(proxy: TcpProxy, api: Api) -> None:
    api.send("ada")
    whens: tuple[Moment, ...] = ("before", "after")
    for when in whens:
        ApiKey.objects.update(last_used_at=None)
        keys.verifier = keys.Verifier()
        fault = proxy.fault("SET last_used_at", when)
        send(api, []).expect(201)
        assert fault.happened == 1
    assert counts(api) == (3, 3)


def test_an_unconfirmed_commit_of_bookkeeping_is_not_that_of_the_request(proxy: TcpProxy, api: Api) -> None:
    api.send("ada")
    session: Any = connection.connection
    session.unreplicated = True  # as PostgreSQL's warning leaves it
    send(api, []).expect(201)
    mark_up_to(api, [api.send("ada")["id"]]).expect(200)


@pytest.mark.parametrize(
    "path", ["/messages/?recipient=ada", "/messages/?recipient=ada&sender=", "/mailbox?recipient=ada"]
)
def test_a_read_whose_connection_is_lost_is_run_again(
    proxy: TcpProxy, api: Api, messages: list[str], path: str
) -> None:
    whens: tuple[Moment, ...] = ("before", "after")
    for when in whens:
        fault = proxy.fault("messaging_mailbox", when)
        api.get(path).expect(200)
        assert fault.happened == 1


def test_a_server_that_falls_silent_in_a_commit(proxy: TcpProxy, api: Api, messages: list[str], settings: Any) -> None:
    settings.POSTGRES_CLIENT_TIMEOUT_SECONDS = 0.3
    reconnect()
    fault = proxy.fault("COMMIT", "hold")
    mark_up_to(api, messages).expect(503, "outcome_unknown")
    assert fault.happened == 1
    # One connection that hangs is no reason to refuse others: the cancel request was accepted.
    assert counts(api) == (4, 2)
    proxy.cut()


@pytest.mark.parametrize(
    ("command", "statement", "told"),
    [
        (("create_api_key", "shop", "--scopes", "read"), "COMMIT", "may have been made"),
        (("revoke_api_key", "KEY"), "UPDATE", "may have been made"),
        (("seed", "--messages", "2", "--recipients", "1"), "COMMIT", "is unknown. [^.]+. 0 of 2 messages"),
        (("load", "-"), "COMMIT", "is unknown. [^.]+. Sent 0 messages"),
        (("purge", "--older-than", "1s"), "WITH locked", "may have been made"),
        (("erase", "user1@example.com"), "WITH locked", "is unknown. [^.]+. Not everything is deleted yet"),
        pytest.param(
            ("distribute", "--partitions", "2"), "COMMIT", "may have been made", marks=not_partitioned("from plain")
        ),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_command_whose_connection_is_lost_says_that_its_change_may_have_been_made(
    proxy: TcpProxy, when: Moment, command: tuple[str, ...], statement: str, told: str
) -> None:
    assert run("seed", "--messages", "2", "--recipients", "1").failure == ""
    key, _ = keys.create(name="shop", scopes=["read"])
    proxy.fault(statement, when)
    parts = [key.prefix if part == "KEY" else part for part in command]
    proxied = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(proxy.port), "MESSAGES_RETRY_SECONDS": "0"}
    with process(*parts, nohup=False, **proxied) as running:
        _, err = running.communicate(b'{"recipient": "ada", "content": "x"}', timeout=60)
    assert running.returncode == 1
    assert re.search(told, err.decode())
    assert not re.search("Traceback|Idempotency-Key|Start it|Nothing was changed", err.decode())
    assert miscounted() == []
    if command[0] == "distribute":
        assert partitioning.partitions() == (2 if when == "after" else 1)
        distribute(1)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_load_whose_end_is_not_confirmed_has_sent_all(proxy: TcpProxy, when: Moment) -> None:
    proxy.fault('DELETE FROM "messaging_outcome"', when)
    proxied = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(proxy.port), "MESSAGES_RETRY_SECONDS": "0"}
    with process("load", "-", nohup=False, **proxied) as running:
        out, err = running.communicate(b'{"recipient": "ada", "content": "x"}', timeout=60)
    assert (running.returncode, out) == (0, b"Sent 1 messages, refused 0 lines.\n")
    assert b"--again sends them once more" in err


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_form_of_the_admin_whose_commit_is_not_confirmed_may_have_changed_something(
    proxy: TcpProxy, make_key: MakeKey, when: Moment
) -> None:
    make_key("read")
    clerk = log_in("view_apikey", "change_apikey")
    form = dict(get(clerk, KEYS).hidden)
    fields = form | {"action": "revoke_selected", "_selected_action": [str(ApiKey.objects.get().pk)], "index": "0"}
    proxy.fault("COMMIT", when)
    response = clerk.post(KEYS, fields)
    assert response.status_code == 503
    assert "may have been changed" in response.content.decode()
    assert (ApiKey.objects.get().revoked_at is not None) == (when == "after")


def test_a_deletion_in_the_admin_that_is_not_confirmed_is_told_without_headers_of_requests(
    proxy: TcpProxy, api: Api
) -> None:
    clerk = log_in("view_message", "delete_message")
    chosen = [api.send("ada")["id"]]
    fields = dict(get(clerk, MESSAGES).hidden) | {
        "action": "delete_selected", "_selected_action": chosen, "index": "0", "post": "yes"
    }  # fmt: skip
    fault = proxy.fault("COMMIT", "after")
    shown = clerk.post(MESSAGES, fields, follow=True).content.decode()
    assert fault.happened == 1
    assert "whether it was made is unknown." in shown
    assert "Idempotency-Key" not in shown
