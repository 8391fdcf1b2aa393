"""`manage.py seed`: messages like real ones, and exact counts whatever happens."""

import signal
import threading
import unicodedata
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise

import pytest
from django.db import connection, transaction
from django.utils import timezone

from messaging import services
from messaging.access import EVERYONE
from messaging.errors import DatabaseUnavailableError
from messaging.models import Mailbox, Message
from messaging.records import NewMessage
from tests.commands import Outcome, process, read_until, run
from tests.partitions import not_on_citus
from tests.plans import statements
from tests.state import miscounted


def seed(messages: int, recipients: int, *arguments: str) -> Outcome:
    """Run the command; it must succeed."""
    outcome = run("seed", "--messages", str(messages), "--recipients", str(recipients), *arguments)
    assert outcome.failure == ""
    return outcome


def assert_in_order() -> None:
    """In each mailbox the times of arrival never fall while `seq` rises, and nothing was read before it arrived."""
    messages = list(Message.objects.order_by("mailbox", "seq").values_list("mailbox", "created_at", "read_at"))
    now = timezone.now()
    assert all(created <= now and (read is None or created <= read <= now) for _, created, read in messages)
    assert all(earlier <= later for (box, earlier, _), (same, later, _) in pairwise(messages) if box == same)


@pytest.mark.django_db
def test_seed_fills_every_mailbox_as_requested() -> None:
    seed(4_001, 7, "--unread-ratio", "0.3", "--content-length", "120")
    mailboxes = list(Mailbox.objects.order_by("recipient"))
    assert [mailbox.recipient for mailbox in mailboxes] == [f"user{number}@example.com" for number in range(1, 8)]
    assert sum(mailbox.total for mailbox in mailboxes) == 4_001
    assert sum(mailbox.unread for mailbox in mailboxes) == 1_200
    for mailbox in mailboxes:
        assert mailbox.version == mailbox.total
        assert list(mailbox.messages.order_by("seq").values_list("seq", flat=True)) == list(range(1, mailbox.total + 1))
    assert miscounted() == []


@pytest.mark.django_db
def test_messages_look_like_real_ones() -> None:
    seed(3_000, 5)
    contents = list(Message.objects.values_list("content", flat=True))
    sizes = [len(content) for content in contents]
    assert sum(sizes) == 3_000 * 200
    assert min(sizes) < 100
    assert max(sizes) > 300
    assert not any(content[0].isspace() for content in contents)
    scripts = {unicodedata.name(content[0], "?").split()[0] for content in contents}
    assert scripts >= {"LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "CJK", "HANGUL"}
    assert_in_order()
    arrivals = sorted(Message.objects.values_list("created_at", flat=True))
    assert arrivals[-1] - arrivals[0] > timedelta(days=150)
    assert max(later - earlier for earlier, later in pairwise(arrivals)) < timedelta(days=1)


@pytest.mark.django_db
def test_appends_to_mailboxes_that_hold_messages() -> None:
    services.send(message=NewMessage("user1@example.com", "already here"), caller=EVERYONE)
    seed(300, 2)
    seed(300, 2)
    assert Mailbox.objects.get(recipient="user1@example.com").messages.order_by("seq")[0].content == "already here"
    assert Message.objects.count() == 601
    assert_in_order()
    assert miscounted() == []


@pytest.mark.django_db
@pytest.mark.parametrize(("ratio", "unread"), [("0", 0), ("1", 30), ("0.5", 15)])
def test_the_share_of_unread_messages_is_exact(ratio: str, unread: int) -> None:
    seed(30, 3, "--unread-ratio", ratio)
    assert Message.objects.unread().count() == unread


@pytest.mark.django_db
@pytest.mark.parametrize("length", [1, 9_999, 10_000])
def test_any_mean_length_within_the_limit_is_exact(length: int) -> None:
    seed(5, 2, "--content-length", str(length))
    sizes = [len(content) for content in Message.objects.values_list("content", flat=True)]
    assert sum(sizes) == 5 * length
    assert max(sizes) <= 10_000


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--messages", "0", "--recipients", "1"), "--messages: '0' is not a whole number from 1"),
        (("--messages", "ten", "--recipients", "1"), "--messages: 'ten' is not a whole number"),
        (("--messages", "1", "--recipients", "-1"), "--recipients: '-1' is not a whole number from 1"),
        (("--messages", "1", "--recipients", "1", "--unread-ratio", "1.01"), "--unread-ratio: '1.01' is not a number"),
        (("--messages", "1", "--recipients", "1", "--unread-ratio", "nan"), "--unread-ratio: 'nan' is not a number"),
        (("--messages", "1", "--recipients", "1", "--content-length", "10001"), "from 1 to 10,000"),
        (("--recipients", "1"), "--messages"),
    ],
)
def test_an_argument_out_of_bounds_is_refused_by_name(arguments: tuple[str, ...], named: str) -> None:
    assert named in run("seed", *arguments).failure


