"""Reading: pages in both directions, filters, strict parameters, cursors, entity tags, and both forms of every path."""

import hashlib
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from messaging.api.pagination import PAGE_CURSORS
from tests.conftest import MakeKey
from tests.helpers import Answer, Api

MISSING = "01a20908-3dcb-7223-b0bf-0d152a11caa4"  # no message has this id
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def send_many(api: Api, count: int, recipient: str = "ada", **fields: Any) -> list[dict[str, Any]]:
    """Send so many messages in one batch, hence with instants that may be equal; oldest first."""
    drafts = [{"recipient": recipient, "content": f"{i}", **fields} for i in range(count)]
    sent: list[dict[str, Any]] = api.post("/messages/batch", {"messages": drafts}).expect(201).json["results"]
    return sent


def follow(api: Api, url: str | None) -> Answer:
    """What a link of a page leads to."""
    assert url, "the page has no such link"
    parts = urlsplit(url)
    return api.get(f"{parts.path}?{parts.query}").expect(200)


def refused(api: Api, path: str) -> dict[str, str]:
    return api.get(path).expect(400, "invalid_input").faults


# --- pages


def test_a_page_by_default(api: Api) -> None:
    sent = send_many(api, 51)
    page = api.get("/messages/", {"recipient": "ada"}).expect(200).json

    assert page.keys() == {"results", "next", "previous", "mailbox"}
    assert page["results"] == sent[:0:-1]
    assert page["previous"] is None
    assert page["mailbox"] == api.mailbox("ada") == {"recipient": "ada", "version": 51, "total": 51, "unread": 51}
    assert all(INSTANT.fullmatch(m["created_at"]) for m in page["results"])
    assert follow(api, page["next"]).json["results"] == sent[:1]


@pytest.mark.parametrize("ordering", ["-created_at", "created_at"])
@pytest.mark.parametrize("limit", [1, 3, 10, 200])
@pytest.mark.parametrize("path", ["/messages/", "/messages/unread"])
def test_a_walk_in_either_direction_returns_each_message_once(api: Api, path: str, limit: int, ordering: str) -> None:
    sent = send_many(api, 10)
    send_many(api, 3, "bob")
    expected = sent if ordering == "created_at" else sent[::-1]

    page = api.get(path, {"recipient": "ada", "limit": limit, "ordering": ordering}).expect(200).json
    there = [page["results"]]
    while page["next"]:
        page = follow(api, page["next"]).json
        there.append(page["results"])
    assert [m for results in there for m in results] == expected
    assert all(len(results) == limit for results in there[:-1])

    back = [page["results"]]
    while page["previous"]:
        page = follow(api, page["previous"]).json
        back.append(page["results"])
    assert back == there[::-1]


def test_the_links_stand_in_the_header_too(api: Api) -> None:
    send_many(api, 3)
    first = api.get("/messages/", {"recipient": "ada", "limit": 1}).expect(200)
    middle = follow(api, first.json["next"])
    last = follow(api, middle.json["next"])

    assert first.headers["Link"] == f'<{first.json["next"]}>; rel="next"'
    assert middle.headers["Link"] == f'<{middle.json["next"]}>; rel="next", <{middle.json["previous"]}>; rel="prev"'
    assert last.headers["Link"] == f'<{last.json["previous"]}>; rel="prev"'
    assert "Link" not in api.get("/messages/", {"recipient": "nobody"}).expect(200).headers


def test_links_keep_what_was_asked_for(api: Api) -> None:
    name, sender = "ada & bob+eve=?#/%é\U0001f600", "a;b,c&d"
    send_many(api, 3, name, sender=sender)
    asked = {"recipient": name, "sender": sender, "limit": "1", "ordering": "created_at", "is_read": "false"}
    page = api.get("/messages/", asked).expect(200).json

    assert {key: [value] for key, value in asked.items()}.items() <= parse_qs(urlsplit(page["next"]).query).items()
    assert [m["content"] for m in api.pages("/messages/", asked)] == ["0", "1", "2"]


