"""Keys as objects: what reads and writes them, in the file system's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

from kvstore.driver import PAGE, Stat, Write
from kvstore.drivers._fsspec.envelope import NONE, Footer, footer_size, opened, sealed
from kvstore.drivers._fsspec.names import HASHED, PRIVATE, Names, digest, marker
from kvstore.drivers._fsspec.store import AT_ONCE, Found, Store
from kvstore.errors import CorruptValueError

_END = 512
"""Bytes of an object's end in which most footers lie."""
_FEW = 4
"""From this many keys on, one listing may tell of all of them which have no object."""

T = TypeVar("T")


class Kept(NamedTuple):
    """What is under a key."""

    found: Found
    footer: Footer
    size: int
    """Of the value, in bytes."""

    @property
    def data(self) -> bytes:
        return self.found.data[: self.size]


class Objects:
    """The objects of `store`, one a key. `clock` tells milliseconds since 1970."""

    def __init__(self, store: Store, names: Names, clock: Callable[[], int]) -> None:
        self.store = store
        self.names = names
        self.clock = clock
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    # Reading

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        return await gathered(map(self._value, keys))

    async def _value(self, key: str) -> bytes | None:
        kept = await self.live(key, whole=True)
        return None if kept is None else kept.data

    async def stat(self, keys: Sequence[str]) -> list[Stat | None]:
        return await gathered(map(self._stat, keys))

    async def _stat(self, key: str) -> Stat | None:
        kept = await self.live(key)
        if kept is None:
            return None
        custom = kept.footer.custom
        found = kept.found
        return Stat(kept.size, found.revision, found.mtime, kept.footer.expires_at, None if custom is None else custom.encode())

    async def kept(self, key: str, *, whole: bool = False) -> Kept | None:
        """What is under `key`, expired or not. Of its value the end alone, unless `whole`."""
        try:
            name = self.names.name(key)
            found = await self.store.get(name, None if whole else _END)
            if found is not None and (size := footer_size(found.data)) > len(found.data) < found.size:
                found = await self.store.get(name, size)
            if found is None:
                return None
            size, footer = opened(found.data)
        except CorruptValueError as error:
            raise error.at(key=key) from error.__cause__
        if footer.key not in (None, key):
            raise CorruptValueError("the object holds another key's value", key=key)
        return Kept(found, footer, found.size - size)

    async def live(self, key: str, *, whole: bool = False) -> Kept | None:
        """What is under `key`, unless it expired."""
        kept = await self.kept(key, whole=whole)
        return None if kept is None or self.expired(kept) else kept

    def expired(self, kept: Kept) -> bool:
        return kept.footer.expires_at is not None and kept.footer.expires_at <= self.clock()

    async def listed(self, keys: Sequence[str]) -> tuple[set[str], set[str]]:
        """Which of many keys have an object and which have none, as far as one listing tells, in place of a call for each."""
        named = {self.names.name(key): key for key in keys}
        plain = sorted(name for name in named if not name.startswith(PRIVATE))
        if not self.names.flat or len(plain) < _FEW:
            return set(), set()
        found, more = await self.store.list(_common(plain[0], plain[-1]), plain[0][:-1], min(PAGE, 2 * len(plain)))
        there = set(found)
        known = [name for name in plain if more is None or name <= more]
        return {named[name] for name in known if name in there}, {named[name] for name in known if name not in there}

    # Writing

    async def write(self, writes: Sequence[Write]) -> list[bool]:
        """Sets and removes. For each: was the key there."""
        _, absent = await self.listed([key for key, _, _ in writes])
        found = await gathered(self._write(*write, absent=write[0] in absent) for write in writes)
        if self.names.flat:
            await self.store.delete(
                [self.names.name(key) for (key, data, _), there in zip(writes, found, strict=True) if data is None and there]
            )
        return found

    async def _write(self, key: str, data: bytes | None, expires_at: int | None, *, absent: bool) -> bool:
        name = self.names.name(key)
        async with self.lock(name):
            while True:
                old = None if absent else await self._any(key)
                if old is not None and self.expired(old):
                    old = None
                if data is None:
                    if old is not None and not self.names.flat:  # else all together
                        await self.store.delete([name])
                    return old is not None
                custom = None if old is None else old.footer.custom
                # Only with custom metadata on a condition, so that none is lost that is set at the same time.
                match = old.found.etag if old is not None and custom is not None else None
                if await self.put(key, data, Footer(expires_at, custom), match):
                    return old is not None
                absent = False

    async def _any(self, key: str) -> Kept | None:
        """What is to be overwritten or removed, be it readable or not."""
        try:
            return await self.kept(key)
        except CorruptValueError:
            return Kept(Found(b"", 0), NONE, 0)

    async def swap(self, key: str, data: bytes | None, expires_at: int | None, expected: bytes | None) -> bool | None:
        """Sets or removes if the value is `expected`, None: if there is none. None: it is not; else: was the key there."""
        async with self.lock(self.names.name(key)):
            while True:
                found = await self.kept(key, whole=True)
                old = None if found is None or self.expired(found) else found
                if (None if old is None else old.data) != expected:
                    return None
                if data is not None:
                    footer = Footer(expires_at, None if old is None else old.footer.custom)
                    done = await self.put(key, data, footer, "" if found is None else found.found.etag)
                else:
                    done = old is None or await self._take(key, old.found.etag)
                if done:
                    return old is not None

    async def _take(self, key: str, etag: str) -> bool:
        """Removes an object of that etag. What can't be removed on a condition becomes one that expired long ago."""
        taken = await self.store.delete_if(self.names.name(key), etag)
        return await self.bury(key, etag) if taken is None else taken

    async def bury(self, key: str, etag: str) -> bool:
        return await self.put(key, b"", Footer(expires_at=0), etag)

    async def change(self, key: str, **changes: Any) -> bool:
        """Writes the value anew with another `expires_at` or `custom`. False: there is none."""
        async with self.lock(self.names.name(key)):
            while True:
                old = await self.live(key, whole=True)
                if old is None:
                    return False
                footer = Footer(**({"expires_at": old.footer.expires_at, "custom": old.footer.custom} | changes))
                if await self.put(key, old.data, footer, old.found.etag if self.names.flat else None):
                    return True

    async def put(self, key: str, data: bytes, footer: Footer, match: str | None) -> bool:
        name = self.names.name(key)
        if name.startswith(HASHED):
            footer = Footer(footer.expires_at, footer.custom, key)
        if footer.expires_at is not None:  # first, so that whatever expires is found by its marker
            await self.store.put(marker(name, footer.expires_at), name.encode())
        return await self.store.put(name, sealed(data, footer), match=match)

    def lock(self, name: str) -> asyncio.Lock:
        """Held while a name is written, so that no sweep removes what was just written where there are no conditions."""
        return self._locks.setdefault(digest(name), asyncio.Lock())


async def gathered(work: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all, some at a time; or the first error, once what was begun is over and nothing goes on behind it."""
    results: dict[int, T] = {}
    errors: list[Exception] = []
    left = enumerate(work)

    async def take() -> None:
        for place, one in left:
            try:
                results[place] = await one
            except Exception as error:
                errors.append(error)
            if errors:
                break

    await asyncio.gather(*(take() for _ in range(AT_ONCE)))
    if errors:
        raise errors[0]
    return [results[place] for place in range(len(results))]


def _common(first: str, last: str) -> str:
    """What both start with, and so do all texts between them."""
    for place, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return first[:place]
    return min(first, last, key=len)
