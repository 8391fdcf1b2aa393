"""Refusals of the admin are pages for people: each gives the reason and the missing setting."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, OpenerDirector, build_opener

import pytest
from django.contrib.sessions.models import Session
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client

from messaging import services
from messaging.access import EVERYONE
from messaging.auth import keys
from messaging.records import NewMessage
from tests.pages import Page
from tests.postgres_servers import PostgresServer
from tests.servers import PROJECT_DIR, RunningServer, wait_until
from tests.sessions import another_session
from tests.staff import KEYS, MAILBOXES, MESSAGES, Staff, get
from tests.state import nothing_changes
from tests.test_reading import MISSING


def refused(response: Any, status: int) -> str:
    """The text of a refusal, which is a page with the look of the admin."""
    assert response.status_code == status
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "no-store" in response.headers["Cache-Control"]
    html = response.content.decode()
    assert "admin/css/base.css" in html
    assert response.headers["X-Request-ID"] in html
    return Page(html).text


@pytest.mark.parametrize("host", ["elsewhere.example.com", "a<b>", "x:99999999"])
def test_a_host_that_is_not_allowed(client: Client, host: str) -> None:
    text = refused(client.get("/admin/login/", headers={"host": host}), 400)
    assert "ALLOWED_HOSTS" in text
    assert repr(host) in text


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"origin": "https://a.example.com"}, ["CSRF_TRUSTED_ORIGINS=https://a.example.com", "TRUST_FORWARDED_PROTO"]),
        ({"origin": "http://a.example.com"}, ["from http://a.example.com", "http://testserver only", "Host"]),
        ({"origin": "null"}, ["an address that the browser withheld", "http://testserver/admin/"]),
    ],
)  # fmt: skip
def test_a_form_from_a_foreign_origin(db: None, headers: dict[str, str], named: list[str]) -> None:
    client = Client(enforce_csrf_checks=True)
    form = dict(get(client, "/admin/login/").hidden) | {"username": "a", "password": "b"}
    text = refused(client.post("/admin/login/", form, headers=headers), 403)
    for part in named:
        assert part in text


@pytest.mark.parametrize(("headers", "sender"), [
    ({}, "an address that the browser withheld"), ({"referer": "https://a.example.com/x"}, "https://a.example.com"),
    ({"referer": "nonsense"}, "an address that the browser withheld"),
])  # fmt: skip
def test_a_form_over_https_without_origin(db: None, headers: dict[str, str], sender: str) -> None:
    client = Client(enforce_csrf_checks=True)
    form = {**dict(get(client, "/admin/login/").hidden), "username": "a", "password": "b"}
    text = refused(client.post("/admin/login/", form, secure=True, headers=headers), 403)
    assert f"sent from {sender}" in text
    assert "CSRF_TRUSTED_ORIGINS" in text


def test_a_cookie_that_the_browser_keeps_for_https(db: None, settings: Any) -> None:
    settings.CSRF_COOKIE_SECURE = True
    text = refused(Client(enforce_csrf_checks=True).post("/admin/login/", {}), 403)
    assert "PLAIN_HTTP=true" in text
    text = refused(Client(enforce_csrf_checks=True).post("/admin/login/", {}, secure=True, headers={
        "referer": "https://testserver/admin/login/"}), 403)  # fmt: skip
    assert "PLAIN_HTTP" not in text
    assert "Allow cookies" in text


def test_a_stale_form(clerk: Client) -> None:
    get(clerk, "/admin/")
    assert "Load the page again" in refused(clerk.post(MESSAGES, {"csrfmiddlewaretoken": "x" * 64}), 403)


def test_what_the_permissions_do_not_allow(staff: Staff) -> None:
    client = staff()
    for address in (MESSAGES, MAILBOXES, KEYS, f"{KEYS}add/", f"{MESSAGES}add/", "/admin/auth/user/"):
        text = refused(client.get(address), 403)
        assert "You are logged in as clerk" in text
        assert "superuser" in text


@pytest.mark.parametrize("path", ["nowhere/", "messaging/nowhere/", "messaging/message/1/2/3/4", "auth/user/nobody/x"])
def test_an_address_that_leads_nowhere(clerk: Client, path: str) -> None:
    assert "nothing at this" in refused(clerk.get(f"/admin/{path}"), 404)


def test_a_missing_message_redirects_to_the_index_with_a_notice(clerk: Client) -> None:
    for address in (f"{MESSAGES}{MISSING.rpartition('/')[2]}/change/", f"{MESSAGES}x/change/", f"{MAILBOXES}9/change/"):
        response = clerk.get(address, follow=True)
        assert response.status_code == 200
        assert "Perhaps it was deleted" in response.content.decode()


def test_a_method_that_a_page_does_not_take(clerk: Client) -> None:
    response = clerk.get("/admin/logout/")
    assert "use its button" in refused(response, 405)
    assert "POST" in response.headers["Allow"]


@pytest.mark.parametrize("query", [
    {"content__icontains": "x"}, {"content__regex": "((("}, {"mailbox__version__gt": "1"}, {"id__in": "1,2"},
    {"x": "1"}, {"_to_field": "content"}, {"e": "1", "created_at__gte": "never"},
])  # fmt: skip
def test_an_unknown_filter(clerk: Client, query: dict[str, str]) -> None:
    assert "choose its filters there" in refused(clerk.get(MESSAGES, query), 400)


@pytest.mark.parametrize("lookup", ["secret_sha256__startswith", "secret_sha256__gte", "prefix__regex"])
def test_keys_have_no_filters(staff: Staff, lookup: str) -> None:
    assert "choose its filters there" in refused(staff("view_apikey").get(KEYS, {lookup: "a"}), 400)


def test_a_file_in_a_form_is_not_kept(db: None, settings: Any, tmp_path: Path) -> None:
    """Forms are read before anybody has logged in, and a file on a disk would have no limit."""
    settings.FILE_UPLOAD_TEMP_DIR = str(tmp_path / "missing")
    client = Client(enforce_csrf_checks=True)
    form = dict(get(client, "/admin/login/").hidden) | {"username": "a", "password": "b"}
    file = SimpleUploadedFile("large", b"x" * (settings.FILE_UPLOAD_MAX_MEMORY_SIZE + 1))
    assert client.post("/admin/login/", form | {"file": file}).status_code == 200


def test_a_form_that_is_too_large(clerk: Client, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
    token = dict(get(clerk, "/admin/").hidden)
    assert "too large" in refused(clerk.post(MESSAGES, token | {"q": "x" * 200}), 413)
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = None
    settings.DATA_UPLOAD_MAX_NUMBER_FIELDS = 2
    refused(clerk.post(MESSAGES, token | {"a": "1", "b": "1", "c": "1"}), 400)


def test_a_statement_that_takes_too_long(clerk: Client) -> None:
    services.send(message=NewMessage("ada", "note"), caller=EVERYONE)
    with connection.cursor() as cursor:
        # Many times the same mailbox stand for a table that is too large.
        cursor.execute("ALTER TABLE messaging_mailbox RENAME TO messaging_mailbox_kept")
        cursor.execute(
            "CREATE VIEW messaging_mailbox AS SELECT k.* FROM messaging_mailbox_kept k, generate_series(1, 10000000000)"
        )
        cursor.execute("SET LOCAL statement_timeout = 50")
        assert "narrow the search" in refused(clerk.get(MAILBOXES), 503)


def test_a_session_that_ends_meanwhile(clerk: Client, settings: Any) -> None:
    settings.SESSION_SAVE_EVERY_REQUEST = True
    get(clerk, MESSAGES)

    def log_out_elsewhere(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if "messaging_message" in sql:
            Session.objects.all().delete()
        return execute(sql, *rest)

    with connection.execute_wrapper(log_out_elsewhere):
        assert "Log in again" in refused(clerk.get(MESSAGES), 400)


@pytest.mark.django_db(transaction=True)
def test_keys_are_revoked_all_or_none(staff: Staff) -> None:
    client = staff("view_apikey", "change_apikey")
    first, second = (keys.create(name=name, scopes=["read"])[0] for name in ("a", "b"))
    form = dict(get(client, KEYS).hidden) | {"action": "revoke_selected", "_selected_action": [first.pk, second.pk]}
    for locked in (first, second):
        with another_session() as session:
            session.execute("SELECT FROM messaging_apikey WHERE id = %s FOR UPDATE", [locked.pk])
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = 50")
            assert "Nothing was changed" in refused(client.post(KEYS, form), 503)
        assert [keys.state_of(key) for key in keys.all_keys()] == ["active", "active"]
    with connection.cursor() as cursor:
        cursor.execute("RESET lock_timeout")
    assert client.post(KEYS, form).status_code == 302
    assert [keys.state_of(key) for key in keys.all_keys()] == ["revoked", "revoked"]


@pytest.mark.django_db(transaction=True)
def test_a_change_of_a_locked_mailbox(staff: Staff) -> None:
    client = staff("view_message", "delete_message")
    sent = services.send(message=NewMessage("ada", "note"), caller=EVERYONE)
    address = f"{MESSAGES}{sent.id}/delete/"
    form = dict(get(client, address).hidden)
    with another_session() as session, nothing_changes():
        session.execute("SELECT FROM messaging_mailbox FOR UPDATE")
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = 50")
        response = client.post(address, form)
        assert "Nothing was changed" in refused(response, 503)
        assert response.headers["Retry-After"]
    with connection.cursor() as cursor:
        cursor.execute("RESET lock_timeout")
    assert client.post(address, form).status_code == 302


def test_a_500_shows_no_internals(clerk: Client) -> None:
    clerk.raise_request_exception = False
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE messaging_message ALTER COLUMN created_at TYPE text")
    text = refused(clerk.get(f"{MESSAGES}?created_at__gte=2026-01-01"), 500)
    assert "Report the request id" in text
    assert "messaging_message" not in text


def test_the_api_keeps_its_problem_documents(client: Client, db: None) -> None:
    for path in ("/administration", "/messages/x/y", "/adminx/"):
        response = client.get(path)
        assert response.headers["Content-Type"] == "application/problem+json"


# --- a database that is away


class Browser:
    """A browser's cookies, over the network to a running service."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._opener: OpenerDirector = build_opener(HTTPCookieProcessor(CookieJar()))

    def load(self, path: str, form: dict[str, str] | None = None) -> tuple[int, str, str]:
        """Status, media type and text of a page."""
        data = urlencode(form).encode() if form is not None else None
        try:
            response = self._opener.open(self.url + path, data, timeout=30)
        except HTTPError as error:
            response = error
        with response:
            return response.status, response.headers["Content-Type"], response.read().decode()

    def submit(self, path: str, **fields: str) -> tuple[int, str, str]:
        """Load a form, and send it filled in."""
        hidden = dict(Page(self.load(path)[2]).hidden)
        return self.load(path, hidden | fields)


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


