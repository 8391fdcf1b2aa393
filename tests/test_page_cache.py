"""A page that is asked for again is answered from memory, and never with anything but what the mailbox holds."""

from collections.abc import Callable
from typing import Any

import pytest

from messaging.api.page_cache import PageCache, pages
from messaging.models import Mailbox, Message
from tests.conftest import MakeKey
from tests.helpers import Api
from tests.plans import statements

CHANGES: dict[str, Callable[[Api, list[str]], Any]] = {
    "sent": lambda api, _ids: api.post("/messages/", {"recipient": "ada", "content": "new"}).expect(201),
    "sent in a batch": lambda api, _ids: api.post(
        "/messages/batch", {"messages": [{"recipient": "ada", "content": "new"}]}
    ).expect(201),
    "marked": lambda api, ids: api.patch("/messages/mark-read", {"ids": ids[:1]}).expect(200),
    "marked up to": lambda api, ids: api.patch("/messages/mark-read", {"recipient": "ada", "up_to": ids[1]}).expect(
        200
    ),
    "deleted": lambda api, ids: api.delete(f"/messages/{ids[0]}").expect(204),
    "deleted in bulk": lambda api, ids: api.post("/messages/bulk-delete", {"ids": ids}).expect(200),
}
PAGES = ["/messages/?recipient=ada", "/messages/unread?recipient=ada&limit=2", "/messages/?recipient=ada&sender="]


@pytest.fixture
def ids(api: Api) -> list[str]:
    """Three messages to ada."""
    return [api.post("/messages/", {"recipient": "ada", "content": text}).json["id"] for text in "abc"]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_asked_for_again_touches_no_message(api: Api, ids: list[str], page: str) -> None:
    first = api.get(page)
    with statements() as found:
        again = api.get(page)
    assert (again.body, again.headers["ETag"], again.headers.get("Link")) == (
        first.body,
        first.headers["ETag"],
        first.headers.get("Link"),
    )
    assert len(found) == 1
    assert "messaging_message" not in found[0][0]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("times", [1, 3])
def test_no_page_outlives_a_change(api: Api, ids: list[str], page: str, change: str, times: int) -> None:
    before = {api.get(page).body for _ in range(times)}
    CHANGES[change](api, ids)
    after = {api.get(page).body for _ in range(times)}
    pages._pages.clear()
    assert after == {api.get(page).body}
    assert len(before | after) == 2


def test_no_page_outlives_its_mailbox(api: Api) -> None:
    """Even if the tables are emptied while the service runs, so that versions repeat."""
    for text in ("one", "another"):
        api.post("/messages/", {"recipient": "ada", "content": text}).expect(201)
        for _ in range(3):
            assert [m["content"] for m in api.get("/messages/?recipient=ada").json["results"]] == [text]
        Message.objects.all().delete()
        Mailbox.objects.all().delete()


def test_keys_of_different_mailboxes_share_no_page(api: Api, make_key: MakeKey, ids: list[str]) -> None:
    api.post("/messages/", {"recipient": "bob", "content": "for bob"}).expect(201)
    ada, bob = (api.holding(make_key("read", recipient=name)) for name in ("ada", "bob"))
    for _ in range(3):
        assert {m["recipient"] for m in ada.get("/messages/").json["results"]} == {"ada"}
        assert {m["recipient"] for m in bob.get("/messages/").json["results"]} == {"bob"}
        api.get("/messages/?recipient=ada").expect(200)
        bob.get("/messages/?recipient=ada").expect(404)
    api.holding(make_key("send")).get("/messages/?recipient=ada").expect(403)


def test_a_cached_page_has_the_links_of_its_own_host(api: Api, ids: list[str]) -> None:
    for host in ("localhost", "127.0.0.1", "localhost"):
        found = api.get("/messages/?recipient=ada&limit=1", headers={"Host": host})
        assert found.json["next"].startswith(f"http://{host}/")


def test_the_cache_is_bounded_by_bytes(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        api.post("/messages/", {"recipient": f"user-{number}", "content": "x" * 5_000}).expect(201)

    def statements_on_messages(number: int) -> int:
        with statements() as found:
            api.get(f"/messages/?recipient=user-{number}").expect(200)
        return sum("messaging_message" in sql for sql, _ in found)

    # Two pages fit: the one used last stays, the other makes room.
    monkeypatch.setattr("messaging.api.views.pages", PageCache(2 * 6_600))
    assert [statements_on_messages(number) for number in (0, 1, 0, 2, 0, 1)] == [1, 1, 0, 1, 0, 1]
    # None fits.
    monkeypatch.setattr("messaging.api.views.pages", PageCache(6_000))
    assert [statements_on_messages(0) for _ in range(3)] == [1, 1, 1]
