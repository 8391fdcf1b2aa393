"""Staff at work, by mouse and keyboard: log-in, search, filters, actions, export, keys, the overview; on any screen."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.contrib.admin.models import CHANGE
from django.contrib.auth.models import User
from playwright.sync_api import Browser, Page, expect

from messaging import services
from messaging.access import EVERYONE
from messaging.admin.staff_actions import StaffAction
from messaging.auth import keys
from messaging.backfill import PastMessage, import_history
from messaging.models import Message
from messaging.records import NewMessage
from tests.servers import RunningServer

PASSWORD = "a long enough one"
# The button that runs an action: Django 6.1 renamed it.
RUN = re.compile("^(Go|Run)$")
Screenshot = Callable[[Page, str], None]


@pytest.fixture
def server(run_server: Callable[..., RunningServer]) -> RunningServer:
    """The service as on a machine of one's own, with 300 messages of the last weeks and some of now."""
    ada = User.objects.create_superuser("ada", password=PASSWORD)
    now = datetime.now(UTC)
    texts = (
        "Your parcel is out for delivery.",
        "Could you look at the draft by Thursday?",
        "Thanks, that works for me!",
    )
    names = ("ann@example.com", "bob@example.com", "cleo@example.com", "dan@example.com", "eve@example.com")
    import_history(
        messages=[
            PastMessage(
                NewMessage(names[number * number % 11 % 5], texts[number % 3], names[number % 4]),
                at,
                at if number % 3 else None,
            )
            for number in range(300)
            for at in [now - timedelta(hours=2 * (300 - number) + number % 7 * 11)]
        ]
    )
    services.send(message=NewMessage("ann@example.com", "The invoice for March is attached.", "shop"), caller=EVERYONE)
    oldest = Message.objects.order_by("pk").values_list("pk", flat=True)[:12]
    StaffAction(verb=services.mark_read, name="Marked as read", flag=CHANGE, user_id=ada.pk).apply_to(list(oldest))
    keys.create(name="newsletter", scopes=["send"], sender="news@example.com", expires_at=now + timedelta(days=9))
    return run_server(PLAIN_HTTP="true", WEB_CONCURRENCY="1", ACCESS_LOG="false")


def log_in(page: Page) -> None:
    page.goto("/admin/")
    page.get_by_label("Username").fill("ada")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Administration")).to_be_visible()


def test_staff_at_work(
    server: RunningServer, open_page: Callable[..., Page], screenshot: Screenshot, tmp_path: Path
) -> None:
    page = open_page(server.url)
    log_in(page)

    page.get_by_role("link", name="Messages", exact=True).last.click()
    expect(page.locator("#result_list tbody tr")).to_have_count(50)
    screenshot(page, "admin-messages")

    page.locator("#searchbar").fill("shop")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#result_list tbody tr")).to_have_count(1)
    page.get_by_role("link", name="The invoice for March is attached.").click()
    expect(page.get_by_text("ann@example.com")).to_be_visible()

    page.goto("/admin/messaging/message/")
    page.get_by_label("Mailbox").fill("ann@example.com")
    page.get_by_label("Mailbox").press("Enter")
    page.get_by_role("link", name="Unread").click()
    page.locator("#searchbar").fill("invoice -parcel")
    page.locator("#searchbar").press("Enter")
    expect(page.locator("#result_list tbody tr")).to_have_count(1)
    assert {"recipient=ann%40example.com", "is_read=false"} < set(page.url.partition("?")[2].split("&"))

    page.locator("#action-toggle").check()
    page.get_by_label("Action:").select_option(label="Mark selected messages as read")
    page.get_by_role("button", name=RUN).click()
    expect(page.get_by_text("Marked as read: 1 message.")).to_be_visible()
    expect(page.locator("#result_list tbody tr")).to_have_count(0)

    page.goto("/admin/messaging/message/?recipient=ann%40example.com")
    page.locator("#action-toggle").check()
    page.get_by_label("Action:").select_option(label="Export selected messages as CSV")
    with page.expect_download() as download:
        page.get_by_role("button", name=RUN).click()
    file = tmp_path / "messages.csv"
    download.value.save_as(file)
    assert file.read_text("utf-8-sig").startswith("id,seq,recipient,sender,content,metadata,")


