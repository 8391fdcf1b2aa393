"""Sending: what a message and a batch may hold, at every limit and one beyond it, and what comes back."""

import json
import uuid
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import factory.random
import pytest

from tests.conftest import MakeKey
from tests.factories import DraftFactory
from tests.helpers import Api
from tests.state import miscounted, nothing_changes

FIELDS = {"id", "seq", "recipient", "sender", "content", "metadata", "created_at", "read_at", "is_read", "expires_at"}


def metadata_of(size: int) -> dict[str, str]:
    """Metadata of exactly `size` bytes as compact JSON in UTF-8."""
    bare = len(json.dumps({"a": ""}, separators=(",", ":")))
    return {"a": "x" * (size - bare)}


def test_a_message_comes_back_whole_and_is_where_location_says(api: Api) -> None:
    draft = {"recipient": "ada", "sender": "bob", "content": "Hello", "metadata": {"thread": 7}}
    answer = api.post("/messages/", draft).expect(201)

    message = answer.json
    assert message.keys() == FIELDS
    assert {name: message[name] for name in draft} == draft
    assert (message["seq"], message["read_at"], message["is_read"]) == (1, None, False)
    assert uuid.UUID(message["id"]).version == 7
    location = urlsplit(answer.headers["Location"])
    assert location.path == f"/messages/{message['id']}"
    assert api.get(location.path).expect(200).json == message
    assert api.mailbox("ada") == {"recipient": "ada", "version": 1, "total": 1, "unread": 1}


def test_sender_and_metadata_may_be_left_out(api: Api) -> None:
    message = api.send("ada", "Hello")

    assert (message["sender"], message["metadata"]) == ("", {})


def test_null_is_the_same_as_leaving_out(api: Api) -> None:
    draft = {"recipient": "ada", "sender": None, "content": "Hello", "metadata": None}
    message = api.post("/messages/", draft).expect(201).json
    assert (message["sender"], message["metadata"]) == ("", {})
    [message] = api.post("/messages/batch", {"messages": [draft]}).expect(201).json["results"]
    assert (message["sender"], message["metadata"]) == ("", {})

    for body in (
        {"ids": [message["id"]], "recipient": None, "up_to": None},
        {"ids": None, "recipient": "ada", "up_to": message["id"]},
    ):
        assert api.patch("/messages/mark-read", body).expect(200).json["not_found"] == 0
    assert api.mailbox("ada")["unread"] == 0


def test_seq_follows_the_mailbox_version_and_each_mailbox_has_its_own(api: Api) -> None:
    assert [api.send("ada")["seq"] for _ in range(3)] == [1, 2, 3]
    assert api.send("bob")["seq"] == 1
    first = api.pages("/messages/", {"recipient": "ada", "ordering": "created_at"})[0]
    api.delete(f"/messages/{first['id']}").expect(204)

    # The deletion has taken version 4.
    assert api.send("ada")["seq"] == 5


