"""`manage.py load`: every good line is sent once and in order, every other is named, whatever interrupts it."""

import bz2
import gzip
import io
import json
import lzma
import shutil
import signal
import subprocess
import tarfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection, transaction

from messaging import services
from messaging.errors import OutcomeUnknownError
from messaging.loads import LoadOvertakenError, advance_load, new_load
from messaging.management.commands import load
from messaging.models import Mailbox, Message, Outcome
from tests.commands import ended, process, read_until, run
from tests.helpers import PATIENCE_SECONDS
from tests.servers import PROJECT_DIR, wait_until
from tests.sessions import somebody_waits_for_a_lock
from tests.state import miscounted

SMS = PROJECT_DIR / "tests" / "data" / "sms.jsonl"


def line(content: str, recipient: str = "ada", **fields: Any) -> bytes:
    """A line of a file."""
    return json.dumps({"recipient": recipient, "content": content, **fields}, ensure_ascii=False).encode() + b"\n"


def contents(recipient: str = "ada") -> list[str]:
    """The contents in a mailbox, in the order of their arrival."""
    messages = Message.objects.filter(mailbox__recipient=recipient).order_by("seq")
    return list(messages.values_list("content", flat=True))


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def lose_outcome(*_: Any) -> None:
    raise OutcomeUnknownError


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
def test_a_refused_line_is_named_and_the_others_are_sent(load_lines: Any, batch: str) -> None:
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
def test_what_repeats_a_command_that_refuses_lines_sends_nothing_twice(load_lines: Any) -> None:
    raw = line("a") + b"{}\n" + line("b")
    assert load_lines(raw).status == 1
    for _ in range(2):
        outcome = load_lines(raw)
        assert (outcome.out, outcome.status) == ("Sent 0 messages, refused 1 lines.\n", 1)
        assert "Lines 1 to 3 were loaded by a run that was stopped or refused some" in outcome.err
        assert "line 2: " in outcome.err
    assert contents() == ["a", "b"]


@pytest.mark.django_db
@pytest.mark.parametrize("batch", ["1", "2", "500"])
def test_refused_lines_that_were_corrected_in_the_file_are_sent_and_no_other(load_lines: Any, batch: str) -> None:
    before = [b"{}\n", line("a"), b"nonsense\n", line("b"), b"\n", b"nonsense\n", b'{"recipient": "ada", "cont']
    after = [line("1"), line("a"), b"still nonsense\n", line("b"), b"\n", line("6"), line("7"), line("8")]
    assert load_lines(b"".join(before), "--batch", batch).out == "Sent 2 messages, refused 4 lines.\n"

    outcome = load_lines(b"".join(after), "--batch", batch)
    assert outcome.out == "Sent 4 messages, refused 1 lines.\n"
    after[2] = line("3")
    outcome = load_lines(b"".join(after), "--batch", batch)
    assert (outcome.out, outcome.status) == ("Sent 1 messages, refused 0 lines.\n", 0)

    assert contents() == ["a", "b", "1", "6", "7", "8", "3"]
    assert not Outcome.objects.exists()


@pytest.mark.django_db
def test_of_a_file_without_the_refused_lines_the_others_are_not_sent_twice(load_lines: Any) -> None:
    assert load_lines(line("a") + b"{}\n" + line("b") + b"{}\n" + line("c")).status == 1

    assert load_lines(line("a") + line("b") + line("c") + line("d")).out == "Sent 1 messages, refused 0 lines.\n"
    assert contents() == ["a", "b", "c", "d"]


@pytest.mark.django_db
def test_refused_lines_before_the_start_line_can_still_be_corrected(load_lines: Any) -> None:
    assert load_lines(line("a") + b"{}\n" + line("c")).status == 1
    assert load_lines(line("a") + b"{}\n" + line("c") + line("d"), "--start-line", "4").status == 0

    assert load_lines(line("a") + line("b") + line("c") + line("d")).out == "Sent 1 messages, refused 0 lines.\n"
    assert contents() == ["a", "c", "d", "b"]


