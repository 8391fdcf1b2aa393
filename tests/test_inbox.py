"""/inbox and its web component, in a real browser: two windows of one mailbox, whatever happens in between."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from messaging.auth import tokens
from tests.commands import process, run
from tests.helpers import Api
from tests.live_servers import TOKEN_SECRET, Service, token
from tests.programs import program
from tests.servers import wait_until

SECONDS = 180.0
SHOWN = """() => [...document.querySelector('message-inbox').shadowRoot.querySelectorAll('li')]
    .map((item) => [item.dataset.id, item.classList.contains('unread')])"""
# A browser that is busy: it tells an observer of all changes of some time at once.
BUSY = """
const Observer = IntersectionObserver
window.IntersectionObserver = class extends Observer {
    constructor(tell, options) {
        const held = []
        super((entries) => {
            if (held.push(...entries) === entries.length) setTimeout(() => tell(held.splice(0)), 300)
        }, options)
    }
}"""
# Lines that the browser itself writes when a request fails.
NETWORK = re.compile(r"Failed to load resource|net::ERR_")


@pytest.fixture
def web_server() -> str:
    """gunicorn: what is tried here runs in the browser."""
    return "gunicorn"


def link(service: Service, *scopes: str, seconds: float = 600) -> str:
    """A link to ada's inbox."""
    return f"{service.server.url}/inbox#token={token(*(scopes or ('read', 'manage')), seconds=seconds)}"


def mailbox(service: Service) -> list[list[Any]]:
    """Every message of ada's, as an inbox shows it."""
    return [[message["id"], not message["is_read"]] for message in service.messages("ada", "-created_at")]


class Window:
    """A page in a browser profile of its own, with all that it requests and complains about."""

    def __init__(self, browser: Browser, url: str, *, script: str = "") -> None:
        self.context = browser.new_context()
        self.page: Page = self.context.new_page()
        self.page.add_init_script(script)
        self.hosts: set[str] = set()
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._hear)
        self.page.goto(url)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    @property
    def shown(self) -> list[list[Any]]:
        """The ids of the messages, and whether they look unread."""
        found: list[list[Any]] = self.page.evaluate(SHOWN)
        return found

    def until(self, condition: Callable[[], bool], what: str) -> None:
        def holds() -> bool:
            self.page.wait_for_timeout(50)  # lets the page's events through, which a plain sleep would not
            return condition()

        wait_until(holds, SECONDS, what=what)

    def until_shows(self, service: Service, what: str) -> None:
        expected = mailbox(service)
        self.until(lambda: self.shown == expected, what)

    def until_says(self, text: str) -> None:
        self.page.locator("message-inbox #status", has_text=text).wait_for(timeout=SECONDS * 1000)


