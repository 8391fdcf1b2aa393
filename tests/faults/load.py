"""The load: writers that note their messages in the ledger, and followers that read mailboxes forward by `seq`."""

import http.client
import itertools
import random
import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

from tests.faults.ledger import Entry, Ledger
from tests.helpers import Answer, Api, Network

if TYPE_CHECKING:
    from collections.abc import Callable

WRITERS, FOLLOWED = 6, ("shared-0", "shared-1")
CLIENT_SECONDS = 10.0  # how long a client waits for an answer

_numbers = itertools.count(1)  # what makes contents and keys unique

# How a change ended: made, refused with nothing changed, or its client cannot know.
End = Literal["made", "refused", "unknown"]


class Client(ABC, threading.Thread):
    """A thread with a connection of its own that does one thing after another until it is told to stop."""

    def __init__(self, url: str, ledger: Ledger) -> None:
        super().__init__(daemon=True)
        self.network = Network(url, timeout_seconds=CLIENT_SECONDS)
        self.api = Api(self.network)
        self.ledger = ledger
        self.is_over = threading.Event()

    def run(self) -> None:
        try:
            while not self.is_over.is_set():
                self.step()
            self.finish()
        finally:
            self.network.close()

    @abstractmethod
    def step(self) -> None:
        """Make one request, or a few that belong together."""

    def finish(self) -> None:
        """Do what is left to do once the others have stopped."""

    def request(self, *request: Any, allowed: tuple[int, ...], **options: Any) -> Answer | None:
        """The answer, which agrees with the OpenAPI document and has one of these statuses; None for no answer."""
        try:
            answer = self.api.request(*request, **options)
        except (OSError, http.client.HTTPException):
            self.ledger.count("no answer")
            self.is_over.wait(0.05)
            return None
        except AssertionError as error:
            self.ledger.blame(f"{request[:2]}: not as documented: {error}")
            return None
        if answer.status not in allowed:
            self.ledger.blame(f"{request[:2]}: {answer.status} {answer.body[:300]!r}")
        elif answer.status == 503:
            code = str(answer.code)
            self.ledger.count(code)
            if code not in {"database_unavailable", "outcome_unknown"} or "Retry-After" not in answer.headers:
                self.ledger.blame(f"{request[:2]}: {answer.body[:300]!r}")
            self.is_over.wait(0.02)
        else:
            self.ledger.count("answered")
        return answer


