"""Changing what was sent: mark as read and unread, by ids and up to a message, and delete; each in every form."""

import uuid
from typing import Any

import pytest

from messaging import services
from tests.conftest import MakeKey
from tests.helpers import Answer, Api
from tests.state import miscounted, nothing_changes
from tests.test_reading import MISSING, send_many

BULK = [
    ("PATCH", "/messages/mark-read"),
    ("PATCH", "/messages/mark-unread"),
    ("DELETE", "/messages/bulk"),
    ("POST", "/messages/bulk-delete"),
]
DELETIONS = BULK[2:]


def ids_of(messages: list[dict[str, Any]]) -> list[str]:
    return [message["id"] for message in messages]


def bulk(api: Api, path: str, ids: list[str], method: str | None = None) -> dict[str, Any]:
    """The outcome of a bulk call."""
    method = method or {path: method for method, path in BULK}[path]
    outcome: dict[str, Any] = api.request(method, path, {"ids": ids}).expect(200).json
    return outcome


def counts(outcome: dict[str, Any]) -> tuple[int, int, int]:
    return outcome["changed"], outcome["unchanged"], outcome["not_found"]


def statuses(outcome: dict[str, Any]) -> list[tuple[str, str]]:
    return [(result["id"], result["status"]) for result in outcome["results"]]


def test_marking_read_and_again_and_unread(api: Api) -> None:
    sent = send_many(api, 3)
    ids = ids_of(sent)

    first = bulk(api, "/messages/mark-read", ids[:2])
    assert statuses(first) == [(ids[0], "changed"), (ids[1], "changed")]
    assert (counts(first), first["mailboxes"]) == (
        (2, 0, 0),
        [{"recipient": "ada", "version": 4, "total": 3, "unread": 1}],
    )
    read_at = [api.get(f"/messages/{id_}").json["read_at"] for id_ in ids]
    assert read_at[2] is None
    assert all(at >= message["created_at"] for at, message in zip(read_at[:2], sent, strict=False))

    # A retry changes nothing: the first read_at stays, and so does the version.
    again = bulk(api, "/messages/mark-read", ids)
    assert statuses(again) == [(ids[0], "unchanged"), (ids[1], "unchanged"), (ids[2], "changed")]
    assert [api.get(f"/messages/{id_}").json["read_at"] for id_ in ids[:2]] == read_at[:2]
    with nothing_changes():
        assert counts(bulk(api, "/messages/mark-read", ids)) == (0, 3, 0)
    assert api.mailbox("ada") == {"recipient": "ada", "version": 5, "total": 3, "unread": 0}

    unread = bulk(api, "/messages/mark-unread", ids[1:])
    assert (counts(unread), unread["mailboxes"][0]["unread"]) == ((2, 0, 0), 2)
    assert [api.get(f"/messages/{id_}").json["is_read"] for id_ in ids] == [True, False, False]
    with nothing_changes():
        assert counts(bulk(api, "/messages/mark-unread", ids[1:])) == (0, 2, 0)
    assert miscounted() == []


def test_a_message_read_later_has_a_new_instant(api: Api) -> None:
    message = api.send("ada")
    bulk(api, "/messages/mark-read", [message["id"]])
    first = api.get(f"/messages/{message['id']}").json
    bulk(api, "/messages/mark-unread", [message["id"]])
    bulk(api, "/messages/mark-read", [message["id"]])
    second = api.get(f"/messages/{message['id']}").json

    assert second["read_at"] > first["read_at"]
    assert {**second, "read_at": None, "is_read": False} == message


@pytest.mark.parametrize(("method", "path"), BULK)
def test_each_distinct_id_has_one_answer_in_the_order_given(api: Api, method: str, path: str) -> None:
    ada, bob = send_many(api, 3), send_many(api, 2, "bob")
    # One message of each mailbox is read beforehand, so that marking either way finds work and none.
    bulk(api, "/messages/mark-read", [ada[1]["id"], bob[0]["id"]])
    asked = [
        bob[1]["id"],
        MISSING,
        ada[1]["id"],
        ada[0]["id"],
        bob[1]["id"].upper(),
        MISSING,
        ada[1]["id"],
        bob[0]["id"],
    ]
    was_read = {ada[1]["id"], bob[0]["id"]}

    outcome = bulk(api, path, asked, method)

    def status(id_: str) -> str:
        if id_ == MISSING:
            return "not_found"
        if "mark" not in path:
            return "changed"
        return "changed" if (id_ in was_read) == path.endswith("unread") else "unchanged"

    distinct = list(dict.fromkeys(id_.lower() for id_ in asked))
    assert statuses(outcome) == [(id_, status(id_)) for id_ in distinct]
    told = [result["status"] for result in outcome["results"]]
    assert counts(outcome) == (told.count("changed"), told.count("unchanged"), told.count("not_found"))
    assert outcome["mailboxes"] == [api.mailbox("ada"), api.mailbox("bob")]
    assert miscounted() == []


