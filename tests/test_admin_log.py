"""Django's admin log has one entry for each action of staff: who, what, how many."""

import re
from typing import Any

import pytest
from django.contrib.admin.models import ADDITION, CHANGE, DELETION, LogEntry
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client
from django.urls import reverse

from messaging import services
from messaging.access import EVERYONE
from messaging.auth import keys
from messaging.models import ApiKey, Message
from messaging.records import NewMessage
from tests.sessions import another_session
from tests.staff import KEYS, Staff, act, get


def sent(*recipients: str) -> list[str]:
    """The ids of new messages."""
    messages = [NewMessage(recipient, f"note {number}") for number, recipient in enumerate(recipients)]
    return [record.id for record in services.send_batch(messages=messages, caller=EVERYONE)]


def logged() -> tuple[str, int, str, str, str | None]:
    """Who did what in the only entry of the log."""
    entry = LogEntry.objects.get()
    return entry.user.get_username(), entry.action_flag, entry.object_repr, entry.change_message, entry.object_id


@pytest.mark.parametrize(
    ("action", "name", "flag"),
    [
        ("mark_read", "Marked as read", CHANGE),
        ("mark_unread", "Marked as unread", CHANGE),
        ("delete_selected", "Deleted", DELETION),
    ],
)
def test_an_action_on_many_messages_is_one_entry(
    clerk: Client, settings: Any, action: str, name: str, flag: int
) -> None:
    settings.MESSAGES_MAX_BULK = 5  # so that it takes several transactions
    ids = sent("ada", "bob", "cleo", "dora", *["ada"] * 9)
    if action == "mark_unread":
        services.mark_read(ids=ids, caller=EVERYONE)
    act(clerk, action, ids, post="yes")

    who, what, messages, text, object_id = logged()
    assert (who, what, object_id) == ("clerk", flag, None)
    assert re.fullmatch(r"13 messages to \w+, \w+, \w+ and 1 more", messages)
    assert text.startswith(f"{name} 13 messages: ")
    assert text.endswith(" and 3 more.")
    assert len(set(re.findall(r"[0-9a-f-]{36}", text)) & set(ids)) == 10


def test_names_that_do_not_fit_are_left_out(clerk: Client) -> None:
    # `erase` would not find one that is cut off.
    act(clerk, "mark_read", sent("x" * 255))
    assert logged()[2] == "1 message"


def test_unchanged_messages_are_not_logged(clerk: Client) -> None:
    ids = sent("ada", "ada")
    services.mark_read(ids=ids[:1], caller=EVERYONE)
    act(clerk, "mark_read", ids)
    assert logged() == ("clerk", CHANGE, "1 message to ada", f"Marked as read 1 message: {ids[1]}.", ids[1])
    act(clerk, "mark_read", ids)
    assert LogEntry.objects.count() == 1


def test_a_message_deleted_from_its_own_page_is_one_entry(clerk: Client) -> None:
    [message_id] = sent("ada")
    address = reverse("admin:messaging_message_delete", args=(message_id,))
    assert clerk.post(address, dict(get(clerk, address).hidden)).status_code == 302
    assert logged() == ("clerk", DELETION, "1 message to ada", f"Deleted 1 message: {message_id}.", message_id)


def test_the_text_of_a_message_is_not_logged(clerk: Client) -> None:
    ids = sent("ada")
    act(clerk, "delete_selected", ids, post="yes")
    assert not any("note" in part for part in map(str, logged()))


@pytest.mark.django_db(transaction=True)
def test_the_entry_has_what_was_done_before_a_failure(staff: Staff, settings: Any) -> None:
    settings.MESSAGES_MAX_BULK = 1
    settings.MESSAGES_RETRY_SECONDS = 0
    client = staff("view_message", "delete_message")
    [first, second] = sent("ada", "bob")
    with another_session() as session:
        # The list shows the latest first.
        session.execute("SELECT FROM messaging_mailbox WHERE recipient = 'ada' FOR UPDATE")
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = 50")
        answer = act(client, "delete_selected", [first, second], post="yes")
        with connection.cursor() as cursor:
            cursor.execute("RESET lock_timeout")
    assert "Deleted: 1 message." in answer.text
    assert "Then: " in answer.text
    assert logged()[2:] == ("1 message to bob", f"Deleted 1 message: {second}.", second)
    assert [str(pk) for pk in Message.objects.values_list("pk", flat=True)] == [first]


# API keys


@pytest.fixture
def keeper(staff: Staff) -> Client:
    """Staff with every permission for API keys."""
    return staff("view_apikey", "add_apikey", "change_apikey")


def test_a_new_key_is_shown_once_and_stored_nowhere(keeper: Client) -> None:
    form = dict(get(keeper, f"{KEYS}add/").hidden)
    response = keeper.post(f"{KEYS}add/", form | {"name": "billing", "scopes": ["read"]})
    assert response.status_code == 200
    assert "no-store" in response.headers["Cache-Control"]
    [text] = re.findall(r"msg_[a-z0-9]{10}_[A-Za-z0-9]{43}", response.content.decode())
    secret = text.split("_")[2]
    assert secret not in str(response.cookies) + str(keeper.cookies)
    assert all(secret not in str(session.get_decoded()) for session in Session.objects.all())
    assert secret not in str(LogEntry.objects.values())
    key = ApiKey.objects.get()
    for address in ("/admin/", KEYS, f"{KEYS}{key.pk}/change/", f"{KEYS}{key.pk}/history/"):
        assert secret not in get(keeper, address).text
    assert logged()[:3] == ("clerk", ADDITION, f"billing ({key.prefix})")


def test_revoking_is_logged_once_for_each_key(keeper: Client) -> None:
    first, second = (keys.create(name=name, scopes=["read"])[0] for name in ("a", "b"))
    keys.revoke(prefix=first.prefix)
    form = dict(get(keeper, KEYS).hidden)
    answer = keeper.post(
        KEYS, form | {"action": "revoke_selected", "_selected_action": [first.pk, second.pk]}, follow=True
    )
    assert "Revoked 1 API key," in answer.content.decode()
    assert logged() == ("clerk", CHANGE, f"b ({second.prefix})", "Revoked.", str(second.pk))


def test_what_django_logs_before_it_is_done_is_not_offered(admin_client: Client) -> None:
    for path in ("/admin/auth/user/", "/admin/auth/group/"):
        assert "delete_selected" not in get(admin_client, path).actions


# Looking into the log


def test_the_log_is_read_only(clerk: Client, staff: Staff) -> None:
    act(clerk, "mark_read", sent("ada"))
    auditor = staff("view_logentry", name="auditor")
    listing = get(auditor, "/admin/admin/logentry/").text
    assert "clerk" in listing
    assert "Marked as read 1 message" in listing
    entry = LogEntry.objects.get()
    assert get(auditor, f"/admin/admin/logentry/{entry.pk}/change/").buttons == []
    assert auditor.get(f"/admin/admin/logentry/{entry.pk}/delete/").status_code == 403
    assert auditor.get("/admin/admin/logentry/add/").status_code == 403
    assert clerk.get("/admin/admin/logentry/").status_code == 403
    assert User.objects.count() == 2