def test_pages_stay_right_while_messages_arrive_and_go(api: Api) -> None:
    sent = send_many(api, 9)
    page = api.get("/messages/", {"recipient": "ada", "limit": 3}).expect(200).json
    assert page["results"] == sent[8:5:-1]

    new = api.send("ada", "arrives meanwhile")
    # The message at which the cursor stands, one before it and one after it.
    gone = [sent[6]["id"], sent[7]["id"], sent[4]["id"]]
    api.post("/messages/bulk-delete", {"ids": gone}).expect(200)

    second = follow(api, page["next"]).json
    assert second["results"] == [sent[5], sent[3], sent[2]]
    third = follow(api, second["next"]).json
    assert (third["results"], third["next"]) == ([sent[1], sent[0]], None)
    back = follow(api, follow(api, third["previous"]).json["previous"]).json
    assert back["results"] == [new, sent[8]]


@pytest.mark.parametrize("ordering", ["-created_at", "created_at"])
def test_a_page_beyond_the_end_is_empty_and_leads_back(api: Api, ordering: str) -> None:
    sent = send_many(api, 4)
    order = sent if ordering == "created_at" else sent[::-1]
    page = api.get("/messages/", {"recipient": "ada", "limit": 2, "ordering": ordering}).expect(200).json
    api.post("/messages/bulk-delete", {"ids": [m["id"] for m in order[2:]]}).expect(200)

    beyond = follow(api, page["next"]).json
    assert (beyond["results"], beyond["next"]) == ([], None)
    assert follow(api, beyond["previous"]).json["results"] == order[:2]

    # And the other end: what the first page's messages were is gone as well.
    api.post("/messages/bulk-delete", {"ids": [m["id"] for m in order[:2]]}).expect(200)
    before = follow(api, beyond["previous"]).json
    assert (before["results"], before["previous"]) == ([], None)


@pytest.mark.parametrize("ordering", ["-created_at", "created_at"])
def test_a_reader_waiting_at_the_newest_message_finds_what_arrives(api: Api, ordering: str) -> None:
    api.send("ada", "first")
    page = api.get("/messages/", {"recipient": "ada", "ordering": "created_at", "limit": 1}).expect(200).json
    api.send("ada", "second")
    page = api.get("/messages/", {"recipient": "ada", "ordering": "created_at", "limit": 1}).expect(200).json
    page = follow(api, page["next"]).json
    assert ([m["content"] for m in page["results"]], page["next"]) == (["second"], None)
    api.send("ada", "third")

    assert [m["content"] for m in follow(api, follow(api, page["previous"]).json["next"]).json["results"]] == ["second"]
    assert [m["content"] for m in api.pages("/messages/", {"recipient": "ada", "ordering": ordering})] == (
        ["first", "second", "third"] if ordering == "created_at" else ["third", "second", "first"]
    )


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("1", 1), ("200", 200), ("201", 200), ("00007", 7), ("9" * 30, 200), ("1" + "0" * 5_000, 200)],
    ids=lambda value: str(value)[:12],
)  # fmt: skip
def test_a_limit_above_the_maximum_is_lowered_to_it(api: Api, limit: str, expected: int) -> None:
    send_many(api, 201)
    page = api.get("/messages/", {"recipient": "ada", "limit": limit}).expect(200).json

    assert len(page["results"]) == expected


def test_an_unknown_recipient_has_an_empty_mailbox(api: Api) -> None:
    empty = {"recipient": "nobody", "version": 0, "total": 0, "unread": 0}

    assert api.mailbox("nobody") == empty
    for path in ("/messages/", "/messages/unread"):
        page = api.get(path, {"recipient": "nobody"}).expect(200).json
        assert page == {"results": [], "next": None, "previous": None, "mailbox": empty}


def test_unread_leaves_out_what_was_read(api: Api) -> None:
    sent = send_many(api, 5)
    api.patch("/messages/mark-read", {"ids": [sent[1]["id"], sent[3]["id"]]}).expect(200)

    assert api.pages("/messages/unread", {"recipient": "ada", "limit": 2}) == [sent[4], sent[2], sent[0]]
    assert len(api.pages("/messages/", {"recipient": "ada"})) == 5