@pytest.mark.django_db
def test_refused_lines_at_the_end_can_still_be_corrected_after_more_has_come(load_lines: Any) -> None:
    assert load_lines(line("a") + b"{}\n{}\n").status == 1
    assert load_lines(line("a") + b"{}\n{}\n" + line("d"), "--start-line", "4").status == 0

    raw = line("a") + line("b") + line("c") + line("d")
    assert load_lines(raw).out == "Sent 2 messages, refused 0 lines.\n"
    assert contents() == ["a", "d", "b", "c"]


@pytest.mark.django_db
@pytest.mark.parametrize(("before", "after"), [(b"\n \n", b""), (b"", b"\n\n")])
def test_empty_lines_at_the_end_may_come_and_go(load_lines: Any, before: bytes, after: bytes) -> None:
    assert load_lines(line("a") + b"{}\n" + line("c") + before).status == 1
    raw = line("a") + line("b") + line("c") + after
    assert load_lines(raw).out == "Sent 1 messages, refused 0 lines.\n"


@pytest.mark.django_db(transaction=True)
def test_a_file_from_which_a_refused_line_was_removed_may_grow(
    load_lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_lines(line("a") + b"{}\n" + b"\n").status == 1
    monkeypatch.setattr(load, "end_load", lose_outcome)
    assert load_lines(line("a") + b"\n").out == "Sent 0 messages, refused 0 lines.\n"
    monkeypatch.undo()

    assert load_lines(line("a") + b"\n" + line("b")).out == "Sent 1 messages, refused 0 lines.\n"


@pytest.mark.django_db
def test_refused_lines_before_all_others_may_be_removed(load_lines: Any) -> None:
    assert load_lines(b"{}\n" + line("a") + b"{}\n" + line("b"), "--batch", "1").status == 1
    assert load_lines(line("a") + line("b")).out == "Sent 0 messages, refused 0 lines.\n"


@pytest.mark.django_db
def test_a_load_that_was_refused_whole_hides_no_line_of_another(load_lines: Any) -> None:
    assert load_lines(b"{}\n{}\n").status == 1
    assert not Outcome.objects.exists()
    assert load_lines(line("a") + line("b")).out == "Sent 2 messages, refused 0 lines.\n"


@pytest.mark.django_db
def test_a_load_whose_first_batches_are_refused_is_one_load(load_lines: Any) -> None:
    for _ in range(2):
        assert load_lines(b"{}\n" * 3 + line("a") + line("b"), "--batch", "1").status == 1
    assert Outcome.objects.count() == 1
    assert contents() == ["a", "b"]


@pytest.mark.django_db(transaction=True)
def test_a_run_that_is_stopped_before_it_sends_a_corrected_line_sends_it_later(
    load_lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = [line("a"), b"{}\n", line("c"), line("d")]
    assert load_lines(b"".join(raw)).status == 1
    raw[1] = line("b")
    monkeypatch.setattr(services, "send_batch", interrupt)
    outcome = load_lines(b"".join(raw), "--batch", "2")
    assert outcome.failure.endswith("Go on with --start-line 1; what was sent is not sent again.")
    monkeypatch.undo()

    assert load_lines(b"".join(raw)).out == "Sent 1 messages, refused 0 lines.\n"
    assert contents() == ["a", "c", "d", "b"]


@pytest.mark.django_db
def test_every_fault_of_a_line_is_reported_without_control_characters(load_lines: Any) -> None:
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


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.django_db
def test_a_line_may_be_as_long_as_a_body(load_lines: Any, settings: Any, mark: bytes, end: bytes) -> None:
    settings.MESSAGES_MAX_BODY_BYTES = 2_000
    longest = line("b").strip().ljust(2_000)

    outcome = load_lines(mark + end.join([longest, longest, longest + b" ", longest + b"\r{}", b""]))

    assert contents() == ["b", "b"]
    assert [report.partition(":")[0] for report in outcome.err.splitlines()] == ["line 3", "line 4"]


@pytest.mark.django_db
def test_empty_lines_count_and_the_last_line_needs_no_end(load_lines: Any) -> None:
    outcome = load_lines(b"\n" + line("a") + b" \r\n" + line("b").rstrip() + b"\r\n" + b"{}\n" + line("c").rstrip())

    assert contents() == ["a", "b", "c"]
    assert outcome.err.startswith("line 5: ")


@pytest.mark.django_db
def test_empty_objects_are_refused_as_messages(load_lines: Any) -> None:
    outcome = load_lines(b"{}\n{}\n")

    assert [report.partition(": /")[0] for report in outcome.err.splitlines()] == ["line 1", "line 2"]
    assert outcome.failure.startswith("Correct or empty the lines named above")


@pytest.mark.django_db
def test_an_empty_file_is_not_an_error(load_lines: Any) -> None:
    assert load_lines(b"") == ("Sent 0 messages, refused 0 lines.\n", "", "", 0)


@pytest.mark.django_db
def test_a_load_continues_where_another_run_stopped(load_lines: Any) -> None:
    raw = line("a") + b"nonsense\n" + line("c") + line("d")

    outcome = load_lines(raw, "--start-line", "3")

    assert contents() == ["c", "d"]
    assert outcome.failure == ""


@pytest.mark.django_db
def test_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(line("a") + line("b")))))

    assert run("load", "-").out == "Sent 2 messages, refused 0 lines.\n"
    assert contents() == ["a", "b"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("has_progress", [False, True])
def test_reads_standard_input_from_where_it_stands(tmp_path: Path, *, has_progress: bool) -> None:
    if has_progress:
        advance_load(new_load(1), new_load(1).after({1: line("other").strip()}, []))
    file = tmp_path / "messages.jsonl"
    file.write_bytes(b"a head\n" + line("a"))
    with file.open("rb", buffering=0) as stream:
        stream.seek(len(b"a head\n"))
        done = ended("load", "-", stdin=stream)
    assert done.stdout == b"Sent 1 messages, refused 0 lines.\n"


@pytest.mark.django_db
@pytest.mark.parametrize("missing", ["nowhere.jsonl", ""])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, missing: str) -> None:
    path = str(tmp_path / missing)
    outcome = run("load", path)
    assert outcome.failure.startswith(f"{path} cannot be read: ")


