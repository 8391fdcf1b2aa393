"""Any sequence of calls, made up by a machine and compared with a model: counts, versions, order and pages agree."""

import random
import uuid
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.helpers import Api, in_process
from tests.state import miscounted
from tests.test_reading import MISSING

NAMES = ["ada", "bob", "eve\u00e9"]
names = st.sampled_from(NAMES)
limits = st.sampled_from([1, 2, 3, 7, 200])


@dataclass
class Stored:
    """A message of the model."""

    id: str
    recipient: str
    sender: str
    seq: int
    content: str
    is_read: bool = False


@dataclass
class Model:
    """What should be there."""

    messages: list[Stored] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 0))

    def of(self, name: str) -> list[Stored]:
        return [m for m in self.messages if m.recipient == name]

    def mailbox(self, name: str) -> dict[str, Any]:
        mine = self.of(name)
        unread = sum(not m.is_read for m in mine)
        return {"recipient": name, "version": self.versions[name], "total": len(mine), "unread": unread}


class Mailboxes(RuleBasedStateMachine):
    """The service and the model, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.api = Api(in_process, key())
        self.model = Model()
        self.deleted: list[str] = [MISSING]
        self.tags: dict[str, str] = {}

    # --- changes

    def arrived(self, message: dict[str, Any], name: str) -> None:
        self.model.versions[name] += 1
        assert message["seq"] == self.model.versions[name]
        self.model.messages.append(Stored(message["id"], name, message["sender"], message["seq"], message["content"]))

    @rule(name=names, sender=st.sampled_from(["", "shop"]), content=st.text(min_size=1, max_size=5))
    def send(self, name: str, sender: str, content: str) -> None:
        draft = {"recipient": name, "sender": sender, "content": f"<{content}>".replace("\x00", "0")}
        draft["content"] = draft["content"].encode(errors="replace").decode()
        message = self.api.post("/messages/", draft).expect(201).json
        assert {field: message[field] for field in draft} == draft
        self.arrived(message, name)

    @rule(wanted=st.lists(names, min_size=1, max_size=12), sender=st.sampled_from(["", "shop"]))
    def batch(self, wanted: list[str], sender: str) -> None:
        drafts = [{"recipient": name, "sender": sender, "content": f"{i}"} for i, name in enumerate(wanted)]
        results = self.api.post("/messages/batch", {"messages": drafts}).expect(201).json["results"]
        assert [(m["recipient"], m["content"]) for m in results] == [(d["recipient"], d["content"]) for d in drafts]
        for message in results:
            self.arrived(message, message["recipient"])

    @rule(wanted=st.lists(names, min_size=1, max_size=5))
    def a_batch_with_one_bad_message_changes_nothing(self, wanted: list[str]) -> None:
        drafts = [{"recipient": name, "content": "x"} for name in wanted] + [{"recipient": "ada", "content": " "}]
        self.api.post("/messages/batch", {"messages": drafts}).expect(400, "invalid_input")

    def pick(self, seed: int) -> list[str]:
        """Some ids that are there, some that are not, some twice."""
        choose = random.Random(seed)
        ids = [m.id for m in self.model.messages]
        picked = choose.sample(ids, min(len(ids), choose.choice([0, 1, 3, 8, 100]))) + choose.choices(
            self.deleted, k=choose.randint(0, 2)
        )
        picked += choose.choices(picked, k=2) if picked else [MISSING]
        choose.shuffle(picked)
        return picked

    def changed(self, outcome: dict[str, Any], ids: list[str], affected: list[Stored]) -> None:
        """The outcome is the model's: `affected` are the messages that should have changed."""
        there = {m.id: m for m in self.model.messages}
        touched = {there[id_].recipient for id_ in ids if id_ in there}
        for name in {m.recipient for m in affected}:
            self.model.versions[name] += 1
        status = {id_: "unchanged" if id_ in there else "not_found" for id_ in ids} | {
            m.id: "changed" for m in affected
        }
        assert outcome["results"] == [{"id": id_, "status": status[id_]} for id_ in dict.fromkeys(ids)]
        for name in ("changed", "unchanged", "not_found"):
            assert outcome[name] == list(status.values()).count(name)
        self.touched = touched

    @rule(seed=st.integers(0, 2**16), read=st.booleans())
    def mark(self, seed: int, read: bool) -> None:
        ids = self.pick(seed)
        path = "/messages/mark-read" if read else "/messages/mark-unread"
        outcome = self.api.patch(path, {"ids": ids}).expect(200).json
        affected = [m for m in self.model.messages if m.id in ids and m.is_read != read]
        self.changed(outcome, ids, affected)
        for message in affected:
            message.is_read = read
        assert outcome["mailboxes"] == [self.model.mailbox(name) for name in sorted(self.touched)]

    @rule(seed=st.integers(0, 2**16), method=st.sampled_from(["DELETE", "POST"]))
    def delete_in_bulk(self, seed: int, method: str) -> None:
        ids = self.pick(seed)
        path = "/messages/bulk" if method == "DELETE" else "/messages/bulk-delete"
        outcome = self.api.request(method, path, {"ids": ids}).expect(200).json
        affected = [m for m in self.model.messages if m.id in ids]
        self.changed(outcome, ids, affected)
        self.remove(affected)
        assert outcome["mailboxes"] == [self.model.mailbox(name) for name in sorted(self.touched)]

    def remove(self, gone: list[Stored]) -> None:
        self.deleted += [m.id for m in gone]
        self.model.messages = [m for m in self.model.messages if m not in gone]

    @rule(seed=st.integers(0, 2**16), allow_missing=st.booleans())
    def delete_one(self, seed: int, allow_missing: bool) -> None:
        id_ = self.pick(seed)[0]
        found = [m for m in self.model.messages if m.id == id_]
        answer = self.api.delete(f"/messages/{id_}" + ("?allow_missing=true" if allow_missing else ""))
        answer.expect(204 if found or allow_missing else 404)
        for message in found:
            self.model.versions[message.recipient] += 1
        self.remove(found)

    @rule(name=names, place=st.integers(0, 100), read=st.booleans())
    def mark_up_to(self, name: str, place: int, read: bool) -> None:
        mine = self.model.of(name)
        path = "/messages/mark-read" if read else "/messages/mark-unread"
        if not mine:
            self.api.patch(path, {"recipient": name, "up_to": self.deleted[place % len(self.deleted)]}).expect(404)
            return
        last = mine[place % len(mine)]
        outcome = self.api.patch(path, {"recipient": name, "up_to": last.id}).expect(200).json
        affected = [m for m in mine if m.seq <= last.seq and m.is_read != read]
        for message in affected:
            message.is_read = read
        self.model.versions[name] += bool(affected)
        assert outcome == {
            "changed": len(affected), "unchanged": 0, "not_found": 0, "complete": True,
            "mailboxes": [self.model.mailbox(name)],
        }  # fmt: skip

    @rule(seed=st.integers(0, 2**16))
    def a_malformed_bulk_call_changes_nothing(self, seed: int) -> None:
        self.api.patch("/messages/mark-read", {"ids": [*self.pick(seed), "x"]}).expect(400, "invalid_input")

    @precondition(lambda self: self.model.messages)
    @rule(place=st.integers(0, 100))
    def a_retry_under_a_key_changes_nothing_more(self, place: int) -> None:
        name = self.model.messages[place % len(self.model.messages)].recipient
        headers = {
            "Idempotency-Key": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{place}-{len(self.deleted)}-{self.model.versions}"))
        }
        first = self.api.post("/messages/", {"recipient": name, "content": "once"}, headers=headers).expect(201)
        self.arrived(first.json, name)
        assert self.api.post("/messages/", {"recipient": name, "content": "once"}, headers=headers).body == first.body

    # --- reads

    @rule(
        name=names, limit=limits, newest_first=st.booleans(), unread=st.booleans(),
        sender=st.sampled_from([None, "", "shop"]),
    )  # fmt: skip
    def walk(self, name: str, limit: int, newest_first: bool, unread: bool, sender: str | None) -> None:
        expected = [
            m for m in self.model.of(name) if not (unread and m.is_read) and (sender is None or m.sender == sender)
        ]
        expected.sort(key=lambda m: m.seq, reverse=newest_first)
        query: dict[str, Any] = {"recipient": name, "limit": limit}
        query |= {} if newest_first else {"ordering": "created_at"}
        query |= {} if sender is None else {"sender": sender}
        path = "/messages/unread" if unread else "/messages/"
        page = self.api.get(path, query).expect(200).json
        there = [page["results"]]
        while page["next"]:
            page = self.api.get(path + "?" + page["next"].partition("?")[2]).expect(200).json
            there.append(page["results"])
        back = [page["results"]]
        while page["previous"]:
            page = self.api.get(path + "?" + page["previous"].partition("?")[2]).expect(200).json
            back.append(page["results"])
        found = [(m["id"], m["seq"], m["content"], m["is_read"]) for results in there for m in results]
        assert found == [(m.id, m.seq, m.content, m.is_read) for m in expected]
        assert back == there[::-1]

    @precondition(lambda self: self.model.messages)
    @rule(place=st.integers(0, 100))
    def retrieve(self, place: int) -> None:
        message = self.model.messages[place % len(self.model.messages)]
        found = self.api.get(f"/messages/{message.id}").expect(200).json
        assert (found["seq"], found["content"], found["is_read"]) == (message.seq, message.content, message.is_read)
        assert (found["read_at"] is not None) == message.is_read
        self.api.get(f"/messages/{self.deleted[place % len(self.deleted)]}").expect(404)

    @initialize(wanted=st.lists(names, min_size=5, max_size=15))
    def start(self, wanted: list[str]) -> None:
        for name in NAMES:
            assert self.api.mailbox(name) == self.model.mailbox(name)
        self.batch(wanted, "")

    @invariant()
    def mailboxes_are_as_the_model_has_them(self) -> None:
        # The model's version rises with every change and never otherwise, and so must the service's, and the tag.
        for name in NAMES:
            answer = self.api.get("/mailbox", {"recipient": name}).expect(200)
            assert answer.json == self.model.mailbox(name)
            version = f"{name} {self.model.versions[name]}"
            assert self.tags.setdefault(version, answer.headers["ETag"]) == answer.headers["ETag"]
        assert len(set(self.tags.values())) == len(self.tags)

    def teardown(self) -> None:
        assert miscounted() == []
        clear()


def key() -> str:
    from messaging.auth import keys

    return keys.create(name="test", scopes=["send", "read", "manage"])[1]


def clear() -> None:
    from messaging.models import Change, Mailbox, Message, Outcome

    for model in (Message, Mailbox, Outcome, Change):
        model.objects.all().delete()


def test_any_sequence_of_calls_agrees_with_the_model(db: None) -> None:
    run_state_machine_as_test(
        Mailboxes,
        settings=settings(
            max_examples=30, stateful_step_count=40, derandomize=True, deadline=None, database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )  # fmt: skip