# --- filters


def test_each_filter_and_all_together(api: Api) -> None:
    senders = ["bob", "", "bob", "Bob", "eve", "bob", " bob"]
    sent = [api.send("ada", f"{i}", sender=sender) for i, sender in enumerate(senders)]
    api.patch("/messages/mark-read", {"ids": [sent[0]["id"], sent[3]["id"]]}).expect(200)

    def found(**query: str) -> list[str]:
        asked = {"recipient": "ada", "ordering": "created_at", "limit": "2", **query}
        return [m["content"] for m in api.pages("/messages/", asked)]

    third = sent[2]["created_at"]
    assert found(sender="bob") == ["0", "2", "5"]
    assert found(sender="") == ["1"]
    assert found(sender="nobody") == []
    assert found(is_read="true") == found(is_read="True") == found(is_read="1") == ["0", "3"]
    assert found(is_read="false") == found(is_read="False") == found(is_read="0") == ["1", "2", "4", "5", "6"]
    assert found(created_after=third) == ["2", "3", "4", "5", "6"]
    assert found(created_before=third) == ["0", "1"]
    assert found(created_after=third, created_before=third) == []
    assert found(sender="bob", is_read="false", created_after=third, created_before=sent[5]["created_at"]) == ["2"]
    assert [m["content"] for m in api.pages("/messages/unread", {"recipient": "ada", "is_read": "true"})] == []
    assert [m["content"] for m in api.pages("/messages/unread", {"recipient": "ada", "sender": "bob"})] == ["5", "2"]


def test_an_instant_may_have_any_offset_and_precision(api: Api) -> None:
    message = api.send("ada")
    at = datetime.fromisoformat(message["created_at"])

    def found(**query: str) -> int:
        return len(api.pages("/messages/", {"recipient": "ada", **query}))

    for hours in (-12, 0, 5.5, 14):
        zone = timedelta(hours=hours)
        local = (at.astimezone(UTC) + zone).strftime("%Y-%m-%dT%H:%M:%S.%f")
        sign, minutes = ("-" if hours < 0 else "+"), int(abs(hours) * 60)
        text = f"{local}{sign}{minutes // 60:02}:{minutes % 60:02}"
        assert (found(created_after=text), found(created_before=text)) == (1, 0)
    later = (at + timedelta(microseconds=1)).isoformat().replace("+00:00", "z").replace("T", "t")
    assert (found(created_after=later), found(created_before=later)) == (0, 1)
    assert found(created_after="0001-01-01T00:00:00Z", created_before="9999-12-31T23:59:59.9999999Z") == 1


@pytest.mark.parametrize("offset", ["Z", "z", "+00:00", "-00:00", "+0000", "+00", "-0000"])
def test_an_offset_of_iso_8601_s_basic_format_is_taken(api: Api, offset: str) -> None:
    text = datetime.fromisoformat(api.send("ada")["created_at"]).strftime("%Y-%m-%dT%H:%M:%S.%f") + offset
    assert len(api.pages("/messages/", {"recipient": "ada", "created_after": text})) == 1
    assert len(api.pages("/messages/", {"recipient": "ada", "created_before": text})) == 0


@pytest.mark.parametrize("offset", ["Z", "+00:00", " +00:00", " +0000", " UTC"])
def test_a_space_may_stand_for_the_t_and_before_the_offset(api: Api, offset: str) -> None:
    text = datetime.fromisoformat(api.send("ada")["created_at"]).strftime("%Y-%m-%d %H:%M:%S.%f") + offset
    assert len(api.pages("/messages/", {"recipient": "ada", "created_after": text})) == 1
    assert len(api.pages("/messages/", {"recipient": "ada", "created_before": text})) == 0