@pytest.mark.parametrize(
    "fields",
    [
        {"content": "x"},
        {"content": "x" * 10_000},
        {"content": "\U0001f600" * 10_000},
        {"content": "\u200b"},
        {"content": " \t\r\n x \x01\x1f\x7f\r\n"},
        {"content": "e\u0301 \u00e9 \ufffe \u202e \u2028"},
        {"recipient": "r"},
        {"recipient": "r" * 255},
        {"recipient": "\U0001f600" * 255},
        {"recipient": " "},
        {"sender": ""},
        {"sender": "s" * 255},
        {"metadata": {}},
        {"metadata": metadata_of(4_096)},
        {"metadata": {"k" * 4_000: None}},
    ],
    ids=lambda fields: f"{next(iter(fields))}-{len(json.dumps(fields))}",
)
def test_up_to_its_limits_a_message_is_kept_exactly(api: Api, fields: dict[str, Any]) -> None:
    draft = {"recipient": "ada", "content": "Hello"} | fields
    message = api.post("/messages/", draft).expect(201).json

    assert {name: message[name] for name in fields} == fields
    assert api.get(f"/messages/{message['id']}").expect(200).json == message
    assert api.pages("/messages/", {"recipient": draft["recipient"]}) == [message]


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"content": ""}, "/content", "blank"),
    ({"content": " \t\r\n\u3000"}, "/content", "blank"),
    ({"content": "x" * 10_001}, "/content", "too_long"),
    ({"content": "a\x00b"}, "/content", "nul_character"),
    ({"content": "a\ud800b"}, "/content", "lone_surrogate"),
    ({"content": None}, "/content", "required"),
    ({"content": 1}, "/content", "not_a_string"),
    ({"content": True}, "/content", "not_a_string"),
    ({"content": ["x"]}, "/content", "not_a_string"),
    ({"content": {"text": "x"}}, "/content", "not_a_string"),
    ({"recipient": ""}, "/recipient", "blank"),
    ({"recipient": "r" * 256}, "/recipient", "too_long"),
    ({"recipient": "a\nb"}, "/recipient", "control_character"),
    ({"recipient": "a\x7fb"}, "/recipient", "control_character"),
    ({"recipient": "a\x85b"}, "/recipient", "control_character"),
    ({"recipient": "a\x00b"}, "/recipient", "nul_character"),
    ({"recipient": "\udfff"}, "/recipient", "lone_surrogate"),
    ({"recipient": None}, "/recipient", "required"),
    ({"recipient": 5}, "/recipient", "not_a_string"),
    ({"sender": "s" * 256}, "/sender", "too_long"),
    ({"sender": "a\tb"}, "/sender", "control_character"),
    ({"sender": "\x00"}, "/sender", "nul_character"),
    ({"metadata": []}, "/metadata", "not_an_object"),
    ({"metadata": "{}"}, "/metadata", "not_an_object"),
    ({"metadata": metadata_of(4_097)}, "/metadata", "too_large"),
    ({"metadata": {"a": "\u00e9" * 2_046}}, "/metadata", "too_large"),
    ({"metadata": {"a": ["ok", "\x00"]}}, "/metadata/a/1", "nul_character"),
    ({"metadata": {"a/b": {"~": "\ud800"}}}, "/metadata/a~1b/~0", "lone_surrogate"),
    ({"metadata": {"\x00": 1}}, "/metadata/\ufffd", "nul_character"),
    ({"id": str(uuid.uuid4())}, "/id", "unknown_field"),
    ({"seq": 1}, "/seq", "unknown_field"),
    ({"read_at": None}, "/read_at", "unknown_field"),
    ({"is_read": True}, "/is_read", "unknown_field"),
    ({"created_at": "2026-01-01T00:00:00Z"}, "/created_at", "unknown_field"),
    ({"Content": "x"}, "/Content", "unknown_field"),
    ({"": "x"}, "/", "unknown_field"),
]


@pytest.mark.parametrize(
    ("fields", "pointer", "code"), REFUSED, ids=[f"{place}-{code}-{i}" for i, (_, place, code) in enumerate(REFUSED)]
)
def test_beyond_its_limits_a_message_is_refused_by_name(
    api: Api, fields: dict[str, Any], pointer: str, code: str
) -> None:
    draft = {"recipient": "ada", "content": "Hello"} | fields

    with nothing_changes():
        assert api.post("/messages/", draft).expect(400, "invalid_input").faults == {pointer: code}
        batch = {"messages": [{"recipient": "ada", "content": "fine"}, draft]}
        faults = api.post("/messages/batch", batch).expect(400, "invalid_input").faults
        assert faults == {f"/messages/1{pointer}": code}


def test_every_fault_is_named_at_once(api: Api) -> None:
    draft = {"sender": 5, "content": "", "metadata": [], "colour": "red"}

    assert api.post("/messages/", draft).expect(400, "invalid_input").faults == {
        "/recipient": "required",
        "/sender": "not_a_string",
        "/content": "blank",
        "/metadata": "not_an_object",
        "/colour": "unknown_field",
    }


@pytest.mark.parametrize("path", ["/messages/", "/messages/batch"])
def test_sending_takes_no_query_parameters(api: Api, path: str) -> None:
    with nothing_changes():
        faults = api.post(f"{path}?recipient=ada", {"content": "Hello"}).expect(400, "invalid_input").faults
    assert faults == {"?recipient": "unknown_parameter"}