@pytest.mark.parametrize(("method", "path"), BULK)
def test_only_the_ids_named_are_touched(api: Api, method: str, path: str) -> None:
    sent = send_many(api, 5)
    bulk(api, "/messages/mark-read", ids_of(sent[:2]))
    before = {m["id"]: m for m in api.pages("/messages/", {"recipient": "ada"})}
    named = [sent[1]["id"], sent[3]["id"]]
    bulk(api, path, named, method)
    after = {m["id"]: m for m in api.pages("/messages/", {"recipient": "ada"})}

    others = before.keys() - set(named)
    assert {id_: after[id_] for id_ in others} == {id_: before[id_] for id_ in others}


@pytest.mark.parametrize(("method", "path"), BULK)
def test_unknown_ids_alone_change_nothing(api: Api, method: str, path: str) -> None:
    api.send("ada")
    with nothing_changes():
        outcome = bulk(api, path, [MISSING], method)
    assert outcome == {
        "results": [{"id": MISSING, "status": "not_found"}],
        "changed": 0,
        "unchanged": 0,
        "not_found": 1,
        "mailboxes": [],
    }


# An empty or malformed list must never be taken for "all messages".
NO_LISTS: list[tuple[Any, dict[str, str]]] = [
    ({}, {"/ids": "required"}),
    ({"ids": []}, {"/ids": "blank"}),
    ({"ids": None}, {"/ids": "required"}),
    ({"ids": ""}, {"/ids": "not_a_list"}),
    ({"ids": "*"}, {"/ids": "not_a_list"}),
    ({"ids": "all"}, {"/ids": "not_a_list"}),
    ({"ids": {}}, {"/ids": "not_a_list"}),
    ({"ids": MISSING}, {"/ids": "not_a_list"}),
    ({"ids": True}, {"/ids": "not_a_list"}),
    ({"ids": [None]}, {"/ids/0": "not_a_uuid"}),
    ({"ids": [""]}, {"/ids/0": "not_a_uuid"}),
    ({"ids": ["*"]}, {"/ids/0": "not_a_uuid"}),
    ({"ids": [MISSING, 5, "x", [MISSING]]}, {"/ids/1": "not_a_uuid", "/ids/2": "not_a_uuid", "/ids/3": "not_a_uuid"}),
    ({"ids": [MISSING.replace("-", "")]}, {"/ids/0": "not_a_uuid"}),
    ({"ids": [f"{{{MISSING}}}"]}, {"/ids/0": "not_a_uuid"}),
    ({"ids": [f"{MISSING}\n"]}, {"/ids/0": "not_a_uuid"}),
    ({"ids": [f"{MISSING}\x00"]}, {"/ids/0": "not_a_uuid"}),
    ({"ids": [f"{MISSING},{MISSING}"]}, {"/ids/0": "not_a_uuid"}),
    ({"ids": [f"{MISSING},", MISSING[:-1]]}, {"/ids/0": "not_a_uuid", "/ids/1": "not_a_uuid"}),
    ({"ids": [MISSING[:9], MISSING[10:]]}, {"/ids/0": "not_a_uuid", "/ids/1": "not_a_uuid"}),
    ({"ids": [f"{MISSING},{MISSING[:8]}", MISSING[9:]]}, {"/ids/0": "not_a_uuid", "/ids/1": "not_a_uuid"}),
    ({"ids": [MISSING] * 1_001}, {"/ids": "too_many"}),
    ({"Ids": [MISSING], "ids": [MISSING]}, {"/Ids": "unknown_field"}),
    ({"ids": [MISSING], "all": True}, {"/all": "unknown_field"}),
    ([MISSING], {"": "not_an_object"}),
    (None, {"": "not_an_object"}),
    ("all", {"": "not_an_object"}),
]


@pytest.mark.parametrize(("method", "path"), BULK)
def test_an_invalid_list_of_ids_changes_nothing(api: Api, method: str, path: str) -> None:
    sent = send_many(api, 3)
    bulk(api, "/messages/mark-read", [sent[0]["id"]])
    with nothing_changes():
        for body, faults in NO_LISTS:
            assert api.request(method, path, body).expect(400, "invalid_input").faults == faults, body
        assert api.request(method, path).expect(400, "invalid_input").faults == {"/ids": "required"}
        assert api.request(method, f"{path}?ids={sent[0]['id']}").expect(400).faults == {"?ids": "unknown_parameter"}