@pytest.mark.parametrize("offset", ["Z", "+00:00"])
def test_seconds_that_are_zero_may_be_left_out(api: Api, offset: str) -> None:
    at = datetime.fromisoformat(api.send("ada")["created_at"]).replace(second=0)
    after, before = (f"{at + timedelta(minutes=minutes):%Y-%m-%dT%H:%M}{offset}" for minutes in (0, 1))
    assert len(api.pages("/messages/", {"recipient": "ada", "created_after": after, "created_before": before})) == 1
    assert len(api.pages("/messages/", {"recipient": "ada", "created_after": before})) == 0


def test_a_basic_offset_is_more_than_its_sign(api: Api) -> None:
    at = datetime.fromisoformat(api.send("ada")["created_at"])
    for offset, zone in (
        ("-0530", timedelta(hours=-5.5)),
        ("+1245", timedelta(hours=12.75)),
        ("+01", timedelta(hours=1)),
    ):
        text = (at + zone).strftime("%Y-%m-%dT%H:%M:%S.%f") + offset
        assert len(api.pages("/messages/", {"recipient": "ada", "created_after": text})) == 1
        assert len(api.pages("/messages/", {"recipient": "ada", "created_before": text})) == 0


@pytest.mark.parametrize(
    ("digits", "after", "before"),
    [("", 1, 0), ("000", 1, 0), ("001", 0, 1), ("999", 0, 1), ("000000000000000001", 0, 1)],
)
def test_instants_are_compared_exactly_however_many_digits_they_have(
    api: Api, digits: str, after: int, before: int
) -> None:
    text = api.send("ada")["created_at"].removesuffix("Z") + digits + "Z"
    assert len(api.pages("/messages/", {"recipient": "ada", "created_after": text})) == after
    assert len(api.pages("/messages/", {"recipient": "ada", "created_before": text})) == before


BAD_INSTANTS = [
    "", "yesterday", "2026-01-01", "2026-01-01T00:00:00", "2026-01-01 00:00:00",
    "2026-01-01  00:00:00Z", "2026-01-01T00:00:00  Z", "2026-01-01T00:00:00 00:00", "2026-01-01T00:00:00utc",
    "1767225600", "2026-02-30T00:00:00Z",
    "2026-01-01T24:00:00Z", "2026-01-01T24:00:01Z", "2026-01-01T00:00:00+0", "2026-01-01T00:00:00+000",
    "2026-01-01T00:00:00+00:0", "2026-01-01T00Z", "2026-01-01T00:00.5Z", "2026-01-01T00:00", "2026-01-01T00:00:00.Z",
    "2016-12-31T23:59:60Z", "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00+99:99",
    "2026-01-01T00:00:00+14:60", "2026-01-01T00:00:00-0099", "12026-01-01T00:00:00Z", "2026-01-01T00:00:00Z\n",
    "\u0662\u0660\u0662\u0666-01-01T00:00:00Z", "2026-W01-1T00:00:00Z", "infinity", "%s", "' OR 1=1 --",
]  # fmt: skip


@pytest.mark.parametrize("path", ["/messages/", "/messages/unread"])
@pytest.mark.parametrize("name", ["created_after", "created_before"])
def test_an_invalid_instant_is_refused_by_name(api: Api, name: str, path: str) -> None:
    for text in BAD_INSTANTS:
        assert refused(api, f"{path}?recipient=ada&{name}={quote(text)}") == {f"?{name}": "invalid_instant"}, text


