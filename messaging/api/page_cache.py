"""Pages that were answered before, to be answered again while their mailbox stands still.

An entry is believed for nothing but its mailbox's row, read anew for each request: at the same version the same address
has the same answer, in every process, so nothing here ever has to be invalidated. views.py asks and fills it.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from django.conf import settings

from messaging.records import MailboxRecord

_ENTRY_BYTES = 1_000  # of an entry beside its texts, roughly
_ADMITTED_OF = 4  # newcomers: one of so many takes another's place


class Address(NamedTuple):
    """What an answer depends on, beside the state of the mailbox: the whole URL, and to which mailbox a key is bound.

    Who asks is not part of it, so keys that see the same share an entry. They must be checked before it is used.
    """

    origin: str
    path: str
    query: str
    recipient: str | None


@dataclass(slots=True)
class KeptPage:
    """An answer, and the mailbox as it stood then.

    The key of its row is part of that: where tables are emptied under a running service, versions begin anew and keys
    do not.
    """

    mailbox_id: int
    mailbox: MailboxRecord
    body: bytes
    headers: Mapping[str, str]
    was_useful: bool = False  # whether it was given again since it was looked over last


class PageCache:
    """Answers that are of use, up to MESSAGES_PAGE_CACHE_BYTES of them; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Address, KeptPage] = OrderedDict()
        self._bytes = 0
        self._newcomers = 0  # pages that came when there was no room

    def get(self, address: Address) -> KeptPage | None:
        """The answer that was kept last for this address."""
        with self._lock:
            if kept := self._kept.get(address):
                self._kept.move_to_end(address)
            return kept

    def put(self, address: Address, found: KeptPage) -> None:
        """Keep the answer `found`.

        Unless it follows one that was of no use: a mailbox that changes between any two questions is looked at in vain,
        and so it is every other time only. And unless it would take the place of one that is of use.
        """
        with self._lock:
            old = self._kept.pop(address, None)
            if old:
                self._bytes -= _size(address, old)
            if (old is None or old.was_useful) and self._has_room(size := _size(address, found)):
                # A copy of just its length: from what the encoder returned the room for more was cut off, and such
                # remainders between the kept pages would take a fifth as much again.
                found.body = bytes(memoryview(found.body))
                self._kept[address] = found
                self._bytes += size

    def _has_room(self, size: int) -> bool:
        """Whether `size` bytes fit, once what was of no use lately has made room."""
        limit = settings.MESSAGES_PAGE_CACHE_BYTES
        if size > limit:
            return False
        if self._bytes + size > limit:
            # More pages than fit, asked for in turn, would push out each other before any of them is given again.
            self._newcomers += 1
            if self._newcomers % _ADMITTED_OF:
                return False
        while self._bytes + size > limit:
            address, oldest = next(iter(self._kept.items()))
            if oldest.was_useful:
                # Its turn comes again, behind all others.
                oldest.was_useful = False
                self._kept.move_to_end(address)
                return False
            self._bytes -= _size(address, self._kept.pop(address))
        return True

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0


def _size(address: Address, page: KeptPage) -> int:
    """Bytes that an entry takes. Addresses count, since their length is the client's choice."""
    texts = [*filter(None, address), *page.headers.values()]
    return _ENTRY_BYTES + len(page.body) + sum(map(len, texts))


pages = PageCache()