def test_a_key_is_created_and_revoked(server: RunningServer, open_page: Callable[..., Page]) -> None:
    page = open_page(server.url)
    log_in(page)
    page.goto("/admin/messaging/apikey/add/")
    page.get_by_label("Name").fill("shop")
    page.get_by_role("checkbox", name="send").check()
    page.get_by_role("checkbox", name="read").check()
    page.get_by_role("button", name="Save", exact=True).click()
    text = page.locator("output").inner_text()
    assert re.fullmatch("msg_[a-z0-9]{10}_[A-Za-z0-9]{43}", text)
    server.api(text).send("ann@example.com")
    assert text.split("_")[2] not in str(page.context.cookies())

    page.goto("/admin/messaging/apikey/")
    assert text.split("_")[2] not in page.content()
    page.get_by_role("row", name="shop").get_by_role("checkbox").check()
    page.get_by_label("Action:").select_option(label="Revoke selected API keys")
    page.get_by_role("button", name=RUN).click()
    expect(page.get_by_text("Revoked 1 API key,")).to_be_visible()
    expect(page.get_by_role("row", name="shop")).to_contain_text("revoked")


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_the_overview_has_charts(
    server: RunningServer, open_page: Callable[..., Page], screenshot: Screenshot, color_scheme: str
) -> None:
    page = open_page(server.url, color_scheme=color_scheme)
    log_in(page)
    page.get_by_role("link", name="Overview").click()
    bars = page.locator(".chart .bar")
    expect(bars).to_have_count(30)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    # To be told apart from the page, whose colours are the other way round in the dark.
    assert bars.first.evaluate("bar => getComputedStyle(bar).fill") != background
    assert (background == "rgb(255, 255, 255)") == (color_scheme == "light")
    page.get_by_text("As a table").click()
    expect(page.get_by_role("row", name=f"{datetime.now(UTC):%Y-%m-%d}")).to_be_visible()
    page.get_by_text("As a table").click()
    if color_scheme == "light":
        screenshot(page, "admin-overview")


@pytest.mark.parametrize("width", [360, 1280])
def test_a_screen_shows_every_column(server: RunningServer, open_page: Callable[..., Page], width: int) -> None:
    page = open_page(server.url, viewport={"width": width, "height": 740})
    log_in(page)
    for path in ("messaging/message/", "messaging/mailbox/", "messaging/apikey/", "admin/logentry/", "overview/"):
        page.goto(f"/admin/{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        if path != "overview/":
            # A table that is wider is scrolled in the element around it.
            room = page.locator(".results").bounding_box()
            assert room, path
            for cell in page.locator("#result_list tbody tr").first.locator("th, td").all():
                box = cell.bounding_box()
                assert box, path
                assert box["x"] >= room["x"], path
                assert box["x"] + box["width"] <= room["x"] + room["width"] + 1, path


def test_a_refused_log_in_names_the_setting(run_server: Callable[..., RunningServer], browser: Browser) -> None:
    server = run_server(PLAIN_HTTP="false", WEB_CONCURRENCY="1", ACCESS_LOG="false")
    # Not by open_page: the browser reports the 403 as an error. By this name it keeps cookies that are for https only.
    page = browser.new_page()
    page.goto(f"{server.url.replace('127.0.0.1', 'localhost')}/admin/")
    page.context.clear_cookies()
    page.get_by_label("Username").fill("ada")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("PLAIN_HTTP=true")).to_be_visible()
    expect(page.get_by_role("link", name="Administration")).to_be_visible()
