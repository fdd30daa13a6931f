"""Memory: a dict in this process, with an ordered index that is built when something is listed for the first time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from time import time
from typing import Any, Self, TypeVar

from sortedcontainers import SortedList

from kvstore.budget import TickBudget
from kvstore.driver import NOT_NOW, Capabilities, Driver, Expect, NotNow, Stat, Tell, Write
from kvstore.drivers._memory.expiries import Expiries
from kvstore.drivers._memory.lock import Lock
from kvstore.errors import ClosedError, ConfigError
from kvstore.keys import bounds, prefix_end

_KEYS_PER_PASS = 2_000
"""About 4 ms of reads and writes."""
_STEP = 2_000
"""Keys indexed, expired or freed at a time: about 5 ms."""
_BLOCK = 4_096
"""Bytes: what orjson encodes keeps a block of so many, until it is copied. Of all ways to copy this takes least, 50 ns."""
_copied = b"".join

T = TypeVar("T")

_Entry = tuple[bytes, int | None, float, bytes | None]
"""Data, expiry, time of the write in seconds, custom metadata."""
_Entries = dict[str, _Entry]


class _Gone(_Entries):
    """Those of a driver that was closed: what comes too late, from another thread, must not find that nothing is there."""

    def get(self, *_: object) -> Any:
        raise ClosedError("the driver was closed")


class MemoryDriver(Driver):
    """Keeps everything in this process, as bytes, until it ends.

    Safe to use from several threads. Its space is taken back when a value expires, a key is removed or the driver is closed.
    """

    capabilities = Capabilities(atomic=True, conditional=True, ordered=True, metadata=True, persistent=False, inline=True)

    def __init__(self) -> None:
        self._entries: _Entries = {}
        self._expiries = Expiries()
        self._lock = Lock()
        self._take, self._give = self._lock.take, self._lock.give
        self._budget = TickBudget(_KEYS_PER_PASS)
        # The index holds the keys of `_entries` but for those still in `_backlog`, which were there when it was begun,
        # and in `_fresh`, which came later.
        self._index: SortedList | None = None
        self._backlog: list[str] = []
        self._fresh: dict[str, None] = {}

    @classmethod
    def from_url(cls, url: str, **options: object) -> Self:
        if url.removeprefix("memory:").strip("/"):
            raise ConfigError("the URL of memory is `memory:` and nothing more")
        return cls(**options)

    def read_now(self, key: str) -> bytes | NotNow | None:
        budget = self._budget
        if budget.left <= 0:
            return NOT_NOW
        budget.left -= 1
        entry = self._entries.get(key)
        if entry is None or (entry[1] is not None and entry[1] <= self.clock()):
            return None
        return entry[0]

    def write_now(self, key: str, data: bytes, expires_at: int | None) -> bool:
        budget = self._budget
        if budget.left <= 0:
            return False
        try:
            self._take()
        except IndexError:
            return False
        budget.left -= 1
        try:
            old = self._entries.get(key)
            if old is not None and expires_at is None and old[1] is None:
                self._entries[key] = (data if len(data) > _BLOCK else _copied((data, b"")), None, time(), old[3])
            else:
                self._put(key, data, expires_at)
        finally:
            self._give(None)
        return True

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self._budget.run(partial(self._read, keys), len(keys))

    def _read(self, keys: Sequence[str]) -> list[bytes | None]:
        with self._lock:  # no half of what another thread writes
            return [entry and entry[0] for entry in map(self._live, keys)]

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        return await self._budget.run(partial(self._write, writes, expect), len(writes))

    async def write_and_tell(
        self, writes: Sequence[Write], expect: Expect | None, tell: Callable[[list[bool]], None]
    ) -> list[bool] | None:
        return await self._budget.run(partial(self._write, writes, expect, tell), len(writes))

    def _write(
        self, writes: Sequence[Write], expect: Expect | None, tell: Callable[[list[bool]], None] | None = None
    ) -> list[bool] | None:
        found: list[bool] = []
        with self._lock:
            if expect:
                for key, data in expect.items():
                    entry = self._live(key)
                    if data != (None if entry is None else entry[0]):
                        return None
            for key, data, expires_at in writes:
                if data is None:
                    found.append(self._live(key) is not None)
                    if key in self._entries:
                        self._drop(key)
                else:
                    found.append(self._put(key, data, expires_at))
            if tell is not None:
                tell(found)
        return found

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        low, high, open_low = bounds(prefix, after, reverse=reverse)
        if low >= high:
            return []

        def page(index: SortedList) -> list[str]:
            return list(islice(index.irange(low, high, (not open_low, False), reverse), limit))

        return await self._look(page, limit // 8 + 1)

    async def aclose(self) -> None:
        await self._budget.run(lambda: None)  # after all that wait for their turn
        await self._free(*self._taken(_Gone()))

    async def has(self, keys: Sequence[str]) -> list[bool]:
        return await self._budget.run(lambda: [self._live(key) is not None for key in keys], len(keys))

    async def stat(self, keys: Sequence[str]) -> list[Stat | None]:
        return await self._budget.run(partial(self._stat, keys), len(keys))

    def _stat(self, keys: Sequence[str]) -> list[Stat | None]:
        return [
            entry and Stat(len(entry[0]), entry[2].hex(), int(entry[2] * 1000), entry[1], entry[3])
            for entry in map(self._live, keys)
        ]

    async def touch(self, key: str, expires_at: int | None) -> bool:
        return await self._budget.run(partial(self._touch, key, expires_at))

    def _touch(self, key: str, expires_at: int | None) -> bool:
        with self._lock:
            entry = self._live(key)
            if entry is None:
                return False
            self._entries[key] = (entry[0], expires_at, *entry[2:])
            if expires_at is not None:
                self._expiries.add(key, expires_at, self._entries)
            return True

    async def set_meta(self, key: str, custom: bytes | None) -> bool:
        return await self._budget.run(partial(self._set_meta, key, custom))

    def _set_meta(self, key: str, custom: bytes | None) -> bool:
        with self._lock:
            entry = self._live(key)
            if entry is not None:
                self._entries[key] = (*entry[:3], custom)
            return entry is not None

    async def count(self, prefix: str) -> int:
        if not prefix and self._expiries.next() is None:
            return await self._budget.run(lambda: len(self._entries))
        return await self._look(lambda index: len(range(*_range(index, prefix))))

    async def clear(self, prefix: str) -> int:
        if not prefix:
            return await self._free(*await self._budget.run(lambda: self._taken({})))
        return await super().clear(prefix)

    async def clear_and_tell(self, prefix: str, masked: tuple[str, ...], tell: Tell) -> int:
        count, held = 0, False
        behind: str | None = prefix

        def hold() -> None:  # what is written from now on stays
            nonlocal held
            self._budget.hold()
            held = True

        try:
            await self._budget.run(hold)
            while behind is not None:
                if (cleared := self._clear_some(prefix, behind, masked)) is not None:
                    gone, behind = cleared
                    tell([(key, None, None) for key in gone], [True] * len(gone))
                    count += len(gone)
                if behind is not None:
                    await asyncio.sleep(0)
        finally:
            if held:
                self._budget.release()
        return count

    def _clear_some(self, prefix: str, behind: str, masked: tuple[str, ...]) -> tuple[list[str], str | None] | None:
        """Removes some keys from `behind` on. Returns which, and where to go on, if anywhere. None: there is no index yet."""
        with self._lock:
            index = self._settled()
            if index is None:
                return None
            start, stop = index.bisect_left(behind), index.bisect_left(prefix_end(prefix))
            some = index[start : min(stop, start + _STEP)]
            gone = [key for key in some if not key.startswith(masked)]
            for key in gone:
                del self._entries[key]
            del index[start : start + len(some)]
            if len(gone) < len(some):
                index.update(set(some).difference(gone))
            return gone, some[-1] + "\0" if stop > start + _STEP else None

    def _taken(self, entries: _Entries) -> tuple[_Entries, Expiries, int]:
        """All there is, in place of which there is nothing but `entries` from now on, and when."""
        with self._lock:
            gone, self._entries = self._entries, entries
            expiries, self._expiries = self._expiries, Expiries()
            self._index, self._backlog, self._fresh = None, [], {}
            return gone, expiries, self.clock()

    async def _free(self, gone: _Entries, expiries: Expiries, now: int) -> int:
        count = 0
        while expiries.drop(_STEP) or gone:  # freeing a million values at once would take a while
            for _ in range(min(_STEP, len(gone))):
                _, (_, expires_at, _, _) = gone.popitem()
                count += expires_at is None or expires_at > now
            await asyncio.sleep(0)
        return count

    async def sweep(self) -> int | None:
        while True:
            with self._lock:
                if not self._expire():
                    return self._expiries.next()
            await asyncio.sleep(0)

    def _live(self, key: str) -> _Entry | None:
        entry = self._entries.get(key)
        return None if entry is not None and entry[1] is not None and entry[1] <= self.clock() else entry

    def _put(self, key: str, data: bytes, expires_at: int | None) -> bool:
        """True: the key was there."""
        old = self._entries.get(key)
        there = old is not None and (old[1] is None or old[1] > self.clock())
        data = data if len(data) > _BLOCK else _copied((data, b""))
        self._entries[key] = (data, expires_at, time(), old[3] if there and old is not None else None)
        if expires_at is not None:
            self._expiries.add(key, expires_at, self._entries)
        if old is None and self._index is not None:
            self._fresh[key] = None
        return there

    def _drop(self, key: str) -> None:
        del self._entries[key]
        if self._index is not None and self._fresh.pop(key, self) is self:
            self._index.discard(key)

    def _expire(self) -> bool:
        """Drops some of what has expired; True: there is more."""
        now = self.clock()
        for _ in range(_STEP):
            key = self._expiries.pop(now)
            if key is None:
                return False
            entry = self._entries.get(key)
            if entry is not None and entry[1] is not None and entry[1] <= now:
                self._drop(key)
        return True

    async def _look(self, look: Callable[[SortedList], T], units: int = 1) -> T:
        """What `look` finds in the index, with every key in it that is there now and none else."""

        def now() -> T | NotNow:
            with self._lock:
                index = self._settled()
                return NOT_NOW if index is None else look(index)

        found = await self._budget.run(now, units)
        while found is NOT_NOW:
            await asyncio.sleep(0)
            found = now()
        return found

    def _settled(self) -> SortedList | None:
        """The index. None: it is not built yet, but nearer to it by a step."""
        if self._index is None:
            self._index, self._backlog, self._fresh = SortedList(), list(self._entries), {}
        more = self._index_some(self._index)
        return None if self._expire() or more else self._index

    def _index_some(self, index: SortedList) -> bool:
        """Moves some of the backlog, then of the fresh keys into the index; True: there is more."""
        if self._backlog:
            some, self._backlog[-_STEP:] = self._backlog[-_STEP:], []
            index.update([key for key in some if key in self._entries and key not in self._fresh])
        else:
            count = min(_STEP, len(self._fresh))
            index.update([self._fresh.popitem()[0] for _ in range(count)])
        return bool(self._backlog or self._fresh)


def _range(index: SortedList, prefix: str) -> tuple[int, int]:
    return index.bisect_left(prefix), index.bisect_left(prefix_end(prefix))
