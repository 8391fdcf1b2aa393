"""A cache of rendered pages.

views.py reads the mailbox's row before it uses an entry. At the same version the same request has the same response, so
entries are never invalidated.
"""

from collections.abc import Mapping
from threading import Lock
from typing import NamedTuple

from cachetools import LRUCache
from django.conf import settings

from messaging.records import MailboxRecord

_ENTRY_BYTES = 1_000  # the approximate size of an entry without its texts


class PageKey(NamedTuple):
    """What a page depends on, except for the state of the mailbox: the URL, and the mailbox that a key is bound to.

    The caller is not part of it: access is checked before the cache is used.
    """

    origin: str
    path: str
    query: str
    recipient: str | None


class CachedPage(NamedTuple):
    """A rendered page, and the mailbox at that version.

    `mailbox_id` is its primary key. If the tables are emptied while the service runs, versions repeat and keys do not.
    """

    key: PageKey
    mailbox_id: int
    mailbox: MailboxRecord
    body: bytes
    headers: Mapping[str, str]

    def size_bytes(self) -> int:
        """The size of the entry, including the key, whose length the client chooses."""
        texts = [*filter(None, self.key), *self.headers.values()]
        return _ENTRY_BYTES + len(self.body) + sum(map(len, texts))


class PageCache:
    """The least recently used pages are evicted above `max_bytes`. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._lock = Lock()
        self._pages: LRUCache[PageKey, CachedPage] = LRUCache(max_bytes, getsizeof=CachedPage.size_bytes)

    def get(self, key: PageKey) -> CachedPage | None:
        with self._lock:
            return self._pages.get(key)

    def put(self, page: CachedPage) -> None:
        """Cache a page, unless it is larger than the cache."""
        with self._lock:
            if page.size_bytes() <= self._pages.maxsize:
                self._pages[page.key] = page


pages = PageCache(settings.MESSAGES_PAGE_CACHE_BYTES)