@pytest.mark.parametrize(
    ("query", "pointer", "code"),
    [
        ("limit=0", "?limit", "invalid_limit"),
        ("limit=", "?limit", "invalid_limit"),
        ("limit=-1", "?limit", "invalid_limit"),
        ("limit=%2B1", "?limit", "invalid_limit"),
        ("limit=+1", "?limit", "invalid_limit"),
        ("limit=1.0", "?limit", "invalid_limit"),
        ("limit=1e2", "?limit", "invalid_limit"),
        ("limit=0x10", "?limit", "invalid_limit"),
        ("limit=1_0", "?limit", "invalid_limit"),
        ("limit=%D9%A1", "?limit", "invalid_limit"),
        ("limit=all", "?limit", "invalid_limit"),
        ("limit=10&limit=20", "?limit", "repeated_parameter"),
        ("recipient=bob", "?recipient", "repeated_parameter"),
        ("ordering=", "?ordering", "invalid_ordering"),
        ("ordering=id", "?ordering", "invalid_ordering"),
        ("ordering=CREATED_AT", "?ordering", "invalid_ordering"),
        ("ordering=created_at,id", "?ordering", "invalid_ordering"),
        ("is_read=", "?is_read", "invalid"),
        ("is_read=yes", "?is_read", "invalid"),
        ("is_read=2", "?is_read", "invalid"),
        ("is_read=%25s", "?is_read", "invalid"),
        (f"sender={'s' * 256}", "?sender", "too_long"),
        ("sender=a%0cb", "?sender", "control_character"),
        ("page=2", "?page", "unknown_parameter"),
        ("offset=10", "?offset", "unknown_parameter"),
        ("Limit=10", "?Limit", "unknown_parameter"),
        ("recipient[]=bob", "?recipient[]", "unknown_parameter"),
        ("sender__contains=b", "?sender__contains", "unknown_parameter"),
        ("format=json", "?format", "unknown_parameter"),
        ("mailbox_id=1", "?mailbox_id", "unknown_parameter"),
        ("=x", "?", "unknown_parameter"),
        ("flag", "?flag", "unknown_parameter"),
        ("cursor=", "?cursor", "invalid_cursor"),
        ("cursor=AAAA", "?cursor", "invalid_cursor"),
        ("cursor=%C3%A9", "?cursor", "invalid_cursor"),
        ("cursor=====", "?cursor", "invalid_cursor"),
        ("cursor=" + "A" * 4_000, "?cursor", "invalid_cursor"),
        ("cursor=cD0yMDI2LTAxLTAx", "?cursor", "invalid_cursor"),
    ],
)
def test_parameters_are_strict(api: Api, query: str, pointer: str, code: str) -> None:
    api.send("ada")
    for path in ("/messages/", "/messages/unread"):
        assert refused(api, f"{path}?recipient=ada&{query}") == {pointer: code}


@pytest.mark.parametrize("path", ["/messages/", "/messages/unread", "/mailbox"])
def test_the_recipient_is_required_and_validated(api: Api, path: str) -> None:
    assert refused(api, path) == {"?recipient": "required"}
    for text, code in [("", "blank"), ("r" * 256, "too_long"), ("%00", "nul_character"), ("%0A", "control_character")]:
        assert refused(api, f"{path}?recipient={text}") == {"?recipient": code}
    assert refused(api, f"{path}?recipient=ada&colour=red") == {"?colour": "unknown_parameter"}


def test_every_faulty_parameter_is_named_at_once(api: Api) -> None:
    faults = refused(api, "/messages/?recipient=&limit=x&ordering=y")
    assert faults == {"?recipient": "blank", "?limit": "invalid_limit", "?ordering": "invalid_ordering"}


# --- cursors


def test_a_cursor_belongs_to_its_recipient_filters_order_and_list(api: Api) -> None:
    for name in ("ada", "bob"):
        send_many(api, 3, name, sender="eve")
    page = api.get("/messages/", {"recipient": "ada", "limit": 1}).expect(200).json
    cursor = parse_qs(urlsplit(page["next"]).query)["cursor"][0]

    # A page of another size may go on from it.
    page = api.get("/messages/", {"recipient": "ada", "limit": 2, "cursor": cursor}).expect(200).json
    assert len(page["results"]) == 2
    for path, query in [
        ("/messages/", "recipient=bob"),
        ("/messages/", "recipient=ada&ordering=created_at"),
        ("/messages/", "recipient=ada&sender=eve"),
        ("/messages/", "recipient=ada&sender="),
        ("/messages/", "recipient=ada&is_read=false"),
        ("/messages/", "recipient=ada&created_after=2026-01-01T00:00:00Z"),
        ("/messages/unread", "recipient=ada"),
    ]:
        assert refused(api, f"{path}?{query}&cursor={cursor}") == {"?cursor": "foreign_cursor"}
    # The default, written out, is the same list.
    api.get(f"/messages/?recipient=ada&ordering=-created_at&cursor={cursor}").expect(200)


