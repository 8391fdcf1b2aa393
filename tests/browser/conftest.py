"""A real browser before the real service. Whatever a page logs as an error, or asks of another host, fails its test."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from tests.programs import program

PATIENCE_MILLISECONDS = 20_000
expect.set_options(timeout=PATIENCE_MILLISECONDS)

_SWITCHES = [
    "--no-sandbox",  # tests may run as root
    "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture
def web_server() -> str:
    """One of them: pages do not depend on it."""
    return "gunicorn"


@pytest.fixture
def browser(transactional_db: None) -> Iterator[Browser]:
    """Debian's Chromium, without a window.

    Playwright's event loop runs in the thread of the test, and Django refuses that thread the database from here on:
    what a test needs there it prepares in fixtures before this one, and looks at through the service.
    """
    chromium = program("chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=_SWITCHES)
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a page of the service at a URL: open_page(server.url, viewport={"width": 360, "height": 740})."""
    faults: list[str] = []

    def note_request(origin: str, request: Request) -> None:
        url = urlsplit(request.url)
        if url.scheme not in {"data", "blob"} and f"{url.scheme}://{url.netloc}" != origin:
            faults.append(f"a request to {request.url}")

    def new_page(origin: str, **options: Any) -> Page:
        page = browser.new_context(base_url=origin, **{"viewport": {"width": 1280, "height": 800}} | options).new_page()
        page.set_default_timeout(PATIENCE_MILLISECONDS)
        page.on("request", lambda request: note_request(origin, request))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        return page

    yield new_page
    assert faults == []


@pytest.fixture
def screenshot() -> Callable[[Page, str], None]:
    """Take a picture for docs/images, if the variable SCREENSHOTS is set."""
    folder = Path(__file__).parents[2] / "docs" / "images"

    def take(page: Page, name: str) -> None:
        if os.environ.get("SCREENSHOTS"):
            page.screenshot(path=folder / f"{name}.png")

    return take
