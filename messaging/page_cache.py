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
    was_useful: bool = False  # whether it was given again


class PageCache:
    """The answers used last, up to MESSAGES_PAGE_CACHE_BYTES of them; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Address, KeptPage] = OrderedDict()
        self._bytes = 0

    def get(self, address: Address) -> KeptPage | None:
        """The answer that was kept last for this address."""
        with self._lock:
            if kept := self._kept.get(address):
                self._kept.move_to_end(address)
            return kept

    def put(self, address: Address, found: KeptPage) -> None:
        """Keep the answer `found`.

        Unless it follows one that was of no use: a mailbox that changes between any two questions is looked at in vain,
        and so it is every other time only.
        """
        with self._lock:
            old = self._kept.pop(address, None)
            if old:
                self._bytes -= _size(address, old)
            if old is None or old.was_useful:
                self._kept[address] = found
                self._bytes += _size(address, found)
            while self._bytes > settings.MESSAGES_PAGE_CACHE_BYTES:
                self._bytes -= _size(*self._kept.popitem(last=False))

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
