"""Pages that were answered before, to be answered again while their mailbox has not changed.

An entry is used only after its mailbox's row was read anew: at the same version the same request has the same answer,
in every process, so nothing is ever invalidated. views.py asks and fills it.
"""

from collections.abc import Mapping
from threading import Lock
from typing import NamedTuple

from cachetools import LRUCache
from django.conf import settings

from messaging.records import MailboxRecord

_ENTRY_BYTES = 1_000  # of an entry beside its texts, roughly


class PageKey(NamedTuple):
    """What an answer depends on, beside the state of the mailbox: the whole URL, and to which mailbox a key is bound.

    Who asks is not part of it: keys that see the same share an entry, and are checked before it is used.
    """

    origin: str
    path: str
    query: str
    recipient: str | None


class CachedPage(NamedTuple):
    """An answer, and the mailbox as it stood then.

    With the key of its row: where tables are emptied under a running service, versions begin anew and keys do not.
    """

    key: PageKey
    mailbox_id: int
    mailbox: MailboxRecord
    body: bytes
    headers: Mapping[str, str]

    def size_bytes(self) -> int:
        """Bytes that the entry takes. The key counts, since its length is the client's choice."""
        texts = [*filter(None, self.key), *self.headers.values()]
        return _ENTRY_BYTES + len(self.body) + sum(map(len, texts))


class PageCache:
    """The answers used last, up to `max_bytes` of them; safe to share between threads."""

    def __init__(self, max_bytes: int) -> None:
        self._lock = Lock()
        self._pages: LRUCache[PageKey, CachedPage] = LRUCache(max_bytes, getsizeof=CachedPage.size_bytes)

    def get(self, key: PageKey) -> CachedPage | None:
        """The answer cached for this request."""
        with self._lock:
            return self._pages.get(key)

    def put(self, page: CachedPage) -> None:
        """Cache an answer, unless it is larger than the whole cache."""
        with self._lock:
            if page.size_bytes() <= self._pages.maxsize:
                self._pages[page.key] = page

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._pages.clear()


pages = PageCache(settings.MESSAGES_PAGE_CACHE_BYTES)
