"""A mapping that remembers only what was used lately, for caches that anybody's requests may fill.

What an entry means and how long it holds is its user's affair: here is only the bound on their number.
"""

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Between `size` and twice `size` of the entries used last; safe to share between threads without a lock.

    Two generations: when the young one is full it becomes the old one, and what the old one held is forgotten unless
    it was asked for meanwhile. A reader costs one lookup, and the bound holds whatever is put in. Threads that meet
    can lose an entry, which costs its user one more look at the truth.
    """

    __slots__ = ("_old", "_size", "_young")

    def __init__(self, size: int) -> None:
        self._size = size
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: K) -> V | None:
        """The entry of `key`, or None."""
        found = self._young.get(key)
        if found is None and (found := self._old.get(key)) is not None:
            self.put(key, found)
        return found

    def put(self, key: K, value: V) -> None:
        """Remember `value` for `key`."""
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}
        self._young[key] = value

    def clear(self) -> None:
        """Forget everything."""
        self._old, self._young = {}, {}