def with_superuser(server: RunningServer, postgres: PostgresServer) -> Browser:
    """A browser in which a new superuser is logged in."""
    subprocess.run(
        [sys.executable, "manage.py", "createsuperuser", "--noinput", "--username=ada", "--email=a@b.example"],
        cwd=PROJECT_DIR, check=True, capture_output=True,
        env=os.environ | postgres.variables | {"DJANGO_SUPERUSER_PASSWORD": "a long enough one"},
    )  # fmt: skip
    browser = Browser(server.url)
    status, _, text = browser.submit("/admin/login/?next=/admin/", username="ada", password="a long enough one")
    assert (status, "Log out" in text) == (200, True)
    return browser


def test_a_database_that_is_away(postgres: PostgresServer) -> None:
    with RunningServer(**postgres.variables, PLAIN_HTTP="true", WEB_CONCURRENCY="1", ACCESS_LOG="false") as server:
        logged_in, newcomer = with_superuser(server, postgres), Browser(server.url)
        postgres.stop()

        for answer in (
            logged_in.load("/admin/"),
            logged_in.load(MESSAGES + "?q=ada"),
            logged_in.load("/admin/nowhere/"),
            newcomer.submit("/admin/login/", username="ada", password="a long enough one"),
        ):
            status, media_type, text = answer
            assert (status, media_type) == (503, "text/html; charset=utf-8")
            assert "The database cannot be reached" in text
            assert "admin/css/base.css" in text

        postgres.start()
        wait_until(lambda: logged_in.load(MESSAGES)[0] == 200, seconds=10, what="the list of messages")