@not_on_citus("there are more statements there")
@pytest.mark.django_db
def test_every_chunk_of_two_thousand_takes_two_statements() -> None:
    run("check_mailboxes")
    with statements() as found:
        seed(10_000, 500)
    # Beside those: where the time to fill begins, and where it ends.
    assert len(found) == 5 * 2 + 2
    assert miscounted() == []


@pytest.mark.django_db(transaction=True)
def test_a_locked_mailbox_is_told_without_the_advice_for_requests() -> None:
    seed(3, 1)
    with transaction.atomic():
        Mailbox.objects.select_for_update().get()
        arguments = ("--messages", "2", "--recipients", "1", "--verbosity", "0")
        with process("seed", *arguments, POSTGRES_LOCK_TIMEOUT_MS="100") as seeding:
            _, err = seeding.communicate(timeout=60)
    assert err == (
        b"CommandError: The database cannot be reached or is too busy. canceling statement due to lock timeout."
        b" 0 of 2 messages were written before.\n"
    )
    assert Message.objects.count() == 3


@pytest.mark.django_db(transaction=True)
def test_seed_runs_while_others_send_to_the_same_mailboxes() -> None:
    sent = 0
    finished = threading.Event()

    def keep_sending() -> None:
        nonlocal sent
        try:
            while not finished.is_set():
                drafts = [NewMessage(f"user{number}@example.com", "live") for number in (3, 1, 2)]
                # Refused if it waits for 2 s, which a slow machine may take over a chunk: then nothing was sent.
                with suppress(DatabaseUnavailableError):
                    services.send_batch(messages=drafts, caller=EVERYONE)
                    sent += 3
        finally:
            connection.close()

    sender = threading.Thread(target=keep_sending)
    with process("seed", "--messages", "12000", "--recipients", "3", "--verbosity", "0") as seeding:
        sender.start()
        try:
            checks = 0
            while seeding.poll() is None or not checks:
                assert run("check_mailboxes").failure == ""
                checks += 1
        finally:
            finished.set()
            sender.join()
        assert seeding.stderr is not None
        assert (seeding.wait(), seeding.stderr.read()) == (0, b"")
    assert sent > 0
    assert Message.objects.count() == 12_000 + sent
    assert_in_order()
    assert miscounted() == []


@pytest.mark.django_db(transaction=True)
def test_a_kill_leaves_whole_chunks_and_exact_counts() -> None:
    with process("seed", "--messages", "1000000", "--recipients", "50") as seeding:
        read_until(seeding, b"4000/")
        seeding.send_signal(signal.SIGKILL)
        seeding.wait()
    written = Message.objects.count()
    assert written >= 4_000
    assert written % 2_000 == 0
    assert miscounted() == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_far_it_came(number: signal.Signals) -> None:
    with process("seed", "--messages", "1000000", "--recipients", "50") as seeding:
        read_until(seeding, b"2000/")
        seeding.send_signal(number)
        _, rest = seeding.communicate()
    assert seeding.returncode == 130
    assert f"Stopped after {Message.objects.count():,} of 1,000,000 messages" in rest.decode()
    assert b"Traceback" not in rest
    assert miscounted() == []
