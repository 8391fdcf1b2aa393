"""A load that remembers what the service said of each message, and compares it with what is there afterwards."""

import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any

from tests.helpers import Answer, Api, Network

DONE = {200, 201, 304}


class Ledger:
    """Clients that send, with keys and without, and read, until `stop`; each on a connection of its own.

    Answers are counted by kind: a "follow" is a read that says how new the answer must be, so that a replica may give
    it; a "read" is any other. Neither may be older than what some client had seen before it was asked.
    """

    def __init__(self, url: str, senders: int = 4) -> None:
        self._network = Network(url)
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        # By content: how often it must be there, at least and at most.
        self._expected: dict[str, tuple[int, int]] = {}
        self.answers: Counter[tuple[str, int, str | None]] = Counter()
        # When the last request of each kind succeeded, and the longest time without one.
        self.last = dict.fromkeys(("write", "read", "follow"), time.monotonic())
        self.gap = dict.fromkeys(self.last, 0.0)
        self.refused: list[float] = []  # when each "follow" that failed began
        self._recipients = [f"ha-{number}" for number in range(senders)]
        self._newest = 0  # the newest version of the first recipient's mailbox that a client has seen
        self._older: list[str] = []  # answers that should have been newer
        self._pool = ThreadPoolExecutor(2 * senders + 2)
        self._tasks = [self._pool.submit(self._send_keyed, recipient) for recipient in self._recipients]
        self._tasks += [self._pool.submit(self._send_plain, recipient) for recipient in self._recipients]
        self._tasks += [self._pool.submit(self._read), self._pool.submit(self._follow)]

    def begin_measurement(self) -> None:
        """Forget the longest times, and what was refused."""
        with self._lock:
            self.gap = dict.fromkeys(self.gap, 0.0)
            self.refused.clear()

    def _ask(self, kind: str, method: str, path: str, **options: Any) -> Answer | None:
        """The answer; None if there is none."""
        answer: Answer | None = None
        began = time.monotonic()
        try:
            answer = Api(self._network).request(method, path, **options)
            status, code = answer.status, answer.code
        except OSError as error:
            status, code = 0, type(error).__name__
        with self._lock:
            self.answers[kind, status, code] += 1
            if status in DONE:
                now = time.monotonic()
                self.gap[kind] = max(self.gap[kind], now - self.last[kind])
                self.last[kind] = now
            elif kind == "follow":
                self.refused.append(began)
        if status not in DONE:
            self._is_over.wait(0.1)
        return answer

    def _see(self, version: int) -> None:
        with self._lock:
            self._newest = max(self._newest, version)

    def _send(self, recipient: str, content: str, key: str | None = None) -> tuple[int, str | None]:
        body = {"recipient": recipient, "content": content}
        answer = self._ask("write", "POST", "/messages/", json=body, headers={"Idempotency-Key": key})
        if answer is None:
            return 0, None
        if answer.status == 201 and recipient == self._recipients[0]:
            self._see(answer.json["seq"])
        return answer.status, answer.code

    def _send_keyed(self, recipient: str) -> None:
        while not self._is_over.is_set():
            key = str(uuid.uuid4())
            content = f"keyed {key}"
            while self._send(recipient, content, key)[0] != 201:
                if self._is_over.is_set():
                    self._expected[content] = (0, 1)
                    return
            self._expected[content] = (1, 1)

    def _send_plain(self, recipient: str) -> None:
        while not self._is_over.is_set():
            content = f"plain {uuid.uuid4()}"
            status, code = self._send(recipient, content)
            if status == 201:
                self._expected[content] = (1, 1)
            elif status == 503 and code != "outcome_unknown":
                self._expected[content] = (0, 0)
            else:
                self._expected[content] = (0, 1)

    def _look(self, kind: str, path: str, at_least: int, **headers: str) -> Answer | None:
        """The answer of a read, if it succeeded."""
        answer = self._ask(kind, "GET", path, headers=headers)
        if answer is None or answer.status not in DONE:
            return None
        version = int(answer.headers["Messages-Version"])
        if version < at_least:
            self._older.append(f"GET {path} {headers}: version {version} after {at_least}")
        self._see(version)
        return answer

    def _read(self) -> None:
        while not self._is_over.wait(0.02):
            self._look("read", f"/mailbox?recipient={self._recipients[0]}", self._newest)

    def _follow(self) -> None:
        name = self._recipients[0]
        page = f"/messages/?recipient={name}"
        tag, tagged = "", 0
        for path in cycle(
            (f"/mailbox?recipient={name}", page, f"/messages/unread/?recipient={name}", "by tag", "by place")
        ):
            if self._is_over.wait(0.02):
                break
            newest = self._newest
            if path == "by place":
                self._look("follow", f"/changes?recipient={name}&since={newest}", newest)
            elif path != "by tag":
                answer = self._look("follow", path, newest, **{"Messages-Min-Version": str(newest)})
                if answer is not None and path == page:
                    tag, tagged = answer.headers["ETag"], int(answer.headers["Messages-Version"])
            elif tag:
                self._look("follow", page, tagged, **{"If-None-Match": tag})

    def stop(self) -> list[str]:
        """Stop; return what is there otherwise than the service said, none for the truth."""
        self._is_over.set()
        for task in self._tasks:
            task.result(60)
        self._pool.shutdown()
        api = Api(self._network)
        there: Counter[str] = Counter()
        for recipient in self._recipients:
            messages = api.pages("/messages/", {"recipient": recipient, "limit": 200, "ordering": "created_at"})
            there.update(message["content"] for message in messages)
        self._network.close()
        wrong = [
            f"{content}: {there[content]} times, not {least} to {most}"
            for content, (least, most) in self._expected.items()
            if not least <= there[content] <= most
        ]
        return wrong + [f"{content}: never sent" for content in there.keys() - self._expected.keys()] + self._older