def test_a_change_that_no_standby_confirms_is_not_shown_as_made(postgres: PostgresServer) -> None:
    with RunningServer(**postgres.variables, PLAIN_HTTP="true", WEB_CONCURRENCY="1") as server:
        staff = with_superuser(server, postgres)
        with postgres.session() as operator:
            operator.execute("ALTER SYSTEM SET synchronous_standby_names = 'ghost'")
            operator.execute("SELECT pg_reload_conf()")
            for path, fields in (
                (KEYS + "add/", {"name": "inbox", "scopes": "read"}),
                ("/admin/auth/group/add/", {"name": "clerks"}),
            ):
                status, media_type, text = staff.submit(path, **fields)
                assert (status, media_type) == (503, "text/html; charset=utf-8")
                assert "whether it was made is unknown" in text
            assert staff.load(KEYS)[0] == 200
            operator.execute("ALTER SYSTEM RESET synchronous_standby_names")
            operator.execute("SELECT pg_reload_conf()")
        assert "inbox" in staff.load(KEYS)[2]


@pytest.mark.parametrize(
    ("path", "action"),
    [
        (MESSAGES, "mark_read"),
        (MESSAGES, "export_csv"),
        (KEYS, "revoke_selected"),
    ],
)
def test_a_selection_of_invalid_ids(admin_client: Client, path: str, action: str) -> None:
    with nothing_changes():
        refused(admin_client.post(path, {"action": action, "_selected_action": ["1e9", "abc"]}), 400)
