"""What clients were told about each message, and whether the tables agree.

Each message belongs to the writer that sent it, so its state is known but for what the service itself called unknown.
"""

import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

MAILBOXES = """
SELECT b.recipient FROM messaging_mailbox b LEFT JOIN messaging_message m ON m.mailbox_id = b.id
GROUP BY b.id, b.bucket HAVING b.total <> count(m.id) OR b.version < coalesce(max(m.seq), 0)
    OR b.unread <> count(m.id) FILTER (WHERE m.read_at IS NULL)"""

MISDATED = """
SELECT recipient, seq FROM (
    SELECT b.recipient, m.seq, m.created_at < lag(m.created_at) OVER (PARTITION BY b.id ORDER BY m.seq) AS is_earlier
    FROM messaging_message m JOIN messaging_mailbox b ON b.id = m.mailbox_id
) m WHERE is_earlier"""

MESSAGES = """
SELECT b.recipient, m.content, m.id::text, m.seq, m.read_at IS NOT NULL
FROM messaging_message m JOIN messaging_mailbox b ON b.id = m.mailbox_id
WHERE b.recipient <> 'probe' ORDER BY b.id, m.seq"""


@dataclass
class Entry:
    """One message. None stands for what its client cannot know."""

    writer: int
    recipient: str
    content: str
    exists: bool | None = None
    is_read: bool | None = False
    id: str | None = None
    seq: int | None = None
    is_acknowledged: bool = False  # its client had the answer before it sent the next message


@dataclass
class Ledger:
    """All messages by content, how requests ended, and what should not have been."""

    entries: dict[str, Entry] = field(default_factory=dict)
    followed: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    positions: dict[str, str] = field(default_factory=dict)  # the page at which each follower is
    ended: "Counter[str]" = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, how: str) -> None:
        with self.lock:
            self.ended[how] += 1

    def blame(self, violation: str) -> None:
        with self.lock:
            self.violations.append(violation[:500])

    def compare(self, session: "psycopg.Connection[Any]") -> None:
        """Hold the ledger against the tables; what was unknown is known from here on."""
        for (recipient,) in session.execute(MAILBOXES):
            self.blame(f"miscounted: {recipient}")
        for recipient, seq in session.execute(MISDATED):
            self.blame(f"misordered: message {seq} of {recipient} is older than the one before")
        found: dict[str, Entry] = {}
        for recipient, content, id_, seq, is_read in session.execute(MESSAGES):
            if content in found:
                self.blame(f"doubled: {content}")
            found[content] = Entry(0, recipient, content, True, is_read, id_, seq)
        for content in found.keys() - self.entries.keys():
            self.blame(f"nobody sent {content}")
        for entry in self.entries.values():
            self._compare_one(entry, found.get(entry.content))
        self._compare_order()
        self._compare_followers(found)

    def _compare_one(self, entry: Entry, actual: Entry | None) -> None:
        if entry.exists and actual is None:
            self.blame(f"lost: {entry.content}")
        elif entry.exists is False and actual is not None:
            self.blame(f"there, though told that it is not: {entry.content}")
        if actual is not None:
            if entry.id is not None and (entry.id, entry.seq) != (actual.id, actual.seq):
                self.blame(f"id or seq of {entry.content} is another one")
            if entry.is_read is not None and entry.is_read != actual.is_read:
                self.blame(f"told that is_read is {entry.is_read}, it is not: {entry.content}")
            entry.id, entry.seq, entry.is_read = actual.id, actual.seq, actual.is_read
        entry.exists = actual is not None

    def _compare_order(self) -> None:
        """A message comes after those that its writer knew of; one of unknown outcome may come after later ones too.

        PostgreSQL may run a statement that its client has given up, for instance once it no longer hangs.
        """
        acknowledged: dict[tuple[int, str], Entry] = {}
        for entry in self.entries.values():
            if not entry.exists or entry.seq is None:
                continue
            before = acknowledged.get((entry.writer, entry.recipient))
            if before and before.seq and entry.seq <= before.seq:
                self.blame(f"misordered in {entry.recipient}: {entry.content} comes before {before.content}")
            elif entry.is_acknowledged:
                acknowledged[entry.writer, entry.recipient] = entry

    def _compare_followers(self, found: dict[str, Entry]) -> None:
        for recipient, seen in self.followed.items():
            if any(later <= earlier for (earlier, _), (later, _) in pairwise(seen)):
                self.blame(f"a follower of {recipient} saw a message twice, or out of order")
            contents = {content for _, content in seen}
            missed = [e.content for e in found.values() if e.recipient == recipient and e.content not in contents]
            if missed:
                self.blame(f"a follower of {recipient} missed {missed[:3]}")