def test_a_cursor_changed_in_any_place_is_refused(api: Api) -> None:
    send_many(api, 3)
    page = api.get("/messages/", {"recipient": "ada", "limit": 1}).expect(200).json
    cursor = parse_qs(urlsplit(page["next"]).query)["cursor"][0]
    for place, char in enumerate(cursor):
        changed = cursor[:place] + ("A" if char != "A" else "B") + cursor[place + 1 :]
        assert refused(api, f"/messages/?recipient=ada&cursor={changed}") == {"?cursor": "invalid_cursor"}
    for changed in (cursor[:-1], cursor + "A", cursor + "=", cursor.lower(), ""):
        assert refused(api, f"/messages/?recipient=ada&cursor={changed}") == {"?cursor": "invalid_cursor"}


def test_a_cursor_with_a_nonsense_position_is_refused_or_leads_somewhere(api: Api) -> None:
    send_many(api, 3)
    newest_first: tuple[Any, ...] = ("ada", False, True, [])
    for seq in (-(2**63), -1, 2**62, 2**63 - 1):
        text = PAGE_CURSORS.encode((False, seq), newest_first)
        assert refused(api, f"/messages/?recipient=ada&cursor={text}") == {"?cursor": "invalid_cursor"}
    for seq in (1, 3, 2**62 - 2):
        for newer in (False, True):
            text = PAGE_CURSORS.encode((newer, seq), newest_first)
            page = api.get(f"/messages/?recipient=ada&cursor={text}").expect(200).json
            for link in ("next", "previous"):
                if page[link]:
                    follow(api, page[link])


# --- one message


def test_one_message_in_any_spelling_of_its_id(api: Api) -> None:
    message = api.send("ada")

    assert api.get(f"/messages/{message['id']}").expect(200).json == message
    assert api.get(f"/messages/{message['id'].upper()}").expect(200).json == message
    assert api.get(f"/messages/{message['id']}?verbose=1").expect(400).faults == {"?verbose": "unknown_parameter"}


@pytest.mark.parametrize(
    "text",
    [MISSING, str(uuid.UUID(int=0)), "1", "0x1", f"{{{MISSING}}}", MISSING.replace("-", ""), f"urn:uuid:{MISSING}",
     f"{MISSING}%0A", "null", "..", "%00", "%FF", "%F0%9F%98%80", "%0A", "a" * 3_000, "'%20OR%201=1", "Bulk"],
)  # fmt: skip
def test_an_id_without_a_message_is_404(api: Api, text: str) -> None:
    api.send("ada")
    api.get(f"/messages/{text}").expect(404, "not_found")
    api.delete(f"/messages/{text}").expect(404, "not_found")


# --- entity tags


def read_paths(message: dict[str, Any]) -> list[str]:
    return [
        "/messages/?recipient=ada",
        "/messages/?recipient=ada&limit=1&sender=bob",
        "/messages/unread?recipient=ada",
        "/mailbox?recipient=ada",
        f"/messages/{message['id']}",
    ]


def test_an_entity_tag_holds_until_the_mailbox_changes(api: Api) -> None:
    message = api.send("ada", "first")
    ids = {"ids": [message["id"]]}
    changes: list[Any] = [
        lambda: api.send("ada", "second"),
        lambda: api.patch("/messages/mark-read", ids).expect(200),
        lambda: api.patch("/messages/mark-unread", ids).expect(200),
        lambda: api.patch("/messages/mark-read", {"recipient": "ada", "up_to": message["id"]}).expect(200),
        lambda: api.delete(f"/messages/{api.send('ada')['id']}").expect(204),
    ]
    for change in changes:
        for path in read_paths(message):
            tag = api.get(path).expect(200).headers["ETag"]
            assert re.fullmatch(r'"[!-~]+"', tag)
            again = api.get(path, headers={"If-None-Match": tag}).expect(304)
            assert (again.body, again.headers["ETag"]) == (b"", tag)
        tags = {path: api.get(path).headers["ETag"] for path in read_paths(message)}
        api.send("bob")
        api.patch("/messages/mark-unread", {"ids": [MISSING]}).expect(200)
        for path, tag in tags.items():
            api.get(path, headers={"If-None-Match": tag}).expect(304)
        change()
        for path, tag in tags.items():
            answer = api.get(path, headers={"If-None-Match": tag}).expect(200)
            assert answer.headers["ETag"] != tag


