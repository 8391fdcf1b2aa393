"""Files that staff take from the admin: harmless in a spreadsheet, taken by `load`, streamed a batch at a time."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from messaging import services
from messaging.access import EVERYONE
from messaging.admin import export, messages
from messaging.database import read
from messaging.errors import DatabaseUnavailableError
from messaging.models import Message
from messaging.records import NewMessage
from tests.commands import run
from tests.staff import MESSAGES, Staff, get
from tests.state import nothing_changes

ODD = [
    NewMessage("ada", "=1+1", "+carl"), NewMessage("-ada", "@SUM(A1)", "=cmd|' /C calc'!A0"),
    NewMessage("ada", "\ttab", "bob"), NewMessage("ada", "\r\nlines", ""), NewMessage("ada", "\uff1d1+1", "\uff20x"),
    NewMessage("ada", 'quotes " and, commas\nand lines', "bob", '{"n":1e23,"big":12345678901234567890,"b":"é","a":1}'),
    NewMessage("ada", "plain", "1 - 2 = 3"), NewMessage("Ünï", "😀 текст", "狐"), NewMessage("ada", "'quoted", "x"),
    NewMessage("ada", "goes by itself", "x", expires_at="2999-12-31T00:00:00.123456Z"),
]  # fmt: skip


@pytest.fixture
def clerk(staff: Staff) -> Client:
    """Staff who may look, and no more."""
    return staff("view_message")


def exported(client: Client, action: str, ids: list[str], address: str = MESSAGES, **more: str) -> Any:
    fields = dict(get(client, MESSAGES).hidden) | {"action": action, "_selected_action": ids, "index": "0", **more}
    with nothing_changes():
        return client.post(address, fields)


def sent(drafts: list[NewMessage]) -> list[str]:
    return [record.id for record in services.send_batch(messages=drafts, caller=EVERYONE)]


def cells(response: Any) -> list[dict[str, str]]:
    """The rows of a CSV file, as a spreadsheet reads them."""
    return list(csv.DictReader(io.StringIO(response.getvalue().decode("utf-8-sig"), newline="")))


def test_csv_has_every_column_and_begins_no_formula(clerk: Client) -> None:
    ids = sent(ODD)
    services.mark_read(ids=ids[:1], caller=EVERYONE)
    response = exported(clerk, "export_csv", ids)
    assert response.streaming
    assert response.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert response.headers["Content-Disposition"].startswith('attachment; filename="messages-')
    rows = cells(response)
    assert [row["id"] for row in rows] == ids[::-1]  # as the list: the latest first
    for row, draft in zip(rows[::-1], ODD, strict=True):
        for name in ("recipient", "sender", "content", "metadata"):
            assert not row[name].startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff20"))
            # Nothing is lost: an apostrophe stands before what would have been one.
            assert row[name] in {getattr(draft, name), f"'{getattr(draft, name)}"}
    first = Message.objects.get(pk=ids[0])
    assert first.read_at
    assert rows[-1]["created_at"] == f"{first.created_at:%Y-%m-%dT%H:%M:%S.%fZ}"
    assert rows[-1]["read_at"] == f"{first.read_at:%Y-%m-%dT%H:%M:%S.%fZ}"
    assert (rows[0]["read_at"], rows[0]["expires_at"]) == ("", "2999-12-31T00:00:00.123456Z")
    assert rows[1]["expires_at"] == ""


def test_json_lines_are_what_load_takes(clerk: Client, tmp_path: Path) -> None:
    ids = sent(ODD)
    response = exported(clerk, "export_json_lines", ids)
    lines = response.getvalue()
    assert [json.loads(line)["content"] for line in lines.splitlines()] == [draft.content for draft in ODD]
    assert b'{"n":1e23,"big":12345678901234567890,"b":"\xc3\xa9","a":1}' in lines

    file = tmp_path / "messages.jsonl"
    file.write_bytes(lines)
    Message.objects.all().delete()
    assert run("load", str(file)).failure == ""
    assert [message.content for message in Message.objects.order_by("pk")] == [draft.content for draft in ODD]


def test_what_is_selected_across_pages_is_exported_in_batches(clerk: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_BATCH", 20)
    ids = sent([NewMessage("ada", f"note {number}") for number in range(70)] + [NewMessage("bob", "other")])
    response = exported(clerk, "export_json_lines", ids[:1], f"{MESSAGES}?recipient=ada", select_across="1")
    services.delete(ids=ids[:1], caller=EVERYONE)
    services.send(message=NewMessage("ada", "later"), caller=EVERYONE)
    with CaptureQueriesContext(connection) as queries:
        contents = [json.loads(line)["content"] for line in response.getvalue().splitlines()]
    assert contents == [f"note {number}" for number in range(1, 70)]
    assert len(queries) == 4


@pytest.mark.parametrize("action", ["export_csv", "export_json_lines"])
def test_a_file_that_is_cut_off_says_so(
    clerk: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, action: str
) -> None:
    ids = sent([NewMessage("ada", str(number)) for number in range(3)])
    reads = []

    def fail_at_the_third(work: Callable[[], Any]) -> Any:
        reads.append(work)
        if len(reads) == 3:
            raise DatabaseUnavailableError
        return read(work)

    monkeypatch.setattr(export, "_BATCH", 1)
    monkeypatch.setattr(export, "read", fail_at_the_third)
    lines: list[bytes] = []
    with pytest.raises(DatabaseUnavailableError):
        lines.extend(exported(clerk, action, ids).streaming_content)
    assert lines[-1] == b"CUT OFF: the database could not be read to the end. Export again.\r\n"
    file = tmp_path / "messages.jsonl"
    file.write_bytes(b"".join(lines[-3:]))
    if action == "export_json_lines":
        outcome = run("load", str(file))
        assert (outcome.out, outcome.status) == ("Sent 2 messages, refused 1 lines.\n", 1)


def test_more_than_may_be_exported_is_refused(clerk: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_EXPORTED", 2)
    ids = sent(ODD)
    response = exported(clerk, "export_csv", ids, select_across="1")
    assert response.status_code == 302
    assert "More than 2 messages at once" in get(clerk, MESSAGES).text


def test_only_those_who_may_see_messages_export_them(staff: Staff) -> None:
    ids = sent(ODD)
    client = staff("view_mailbox")
    form = dict(get(client, "/admin/").hidden)
    for action in ("export_csv", "export_json_lines"):
        response = client.post(MESSAGES, form | {"action": action, "_selected_action": ids, "index": "0"})
        assert response.status_code == 403
