"""Which keys expire when."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush
from operator import itemgetter

from kvstore.expiry import LAST_EXPIRY

_MOVED = 4
"""How many old expiries are looked at again with each new one, once half of all were overwritten."""

_Heap = list[tuple[int, str]]
"""It stays a heap when its last goes."""


class Expiries:
    """Keys by their expiry. What was overwritten stays until its time, or until there is more of it than of the others.

    Nothing here takes long, however many there are.
    """

    __slots__ = ("_heap", "_older")

    def __init__(self) -> None:
        self._heap: _Heap = []
        self._older: _Heap = []  # what is left to look at again

    def add(self, key: str, expires_at: int, entries: Mapping[str, tuple[object, int | None, object, object]]) -> None:
        """`entries` have, in the second place, what `key` and the other keys expire at now."""
        if expires_at >= LAST_EXPIRY:  # it never comes
            return
        heappush(self._heap, (expires_at, key))
        if self._older:
            for old in self._older[-_MOVED:]:
                entry = entries.get(old[1])
                if entry is not None and entry[1] == old[0]:
                    heappush(self._heap, old)
            del self._older[-_MOVED:]
        elif len(self._heap) > 2 * len(entries) + 1000:
            self._older, self._heap = self._heap, []

    def next(self) -> int | None:
        """When the next key expires, if any does."""
        heap = self._soonest()
        return heap[0][0] if heap else None

    def pop(self, now: int) -> str | None:
        """Some key whose time has come, and which may have been overwritten since. None: there is none any more."""
        heap = self._soonest()
        return heappop(heap)[1] if heap and heap[0][0] <= now else None

    def drop(self, count: int) -> bool:
        """Forgets up to `count` of them. False: there were none."""
        heap = self._older or self._heap
        some = heap[-count:]
        del heap[-count:]
        return bool(some)

    def _soonest(self) -> _Heap | None:
        return min(filter(None, (self._heap, self._older)), key=itemgetter(0), default=None)