@pytest.mark.parametrize(("method", "path"), BULK)
def test_a_thousand_ids_in_one_call(api: Api, method: str, path: str) -> None:
    ids = ids_of(send_many(api, 1_000))
    bulk(api, "/messages/mark-read", ids[::2])
    outcome = bulk(api, path, ids[::-1], method)

    assert [result["id"] for result in outcome["results"]] == ids[::-1]
    assert outcome["changed"] == (1_000 if "mark" not in path else 500)
    assert miscounted() == []


# --- up to a message


def up_to(api: Api, path: str, recipient: str | None, message_id: str) -> Answer:
    body = {"up_to": message_id} | ({} if recipient is None else {"recipient": recipient})
    return api.patch(path, body)


def test_up_to_a_message_and_nothing_that_arrived_after_it(api: Api) -> None:
    sent, other = send_many(api, 6), send_many(api, 2, "bob")
    bulk(api, "/messages/mark-read", [sent[1]["id"]])
    read_at = api.get(f"/messages/{sent[1]['id']}").json["read_at"]

    outcome = up_to(api, "/messages/mark-read", "ada", sent[3]["id"]).expect(200).json
    assert outcome == {
        "changed": 3,
        "unchanged": 0,
        "not_found": 0,
        "mailboxes": [{"recipient": "ada", "version": 8, "total": 6, "unread": 2}],
        "complete": True,
    }
    found = api.pages("/messages/", {"recipient": "ada", "ordering": "created_at"})
    assert [m["is_read"] for m in found] == [True, True, True, True, False, False]
    assert found[1]["read_at"] == read_at
    with nothing_changes():
        again = up_to(api, "/messages/mark-read", "ada", sent[3]["id"]).expect(200).json
    assert (again["changed"], again["complete"], again["mailboxes"]) == (0, True, outcome["mailboxes"])

    back = up_to(api, "/messages/mark-unread", "ada", sent[0]["id"]).expect(200).json
    assert (back["changed"], back["mailboxes"][0]["unread"]) == (1, 3)
    assert api.pages("/messages/", {"recipient": "bob"}) == other[::-1]
    assert miscounted() == []


@pytest.mark.parametrize("path", ["/messages/mark-read", "/messages/mark-unread"])
def test_up_to_a_message_that_is_not_in_that_mailbox(api: Api, path: str) -> None:
    mine, other = api.send("ada"), api.send("bob")
    deleted = api.send("ada")
    api.delete(f"/messages/{deleted['id']}").expect(204)
    bulk(api, "/messages/mark-read", [mine["id"]])
    with nothing_changes():
        for recipient, id_ in [("ada", other["id"]), ("ada", MISSING), ("nobody", mine["id"]), ("ada", deleted["id"])]:
            up_to(api, path, recipient, id_).expect(404, "not_found")


@pytest.mark.parametrize("path", ["/messages/mark-read", "/messages/mark-unread"])
def test_an_invalid_up_to_changes_nothing(api: Api, path: str) -> None:
    id_ = api.send("ada")["id"]
    with nothing_changes():
        for body, faults in [
            ({"recipient": "ada"}, {"/up_to": "required"}),
            ({"up_to": id_}, {"/recipient": "required"}),
            ({"recipient": "", "up_to": id_}, {"/recipient": "blank"}),
            ({"recipient": None, "up_to": id_}, {"/recipient": "required"}),
            ({"recipient": "ada", "up_to": None}, {"/up_to": "required"}),
            ({"recipient": "ada", "up_to": ""}, {"/up_to": "not_a_uuid"}),
            ({"recipient": "ada", "up_to": [id_]}, {"/up_to": "not_a_uuid"}),
            ({"recipient": "ada", "up_to": 1}, {"/up_to": "not_a_uuid"}),
            ({"recipient": "ada", "up_to": id_, "ids": [id_]}, {"/ids": "unknown_field"}),
            ({"recipient": "ada", "up_to": id_, "limit": 5}, {"/limit": "unknown_field"}),
            ({"recipient": "ada", "ids": [id_]}, {"/ids": "unknown_field", "/up_to": "required"}),
            ({"recipient": "a\x00", "up_to": "x"}, {"/recipient": "nul_character", "/up_to": "not_a_uuid"}),
        ]:
            assert api.patch(path, body).expect(400, "invalid_input").faults == faults, body