@pytest.mark.parametrize("form", ["{tag}", "W/{tag}", '"x", {tag}', '{tag}, "x"', '"x",W/{tag}', "*"])
def test_every_form_of_if_none_match(api: Api, form: str) -> None:
    message = api.send("ada")
    for path in read_paths(message):
        tag = api.get(path).headers["ETag"]
        api.get(path, headers={"If-None-Match": form.format(tag=tag)}).expect(304)


@pytest.mark.parametrize("value", ['"x"', "", "garbage", '"', ",,,", "W/", "\xff"])
def test_another_tag_does_not_match(api: Api, value: str) -> None:
    message = api.send("ada")
    for path in read_paths(message):
        api.get(path, headers={"If-None-Match": value}).expect(200)


def test_one_mailbox_s_tag_is_not_another_s(api: Api, make_key: MakeKey) -> None:
    # Keys that are bound read different mailboxes under one URL.
    clients = []
    for name in ("ada", "bob"):
        api.send(name)
        clients.append(api.holding(make_key("read", recipient=name)))
    for path in ("/messages/", "/messages/unread", "/mailbox"):
        tag = clients[0].get(path).expect(200).headers["ETag"]
        answer = clients[1].get(path, headers={"If-None-Match": tag}).expect(200)
        assert answer.headers["Vary"].startswith("Accept, Authorization")


def test_a_malformed_conditional_request_is_still_refused(api: Api) -> None:
    tag = api.get("/messages/?recipient=ada").headers["ETag"]
    faults = api.get("/messages/?recipient=ada&limit=x", headers={"If-None-Match": tag}).expect(400).faults
    assert faults == {"?limit": "invalid_limit"}


def test_the_tag_does_not_tell_who_it_is(api: Api) -> None:
    assert "ada" not in api.get("/mailbox?recipient=ada").headers["ETag"]
    assert hashlib.sha256(b"ada").hexdigest()[:12] not in api.get("/mailbox?recipient=ada").headers["ETag"]


# --- bound keys, methods, forms of paths


def test_a_bound_key_may_leave_the_recipient_out(api: Api, make_key: MakeKey) -> None:
    sent = send_many(api, 3)
    send_many(api, 3, "bob")
    bound = api.holding(make_key("read", recipient="ada"))
    for query in ({}, {"recipient": "ada"}):
        assert bound.pages("/messages/", {"limit": 1, **query}) == sent[::-1]
        assert bound.pages("/messages/unread", {"limit": 1, "ordering": "created_at", **query}) == sent
        assert bound.get("/mailbox", query).expect(200).json == api.mailbox("ada")


def paths_of(message_id: str) -> list[tuple[str, str, str, Any]]:
    """Every path of the API, with a method and a body that it takes."""
    ids = {"ids": [message_id]}
    return [
        ("GET", "/messages", "recipient=ada", None),
        ("POST", "/messages", "", {"recipient": "ada", "content": "x"}),
        ("POST", "/messages/batch", "", {"messages": [{"recipient": "ada", "content": "x"}]}),
        ("GET", "/messages/unread", "recipient=ada", None),
        ("GET", f"/messages/{message_id}", "", None),
        ("PATCH", "/messages/mark-read", "", ids),
        ("PATCH", "/messages/mark-unread", "", ids),
        ("GET", "/mailbox", "recipient=ada", None),
        ("POST", "/messages/bulk-delete", "", {"ids": [MISSING]}),
        ("DELETE", "/messages/bulk", "", {"ids": [MISSING]}),
        ("DELETE", f"/messages/{message_id}", "allow_missing=true", None),
    ]


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz", "/docs", "/redoc"])
def test_what_needs_no_key_answers_with_and_without_its_slash(
    transactional_db: None, anonymous: Api, path: str
) -> None:
    plain, slashed = anonymous.get(path).expect(200), anonymous.get(f"{path}/").expect(200)
    head = anonymous.request("HEAD", path).expect(200)

    assert plain.headers["Content-Type"] == slashed.headers["Content-Type"]
    assert (head.body, head.headers["Content-Type"]) == (b"", plain.headers["Content-Type"])


