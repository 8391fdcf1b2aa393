"""Staff at work in the admin: its pages as they see them, and their forms filled in."""

from collections.abc import Callable

from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client

from messaging.models import Message
from tests.pages import Page

MESSAGES = "/admin/messaging/message/"
MAILBOXES = "/admin/messaging/mailbox/"
KEYS = "/admin/messaging/apikey/"

# Log a member of staff in, with these permissions of the app: staff("view_message").
Staff = Callable[..., Client]


def log_in(*permissions: str, name: str = "clerk") -> Client:
    """A client of a member of staff with these permissions."""
    user = User.objects.create_user(name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    return client


def get(client: Client, address: str, **query: str) -> Page:
    """A page that must be there."""
    response = client.get(address, query)
    assert response.status_code == 200
    return Page(response.content.decode())


def act(client: Client, action: str, ids: list[str], **more: str) -> Page:
    """Tick rows of the list and run an action; the page that follows."""
    form = get(client, MESSAGES)
    fields = dict(form.hidden) | {"action": action, "_selected_action": ids, "index": "0", **more}
    response = client.post(MESSAGES, fields, follow=True)
    assert response.status_code == 200
    return Page(response.content.decode())


def empty_tables() -> None:
    """Empty the tables of messages. Dead rows, which other tests rolled back, change plans and samples."""
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE messaging_mailbox, messaging_message CASCADE")


def listed(client: Client, **query: str) -> list[str]:
    """The contents in the list of messages."""
    return [Message.objects.get(pk=pk).content for pk in get(client, MESSAGES, **query).rows]
