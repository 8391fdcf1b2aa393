"""The admin as staff meet it: forms, changes by the services, permissions, lists that cost the same at any size."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from messaging import services
from messaging.access import EVERYONE
from messaging.admin import lists
from messaging.admin import messages as messages_admin
from messaging.models import Mailbox, Message
from messaging.records import NewMessage
from tests.commands import run
from tests.pages import Page
from tests.staff import MAILBOXES, MESSAGES, Staff, act, get, listed
from tests.state import miscounted, nothing_changes


@pytest.fixture
def ada(db: None) -> list[str]:
    """Three messages to ada, one read, and one to bob; the ids of the three, the latest first."""
    sent = services.send_batch(
        messages=[NewMessage("ada", f"note {number}", "carl") for number in (1, 2, 3)]
        + [NewMessage("bob", "other", "dora")],
        caller=EVERYONE,
    )
    services.mark_read(ids=[Message.objects.get(content="note 1").pk], caller=EVERYONE)
    return [sent[2].id, sent[1].id, sent[0].id]


@pytest.fixture(autouse=True)
def _counts_stay_exact(db: None) -> Iterator[None]:
    yield
    assert miscounted() == []
    assert run("check_mailboxes").failure == ""


def test_only_staff_can_log_in(db: None) -> None:
    for name, is_staff in (("clerk", True), ("guest", False)):
        User.objects.create_user(name, password="Secret-42-words", is_staff=is_staff)
        client = Client(enforce_csrf_checks=True)
        assert client.get(MESSAGES).status_code == 302
        fields = dict(get(client, "/admin/login/").hidden) | {"username": name, "password": "Secret-42-words"}
        client.post("/admin/login/", fields)
        assert client.get("/admin/").status_code == (200 if is_staff else 302)


def test_the_index_names_the_service(clerk: Client) -> None:
    text = get(clerk, "/admin/").text
    assert "Messages" in text
    assert "Django administration" not in text


def test_messages_are_listed_latest_first(clerk: Client, ada: list[str]) -> None:
    assert listed(clerk) == ["other", "note 3", "note 2", "note 1"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"q": "ada"}, ["note 3", "note 2", "note 1"]),
        ({"q": "ad"}, ["note 3", "note 2", "note 1"]),
        ({"q": "dora"}, ["other"]),
        ({"q": " bob "}, ["other"]),
        ({"q": "note"}, []),  # a content, and no mailbox chosen
        ({"q": "note 2", "recipient": "ada"}, ["note 2"]),
        ({"q": "car", "recipient": "ada"}, ["note 3", "note 2", "note 1"]),
        ({"q": "other", "recipient": "ada"}, []),
        ({"recipient": "bob"}, ["other"]),
        ({"recipient": "BOB"}, []),
        ({"recipient": "no\x00body"}, []),
        ({"is_read": "true"}, ["note 1"]),
        ({"is_read": "false", "recipient": "ada"}, ["note 3", "note 2"]),
        ({"is_read": "maybe", "recipient": "bob"}, ["other"]),
        ({"q": "100%"}, []),
        ({"created_at__gte": "2000-01-01 00:00:00+00:00", "recipient": "bob"}, ["other"]),
        ({"created_at__lt": "2000-01-01 00:00:00+00:00"}, []),
        ({"created_at__gte": "2000-01-01"}, ["other", "note 3", "note 2", "note 1"]),
        ({"created_at__gte": "2000-01-01", "created_at__lt": "2000-01-02"}, []),
        ({"created_at__lt": "9999-12-31T23:59:59Z", "recipient": "ada"}, ["note 3", "note 2", "note 1"]),
        ({"created_at__gte": "0001-01-01", "q": "dora"}, ["other"]),
        ({"created_at__lt": "0001-01-01", "q": "ada"}, []),
        ({"created_at__gte": "2000-01-01", "recipient": "ada", "q": "2"}, ["note 2"]),
        ({"sender": "dora"}, ["other"]),
        ({"sender": "dor"}, []),
        ({"sender": "no\x00body"}, []),
        ({"sender": "carl", "recipient": "ada", "is_read": "true"}, ["note 1"]),
        ({"sender": "carl", "recipient": "bob"}, []),
    ],
)
def test_search_and_filters_find_messages(
    clerk: Client, ada: list[str], query: dict[str, str], found: list[str]
) -> None:
    assert listed(clerk, **query) == found


@pytest.mark.parametrize(
    ("language", "query", "found"),
    [
        ("simple", "brown FOX", ["The quick brown foxes; a fox"]),
        ("simple", '"fox brown"', []),
        ("simple", "brown -fox", []),
        ("simple", "lazy or quick", ["Lazy dogs", "The quick brown foxes; a fox"]),
        ("simple", "dog", ["Lazy dogs"]),  # a part of a word
        ("simple", "jumping", []),
        ("english", "jumping quickly", ["It jumped, quick as ever"]),
        ("german", "häusern", ["In allen Haus und Häuser"]),
        ("simple", "狐", ["素早い茶色の狐"]),
        ("simple", "100%", ["100% of it_all"]),
        ("simple", "00_ of", []),
        ("simple", "'\\\" & | ! : *", []),
    ],
)
def test_contents_of_a_mailbox_are_found_by_their_words(
    clerk: Client, settings: Any, language: str, query: str, found: list[str]
) -> None:
    settings.MESSAGES_SEARCH_LANGUAGE = language
    contents = [
        "The quick brown foxes; a fox", "Lazy dogs", "In allen Haus und Häuser", "素早い茶色の狐", "100% of it_all",
    ]  # fmt: skip
    if language == "english":
        contents.append("It jumped, quick as ever")
    services.send_batch(messages=[NewMessage("ada", content) for content in contents], caller=EVERYONE)
    services.send(message=NewMessage("bob", " ".join(contents)), caller=EVERYONE)
    assert listed(clerk, recipient="ada", q=query) == found


def test_a_content_of_more_words_than_postgresql_can_compare_is_searched(clerk: Client) -> None:
    services.send(message=NewMessage("ada", " ".join(f"w{number}" for number in range(125_000))), caller=EVERYONE)
    services.send(message=NewMessage("ada", "brown foxes"), caller=EVERYONE)
    assert listed(clerk, recipient="ada", q="foxes brown") == ["brown foxes"]
    assert len(listed(clerk, recipient="ada", q="w124999")) == 1


def test_filters_that_are_typed_in_keep_the_others(clerk: Client, ada: list[str]) -> None:
    services.send(message=NewMessage('"><script>', "odd", "a&b"), caller=EVERYONE)
    assert listed(clerk, recipient='"><script>', sender="a&b") == ["odd"]
    page = get(clerk, MESSAGES, recipient="ada", is_read="true", created_at__gte="2000-01-01")
    assert page.hidden.count(("is_read", "true")) == 4  # the search, and three filters
    assert page.hidden.count(("recipient", "ada")) == 3
    html = clerk.get(MESSAGES, {"created_at__gte": "2000-01-01", "recipient": '"><script>'}).content.decode()
    assert 'name="created_at__gte" value="2000-01-01"' in html
    assert "><script>" not in html


def test_a_message_is_found_by_its_id(clerk: Client, ada: list[str]) -> None:
    assert get(clerk, MESSAGES, q=ada[1]).rows == [ada[1]]


@pytest.mark.parametrize("query", [{"q": "\x00"}, {"o": "3.-1"}, {"p": "99"}, {"created_at__gte": "never"}])
def test_an_invalid_address_is_not_a_500(clerk: Client, ada: list[str], query: dict[str, str]) -> None:
    assert clerk.get(MESSAGES, query, follow=True).status_code == 200


def test_a_message_is_shown_whole_and_cannot_be_changed(clerk: Client) -> None:
    content = "<script>alert(1)</script>\n" + "Ünï-" * 500
    services.send(message=NewMessage("ada", content, "carl", '{"a":{"b":"é"}}'), caller=EVERYONE)
    address = reverse("admin:messaging_message_change", args=(Message.objects.get().pk,))

    html = clerk.get(address).content.decode()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "Ünï-" * 500 in Page(html).text
    assert "é" in Page(html).text
    assert Page(html).buttons == []
    form = get(clerk, "/admin/")
    with nothing_changes():
        assert clerk.post(address, dict(form.hidden) | {"content": "changed"}).status_code == 403
        assert clerk.get(f"{MESSAGES}add/").status_code == 403


def test_mailboxes_are_listed_with_their_counts_and_lead_to_their_messages(clerk: Client, ada: list[str]) -> None:
    services.send(message=NewMessage("a&b=c d", "odd name"), caller=EVERYONE)
    html = clerk.get(MAILBOXES).content.decode()
    assert re.findall(r'field-total">(\d+)<.*?field-unread">(\d+)<.*?field-version">(\d+)<', html) == [
        ("1", "1", "1"),
        ("3", "2", "4"),
        ("1", "1", "1"),
    ]
    links = re.findall(r'href="(/admin/messaging/message/\?[^"]+)"', html)
    assert [Page(clerk.get(link.replace("&amp;", "&")).content.decode()).rows for link in links[1:2]] == [ada]
    assert len(get(clerk, links[0].replace("&amp;", "&")).rows) == 1
    assert "bob" in get(clerk, MAILBOXES, q="bo").text
    assert "0 mailboxes" in get(clerk, MAILBOXES, q="ob").text


def test_mailboxes_can_be_neither_made_nor_changed_nor_deleted(clerk: Client, ada: list[str]) -> None:
    pk = Mailbox.objects.get(recipient="ada").pk
    assert get(clerk, f"{MAILBOXES}{pk}/change/").buttons == []
    assert clerk.get(f"{MAILBOXES}add/").status_code == 403
    assert clerk.get(f"{MAILBOXES}{pk}/delete/").status_code == 403
    assert "delete_selected" not in get(clerk, MAILBOXES).actions


def test_messages_are_marked_as_read_and_unread(clerk: Client, ada: list[str]) -> None:
    first_read_at = Message.objects.get(pk=ada[2]).read_at
    assert "Marked as read: 2 messages, 1 unchanged." in act(clerk, "mark_read", ada).text
    assert Message.objects.get(pk=ada[2]).read_at == first_read_at
    mailbox = Mailbox.objects.get(recipient="ada")
    assert (mailbox.version, mailbox.unread) == (5, 0)

    assert "Marked as unread: 1 message." in act(clerk, "mark_unread", ada[:1]).text
    assert Mailbox.objects.get(recipient="ada").unread == 1


def test_deleting_one_message_asks_for_confirmation(clerk: Client, ada: list[str]) -> None:
    address = reverse("admin:messaging_message_delete", args=(ada[0],))
    question = get(clerk, address)
    assert "note 3" in question.text
    assert clerk.post(address, dict(question.hidden)).status_code == 302
    mailbox = Mailbox.objects.get(recipient="ada")
    assert (mailbox.version, mailbox.total, mailbox.unread) == (5, 2, 1)
    assert not Message.objects.filter(pk=ada[0]).exists()


def test_deleting_selected_messages_asks_for_confirmation(clerk: Client, ada: list[str], settings: Any) -> None:
    settings.MESSAGES_MAX_BULK = 2  # so that three take two transactions
    question = act(clerk, "delete_selected", ada)
    assert "note 1" in question.text
    assert Message.objects.count() == 4
    answer = act(clerk, "delete_selected", question.rows or ada, post="yes")
    assert "Deleted: 3 messages." in answer.text
    mailbox = Mailbox.objects.get(recipient="ada")
    assert (mailbox.total, mailbox.unread) == (0, 0)
    assert Message.objects.count() == 1


def test_a_message_deleted_meanwhile_is_not_an_error(clerk: Client, ada: list[str]) -> None:
    form = get(clerk, MESSAGES)
    services.delete(ids=[Message.objects.get(pk=ada[0]).pk], caller=EVERYONE)
    fields = dict(form.hidden) | {"action": "mark_read", "_selected_action": ada, "index": "0"}
    assert "Marked as read: 1 message" in clerk.post(MESSAGES, fields, follow=True).content.decode()


@pytest.mark.parametrize("action", ["mark_read", "delete_selected"])
def test_select_all_never_reaches_more_than_the_list_can_show(
    clerk: Client, ada: list[str], monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    for module in (lists, messages_admin):
        monkeypatch.setattr(module, "MAX_LISTED", 3)
    with nothing_changes():
        answer = act(clerk, action, ada, select_across="1", post="yes")
    assert "More than 3 messages at once. Search or filter for fewer." in answer.text
    assert "The first 3 messages: search or filter for others" in get(clerk, MESSAGES).text


# Permissions


def test_without_permission_the_admin_shows_nothing(staff: Staff, ada: list[str]) -> None:
    client = staff()
    for address in (MESSAGES, MAILBOXES, f"{MESSAGES}{ada[0]}/change/", f"{MESSAGES}{ada[0]}/delete/"):
        assert client.get(address).status_code == 403


@pytest.mark.parametrize(
    ("permissions", "offered"),
    [
        (("view_message",), []),
        (("view_message", "change_message"), ["mark_read", "mark_unread"]),
        (("view_message", "delete_message"), ["delete_selected"]),
    ],
)
def test_only_permitted_actions_are_offered_and_carried_out(
    staff: Staff, ada: list[str], permissions: tuple[str, ...], offered: list[str]
) -> None:
    client = staff(*permissions)
    assert [action for action in get(client, MESSAGES).actions if not action.startswith("export")] == offered
    form = dict(get(client, "/admin/").hidden)
    for action in {"mark_read", "mark_unread", "delete_selected"} - set(offered):
        with nothing_changes():
            client.post(MESSAGES, form | {"action": action, "_selected_action": ada, "index": "0", "post": "yes"})
    if "delete_selected" not in offered:
        with nothing_changes():
            assert client.post(f"{MESSAGES}{ada[0]}/delete/", form | {"post": "yes"}).status_code == 403


def test_a_form_without_its_token_is_refused(clerk: Client, ada: list[str]) -> None:
    with nothing_changes():
        fields = {"action": "mark_read", "_selected_action": ada, "index": "0"}
        assert clerk.post(MESSAGES, fields).status_code == 403


# Session, user, two of permissions, the count, the rows; where only the newest are looked through, their edge; and for
# a search in all mailboxes those of its recipients, and its senders.
@pytest.mark.parametrize(("address", "query", "expected"), [
    (MESSAGES, {}, 6), (MESSAGES, {"recipient": "ada"}, 6), (MESSAGES, {"is_read": "false"}, 7),
    (MESSAGES, {"is_read": "false", "recipient": "ada"}, 6), (MESSAGES, {"q": "note", "recipient": "ada"}, 8),
    (MESSAGES, {"q": "carl"}, 9), (MESSAGES, {"q": "ada"}, 10), (MAILBOXES, {}, 6), (MAILBOXES, {"q": "a"}, 6),
])  # fmt: skip
def test_a_list_takes_the_same_queries_whatever_it_holds(
    clerk: Client, ada: list[str], address: str, query: dict[str, str], expected: int
) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            get(clerk, address, **query)
        return len(captured)

    few = queries()
    drafts = [NewMessage(f"a{index % 60}", "more", "carl") for index in range(200)] + [NewMessage("ada", "more")] * 60
    services.send_batch(messages=drafts, caller=EVERYONE)
    assert few == queries() == expected


def test_no_query_counts_or_skips_more_rows_than_may_be_listed(clerk: Client, ada: list[str]) -> None:
    with CaptureQueriesContext(connection) as captured:
        get(clerk, MESSAGES)
    [count] = [query["sql"] for query in captured if "COUNT(" in query["sql"]]
    assert f"LIMIT {lists.MAX_LISTED}" in count
