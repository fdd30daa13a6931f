"""Keys as objects: what reads and writes them, in the file system's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from kvstore.driver import PAGE, Stat, Write, value_etag
from kvstore.drivers._footer import NONE, USUAL_END, Footer, footer_size, parse_footer, tail
from kvstore.drivers._fsspec.names import HASHED, PRIVATE, Names, digest, marker
from kvstore.drivers._fsspec.store import Found, Store, gathered
from kvstore.errors import CorruptValueError

_FEW = 4
"""From this many keys on, one listing may tell of all of them which have no object."""


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
        kept = await self.live(key, whole=not self.names.flat)
        if kept is None:
            return None
        custom = kept.footer.custom
        found = kept.found
        etag = found.revision or value_etag(kept.data)
        return Stat(kept.size, etag, found.mtime, kept.footer.expires_at, None if custom is None else custom.encode())

    async def kept(self, key: str, *, whole: bool = False) -> Kept | None:
        """What is under `key`, expired or not. Of its value the end alone, unless `whole`."""
        try:
            name = self.names.name(key)
            found = await self.store.get(name, None if whole else USUAL_END)
            # Again, for another writer may have put one that is larger in between.
            while found is not None and (size := footer_size(found.data)) > len(found.data) < found.size:
                found = await self.store.get(name, size)
            if found is None:
                return None
            size, footer = parse_footer(found.data)
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
        return await gathered(self._write(*write, absent=write[0] in absent) for write in writes)

    async def _write(self, key: str, data: bytes | None, expires_at: int | None, *, absent: bool) -> bool:
        name = self.names.name(key)
        tried: str | None = None
        async with self.lock(name):
            while True:
                found = None if absent else await self._any(key)
                old = None if found is None or self.expired(found) else found
                # On a condition as far as the server keeps any, so that no metadata is lost that is set at the same time, and
                # only one of those who remove a key did so. One that fails twice alike can't be gone by.
                etag = "" if found is None else found.found.etag
                match, tried = None if etag == tried else etag, etag
                if data is not None:
                    footer = Footer(expires_at, None if old is None else old.footer.custom)
                    done = await self.put(key, data, footer, match, sure=False)
                else:
                    done = old is None or bool(await self.store.delete_if(name, match, sure=False))
                if done:
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

    async def put(self, key: str, data: bytes, footer: Footer, match: str | None, *, sure: bool = True) -> bool:
        name = self.names.name(key)
        if name.startswith(HASHED):
            footer = Footer(footer.expires_at, footer.custom, key)
        if footer.expires_at is not None:  # first, so that whatever expires is found by its marker
            await self.store.put(marker(name, footer.expires_at), name.encode())
        return await self.store.put(name, data + tail(data, footer), match=match, sure=sure)

    def lock(self, name: str) -> asyncio.Lock:
        """Held while a name is written, so that no sweep removes what was just written where there are no conditions."""
        return self._locks.setdefault(digest(name), asyncio.Lock())


def _common(first: str, last: str) -> str:
    """What both start with, and so do all texts between them."""
    for place, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return first[:place]
    return min(first, last, key=len)
