"""What is stored, read past the API: that nothing changed, that the counts are exact; and a client for many calls."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.test import Client

from tests.helpers import Answer, _Headers


@functools.cache
def _client() -> Client:
    # Its middleware is built once: WhiteNoise alone looks at every static file, ten times the cost of a request.
    return Client(raise_request_exception=False)


def in_one_process(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
    """As `tests.helpers.in_process`, for tests of thousands of requests under the settings of a deployment."""
    content_type = next((value for name, value in headers.items() if name.lower() == "content-type"), "")
    response = _client().generic(method, path, body, content_type=content_type, headers=dict(headers))
    return Answer(response.status_code, _Headers({k.lower(): v for k, v in response.items()}), response.content)


def stored() -> tuple[list[Any], list[Any], list[Any]]:
    """Every mailbox, every message and every idempotency record."""
    from messaging.models import Mailbox, Message, Outcome

    return (
        list(Mailbox.objects.order_by("id").values_list()),
        list(Message.objects.order_by("id").values_list("id", "mailbox_id", "seq", "sender", "content", "read_at")),
        list(Outcome.objects.order_by("caller", "key").values_list("caller", "key", "status")),
    )


@contextmanager
def nothing_changes() -> Iterator[None]:
    """Fail if what is stored differs afterwards."""
    before = stored()
    yield
    assert stored() == before


def miscounted() -> list[Any]:
    """The mailboxes whose counts, or whose version, are not what their messages say."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT b.recipient, b.version, b.total, b.unread, count(m.id), max(m.seq)"
            " FROM messaging_mailbox b LEFT JOIN messaging_message m ON m.mailbox_id = b.id GROUP BY b.id, b.bucket"
            " HAVING b.total <> count(m.id) OR b.unread <> count(m.id) FILTER (WHERE m.read_at IS NULL)"
            " OR b.version < coalesce(max(m.seq), 0)"
        )
        found: list[Any] = cursor.fetchall()
    return found
