"""The overview: true numbers where all is read, near ones where a sample is, and the same cost at any size."""

import re
from datetime import UTC, date, datetime, time, timedelta

import pytest
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils import timezone

from messaging import services, upkeep
from messaging.access import EVERYONE
from messaging.admin import overview
from messaging.auth import keys
from messaging.backfill import PastMessage, import_history
from messaging.models import RateWindow
from messaging.records import NewMessage
from tests.partitions import ADMIN_OF_ONE_TABLE
from tests.plans import rows_read_by
from tests.staff import Staff, empty_tables, get

OVERVIEW = "/admin/overview/"


@pytest.fixture
def clerk(staff: Staff) -> Client:
    """Staff who may look at everything, of which there is nothing yet."""
    empty_tables()
    return staff("view_message", "view_mailbox", "view_apikey")


def past(*messages: tuple[str, int, bool]) -> None:
    """Messages of some days ago at noon: recipient, days, read or not; in the order of their arrival."""
    noon = datetime.combine(timezone.now().date(), time(12), tzinfo=UTC) - timedelta(days=1)
    import_history(
        messages=[
            PastMessage(NewMessage(recipient, "x" * 200), at, at if read else None)
            for recipient, days, read in messages
            for at in [noon - timedelta(days=days - 1)]
        ]
    )


def days_of(client: Client) -> dict[str, int]:
    """The chart's days that have any."""
    bars = re.findall(r"<title>([\d-]{10}): ([\d,]+)</title>", client.get(OVERVIEW).content.decode())
    assert len(bars) == overview.DAYS
    return {day: int(count.replace(",", "")) for day, count in bars if count != "0"}


def ago(days: int) -> str:
    return str(timezone.now().date() - timedelta(days=days))


def test_an_empty_database_has_an_overview(clerk: Client) -> None:
    assert days_of(clerk) == {}
    text = get(clerk, OVERVIEW).text
    assert "None unread" in " ".join(text.split())
    assert "None stands out" in text


def test_a_small_table_is_counted(clerk: Client) -> None:
    past(("ada", 45, True), ("ada", 40, False), ("bob", 3, True), ("ada", 2, False), ("ada", 2, True))
    services.send(message=NewMessage("<cleo>", "today"), caller=EVERYONE)
    assert days_of(clerk) == {ago(3): 1, ago(2): 2, ago(0): 1}
    text = " ".join(get(clerk, OVERVIEW).text.split())
    assert "All messages are counted" in text
    assert "6 messages 50.0 % unread" in text
    assert f"{ago(40)} 12:00 oldest unread message" in text
    # Came in, unread, total.
    assert "ada 2 2 4" in text
    assert "<cleo> 1 1 1" in text


@ADMIN_OF_ONE_TABLE
def test_a_large_table_is_estimated(clerk: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in range(20, 0, -1):
        past(*[("ada" if number % 4 else f"r{number}", day, number % 2 == 0) for number in range(day * 40)])
    exact = overview.take_sample(since=timezone.now() - timedelta(days=40))
    assert exact.is_exact
    monkeypatch.setattr(overview, "SAMPLED_PAGES", 60)
    near = overview.take_sample(since=timezone.now() - timedelta(days=40))
    assert not near.is_exact
    assert near.total == pytest.approx(exact.total, rel=0.1)
    assert near.unread == pytest.approx(exact.unread, rel=0.2)
    assert near.by_mailbox.keys() & exact.by_mailbox.keys()
    for at, count in exact.by_day.items():
        # To a page of each step, at both ends of the day.
        assert near.by_day.get(at, 0) == pytest.approx(count, abs=2 * 35 * 5)
    assert "Estimated from a sample" in get(clerk, OVERVIEW).text


def test_it_reads_a_bounded_number_of_rows(clerk: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    past(*[("ada", 10, True)] * 3_000)
    monkeypatch.setattr(overview, "SAMPLED_PAGES", 10)
    read, _ = rows_read_by(lambda: get(clerk, OVERVIEW))
    assert 20 < read < 20 * 40


def test_what_upkeep_has_left_is_counted_up_to_a_limit(clerk: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    hour_ago = timezone.now() - timedelta(hours=1)
    RateWindow.objects.bulk_create(RateWindow(bucket=str(n), used=1, ends_at=hour_ago) for n in range(3))
    Session.objects.create(session_key="x" * 32, session_data="", expire_date=hour_ago)
    text = " ".join(get(clerk, OVERVIEW).text.split())
    assert "Windows of rate limits that have ended 3" in text
    assert "Sessions of staff that have ended 1" in text
    monkeypatch.setattr(upkeep, "COUNTED", 2)
    assert "have ended 2 or more: is upkeep running?" in " ".join(get(clerk, OVERVIEW).text.split())


def test_keys_that_end_soon_are_named(clerk: Client) -> None:
    for name, days in (("soon", 5), ("later", 50), ("never", None)):
        expires_at = None if days is None else timezone.now() + timedelta(days=days)
        keys.create(name=name, scopes=["read"], expires_at=expires_at)
    revoked, _ = keys.create(name="revoked", scopes=["read"], expires_at=timezone.now() + timedelta(days=1))
    keys.revoke(prefix=revoked.prefix)
    text = get(clerk, OVERVIEW).text
    assert "soon (" in text
    assert not {name for name in ("later (", "never (", "revoked (") if name in text}


def test_it_shows_what_the_permissions_allow(staff: Staff) -> None:
    past(("ada", 2, False))
    keys.create(name="soon", scopes=["read"], expires_at=timezone.now() + timedelta(days=1))
    text = get(staff("view_message"), OVERVIEW).text
    assert "Messages a day" in text
    assert "ada" not in text
    assert "soon (" not in text
    assert staff("view_mailbox", name="other").get(OVERVIEW).status_code == 403
    assert Client().get(OVERVIEW).status_code == 302


def test_the_chart_has_a_text_alternative(clerk: Client) -> None:
    past(("ada", 2, False))
    html = clerk.get(OVERVIEW).content.decode()
    assert 'role="img" aria-labelledby="days"' in html
    assert f'<td>{date.fromisoformat(ago(2))}</td><td class="number">1</td>' in html
    assert not re.search(r"https?://(?!www\.w3\.org)", html)


def test_the_index_links_to_the_overview_for_those_who_may_see_it(clerk: Client, staff: Staff) -> None:
    assert 'href="/admin/overview"' in clerk.get("/admin/").content.decode()
    assert "overview" not in staff("view_mailbox", name="other").get("/admin/").content.decode()