@pytest.mark.parametrize("path", ["/messages/mark-read", "/messages/mark-unread"])
def test_marking_by_post_is_marking_by_patch(api: Api, path: str) -> None:
    sent = send_many(api, 2)
    assert api.post(path, {"ids": [MISSING]}).expect(200).json["not_found"] == 1
    for body in ({"ids": [sent[0]["id"]]}, {"recipient": "ada", "up_to": sent[1]["id"]}):
        posted, patched = (api.request(method, path, body).expect(200).json for method in ("POST", "PATCH"))
        assert posted.keys() == patched.keys()
        assert patched["changed"] == 0
    assert api.mailbox("ada")["unread"] == (0 if path.endswith("mark-read") else 2)


def test_a_client_that_takes_problem_documents_only_may_delete(api: Api) -> None:
    path = f"/messages/{api.send('ada')['id']}"
    headers = {"Accept": "application/problem+json"}
    api.delete(path, headers=headers).expect(204)
    api.delete(path, headers=headers).expect(404, "not_found")


def test_an_empty_bulk_delete_names_the_call_by_post(api: Api) -> None:
    [fault] = api.request("DELETE", "/messages/bulk").expect(400, "invalid_input").json["errors"]
    assert (fault["pointer"], fault["code"]) == ("/ids", "required")
    assert "POST /messages/bulk-delete" in fault["detail"]


def test_deleting_takes_no_up_to(api: Api) -> None:
    id_ = api.send("ada")["id"]
    with nothing_changes():
        for method, path in DELETIONS:
            faults = api.request(method, path, {"recipient": "ada", "up_to": id_}).expect(400).faults
            assert faults == {"/recipient": "unknown_field", "/up_to": "unknown_field", "/ids": "required"}


def test_one_call_works_through_ten_thousand_messages_oldest_first(api: Api) -> None:
    last = [send_many(api, 1_000)[-1]["id"] for _ in range(21)][-1]
    api.send("ada", "after")

    outcomes = [up_to(api, "/messages/mark-read", "ada", last).expect(200).json for _ in range(4)]
    assert [(o["changed"], o["complete"], o["mailboxes"][0]["unread"]) for o in outcomes] == [
        (10_000, False, 11_001), (10_000, False, 1_001), (1_000, True, 1), (0, True, 1),
    ]  # fmt: skip
    versions = [o["mailboxes"][0]["version"] for o in outcomes]
    assert versions == [21_002, 21_003, 21_004, 21_004]

    first = up_to(api, "/messages/mark-unread", "ada", last).expect(200).json
    assert (first["changed"], first["complete"]) == (10_000, False)
    unread = api.get("/messages/unread", {"recipient": "ada", "ordering": "created_at", "limit": "1"}).expect(200).json
    oldest_read = (
        api.get("/messages/", {"recipient": "ada", "is_read": "true", "ordering": "created_at", "limit": "1"})
        .expect(200)
        .json
    )
    assert (unread["results"][0]["seq"], oldest_read["results"][0]["seq"]) == (1, 10_001)
    assert miscounted() == []