@pytest.mark.parametrize("arguments", [("--batch", "0"), ("--batch", "1001"), ("--start-line", "0")])
def test_an_argument_out_of_bounds_is_refused_by_name(arguments: tuple[str, str]) -> None:
    assert f"{arguments[0]}: '{arguments[1]}' is not a whole number" in run("load", str(SMS), *arguments).failure


@pytest.mark.django_db(transaction=True)
def test_a_line_that_the_database_refuses_fails_no_other_line(load_lines: Any) -> None:
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
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_says_where_to_continue(load_lines: Any, number: signal.Signals) -> None:
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
    assert b"Go on with --start-line 201;" in rest
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


def interrupted(raw: bytes, batches: int, *arguments: str) -> None:
    """Send that many batches of the lines, then die between a commit and what comes after it."""
    with process("load", "-", *arguments) as loading:
        assert loading.stdin is not None
        loading.stdin.write(raw)
        loading.stdin.flush()
        while Outcome.objects.count() == 0 or Message.objects.count() < batches:
            assert loading.poll() is None
        loading.send_signal(signal.SIGKILL)
        loading.wait()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("arguments", [(), ("--start-line", "91"), ("--batch", "7"), ("--batch", "1000")])
def test_resuming_a_killed_run_sends_nothing_twice(load_lines: Any, arguments: tuple[str, ...]) -> None:
    raw = [line(str(index)) for index in range(300)]
    interrupted(b"".join(raw[:105]), 100, "--batch", "10")
    assert Message.objects.count() == 100

    outcome = load_lines(b"".join(raw), *arguments)

    assert outcome.out == "Sent 200 messages, refused 0 lines.\n"
    assert "Lines 1 to 100 were loaded by a run that was stopped" in outcome.err
    assert contents() == [str(index) for index in range(300)]
    # That run has ended, so the same file is a new one from here on.
    assert load_lines(b"".join(raw)).out == "Sent 300 messages, refused 0 lines.\n"


@pytest.mark.django_db(transaction=True)
def test_a_killed_run_is_resumed_from_a_pipe_of_gzip() -> None:
    raw = [line(str(index)) for index in range(30)]
    interrupted(b"".join(raw[:15]), 10, "--batch", "10")

    with process("load", "-") as loading:
        out, _ = loading.communicate(gzip.compress(b"".join(raw)))
    assert out == b"Sent 20 messages, refused 0 lines.\n"
    assert contents() == [str(index) for index in range(30)]


