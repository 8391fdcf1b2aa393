"""A load that remembers what the service said of each message, and compares it with what is there afterwards."""

import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.helpers import Api, Network

Answers = list[tuple[float, int, str | None]]


class Ledger:
    """Clients that send, with keys and without, and read, until `stop`; each on a connection of its own."""

    def __init__(self, url: str, senders: int = 4) -> None:
        self._network = Network(url)
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        # By content: how often it must be there, at least and at most.
        self._expected: dict[str, tuple[int, int]] = {}
        self.answers: Counter[tuple[str, int, str | None]] = Counter()
        # When the last answer came to a write, and to a read, and the longest time without one.
        self.last = {"write": time.monotonic(), "read": time.monotonic()}
        self.gap = {"write": 0.0, "read": 0.0}
        self._pool = ThreadPoolExecutor(2 * senders + 1)
        self._recipients = [f"ha-{number}" for number in range(senders)]
        self._tasks = [self._pool.submit(self._send_keyed, recipient) for recipient in self._recipients]
        self._tasks += [self._pool.submit(self._send_plain, recipient) for recipient in self._recipients]
        self._tasks.append(self._pool.submit(self._read))

    def _ask(self, kind: str, method: str, path: str, **options: object) -> tuple[int, str | None]:
        try:
            answer = Api(self._network).request(method, path, **options)  # type: ignore[arg-type]
            status, code = answer.status, answer.code
        except OSError as error:
            status, code = 0, type(error).__name__
        with self._lock:
            self.answers[kind, status, code] += 1
            if status in {200, 201}:
                now = time.monotonic()
                self.gap[kind] = max(self.gap[kind], now - self.last[kind])
                self.last[kind] = now
        if status not in {200, 201}:
            self._is_over.wait(0.1)
        return status, code

    def _send_keyed(self, recipient: str) -> None:
        while not self._is_over.is_set():
            content = f"keyed {uuid.uuid4()}"
            headers = {"Idempotency-Key": content.split()[1]}
            body = {"recipient": recipient, "content": content}
            while self._ask("write", "POST", "/messages/", json=body, headers=headers)[0] != 201:
                if self._is_over.is_set():
                    self._expected[content] = (0, 1)
                    return
            self._expected[content] = (1, 1)

    def _send_plain(self, recipient: str) -> None:
        while not self._is_over.is_set():
            content = f"plain {uuid.uuid4()}"
            status, code = self._ask("write", "POST", "/messages/", json={"recipient": recipient, "content": content})
            if status == 201:
                self._expected[content] = (1, 1)
            elif status == 503 and code != "outcome_unknown":
                self._expected[content] = (0, 0)
            else:
                self._expected[content] = (0, 1)

    def _read(self) -> None:
        while not self._is_over.wait(0.02):
            self._ask("read", "GET", "/mailbox?recipient=ha-0")

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
        return wrong + [f"{content}: never sent" for content in there.keys() - self._expected.keys()]
