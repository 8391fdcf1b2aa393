"""`manage.py load`: every good line is sent once and in order, every other is named, whatever interrupts it."""

import io
import json
import signal
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection

from messaging.models import Mailbox, Message
from tests.commands import process, read_until, run
from tests.servers import PROJECT_DIR
from tests.state import miscounted

SMS = PROJECT_DIR / "tests" / "data" / "sms.jsonl"


def line(content: str, recipient: str = "ada", **fields: Any) -> bytes:
    """A line of a file."""
    return json.dumps({"recipient": recipient, "content": content, **fields}, ensure_ascii=False).encode() + b"\n"


def contents(recipient: str = "ada") -> list[str]:
    """The contents in a mailbox, in the order of their arrival."""
    messages = Message.objects.filter(mailbox__recipient=recipient).in_arrival_order(newest_first=False)
    return list(messages.values_list("content", flat=True))


@pytest.fixture
def load_lines(tmp_path: Path) -> Any:
    """Run the command on a file with these bytes."""

    def load(raw: bytes, *arguments: str) -> Any:
        file = tmp_path / "messages.jsonl"
        file.write_bytes(raw)
        return run("load", str(file), *arguments)

    return load


@pytest.mark.django_db
def test_real_messages_arrive_exactly_and_in_order() -> None:
    expected = defaultdict(list)
    for raw in SMS.read_bytes().splitlines():
        message = json.loads(raw)
        expected[message["recipient"]].append((message["sender"], message["content"]))

    outcome = run("load", str(SMS))

    assert outcome == ("Sent 3,000 messages, refused 0 lines.\n", "", "", 0)
    arrived = defaultdict(list)
    for message in Message.objects.select_related("mailbox").order_by("mailbox", "seq"):
        arrived[message.mailbox.recipient].append((message.sender, message.content))
    assert arrived == expected
    assert {mailbox.recipient: mailbox.unread for mailbox in Mailbox.objects.all()} == {
        recipient: len(messages) for recipient, messages in expected.items()
    }
    assert miscounted() == []


@pytest.mark.django_db
@pytest.mark.parametrize("batch", ["1", "2", "1000"])
def test_a_refused_line_is_named_and_takes_no_other_with_it(load_lines: Any, batch: str) -> None:
    raw = b"".join([
        line("first"),
        line("   "),
        b"not json\n",
        line("fourth", recipient="x\ty"),
        b'{"recipient": "ada", "content": "twice", "content": "twice"}\n',
        b'{"recipient": "ada", "content": "\xff"}\n',
        line("seventh", metadata={"n": 1}),
        line("eighth", colour="red"),
        b'{"recipient": "ada", "content": "nul \\u0000"}\n',
        b'["ada"]\n',
        line("x" * 10_001),
        b'{"recipient": "ada", "content": "n", "metadata": {"n": NaN}}\n',
        line("last"),
    ])  # fmt: skip

    outcome = load_lines(raw, "--batch", batch)

    assert contents() == ["first", "seventh", "last"]
    assert outcome.out == "Sent 3 messages, refused 10 lines.\n"
    assert outcome.status == 1
    reported = dict(report.split(": ", 1) for report in outcome.err.splitlines())
    assert list(reported) == [f"line {number}" for number in (2, 3, 4, 5, 6, 8, 9, 10, 11, 12)]
    assert reported["line 2"].startswith("/content: ")
    assert reported["line 3"].startswith("The body is not JSON")
    assert reported["line 4"].startswith("/recipient: ")
    assert reported["line 8"].startswith("/colour: ")
    assert reported["line 12"].startswith("/metadata/n: ")


@pytest.mark.django_db
def test_all_that_is_wrong_with_a_line_is_said_and_nothing_of_it_steers_the_terminal(load_lines: Any) -> None:
    outcome = load_lines(line("", recipient="", **{"\x1b[2J\nline 7": 1}))

    [report] = outcome.err.splitlines()
    assert "/recipient: " in report
    assert "/content: " in report
    assert "\x1b" not in report


