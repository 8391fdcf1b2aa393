"""Three thousand real messages: sent, paged both ways byte for byte, marked, deleted; with the counts at each step."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from django.core.management import call_command

from tests.helpers import Api
from tests.state import miscounted

Message = dict[str, Any]

REAL: list[dict[str, str]] = [
    json.loads(line) for line in (Path(__file__).parent / "data" / "sms.jsonl").read_text(encoding="utf-8").splitlines()
]


def by_recipient() -> dict[str, list[dict[str, str]]]:
    found = defaultdict(list)
    for draft in REAL:
        found[draft["recipient"]].append(draft)
    return dict(found)


def draft_of(message: Message) -> dict[str, str]:
    return {name: message[name] for name in ("recipient", "sender", "content")}


def walk(api: Api, name: str, limit: int, **query: str) -> tuple[list[list[Message]], list[list[Message]]]:
    """The pages of a mailbox from first to last, and from last to first."""
    page = api.get("/messages/", {"recipient": name, "limit": limit, **query}).expect(200).json
    there = [page["results"]]
    while page["next"]:
        page = api.get("/messages/?" + page["next"].partition("?")[2]).expect(200).json
        there.append(page["results"])
    back = [page["results"]]
    while page["previous"]:
        page = api.get("/messages/?" + page["previous"].partition("?")[2]).expect(200).json
        back.append(page["results"])
    return there, back


def counts(api: Api, name: str) -> tuple[int, int]:
    mailbox = api.mailbox(name)
    return mailbox["total"], mailbox["unread"]


def test_three_thousand_real_messages(api: Api) -> None:
    assert len(REAL) == 3_000
    mailboxes = by_recipient()
    assert len(mailboxes) > 10

    # Sent: some one by one, most in batches of every size.
    sent: list[Message] = [api.post("/messages/", draft).expect(201).json for draft in REAL[:300]]
    position, size = 300, 1
    while position < len(REAL):
        part = REAL[position : position + size]
        sent += api.post("/messages/batch", {"messages": part}).expect(201).json["results"]
        position, size = position + len(part), min(size * 3, 1_000)
    assert [draft_of(message) for message in sent] == REAL
    assert len({message["id"] for message in sent}) == 3_000

    # Paged: each mailbox both ways and in both orders, byte for byte.
    for number, (name, drafts) in enumerate(mailboxes.items()):
        expected = [message for message in sent if message["recipient"] == name]
        assert counts(api, name) == (len(drafts), len(drafts))
        newest_first, back = walk(api, name, limit=(17, 50, 200)[number % 3])
        assert [m for page in newest_first for m in page] == expected[::-1]
        assert back == newest_first[::-1]
        oldest_first, back = walk(api, name, limit=(200, 17, 50)[number % 3], ordering="created_at")
        assert [draft_of(m) for page in oldest_first for m in page] == drafts
        assert [m["content"].encode() for page in oldest_first for m in page] == [d["content"].encode() for d in drafts]
        assert back == oldest_first[::-1]
        assert [m["seq"] for page in oldest_first for m in page] == list(range(1, len(drafts) + 1))

    # Marked as read: every third message by its id, across all mailboxes.
    marked = [message["id"] for message in sent[::3]]
    for expected_counts in [(1_000, 0, 0), (0, 1_000, 0)]:
        outcome = api.patch("/messages/mark-read", {"ids": marked}).expect(200).json
        assert (outcome["changed"], outcome["unchanged"], outcome["not_found"]) == expected_counts
    read = set(marked)
    for name, drafts in mailboxes.items():
        unread = [m["id"] for m in sent if m["recipient"] == name and m["id"] not in read]
        assert counts(api, name) == (len(drafts), len(unread))
        found = api.pages("/messages/unread", {"recipient": name, "limit": 200, "ordering": "created_at"})
        assert [m["id"] for m in found] == unread

    # Marked up to the middle of each mailbox, and some unread again.
    for name, drafts in mailboxes.items():
        mine = [m for m in sent if m["recipient"] == name]
        half = mine[: len(mine) // 2]
        if half:
            outcome = api.patch("/messages/mark-read", {"recipient": name, "up_to": half[-1]["id"]}).expect(200).json
            assert outcome["changed"] == sum(m["id"] not in read for m in half)
            read |= {m["id"] for m in half}
        assert counts(api, name) == (len(drafts), sum(m["id"] not in read for m in mine))
    again = [m["id"] for m in sent if m["id"] in read][:500]
    assert api.patch("/messages/mark-unread", {"ids": again}).expect(200).json["changed"] == 500
    read -= set(again)

    # Deleted: a thousand in bulk, a few one by one, then the rest.
    doomed = [m["id"] for m in sent[1::3]]
    outcome = api.request("DELETE", "/messages/bulk", {"ids": doomed}).expect(200).json
    assert (outcome["changed"], outcome["not_found"]) == (1_000, 0)
    assert {m["recipient"]: (m["total"], m["unread"]) for m in outcome["mailboxes"]} == {
        m["recipient"]: counts(api, m["recipient"]) for m in outcome["mailboxes"]
    }
    left = [m for m in sent if m["id"] not in set(doomed)]
    for message in left[:20]:
        api.delete(f"/messages/{message['id']}").expect(204)
    left = left[20:]
    for name in mailboxes:
        mine = [m for m in left if m["recipient"] == name]
        assert counts(api, name) == (len(mine), sum(m["id"] not in read for m in mine))
        found = api.pages("/messages/", {"recipient": name, "limit": 200, "ordering": "created_at"})
        assert [(m["id"], m["is_read"]) for m in found] == [(m["id"], m["id"] in read) for m in mine]
        assert [draft_of(m) for m in found] == [draft_of(m) for m in mine]
    call_command("check_mailboxes", verbosity=0)
    for start in range(0, len(left), 1_000):
        ids = [m["id"] for m in left[start : start + 1_000]]
        assert api.post("/messages/bulk-delete", {"ids": ids}).expect(200).json["changed"] == len(ids)
    assert {counts(api, name) for name in mailboxes} == {(0, 0)}
    assert miscounted() == []
    call_command("check_mailboxes", verbosity=0)
