"""Swagger UI and Redoc as people use them: a call tried out in both access modes, and nothing asked of other hosts."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.conftest import MakeKey
from tests.servers import RunningServer

RunServer = Callable[..., RunningServer]
OpenPage = Callable[..., Page]
Screenshot = Callable[[Page, str], None]


@pytest.fixture
def key(make_key: MakeKey) -> str:
    """A key for everything."""
    return make_key()


def form(page: Page, method: str, path: str) -> Locator:
    """The form below an operation, opened."""
    operation = page.locator(f".opblock-{method}").filter(has=page.locator(f'[data-path="{path}"]'))
    operation.locator(".opblock-summary-control").click()
    return operation


def execute(operation: Locator, status: str) -> None:
    """Send a form; its answer has a status."""
    with operation.page.expect_response(lambda response: response.request.resource_type == "fetch"):
        operation.get_by_role("button", name="Execute").click()
    expect(operation.locator(".live-responses-table tr.response .response-col_status")).to_contain_text(status)


def try_out(page: Page, content: str) -> None:
    """Send a message by the form below POST /messages."""
    operation = form(page, "post", "/messages")
    operation.locator("textarea.body-param__text").fill(f'{{"recipient": "ann", "content": "{content}"}}')
    execute(operation, "201")


def test_a_call_is_tried_out_where_access_is_open(
    run_server: RunServer, open_page: OpenPage, screenshot: Screenshot
) -> None:
    server = run_server(MESSAGES_ACCESS="open")
    page = open_page(server.url)
    page.goto("/docs")
    expect(page.get_by_role("heading", name="Messages").first).to_be_visible()
    screenshot(page, "docs")
    try_out(page, "by hand")
    assert server.api().mailbox("ann")["total"] == 1


def test_the_forms_work_as_they_are_filled_in(run_server: RunServer, open_page: OpenPage) -> None:
    server = run_server(MESSAGES_ACCESS="open")
    page = open_page(server.url)
    page.goto("/docs")
    sending = form(page, "post", "/messages")
    for _ in range(2):
        execute(sending, "201")
    for path in ("/messages", "/messages/unread", "/mailbox", "/changes"):
        execute(form(page, "get", path), "200")
    execute(form(page, "patch", "/messages/mark-read"), "200")
    assert server.api().mailbox("alice@example.com")["total"] == 2


def test_a_call_is_tried_out_with_a_key(run_server: RunServer, key: str, open_page: OpenPage) -> None:
    server = run_server(MESSAGES_ACCESS="keys")
    page = open_page(server.url)
    page.goto("/docs")
    page.get_by_role("button", name="Authorize").first.click()
    page.locator(".modal-ux input").first.fill(key)
    page.locator(".modal-ux").get_by_role("button", name="Apply").first.click()
    page.locator(".modal-ux").get_by_role("button", name="Close").last.click()
    try_out(page, "with a key")
    assert server.api(key).mailbox("ann")["total"] == 1


@pytest.mark.parametrize("access", ["open", "keys"])
def test_redoc_shows_the_calls(run_server: RunServer, open_page: OpenPage, access: str) -> None:
    page = open_page(run_server(MESSAGES_ACCESS=access).url)
    page.goto("/redoc")
    expect(page.get_by_role("heading", name="Messages").first).to_be_visible()
    page.get_by_label("Search").fill("mailbox")
    expect(page.locator("[data-role='search:results']")).to_contain_text("mailbox")


def test_the_root_leads_a_browser_to_the_docs(run_server: RunServer, open_page: OpenPage) -> None:
    page = open_page(run_server(MESSAGES_ACCESS="open").url)
    page.goto("/")
    expect(page).to_have_url(re.compile("/docs/?$"))
