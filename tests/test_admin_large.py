"""What a page of the admin costs where there are many messages: rows that PostgreSQL reads, counted and not timed."""

import pytest
from django.test import Client

from messaging import services
from messaging.access import EVERYONE
from messaging.admin import lists, messages, search
from messaging.models import Message
from messaging.records import NewMessage
from tests.partitions import ADMIN_OF_ONE_TABLE
from tests.plans import maintain, rows_read_by
from tests.staff import MAILBOXES, MESSAGES, empty_tables, get

TOTAL = 12_000
LISTED, WINDOW, MAILBOX_WINDOW, FOUND = 200, 800, 300, 100


@pytest.fixture
def many(clerk: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Staff before 12,000 messages, 11,000 of them in one mailbox, the oldest 200 read; with lower bounds to match."""
    empty_tables()
    for module in (lists, messages):
        monkeypatch.setattr(module, "MAX_LISTED", LISTED)
    monkeypatch.setattr(search, "WINDOW", WINDOW)
    monkeypatch.setattr(search, "MAILBOX_WINDOW", MAILBOX_WINDOW)
    monkeypatch.setattr(search, "MAX_FOUND", FOUND)
    for start in range(0, TOTAL, 1_000):
        services.send_batch(
            messages=[
                NewMessage(f"r{number % 500}" if number < 1_000 else "ada", f"note {number}", f"s{number % 7}")
                for number in range(start, start + 1_000)
            ],
            caller=EVERYONE,
        )
    services.mark_read(ids=list(Message.objects.order_by("pk").values_list("pk", flat=True)[:200]), caller=EVERYONE)
    maintain("ANALYZE messaging_mailbox, messaging_message")
    return clerk


PAGE = lists.ReadOnlyAdmin.list_per_page
# For the count, and for the messages of the page and their mailboxes.
LIST = LISTED + 2 * PAGE


@pytest.mark.parametrize(
    ("query", "most", "shown"),
    [
        ({}, LIST, PAGE),
        ({"p": "4"}, 2 * LISTED + LIST, PAGE),
        ({"recipient": "ada"}, LIST, PAGE),
        ({"recipient": "ada", "p": "4"}, 2 * LISTED + LIST, PAGE),
        ({"recipient": "r7"}, 20, 2),
        ({"is_read": "false", "recipient": "ada"}, LIST, PAGE),
        ({"sender": "s3", "recipient": "ada"}, LIST, PAGE),
        ({"sender": "nobody", "recipient": "ada"}, 4, 0),
        ({"sender": "nobody"}, 3 * WINDOW + 1, 0),
        # Without an index: the edge of the window, then the window for the count and for the rows.
        ({"is_read": "true"}, 3 * WINDOW + LIST, 0),
        ({"is_read": "true", "recipient": "ada"}, 3 * MAILBOX_WINDOW + LIST, 0),
        ({"is_read": "false"}, WINDOW + LIST, PAGE),
        ({"created_at__lt": "2000-01-01 00:00:00+00:00"}, 3 * WINDOW + 1, 0),
        ({"q": "note nowhere", "recipient": "ada"}, 3 * MAILBOX_WINDOW + 4, 0),
        ({"q": "nobody"}, 2 * WINDOW + 2, 0),
        ({"q": "s3"}, 2 * WINDOW + 2 * LISTED + LIST, PAGE),
        ({"q": "r1"}, 2 * WINDOW + 600 + LIST, 40),
        ({"q": "ada"}, 2 * WINDOW + 2 * LISTED + LIST, PAGE),
        ({"q": "00000000-0000-7000-8000-000000000000"}, 2, 0),
    ],
)
@ADMIN_OF_ONE_TABLE
def test_a_list_of_messages_reads_a_bounded_number_of_rows(
    many: Client, query: dict[str, str], most: int, shown: int
) -> None:
    read, page = rows_read_by(lambda: get(many, MESSAGES, **query))
    assert len(page.rows) == shown
    assert read <= most


@pytest.mark.parametrize("query", [{}, {"q": "r"}, {"q": "nobody"}])
@ADMIN_OF_ONE_TABLE
def test_a_list_of_mailboxes_reads_a_bounded_number_of_rows(many: Client, query: dict[str, str]) -> None:
    assert rows_read_by(lambda: get(many, MAILBOXES, **query))[0] <= LIST


def test_a_list_says_that_it_shows_only_the_newest(many: Client) -> None:
    assert "Found among the newest 800 messages" in get(many, MESSAGES, is_read="true").text
    assert "Found among the newest 300 messages" in get(many, MESSAGES, q="nowhere", recipient="ada").text
    for whole in ({}, {"recipient": "ada"}, {"is_read": "true", "recipient": "r7"}, {"q": "r7"}):
        assert "Found among" not in get(many, MESSAGES, **whole).text


def test_a_recipient_is_found_however_old_its_messages_are(many: Client) -> None:
    for query in ({"q": "r7"}, {"recipient": "r7"}):
        found = Message.objects.filter(pk__in=get(many, MESSAGES, **query).rows)
        assert {message.mailbox.recipient[:2] for message in found.select_related("mailbox")} == {"r7"}