def test_recipients_are_compared_exactly(api: Api) -> None:
    names = ["ada", "Ada", "ada ", " ada", "\u00e5da", "a\u030ada", "ada\u200b", "ada%", "ad_", "ada\ufe0f"]
    for name in names:
        api.send(name, f"for {name!r}")

    for name in names:
        [message] = api.pages("/messages/", {"recipient": name})
        assert (message["recipient"], message["content"]) == (name, f"for {name!r}")


@pytest.mark.parametrize(
    "number",
    ["0", "-0", "1", "-1", "9007199254740993", "18446744073709551617", "-9223372036854775809", "9" * 4_000,
     "0.1", "1.10", "1e23", "1E+2", "1e-7", "-0.0", "5e-324", "1.7976931348623157e308", "123456789012345680000"],
)  # fmt: skip
def test_numbers_in_metadata_come_back_equal(api: Api, number: str) -> None:
    body = b'{"recipient": "ada", "content": "x", "metadata": {"n": %s}}' % number.encode()
    sent = api.post("/messages/", body=body).expect(201)
    read = api.get(f"/messages/{sent.json['id']}").expect(200)

    for answer in (sent, read):
        exact = json.loads(answer.body, parse_float=Decimal)["metadata"]["n"]
        assert exact == json.loads(number, parse_float=Decimal)


@pytest.mark.parametrize(
    "number",
    ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e-400", "0.1000000000000000055511151231257827",
     "9007199254740993.0", "1" * 5_000, "1e999999999999999999999", "1e-999999999999999999999"],
)  # fmt: skip
def test_numbers_that_would_not_come_back_equal_are_refused(api: Api, number: str) -> None:
    body = b'{"recipient": "ada", "content": "x", "metadata": {"list": [1, %s]}}' % number.encode()
    with nothing_changes():
        faults = api.post("/messages/", body=body).expect(400, "invalid_input").faults
    assert faults == {"/metadata/list/1": "inexact_number"}


def test_metadata_keeps_its_shape_and_the_order_of_its_keys(api: Api) -> None:
    metadata = {"z": [], "a": {"": {"b": [None, True, False, "", {}]}}, "ключ": "значение", "\u2028": '\x01\x7f\\"/'}
    message = api.send("ada", metadata=metadata)

    found = api.get(f"/messages/{message['id']}").expect(200).json["metadata"]
    assert found == metadata
    assert list(found) == list(metadata)


# --- batches


def test_a_batch_answers_in_the_order_given_and_each_mailbox_counts_on(api: Api) -> None:
    api.send("bob", "before")
    names = ["eve", "bob", "ada", "bob", "eve", "bob"]
    drafts = [{"recipient": name, "content": f"{i}"} for i, name in enumerate(names)]
    results = api.post("/messages/batch", {"messages": drafts}).expect(201).json["results"]

    assert [(m["recipient"], m["content"], m["seq"]) for m in results] == [
        ("eve", "0", 1), ("bob", "1", 2), ("ada", "2", 1), ("bob", "3", 3), ("eve", "4", 2), ("bob", "5", 4),
    ]  # fmt: skip
    for name in ("ada", "bob", "eve"):
        mine = [m for m in results if m["recipient"] == name]
        found = api.pages("/messages/", {"recipient": name, "ordering": "created_at"})
        assert [m for m in found if m["content"] != "before"] == mine
        assert [m["created_at"] for m in found] == sorted(m["created_at"] for m in found)
    assert api.mailbox("bob") == {"recipient": "bob", "version": 4, "total": 4, "unread": 4}
    assert miscounted() == []


def test_a_batch_of_the_most_and_the_largest_messages(api: Api) -> None:
    drafts = [{"recipient": f"r{i % 3}", "content": f"{i:05}" + "x" * 9_995} for i in range(999)]
    drafts.append({"recipient": "r0", "content": "\u00e9" * 10_000})
    results = api.post("/messages/batch", {"messages": drafts}).expect(201).json["results"]

    assert [m["content"] for m in results] == [draft["content"] for draft in drafts]
    assert api.mailbox("r0")["total"] == 334