def test_exactly_as_many_as_one_call_may_do_is_complete(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    assert services.UP_TO_STEP == 10_000
    last = [send_many(api, 1_000)[-1]["id"] for _ in range(10)][-1]

    outcome = up_to(api, "/messages/mark-read", "ada", last).expect(200).json
    assert (outcome["changed"], outcome["complete"]) == (10_000, True)


# --- deleting


def test_deleting_one_message_and_again(api: Api) -> None:
    unread, read = send_many(api, 2)
    bulk(api, "/messages/mark-read", [read["id"]])

    answer = api.delete(f"/messages/{unread['id']}").expect(204)
    assert answer.body == b""
    assert api.mailbox("ada") == {"recipient": "ada", "version": 4, "total": 1, "unread": 0}
    with nothing_changes():
        api.delete(f"/messages/{unread['id']}").expect(404, "not_found")
        api.delete(f"/messages/{unread['id']}?allow_missing=false").expect(404, "not_found")
        assert api.delete(f"/messages/{unread['id']}?allow_missing=true").expect(204).body == b""
        # No message ever had such an id: a mistake, not a repetition.
        api.delete("/messages/no-id?allow_missing=true").expect(404, "not_found")
        api.get(f"/messages/{unread['id']}").expect(404, "not_found")
    api.delete(f"/messages/{read['id']}?allow_missing=true").expect(204)
    assert api.mailbox("ada") == {"recipient": "ada", "version": 5, "total": 0, "unread": 0}


@pytest.mark.parametrize(
    ("query", "faults"),
    [
        ("allow_missing=", {"?allow_missing": "invalid"}),
        ("allow_missing=2", {"?allow_missing": "invalid"}),
        ("allow_missing=yes", {"?allow_missing": "invalid"}),
        ("allow_missing=true&allow_missing=true", {"?allow_missing": "repeated_parameter"}),
        ("force=true", {"?force": "unknown_parameter"}),
        ("recipient=ada", {"?recipient": "unknown_parameter"}),
    ],
)
def test_deleting_is_strict_about_its_parameters(api: Api, query: str, faults: dict[str, str]) -> None:
    id_ = api.send("ada")["id"]
    with nothing_changes():
        assert api.delete(f"/messages/{id_}?{query}").expect(400, "invalid_input").faults == faults


@pytest.mark.parametrize(
    "path", ["/messages/", "/messages/?recipient=ada", "/messages/unread?recipient=ada", "/mailbox?recipient=ada"]
)
def test_no_call_deletes_everything(api: Api, path: str) -> None:
    api.send("ada")
    with nothing_changes():
        for method in ("DELETE", "PATCH", "PUT"):
            api.request(method, path, {"ids": []}).expect(405, "method_not_allowed")


@pytest.mark.parametrize(("method", "path"), DELETIONS)
def test_deleting_in_bulk_counts_read_and_unread_ones(api: Api, method: str, path: str) -> None:
    ada, bob = send_many(api, 4), send_many(api, 1, "bob")
    bulk(api, "/messages/mark-read", ids_of(ada[:2]))
    outcome = bulk(api, path, [ada[0]["id"], ada[2]["id"], bob[0]["id"]], method)

    assert counts(outcome) == (3, 0, 0)
    assert outcome["mailboxes"] == [
        {"recipient": "ada", "version": 6, "total": 2, "unread": 1},
        {"recipient": "bob", "version": 2, "total": 0, "unread": 0},
    ]
    with nothing_changes():
        assert counts(bulk(api, path, [ada[0]["id"], bob[0]["id"]], method)) == (0, 0, 2)
    assert api.pages("/messages/", {"recipient": "bob"}) == []


def test_a_deleted_message_cannot_be_marked(api: Api) -> None:
    id_ = api.send("ada")["id"]
    api.delete(f"/messages/{id_}").expect(204)
    with nothing_changes():
        for path in ("/messages/mark-read", "/messages/mark-unread"):
            assert counts(bulk(api, path, [id_])) == (0, 0, 1)


# --- keys that are bound to a recipient


@pytest.mark.parametrize(("method", "path"), BULK)
def test_a_bound_key_changes_its_own_mailbox_only(api: Api, make_key: MakeKey, method: str, path: str) -> None:
    mine, other = api.send("ada"), api.send("bob")
    for message in (mine, other):
        if path.endswith("unread"):
            bulk(api, "/messages/mark-read", [message["id"]])
    bound = api.holding(make_key("manage", recipient="ada"))
    before = api.mailbox("bob"), api.get(f"/messages/{other['id']}").body

    outcome = bulk(bound, path, [other["id"], mine["id"], MISSING], method)
    assert statuses(outcome) == [(other["id"], "not_found"), (mine["id"], "changed"), (MISSING, "not_found")]
    assert [mailbox["recipient"] for mailbox in outcome["mailboxes"]] == ["ada"]
    assert (api.mailbox("bob"), api.get(f"/messages/{other['id']}").body) == before


def test_a_bound_key_leaves_the_recipient_out_of_up_to(api: Api, make_key: MakeKey) -> None:
    sent, other = send_many(api, 3), api.send("bob")
    bound = api.holding(make_key("manage", recipient="ada"))

    assert up_to(bound, "/messages/mark-read", None, sent[1]["id"]).expect(200).json["changed"] == 2
    assert up_to(bound, "/messages/mark-unread", "ada", sent[0]["id"]).expect(200).json["changed"] == 1
    with nothing_changes():
        for recipient, id_ in [(None, other["id"]), ("bob", other["id"]), ("bob", sent[0]["id"]), (None, MISSING)]:
            up_to(bound, "/messages/mark-read", recipient, id_).expect(404, "not_found")
        bound.delete(f"/messages/{other['id']}").expect(404, "not_found")
        bound.delete(f"/messages/{other['id']}?allow_missing=true").expect(204)


def test_ids_are_not_confused_with_numbers_or_fields_of_a_message(api: Api) -> None:
    message = api.send("ada", metadata={"ids": [str(uuid.UUID(int=0))]})
    with nothing_changes():
        assert api.patch("/messages/mark-read", message).expect(400).faults.keys() >= {"/id", "/seq", "/read_at"}
        api.patch("/messages/mark-read", {"ids": [message]}).expect(400, "invalid_input")
        api.patch("/messages/mark-read", {"ids": [message["seq"]]}).expect(400, "invalid_input")