class Writer(Client):
    """Sends, marks and deletes messages of its own: to mailboxes shared with others, and to one of its own."""

    def __init__(self, url: str, ledger: Ledger, number: int) -> None:
        super().__init__(url, ledger)
        self.number = number
        self.own = f"own-{number}"
        self.random = random.Random(number)
        self.mine = [entry for entry in ledger.entries.values() if entry.writer == number]
        self.actions: list[Callable[[], None]] = [
            self.send, self.send, self.send_keyed, self.send_keyed, self.batch, self.mark, self.mark_up_to, self.delete
        ]  # fmt: skip

    def step(self) -> None:
        self.random.choice(self.actions)()

    def change(self, method: str, path: str, body: Any, status: int, *, keyed: bool) -> tuple[End, Answer | None]:
        """A change; under a key it is repeated until its outcome is known, as a client should."""
        headers = {"Idempotency-Key": f"{time.time_ns()}-{next(_numbers)}"} if keyed else {}
        may_be_made = False
        while True:
            arguments = (method, path) if body is None else (method, path, body)
            answer = self.request(*arguments, allowed=(status, 503, 409) if keyed else (status, 503), headers=headers)
            if answer is not None and answer.status == status:
                return "made", answer
            is_refused = answer is not None and (answer.code == "database_unavailable" or answer.status == 409)
            may_be_made = may_be_made or not is_refused
            if not keyed or self.is_over.is_set():
                return ("unknown" if may_be_made else "refused"), None

    def draft(self) -> Entry:
        recipient = self.random.choice((*FOLLOWED, self.own))
        entry = Entry(self.number, recipient, f"{self.number}-{next(_numbers)}")
        with self.ledger.lock:
            self.ledger.entries[entry.content] = entry
        self.mine.append(entry)
        return entry

    def note_sent(self, entry: Entry, end: End, message: Any) -> None:
        entry.exists = {"made": True, "refused": False, "unknown": None}[end]
        entry.is_acknowledged = end == "made"
        if message is not None:
            entry.id, entry.seq = message["id"], message["seq"]

    def send(self, *, keyed: bool = False) -> None:
        entry = self.draft()
        body = {"recipient": entry.recipient, "content": entry.content}
        end, answer = self.change("POST", "/messages/", body, 201, keyed=keyed)
        self.note_sent(entry, end, answer and answer.json)

    def send_keyed(self) -> None:
        self.send(keyed=True)

    def batch(self) -> None:
        entries = [self.draft() for _ in range(4)]
        body = {"messages": [{"recipient": entry.recipient, "content": entry.content} for entry in entries]}
        end, answer = self.change("POST", "/messages/batch", body, 201, keyed=self.random.random() < 0.5)
        for entry, message in zip(entries, answer.json["results"] if answer else [None] * 4, strict=True):
            self.note_sent(entry, end, message)

    def known(self, count: int, recipient: str | None = None) -> list[Entry]:
        """Some of the latest messages that are certainly there."""
        there = [e for e in self.mine[-40:] if e.exists and e.id and (recipient is None or e.recipient == recipient)]
        return self.random.sample(there, min(count, len(there)))

    def mark(self) -> None:
        if entries := self.known(5):
            is_read = self.random.random() < 0.7
            path = "/messages/mark-read" if is_read else "/messages/mark-unread"
            ids = [entry.id for entry in entries]
            end, answer = self.change("PATCH", path, {"ids": ids}, 200, keyed=self.random.random() < 0.3)
            for entry in entries:
                self.note_marked(entry, end, is_read)
            if answer and answer.json["not_found"]:
                self.ledger.blame(f"not found by a mark: {answer.body[:300]!r}")

    def mark_up_to(self) -> None:
        if last := self.known(1, self.own):
            body = {"recipient": self.own, "up_to": last[0].id}
            end, _ = self.change("PATCH", "/messages/mark-read", body, 200, keyed=False)
            for entry in self.mine:
                # One whose existence is unknown may have arrived before.
                if entry.recipient == self.own and (entry.seq is None or entry.seq <= (last[0].seq or 0)):
                    self.note_marked(entry, "unknown" if entry.seq is None else end, is_read=True)

    @staticmethod
    def note_marked(entry: Entry, end: End, is_read: bool) -> None:
        if end == "made":
            entry.is_read = is_read
        elif end == "unknown" and entry.is_read != is_read:
            entry.is_read = None

    def delete(self) -> None:
        for entry in self.known(1):
            end, _ = self.change("DELETE", f"/messages/{entry.id}", None, 204, keyed=self.random.random() < 0.5)
            if end != "refused":
                entry.exists = False if end == "made" else None


class Follower(Client):
    """Reads a mailbox forward, as it grows."""

    def __init__(self, url: str, ledger: Ledger, recipient: str) -> None:
        super().__init__(url, ledger)
        self.recipient = recipient
        self.seen = ledger.followed[recipient]
        self.target = ledger.positions.get(recipient, f"/messages/?recipient={recipient}&ordering=created_at&limit=100")

    def step(self) -> None:
        if not self.advance():
            self.is_over.wait(0.05)

    def finish(self) -> None:
        while self.advance():
            pass
        self.ledger.positions[self.recipient] = self.target

    def advance(self) -> bool:
        """Whether there is more to read."""
        answer = self.request("GET", self.target, allowed=(200, 503))
        if answer is None or answer.status != 200:
            self.is_over.wait(0.05)
            return True
        last = self.seen[-1][0] if self.seen else 0
        self.seen += [(m["seq"], m["content"]) for m in answer.json["results"] if m["seq"] > last]
        if not answer.json["next"]:
            return False
        self.target = "/messages/" + answer.json["next"].partition("/messages/")[2]
        return True


class Load:
    """All clients at once, from `with` to its end."""

    def __init__(self, url: str, ledger: Ledger) -> None:
        self.writers: list[Client] = [Writer(url, ledger, number) for number in range(WRITERS)]
        self.followers: list[Client] = [Follower(url, ledger, name) for name in FOLLOWED]

    def __enter__(self) -> None:
        for client in self.writers + self.followers:
            client.start()

    def __exit__(self, failure: object, *_details: object) -> None:
        if failure:
            return  # the service may not answer any more, and a follower would wait for it
        # Followers last: they read to the end.
        for clients in (self.writers, self.followers):
            for client in clients:
                client.is_over.set()
            for client in clients:
                client.join()