@pytest.fixture
def window(service: Service) -> Iterator[Callable[..., Window]]:
    """Open a window: window(url). The last fixture, since Django refuses to work while Playwright's loop runs."""
    chromium = program("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield partial(Window, browser)
        browser.close()


def test_two_windows_show_the_mailbox_whatever_happens(service: Service, window: Callable[[str], Window]) -> None:
    api, ada, eve = service.api, window(link(service)), window(link(service))
    for each in (ada, eve):
        each.until_says("Live")
    assert ada.shown == []

    sent = api.send("ada", "<img src=x onerror=alert(1)> & שלום", sender="Grace")
    for each in (ada, eve):
        each.until_shows(service, "a message that was sent")
    # Content is text.
    assert ada.page.locator("message-inbox img").count() == 0
    assert ada.page.locator("message-inbox .preview").text_content() == sent["content"]

    ada.page.locator("message-inbox .head").click()
    assert ada.page.locator("message-inbox .text").text_content() == sent["content"]
    eve.until(lambda: eve.shown == [[sent["id"], False]], "what was read in the other window")
    assert mailbox(service) == [[sent["id"], False]]

    other = api.send("ada", "two")
    for each in (ada, eve):
        each.until_shows(service, "the second message")
    # Undone: nothing happens. Not undone: gone.
    first = eve.page.locator("message-inbox .head").first
    first.focus()
    eve.page.keyboard.press("Delete")
    assert eve.shown == [[sent["id"], False]]
    eve.page.locator("message-inbox #undo button").click()
    assert [id_ for id_, _ in eve.shown] == [other["id"], sent["id"]]
    first.focus()
    eve.page.keyboard.press("Delete")
    assert len(mailbox(service)) == 2
    ada.until(lambda: len(ada.shown) == 1, "a deletion after its undo has passed")
    assert [id_ for id_, _ in mailbox(service)] == [sent["id"]]
    assert not ada.complaints
    assert not eve.complaints

    # Without the live process.
    service.live.kill()
    api.send("ada", "three")
    for each in (ada, eve):
        each.until_shows(service, "a message without the live process")
    service.live.restart()

    # Without a network, in one of the windows.
    ada.context.set_offline(True)
    ada.until_says("Offline")
    batch = {"messages": [{"recipient": "ada", "content": f"message {n}"} for n in range(200)]}
    ids = [message["id"] for message in api.post("/messages/batch", batch).expect(201).json["results"]]
    api.post("/messages/bulk-delete", {"ids": ids[::10]}).expect(200)
    eve.until_shows(service, "200 messages, less 20")
    ada.page.locator("message-inbox .head").first.click()
    ada.context.set_offline(False)
    ada.until(lambda: [id_ for id_, _ in ada.shown] == [id_ for id_, _ in mailbox(service)], "what it has missed")
    for each in (ada, eve):
        each.until(lambda: api.mailbox("ada")["unread"] == 180, "the message that was read without a network")
        each.until_shows(service, "the same in both windows")

    ada.page.locator("message-inbox #all").click()
    eve.until(lambda: not any(unread for _, unread in eve.shown), "all read in the other window")
    assert api.mailbox("ada")["unread"] == 0
    for each in (ada, eve):
        assert [line for line in each.complaints if not NETWORK.search(line)] == []
        assert each.hosts == {f"127.0.0.1:{service.server.port}", f"127.0.0.1:{service.live.port}"}


@pytest.mark.parametrize("script", ["", BUSY], ids=["idle", "busy"])
def test_a_thousand_messages_come_as_one_scrolls(service: Service, window: Callable[..., Window], script: str) -> None:
    for _ in range(5):
        batch = {"messages": [{"recipient": "ada", "content": f"message {n}"} for n in range(200)]}
        service.api.post("/messages/batch", batch).expect(201)
    ada = window(link(service), script=script)
    ada.until(lambda: len(ada.shown) >= 50, "the first page")
    assert len(ada.shown) < 500
    older = ada.page.locator("message-inbox #older")

    def scrolled() -> bool:
        ada.page.evaluate(
            "() => { const box = document.querySelector('message-inbox'); box.scrollTop = box.scrollHeight }"
        )
        return len(ada.shown) == 1000

    ada.until(scrolled, "all messages")
    assert not older.is_visible()
    assert ada.shown == mailbox(service)
    # By the keyboard, from the first to the last and back.
    heads = ada.page.locator("message-inbox .head")
    heads.first.focus()
    focused = "() => document.querySelector('message-inbox').shadowRoot.activeElement.closest('li').dataset.id"
    for key, place in (("ArrowDown", 1), ("End", 999), ("Home", 0)):
        ada.page.keyboard.press(key)
        assert ada.page.evaluate(focused) == ada.shown[place][0]
    ada.page.keyboard.press("Delete")
    assert ada.page.evaluate(focused) == ada.shown[0][0]
    assert len(ada.shown) == 999
    ada.page.keyboard.press("Control+z")
    assert ada.page.evaluate(focused) == ada.shown[0][0]
    assert ada.shown == mailbox(service)
    assert ada.complaints == []


def test_a_message_is_shown_though_all_that_were_shown_are_deleted(
    service: Service, window: Callable[[str], Window]
) -> None:
    """In a part of a page that is not displayed, so that no older messages are loaded."""
    messages = [{"recipient": "ada", "content": f"message {n}"} for n in range(60)]
    sent = service.api.post("/messages/batch", {"messages": messages}).expect(201).json["results"]
    ada = window(link(service))
    ada.page.evaluate("() => { document.querySelector('main').style.display = 'none' }")
    ada.until(lambda: len(ada.shown) >= 50, "the first page")
    service.api.post("/messages/bulk-delete", {"ids": [message["id"] for message in sent[-len(ada.shown) :]]}).expect(
        200
    )
    ada.until(lambda: not ada.shown, "an empty list")
    assert ada.page.evaluate("() => document.querySelector('message-inbox').shadowRoot.getElementById('empty').hidden")
    new = service.api.send("ada", "new")
    ada.until(lambda: [id_ for id_, _ in ada.shown] == [new["id"]], "the new message")
    ada.page.evaluate("() => { document.querySelector('main').style.display = '' }")
    ada.until_shows(service, "the older messages too")
    assert ada.complaints == []


def test_a_tab_beyond_the_connections_of_its_browser_hears_of_new_messages_too(
    service: Service, window: Callable[..., Window]
) -> None:
    """Over HTTP/1.1 a browser has six connections to a host, and keeps further requests waiting."""
    shorter = "const timeout = AbortSignal.timeout; AbortSignal.timeout = (ms) => timeout.call(AbortSignal, ms / 10)"
    first = window(link(service))
    first.until_says("Live")
    pages = [first.context.new_page() for _ in range(6)]
    for page in pages:
        page.add_init_script(shorter)
        page.goto(link(service))
        page.locator("message-inbox #status", has_text="Live").wait_for()
    first.page.wait_for_timeout(8_000)  # by then the last one has given up its stream, and waits for a poll
    service.api.send("ada")
    for page in pages:
        page.locator("message-inbox li").wait_for(timeout=20_000)


def test_a_message_that_is_deleted_is_gone_though_its_window_is_closed(
    service: Service, window: Callable[[str], Window]
) -> None:
    """Closed before the time for an undo has passed."""
    service.api.send("ada")
    ada = window(link(service))
    ada.until_says("Live")
    ada.page.locator("message-inbox .head").focus()
    ada.page.keyboard.press("Delete")
    ada.page.goto("about:blank")
    wait_until(lambda: service.api.mailbox("ada")["total"] == 0, 10, what="the deletion")


def test_all_are_marked_as_read_though_the_newest_was_just_deleted_elsewhere(
    service: Service, window: Callable[[str], Window]
) -> None:
    service.api.send("ada", "one")
    newest = service.api.send("ada", "two")
    service.live.kill()
    ada = window(link(service))
    ada.until_says("Up to date")  # it looks again in 5 s
    service.api.post("/messages/bulk-delete", {"ids": [newest["id"]]}).expect(200)
    ada.page.locator("message-inbox #all").click()
    ada.until(lambda: [unread for _, unread in ada.shown] == [False], "the other message, read")
    assert service.api.mailbox("ada")["unread"] == 0


def test_an_expired_link_says_so_and_a_reading_one_may_not_mark(
    service: Service, window: Callable[[str], Window]
) -> None:
    service.api.send("ada")
    expired = window(link(service, seconds=1))
    expired.until_says("This link has expired")
    for button in (".head", "#all:enabled"):
        reader = window(link(service, "read"))
        reader.page.locator(f"message-inbox {button}").click()
        reader.until_says("This token may only read")
    assert service.api.mailbox("ada")["unread"] == 1


def test_any_page_can_embed_it(service: Service, window: Callable[[str], Window]) -> None:
    """By the element alone, on a page of the same origin: another origin needs MESSAGES_CORS_ORIGINS."""
    service.api.send("ada")
    other = window(link(service))
    other.until(lambda: len(other.shown) == 1, "the message")
    other.page.evaluate(
        """() => {
            const first = document.querySelector('message-inbox');
            const second = document.createElement('message-inbox');
            for (const name of ['src', 'live', 'token']) second.setAttribute(name, first.getAttribute(name));
            first.replaceWith(second);
        }"""
    )
    other.until(lambda: len(other.shown) == 1, "the message in the second element")


def test_another_token_shows_another_mailbox_and_nothing_of_the_last(
    service: Service, window: Callable[[str], Window]
) -> None:
    service.api.send("ada", "for ada")
    shown = window(link(service))
    shown.until(lambda: len(shown.shown) == 1, "ada's message")
    shown.page.locator("message-inbox .head").focus()
    shown.page.keyboard.press("Delete")
    sent = service.api.send("bob", "for bob")
    bob = token("read", "manage", recipient="bob")
    shown.page.evaluate("(token) => { location.hash = `token=${token}` }", bob)
    shown.until(lambda: shown.shown == [[sent["id"], True]], "bob's message alone")
    assert not shown.page.locator("message-inbox #undo").is_visible()
    shown.page.evaluate("(token) => { location.hash = `token=${token}` }", token("read", recipient="bob"))
    shown.until_says("Live")
    assert shown.shown == [[sent["id"], True]]
    assert shown.complaints == []


def test_a_link_without_a_mailbox_says_so(service: Service, window: Callable[[str], Window]) -> None:
    service.api.send("ada")
    shown = window(f"{service.server.url}/inbox")
    shown.page.get_by_text("This link names no mailbox").wait_for()
    assert shown.complaints == []
    shown.page.evaluate("(token) => { location.hash = `token=${token}` }", token("read"))
    shown.until(lambda: len(shown.shown) == 1, "the message")
    assert not shown.page.get_by_text("This link names no mailbox").is_visible()
    shown.until(lambda: shown.page.title() == "(1) Inbox", "the number of unread messages in the title")
    shown.page.evaluate("() => { location.hash = '' }")
    shown.until(lambda: shown.page.title() == "Inbox", "a title without it")
    shown.page.evaluate("(token) => { location.hash = `token=${token}` }", token("read"))
    shown.until(lambda: shown.page.title() == "(1) Inbox", "the number again")


def test_create_token_prints_the_link(settings: Any) -> None:
    settings.MESSAGES_TOKEN_SECRET = TOKEN_SECRET
    settings.PUBLIC_URL = "https://example.com/post"
    printed = run("create_token", "--recipient", "ada", "--open").out.strip()
    url, _, token = printed.partition("#token=")
    assert url == "https://example.com/post/inbox"
    caller = tokens.caller_of(token)
    assert caller is not None
    assert (caller.recipient, sorted(caller.scopes)) == ("ada", ["manage", "read"])


@pytest.mark.parametrize("bind", ["::1", "[::1]"])
def test_an_ipv6_address_has_one_pair_of_brackets_in_the_link(db: None, bind: str) -> None:
    arguments = ("create_token", "--recipient=ada", "--open")
    with process(*arguments, BIND=bind, MESSAGES_TOKEN_SECRET=TOKEN_SECRET) as running:
        out, err = running.communicate()
    assert out.startswith(b"http://[::1]:8000/inbox#token="), err


def test_the_page_may_talk_to_the_service_only(anonymous: Api, settings: Any) -> None:
    settings.PLAIN_HTTP, settings.LIVE_URL = False, "https://live.example.com/below/a/path"
    policy = anonymous.get("/inbox").expect(200).headers["Content-Security-Policy"]
    assert "connect-src 'self' https://live.example.com;" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("host", "public_url", "live"),
    [
        ("localhost", "", "http://localhost:8001"),
        ("127.0.0.1:8000", "", "http://127.0.0.1:8001"),
        ("[::1]:8000", "", "http://[::1]:8001"),
        ("[::1]", "", "http://[::1]:8001"),
        ("localhost", "https://example.com/post", ""),
    ],
)
def test_the_page_finds_the_live_process_beside_the_api_or_behind_the_same_proxy(
    anonymous: Api, settings: Any, host: str, public_url: str, live: str
) -> None:
    settings.PLAIN_HTTP, settings.LIVE_URL, settings.LIVE_PORT, settings.PUBLIC_URL = True, "", 8001, public_url
    response = anonymous.get("/inbox", headers={"Host": host}).expect(200)
    assert f'data-live="{live}"' in response.body.decode()
    assert f"connect-src 'self' {live};" in response.headers["Content-Security-Policy"]
