"""Keep a copy of a mailbox in SQLite, by GET /changes, and follow its events. Python 3.11 or newer, nothing else.

MESSAGES_TOKEN=… python keep_a_copy.py https://messages.example.com ada copy.sqlite3 [URL of the live process]
"""

import http.client
import json
import os
import random
import sqlite3
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlencode

SCHEMA = """
CREATE TABLE IF NOT EXISTS message (id TEXT PRIMARY KEY, seq INTEGER NOT NULL, body TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS message_seq ON message (seq);
CREATE TABLE IF NOT EXISTS version (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL);
"""


class Copy:
    def __init__(self, service: str, recipient: str, path: str) -> None:
        self.service, self.recipient = service, recipient
        self.database = sqlite3.connect(path)
        self.database.executescript(SCHEMA)

    @property
    def version(self) -> int:
        """As of which version the copy is whole; 0 for none."""
        return self.database.execute("SELECT coalesce(max(number), 0) FROM version").fetchone()[0]

    def catch_up(self, heard: int = 0) -> None:
        """Apply all changes since `version`, each answer in one transaction, at least up to the version heard of."""
        url = f"{self.service}/changes?{urlencode({'recipient': self.recipient, 'since': self.version})}"
        while url:
            try:
                changes = json.load(request(url, **{"Messages-Min-Version": str(heard)}))
            except urllib.error.HTTPError as error:
                if error.code != 410 or not self.version:
                    raise
                # Changes that far back are no longer kept: begin anew.
                self.database.executescript("BEGIN; DELETE FROM message; DELETE FROM version; COMMIT")
                self.catch_up(heard)
                return
            with self.database:
                rows = [(m["id"], m["seq"], json.dumps(m)) for m in changes["messages"]]
                self.database.executemany("INSERT OR REPLACE INTO message VALUES (?, ?, ?)", rows)
                self.database.executemany("DELETE FROM message WHERE id = ?", [(id_,) for id_ in changes["deleted"]])
                if not changes["next"]:  # only now is the copy whole
                    self.database.execute("INSERT OR REPLACE INTO version VALUES (1, ?)", (changes["until"],))
            url = changes["next"]

    def follow(self, live: str) -> None:
        """Catch up after each event, and try again whatever fails. A refusal that lasts ends the program."""
        failures = 0
        url = f"{live}/mailbox/events?{urlencode({'recipient': self.recipient})}"
        while True:
            seconds = 1.0  # until the next connection
            try:
                self.catch_up()
                for name, number in events(url, known=self.version):
                    failures = 0
                    if name == "retry":
                        seconds = number / 1000
                    elif number != self.version:
                        self.catch_up(number)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if isinstance(error, urllib.error.HTTPError) and error.code in {400, 401, 403, 404}:
                    sys.exit(f"{error}: {error.read().decode(errors='replace')}")
                print(f"{error}; trying again", file=sys.stderr)
                failures += 1
                told = getattr(error, "headers", {}).get("Retry-After", "")  # by a refusal; a proxy may write a date
                seconds = max(min(30, 2**failures) * random.uniform(0.5, 1), int(told) if told.isdigit() else 0)
            time.sleep(seconds)


def request(url: str, **headers: str) -> http.client.HTTPResponse:
    if token := os.environ.get("MESSAGES_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    # Above the 15 s between two comments: a connection that broke without a word is noticed.
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=40)


def events(url: str, known: int) -> Iterator[tuple[str, int]]:
    """What a stream tells, until it ends: `id` with a version, `retry` with milliseconds."""
    with request(url, **{"Accept": "text/event-stream", "Last-Event-ID": str(known)}) as stream:
        for line in stream:
            name, _, value = line.decode().strip().partition(": ")
            if name in {"id", "retry"}:
                yield name, int(value)


if __name__ == "__main__":
    service, recipient, path, *live = sys.argv[1:] if len(sys.argv) > 3 else sys.exit(__doc__)
    Copy(service, recipient, path).follow(live[0] if live else service)