@pytest.mark.django_db
def test_a_line_longer_than_any_body_is_refused_without_being_held(load_lines: Any, settings: Any) -> None:
    settings.MESSAGES_MAX_BODY_BYTES = 2_000

    outcome = load_lines(line("a") + line("b" * 100_000) + line("c"))

    assert contents() == ["a", "c"]
    assert outcome.err == "line 2: The line is longer than 2,000 bytes. Send less in one message.\n"


@pytest.mark.django_db
def test_empty_lines_count_and_the_last_line_needs_no_end(load_lines: Any) -> None:
    outcome = load_lines(b"\n" + line("a") + b" \r\n" + line("b").rstrip() + b"\r\n" + b"{}\n" + line("c").rstrip())

    assert contents() == ["a", "b", "c"]
    assert outcome.err.startswith("line 5: ")


@pytest.mark.django_db
def test_an_empty_file_is_no_error(load_lines: Any) -> None:
    assert load_lines(b"") == ("Sent 0 messages, refused 0 lines.\n", "", "", 0)


@pytest.mark.django_db
def test_goes_on_where_another_run_stopped(load_lines: Any) -> None:
    raw = line("a") + b"nonsense\n" + line("c") + line("d")

    outcome = load_lines(raw, "--start-line", "3")

    assert contents() == ["c", "d"]
    assert outcome.failure == ""


@pytest.mark.django_db
def test_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(line("a") + line("b"))))

    assert run("load", "-").out == "Sent 2 messages, refused 0 lines.\n"
    assert contents() == ["a", "b"]


@pytest.mark.parametrize("missing", ["nowhere.jsonl", ""])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, missing: str) -> None:
    path = str(tmp_path / missing)
    outcome = run("load", path)
    assert outcome.failure.startswith(f"{path} cannot be read: ")


@pytest.mark.parametrize("arguments", [("--batch", "0"), ("--batch", "1001"), ("--start-line", "0")])
def test_an_argument_out_of_bounds_is_refused_by_name(arguments: tuple[str, str]) -> None:
    assert f"{arguments[0]}: '{arguments[1]}' is not a whole number" in run("load", str(SMS), *arguments).failure


@pytest.mark.django_db(transaction=True)
def test_what_only_the_database_refuses_takes_no_other_line_with_it(load_lines: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE messaging_message ADD CONSTRAINT no_poison CHECK (content <> 'poison')")
    try:
        outcome = load_lines(line("a") + line("poison") + b"{}\n" + line("b"))
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE messaging_message DROP CONSTRAINT no_poison")

    assert contents() == ["a", "b"]
    assert outcome.out == "Sent 2 messages, refused 2 lines.\n"
    assert "no_poison" in outcome.err.splitlines()[0]
    assert miscounted() == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_where_to_go_on(load_lines: Any, number: signal.Signals) -> None:
    raw = [line(str(index)) for index in range(500)]
    with process("load", "-", "--batch", "100") as loading:
        assert loading.stdin is not None
        loading.stdin.write(b"".join(raw[:250]))
        loading.stdin.flush()
        # It waits for the rest of a third batch.
        read_until(loading, b"line 200")
        loading.send_signal(number)
        _, rest = loading.communicate()
    assert loading.returncode == 130
    assert b"Sent 200 messages and refused 0 lines, up to line 200" in rest
    assert b"Go on with --start-line 201." in rest
    assert b"Traceback" not in rest

    load_lines(b"".join(raw), "--start-line", "201")
    assert contents() == [str(index) for index in range(500)]


@pytest.mark.django_db(transaction=True)
def test_a_killed_run_has_sent_whole_batches_from_the_beginning() -> None:
    with process("load", str(SMS), "--batch", "10") as loading:
        read_until(loading, b"line ")
        loading.send_signal(signal.SIGKILL)
        loading.wait()
    sent = Message.objects.count()
    assert 0 < sent < 3_000
    assert sent % 10 == 0
    first = [json.loads(raw)["content"] for raw in SMS.read_bytes().splitlines()[:sent]]
    assert sorted(Message.objects.values_list("content", flat=True)) == sorted(first)
    assert miscounted() == []