@pytest.mark.parametrize("slash", ["", "/"])
def test_every_path_answers_with_and_without_its_slash(api: Api, slash: str) -> None:
    message_id = api.send("ada")["id"]
    for method, path, query, body in paths_of(message_id):
        options = {} if body is None else {"json": body}
        answer = api.request(method, f"{path}{slash}?{query}" if query else path + slash, **options)
        assert answer.status in (200, 201, 204), f"{method} {path}{slash}: {answer.status} {answer.body[:300]!r}"


@pytest.mark.parametrize("slash", ["", "/"])
def test_head_answers_as_get_without_a_body(api: Api, slash: str) -> None:
    message_id = api.send("ada")["id"]
    for method, path, query, _ in paths_of(message_id):
        if method == "GET":
            target = f"{path}{slash}?{query}" if query else path + slash
            got, head = api.get(target), api.request("HEAD", target)
            assert (head.status, head.body) == (got.status, b"")
            assert head.headers.get("ETag") == got.headers.get("ETag")
            assert head.headers.get("Link") == got.headers.get("Link")
            assert head.headers["Content-Type"] == got.headers["Content-Type"]


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/messages", {"GET", "HEAD", "POST"}),
        ("/messages/batch", {"POST"}),
        ("/messages/unread", {"GET", "HEAD"}),
        ("/messages/mark-read", {"PATCH", "POST"}),
        ("/messages/mark-unread", {"PATCH", "POST"}),
        ("/messages/bulk", {"DELETE"}),
        ("/messages/bulk-delete", {"POST"}),
        ("/mailbox", {"GET", "HEAD"}),
        (f"/messages/{MISSING}", {"GET", "HEAD", "DELETE"}),
    ],
)
def test_options_and_405_name_the_methods(api: Api, path: str, methods: set[str], slash: str) -> None:
    options = api.request("OPTIONS", path + slash).expect(204)
    assert set(options.headers["Allow"].split(", ")) == methods | {"OPTIONS"}
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PURGE"} - methods:
        answer = api.request(method, path + slash).expect(405, "method_not_allowed")
        assert set(answer.headers["Allow"].split(", ")) == methods | {"OPTIONS"}


NO_PATHS = ["/message", "/a//messages", "/messages/a/b", "/mailbox/ada", "/api", "/health/db"]


@pytest.mark.parametrize("path", NO_PATHS)
def test_an_unknown_path_is_a_problem(api: Api, path: str) -> None:
    api.get(path).expect(404, "unknown_path")
    api.post(path, {}).expect(404, "unknown_path")


def test_the_instance_of_a_problem_is_a_uri_reference(api: Api) -> None:
    path = "/messages/caf%C3%A9%20%5B"
    assert api.get(path).expect(404, "not_found").json["instance"] == path


def test_a_path_of_the_live_process_says_where_it_is(api: Api) -> None:
    problem = api.get("/mailbox/events?recipient=ada").expect(404, "unknown_path").json
    assert "the live process, which has a port of its own" in problem["detail"]


@pytest.mark.parametrize("accept", ["application/json", "*/*", "application/*", "text/html, */*;q=0.1", ""])
def test_an_accept_that_allows_json_is_answered_with_json(api: Api, accept: str) -> None:
    answer = api.get("/mailbox?recipient=ada", headers={"Accept": accept}).expect(200)
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("accept", ["text/html", "application/xml", ";;;"])
def test_not_accepting_json_is_refused_with_a_problem(api: Api, accept: str) -> None:
    api.get("/mailbox?recipient=ada", headers={"Accept": accept}).expect(406, "not_acceptable")