@pytest.mark.django_db(transaction=True)
def test_another_file_and_the_option_again_are_loaded_in_full(load_lines: Any) -> None:
    raw = [line(str(index)) for index in range(30)]
    interrupted(b"".join(raw[:15]), 10, "--batch", "10")

    assert load_lines(line("other", "bob") + b"".join(raw[1:])).out == "Sent 30 messages, refused 0 lines.\n"
    assert load_lines(b"".join(raw), "--again").out == "Sent 30 messages, refused 0 lines.\n"
    assert Message.objects.count() == 70
    assert not Outcome.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_lines_before_those_of_a_killed_run_are_sent(load_lines: Any) -> None:
    raw = [line(str(index)) for index in range(30)]
    interrupted(b"".join(raw[:25]), 10, "--batch", "10", "--start-line", "11")

    assert load_lines(b"".join(raw), "--batch", "4").out == "Sent 20 messages, refused 0 lines.\n"
    assert sorted(map(int, contents())) == list(range(30))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("first", "second"), [("1", "21"), ("21", "1")])
def test_after_two_stopped_runs_each_line_is_sent_once(
    load_lines: Any, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    raw = b"".join(line(str(index)) for index in range(40))
    send_batch = services.send_batch
    for start in (first, second):
        batches = iter([send_batch])  # and at the second one it is interrupted
        monkeypatch.setattr(services, "send_batch", lambda batches=batches, **call: next(batches, interrupt)(**call))
        assert load_lines(raw, "--batch", "10", "--start-line", start).failure.startswith("Stopped.")
    monkeypatch.undo()

    outcome = load_lines(raw)

    assert outcome.out == "Sent 20 messages, refused 0 lines.\n"
    assert sorted(map(int, contents())) == list(range(40))
    assert "Lines 1 to 10 were loaded" in outcome.err
    assert "Lines 21 to 30 were loaded" in outcome.err
    assert not Outcome.objects.exists()


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.django_db(transaction=True)
def test_a_file_that_has_grown_since_its_run_was_stopped_at_the_end(
    load_lines: Any, monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    first, second = (line(text).rstrip() for text in ("first", "second"))
    monkeypatch.setattr(load, "end_load", lose_outcome)
    outcome = load_lines(first)
    assert (outcome.out, outcome.status) == ("Sent 1 messages, refused 0 lines.\n", 0)
    assert "another run may pass over lines of the same file" in outcome.err
    monkeypatch.undo()

    assert load_lines(first + end + second).out == "Sent 1 messages, refused 0 lines.\n"
    assert contents() == ["first", "second"]


@pytest.mark.django_db(transaction=True)
def test_a_run_that_cannot_print_its_end_is_continued(load_lines: Any, tmp_path: Path) -> None:
    raw = line("a") + line("b")
    (tmp_path / "messages.jsonl").write_bytes(raw)
    with Path("/dev/full").open("wb") as full:
        done = ended("load", str(tmp_path / "messages.jsonl"), stdout=full)
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr

    assert load_lines(raw).out == "Sent 0 messages, refused 0 lines.\n"
    assert contents() == ["a", "b"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_has_ended_does_not_say_that_it_was_stopped(stop: signal.Signals) -> None:
    with process("load", "-", "--batch", "1") as loading:
        assert loading.stdin is not None
        assert loading.stdout is not None
        loading.stdin.write(line("a"))
        loading.stdin.flush()
        wait_until(Outcome.objects.exists, what="the first batch")
        with transaction.atomic():
            Outcome.objects.select_for_update().get()
            loading.stdin.close()
            assert loading.stdout.readline() == b"Sent 1 messages, refused 0 lines.\n"
            wait_until(somebody_waits_for_a_lock, what="the end of the load")
            loading.send_signal(stop)
            time.sleep(0.2)
            assert loading.poll() is None
        assert loading.wait(PATIENCE_SECONDS) == 0
    assert not Outcome.objects.exists()


@pytest.mark.django_db
def test_of_two_runs_that_continue_one_load_the_second_sends_nothing() -> None:
    progress = new_load(1).after({1: b"a"}, [])
    advance_load(new_load(1), progress)
    advance_load(progress, progress.after({2: b"b"}, []))
    with pytest.raises(LoadOvertakenError):
        advance_load(progress, progress.after({2: b"b"}, []))


@pytest.mark.django_db
def test_of_two_runs_that_load_one_file_at_once_the_second_sends_nothing(
    load_lines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_batch, others = services.send_batch, []

    def send_during_another_run(**call: Any) -> Any:
        others.append(run("load", str(tmp_path / "messages.jsonl")))
        return send_batch(**call)

    monkeypatch.setattr(services, "send_batch", send_during_another_run)
    assert load_lines(line("a") + line("b"), "--batch", "1").out == "Sent 2 messages, refused 0 lines.\n"

    assert len(others) == 2
    assert all("is locked by another process" in other.failure for other in others)
    assert contents() == ["a", "b"]


BOM = b"\xef\xbb\xbf"


@pytest.mark.django_db
@pytest.mark.parametrize("packed", [gzip.compress, lambda raw: BOM + raw, lambda raw: BOM + b"\n" + raw])
def test_gzip_and_a_byte_order_mark_are_read(load_lines: Any, packed: Any) -> None:
    assert load_lines(packed(line("a") + b"nonsense\n" + line("\N{BICYCLE}"))).out.startswith(
        "Sent 2 messages, refused 1"
    )
    assert contents() == ["a", "\N{BICYCLE}"]


@pytest.mark.django_db
def test_damaged_gzip_is_named_and_what_came_before_is_sent(load_lines: Any) -> None:
    raw = gzip.compress(b"".join(line(str(index)) for index in range(5_000)))

    outcome = load_lines(raw[: len(raw) // 2], "--batch", "10")

    assert "its gzip data is damaged or cut off. Sent " in outcome.failure
    assert contents() == [str(index) for index in range(Message.objects.count())]
    assert "its gzip data is damaged or cut off. Sent " in load_lines(gzip.compress(line("a")) + b"garbage").failure


MESSAGES: list[dict[str, Any]] = [
    {"recipient": "ada", "content": "a"},
    {"recipient": "ada", "content": "b", "metadata": {"results": [1]}},
]
STORED = [
    {"id": "x", "seq": seq, **message, "created_at": "x", "read_at": None, "is_read": False}
    for seq, message in enumerate(MESSAGES, start=1)
]
PAGE = {"results": STORED[::-1], "next": None, "previous": None, "mailbox": {"recipient": "ada"}}
JSON_FORMS = {
    "array": json.dumps(MESSAGES),
    "pretty array": json.dumps(MESSAGES, indent=2),
    "array of answers": json.dumps(STORED),
    "pretty": "\n".join(json.dumps(message, indent=4) for message in MESSAGES),
    "page": json.dumps(PAGE),
    "pretty page": json.dumps(PAGE, indent=2),
    "sorted page": json.dumps(PAGE, indent=2, sort_keys=True),
    "batch": json.dumps({"messages": MESSAGES}),
    "lines of answers": "\n".join(map(json.dumps, STORED)),
}


@pytest.mark.django_db
@pytest.mark.parametrize("text", JSON_FORMS.values(), ids=JSON_FORMS.keys())
def test_other_forms_of_json_are_reported_once_with_the_command_that_loads_them(
    load_lines: Any, tmp_path: Path, text: str
) -> None:
    outcome = load_lines(b"\n" + text.encode())

    assert (outcome.err, outcome.status) == ("", 1)
    assert "This is another form of JSON, not one message to send on each line." in outcome.failure
    assert not Message.objects.exists()
    command = outcome.failure.partition("Load it by: ")[2].removesuffix(" | manage.py load -")
    if shutil.which("jq"):
        lines = subprocess.run(command, shell=True, capture_output=True, check=True).stdout
        assert load_lines(lines).out == "Sent 2 messages, refused 0 lines.\n"
        assert contents() == ["a", "b"]


@pytest.mark.django_db
@pytest.mark.parametrize("end", [b",\n", b", \r\n"])
def test_lines_that_end_in_commas_are_reported_once_with_the_command_that_loads_them(
    load_lines: Any, end: bytes
) -> None:
    outcome = load_lines(line("a").strip() + end + line("b"))

    assert (outcome.err, outcome.status) == ("", 1)
    command = outcome.failure.partition("Remove them: ")[2].removesuffix(" | manage.py load -")
    lines = subprocess.run(command, shell=True, capture_output=True, check=True).stdout
    assert load_lines(lines).out == "Sent 2 messages, refused 0 lines.\n"


@pytest.mark.django_db
def test_a_first_line_that_only_looks_like_another_form_is_one_line(load_lines: Any) -> None:
    raw = json.dumps({"metadata": {"results": [1]}, "recipient": "ada", "content": "a"}).encode()

    assert load_lines(raw + b"\n" + line("b")).out == "Sent 2 messages, refused 0 lines.\n"
    assert load_lines(b" " * 257 + b"ustar" + b"\n" + line("c")).out.startswith("Sent 1 messages, refused 1")
    assert load_lines(b'{"recipient": "ada", "content": "cut o\n' + line("d")).out.startswith(
        "Sent 1 messages, refused 1"
    )


@pytest.mark.django_db
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_utf16_is_reported_once_with_the_command_that_loads_it(load_lines: Any, encoding: str, packed: Any) -> None:
    outcome = load_lines(packed((line("a") + line("b")).decode().encode(encoding)))

    assert outcome.err == ""
    assert "This is UTF-16 or UTF-32, not UTF-8. Convert it: " in outcome.failure
    assert not Message.objects.exists()
    command = outcome.failure.partition("Convert it: ")[2].removesuffix(" | manage.py load -")
    assert load_lines(subprocess.run(command, shell=True, capture_output=True, check=True).stdout).status == 0


def tar(raw: bytes, form: int) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=form) as opened:
        member = tarfile.TarInfo("messages.jsonl")
        member.size = len(raw)
        opened.addfile(member, io.BytesIO(raw))
    return archive.getvalue()


@pytest.mark.django_db
@pytest.mark.parametrize(
    "packed",
    [
        bz2.compress,
        lzma.compress,
        lambda raw: gzip.compress(gzip.compress(raw)),
        lambda raw: b"\x28\xb5\x2f\xfd" + raw,
        lambda raw: b"PK\3\4" + raw,
        lambda raw: b"\x04\x22\x4d\x18" + raw,
        partial(tar, form=tarfile.USTAR_FORMAT),
        partial(tar, form=tarfile.GNU_FORMAT),
        lambda raw: gzip.compress(tar(raw, tarfile.PAX_FORMAT)),
    ],
    ids=["bzip2", "xz", "gzip twice", "zstd", "zip", "lz4", "ustar", "GNU tar", "compressed tar"],
)
def test_other_compressed_files_and_archives_are_reported_once(load_lines: Any, packed: Any) -> None:
    outcome = load_lines(packed(b"".join(line(str(index)) for index in range(1_000))))
    assert (outcome.err, outcome.status) == ("", 1)
    assert "This is compressed other than by gzip once, an archive, or no text. Unpack it first." in outcome.failure
    assert not Message.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize(
    "raw",
    [
        b"recipient,content\nada,a\n",
        b"event: mailbox\nid: 1\n",
        b'{ "recipient": "ada"\n, "content": "x"}\n',
        (b"\x1e" + line("x")) * 2,  # RFC 7464
    ],
)
def test_a_file_without_an_object_is_reported_once(load_lines: Any, raw: bytes) -> None:
    outcome = load_lines(raw)
    assert (outcome.err, outcome.status) == ("", 1)
    assert "None of its first 2 lines is a JSON object" in outcome.failure


@pytest.mark.django_db
def test_a_start_line_beyond_the_end_is_an_error(load_lines: Any) -> None:
    outcome = load_lines(line("a") + line("b"), "--start-line", "9")
    assert outcome.failure.endswith("has 2 lines: there is no line 9.")
    assert outcome.status == 1
    # The start line that is reported by a run that was stopped after the last line.
    assert load_lines(line("a") + line("b"), "--start-line", "3").status == 0
    assert not Message.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_run_under_nohup_is_not_stopped_by_a_hangup() -> None:
    with process("load", "-", "--batch", "1", nohup=True) as loading:
        assert loading.stdin is not None
        loading.stdin.write(line("a"))
        loading.stdin.flush()
        read_until(loading, b"line 1")
        loading.send_signal(signal.SIGHUP)
        out, _ = loading.communicate(line("b"))
    assert loading.returncode == 0
    assert b"Sent 2 messages" in out
