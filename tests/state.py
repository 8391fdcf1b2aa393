"""What is stored, read past the API: that nothing changed, and that the counts are exact."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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
        # Messages are counted before the join, whose plan may be a bad one: the tables have just been filled.
        cursor.execute("""
            WITH m AS MATERIALIZED (
                SELECT mailbox_id, count(*) AS total, count(*) - count(read_at) AS unread, max(seq) AS newest
                FROM messaging_message GROUP BY mailbox_id
            )
            SELECT b.recipient, b.version, b.total, b.unread, m.*
            FROM messaging_mailbox b LEFT JOIN m ON m.mailbox_id = b.id
            WHERE b.total <> coalesce(m.total, 0) OR b.unread <> coalesce(m.unread, 0)
                OR b.version < coalesce(m.newest, 0)
        """)
        found: list[Any] = cursor.fetchall()
    return found