@pytest.mark.parametrize(
    ("body", "faults"),
    [
        ({}, {"/messages": "required"}),
        ({"messages": []}, {"/messages": "blank"}),
        ({"messages": None}, {"/messages": "required"}),
        ({"messages": {"0": {}}}, {"/messages": "not_a_list"}),
        ({"messages": "text"}, {"/messages": "not_a_list"}),
        ({"messages": [{"recipient": "ada", "content": "x"}] * 1_001}, {"/messages": "too_many"}),
        ({"messages": [{"recipient": "ada", "content": "x"}], "dry_run": True}, {"/dry_run": "unknown_field"}),
        ([{"recipient": "ada", "content": "x"}], {"": "not_an_object"}),
        ({"messages": ["x", 5, None, []]}, {f"/messages/{i}": "not_an_object" for i in range(4)}),
    ],
    ids=["missing", "empty", "null", "object", "text", "1001", "unknown", "bare-list", "no-objects"],
)
def test_an_invalid_batch_is_refused(api: Api, body: Any, faults: dict[str, str]) -> None:
    with nothing_changes():
        assert api.post("/messages/batch", body).expect(400, "invalid_input").faults == faults


def test_with_one_fault_nothing_of_a_batch_is_sent(api: Api) -> None:
    drafts: list[dict[str, Any]] = [{"recipient": f"r{i}", "content": "x"} for i in range(1_000)]
    drafts[0]["content"] = ""
    drafts[999]["recipient"] = None
    with nothing_changes():
        faults = api.post("/messages/batch", {"messages": drafts}).expect(400, "invalid_input").faults
    assert faults == {"/messages/0/content": "blank", "/messages/999/recipient": "required"}


def test_a_flood_of_faults_is_answered_with_the_first_hundred(api: Api) -> None:
    answer = api.post("/messages/batch", {"messages": [{}] * 1_000}).expect(400, "invalid_input")
    assert len(answer.json["errors"]) == 100

    many = {f"field{i}": 1 for i in range(10_000)}
    for path, method in [("/messages/", "POST"), ("/messages/batch", "POST"), ("/messages/mark-read", "PATCH")]:
        answer = api.request(method, path, many).expect(400, "invalid_input")
        assert len(answer.json["errors"]) == 100


# --- keys that are bound to a recipient or a sender


def test_a_key_bound_to_a_recipient_may_leave_it_out(api: Api, make_key: MakeKey) -> None:
    bound = api.holding(make_key("send", recipient="ada"))

    assert bound.send(content="one")["recipient"] == "ada"
    assert bound.send("ada", "two")["recipient"] == "ada"
    batch = {"messages": [{"content": "three"}, {"recipient": "ada", "content": "four"}]}
    assert [m["recipient"] for m in bound.post("/messages/batch", batch).expect(201).json["results"]] == ["ada", "ada"]
    assert api.mailbox("ada")["total"] == 4


def test_a_key_bound_to_a_recipient_sends_to_no_other(api: Api, make_key: MakeKey) -> None:
    bound = api.holding(make_key("send", recipient="ada"))
    api.send("bob")
    with nothing_changes():
        for name in ("bob", "nobody"):
            bound.post("/messages/", {"recipient": name, "content": "x"}).expect(404, "not_found")
            batch = {"messages": [{"content": "mine"}, {"recipient": name, "content": "x"}]}
            bound.post("/messages/batch", batch).expect(404, "not_found")


def test_a_key_bound_to_a_sender_sends_as_that_one_only(api: Api, make_key: MakeKey) -> None:
    bound = api.holding(make_key("send", sender="shop"))

    assert bound.send("ada")["sender"] == "shop"
    assert bound.send("ada", sender="shop")["sender"] == "shop"
    with nothing_changes():
        for sender in ("bank", "", "Shop"):
            draft = {"recipient": "ada", "sender": sender, "content": "x"}
            faults = bound.post("/messages/", draft).expect(400, "invalid_input").faults
            assert faults == {"/sender": "sender_mismatch"}
            faults = bound.post("/messages/batch", {"messages": [draft]}).expect(400, "invalid_input").faults
            assert faults == {"/messages/0/sender": "sender_mismatch"}


def test_messages_in_many_languages_come_back_as_they_were_sent(api: Api) -> None:
    factory.random.reseed_random(7)
    drafts = DraftFactory.build_batch(60)
    sent = api.post("/messages/batch", {"messages": drafts}).expect(201).json["results"]
    for draft, message in zip(drafts, sent, strict=True):
        assert {name: message[name] for name in draft} == draft
        assert api.get(f"/messages/{message['id']}").expect(200).json == message
