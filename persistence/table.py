"""Table: records of one kind and their index entries, changed together.

On a driver that is atomic a change is one commit. On others the order of the steps, and marks in the entries, see to it
that at any moment every record is in each list that it belongs to; an entry too many does no harm, for readers look at
the record before they believe it:

- New entries are written, then the record is exchanged if it is as it was read, then the entries that it left are removed.
- An entry holds a mark of who wrote it last, and is removed only with the mark that was read before the record changed.
  Whoever wants it back has to write it after that change, so with another mark.
- Whoever removes an entry without a change of its record gives it a mark that says so, and then looks at the record. Whoever
  changes the record looks at its entries after that. So one of the two sees the other, and the entry stays.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from secrets import token_hex
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

import msgspec
import orjson

from kvstore.errors import CorruptValueError, InvalidKeyError, InvalidValueError, after_write
from kvstore.keys import unescape_segment
from kvstore.keyspace import at
from kvstore.storage import Storage
from kvstore.values import MISSING, NEVER, encode
from persistence.shape import R, Shape, id_segment

T = TypeVar("T")

_PAGE = 1000
_GOES = "-"  # what the mark of an entry starts with that is about to be removed

Also = Mapping[str, tuple[object, object]]
"""Other keys that change with a record: what is there, and what shall be."""


class Table(Generic[R]):
    """Values are JSON documents here, `MISSING` where there is none."""

    def __init__(self, storage: Storage, shape: Shape[R]) -> None:
        self.storage = storage
        self.shape = shape
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, key: str) -> AbstractAsyncContextManager[None]:
        """Tasks of this process that change one record take turns, rather than undo each other's attempts."""
        return self._locks.setdefault(key, asyncio.Lock())

    async def get(self, key: str) -> Any:
        return await self.storage.get_item(key, MISSING)

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        return await self.storage.get_items(keys, MISSING)

    async def readable(self, keys: Iterable[str]) -> dict[str, Any]:
        """The same without what is not even JSON."""
        keys = list(keys)
        try:
            return await self.get_many(keys)
        except CorruptValueError:
            documents: dict[str, Any] = {}
            for key in keys:
                try:
                    documents[key] = await self.get(key)
                except CorruptValueError:
                    continue
            return documents

    def record(self, key: str, document: Any) -> R:
        """The record that is stored. Raises `CorruptValueError`, which says where it lies."""
        try:
            return self.shape.record(key, document)
        except CorruptValueError as error:
            raise at(error, "get_item", key, self.storage.get_mount(key)) from error.__cause__

    async def has(self, key: str) -> bool:
        return await self.storage.has_item(key)

    async def settle(self, key: str) -> bool:
        """Ends a change of this record that was begun and is seen by nobody, or by all. False: there is none."""
        return False

    async def unsettled(self, keys: Collection[str]) -> list[str]:
        """Those of these keys that hold a change of their record that was begun."""
        return []

    async def swap(
        self, key: str, old: object, new: object, also: Also | None = None, entered: dict[str, object] | None = None
    ) -> bool:
        """Exchanges a record that is `old`. False: it is not, or one of `also` is not, and nothing changed.

        There is an `also` only where it can be one commit. Who tries again gives the same `entered`, so that entries of an
        attempt that failed go if they are not called for.
        """
        storage, also, entered = self.storage, also or {}, {} if entered is None else entered
        before, after = self.shape.entries(key, old), self.shape.entries(key, new)
        fresh, gone = after - before, before - after
        if one_commit(storage, [key, *fresh, *gone, *also]):
            changes = dict.fromkeys(fresh, None) | {key: new} | {other: then for other, (_, then) in also.items()}
            expect = {key: as_read(old)} | {other: now for other, (now, _) in also.items()}
            items = {changed: value for changed, value in changes.items() if value is not MISSING}
            return await storage.commit(items, [*gone, *(changes.keys() - items.keys())], expect, NEVER)
        assert not also
        marks = await self.marks(gone)
        entered |= dict.fromkeys(fresh, await self._enter(fresh))
        if not await storage.compare_and_set(key, as_read(old), new, NEVER):
            return False
        with after_write():
            if fresh:  # a repair may take one away that the record did not call for yet
                await self.mend(key, new)
            await self._remove({entry: mark for entry, mark in (entered | marks).items() if entry not in after})
        return True

    async def marks(self, entries: Collection[str]) -> dict[str, object]:
        """What these entries hold, JSON or not, `MISSING` where there is none; without what the driver can't read."""
        return {entry: as_stored(data) for entry, data in (await readable(self.storage, entries)).items()}

    async def mend(self, key: str, document: object) -> int:
        """Adds the entries that a record lacks, or is about to. Returns how many."""
        found = await readable(self.storage, self.shape.entries(key, document))
        lacking = [entry for entry, data in found.items() if is_lacking(data)]
        if not lacking:
            return 0
        if one_commit(self.storage, [key, *lacking]):
            done = await self.storage.commit(dict.fromkeys(lacking), expect={key: as_read(document)}, ttl=NEVER)
            return len(lacking) if done else 0
        mark = await self._enter(lacking)
        await self.drop(key, dict.fromkeys(lacking, mark))  # those that it does not call for any more
        return len(lacking)

    async def drop(self, key: str, marks: Mapping[str, object]) -> int:
        """Removes the entries that the record does not call for and that hold these marks. Returns how many."""
        document = await self.get(key)
        stale = marks.keys() - self.shape.entries(key, document)
        if not stale:
            return 0
        if one_commit(self.storage, [key, *stale]):
            done = await self.storage.commit({}, stale, {key: as_read(document)}, NEVER)
            return len(stale) if done else 0
        mark, cas = _GOES + token_hex(8), self.storage.compare_and_set
        going = {entry for entry in stale if marks[entry] is not MISSING and await cas(entry, marks[entry], mark, NEVER)}
        wanted = going & self.shape.entries(key, await self.get(key)) if going else set()
        for entry in wanted:
            await cas(entry, mark, token_hex(8), NEVER)
        removed = await self._remove(dict.fromkeys(going - wanted, mark))
        if removed:  # who stored a record since that calls for them may have crashed before it looked at them
            document = await self.get(key)
            if going & self.shape.entries(key, document):
                await self.mend(key, document)
        return removed

    async def _enter(self, entries: Collection[str]) -> str:
        mark = token_hex(8)
        if entries:
            await self.storage.set_items(dict.fromkeys(entries, mark), NEVER)
        return mark

    async def _remove(self, marks: Mapping[str, object]) -> int:
        """Removes the entries that hold these marks. Returns how many."""
        cas = self.storage.compare_and_set
        return sum([mark is not MISSING and await cas(entry, mark, MISSING) for entry, mark in marks.items()])

    # Listing

    async def page(
        self, make: Callable[[str, Any], T], filters: Mapping[str, str], limit: int | None, cursor: str | None
    ) -> tuple[list[T], str | None, list[str]]:
        """What `make` makes of the keys and documents with these members, newest first, where to go on, and the keys of those
        that can't be read. Two round trips, more where entries are stale.
        """
        base = next((self.shape.base(member, value) for member, value in filters.items()), self.shape.base())
        after = None if cursor is None else f"{base}:{decode_cursor(cursor)}"
        found: list[T] = []
        unreadable: list[str] = []
        size = _PAGE if limit is None else min(limit + 1, _PAGE)
        while True:
            entries = await self.storage.get_keys(base, limit=size, after=after, reverse=True)
            documents = await self.readable(map(self.shape.entered, entries))
            for place, entry in enumerate(entries):
                key = self.shape.entered(entry)
                try:
                    if key not in documents:
                        unreadable.append(key)
                    elif self._belongs(base, entry, key, documents[key], filters):
                        found.append(make(key, documents[key]))
                except CorruptValueError:
                    unreadable.append(key)
                if len(found) == limit and (place + 1 < len(entries) or len(entries) == size):
                    return found, encode_cursor(entry), unreadable
            if len(entries) < size:
                return found, None, unreadable
            after, size = entries[-1], min(2 * size, _PAGE)

    def _belongs(self, base: str, entry: str, key: str, document: Any, filters: Mapping[str, str]) -> bool:
        return entry == f"{base}:{self.shape.place(key, document)}" and has_members(document, filters)


def has_members(document: Any, members: Mapping[str, str]) -> bool:
    return not members or (isinstance(document, dict) and members.items() <= document.items())


async def readable(storage: Storage, keys: Collection[str]) -> dict[str, bytes | None]:
    """What is stored at these keys, as bytes, without what the driver can't read."""
    try:
        return await storage.keyspace.read("get_items", keys)
    except CorruptValueError:
        found: dict[str, bytes | None] = {}
        for key in keys:
            with suppress(CorruptValueError):
                found[key] = await storage.get_item_raw(key)
        return found


def one_commit(storage: Storage, keys: Iterable[str]) -> bool:
    """Whether these keys can change in one commit: they lie on one mount, whose driver is atomic."""
    mounts = set(map(storage.get_mount, keys))
    return len(mounts) == 1 and mounts.pop().capabilities.atomic


def is_lacking(data: bytes | None) -> bool:
    """Whether an index entry is not there, or is about to be removed."""
    return data is None or data.startswith(f'"{_GOES}'.encode())


def as_stored(data: bytes | None) -> object:
    """Bytes, JSON or not, for a condition or a write; `MISSING` for None."""
    return MISSING if data is None else orjson.Fragment(data)


def as_read(document: object) -> object:
    """A document that was read, for a condition. Integers of any size may stand in it, which orjson can't write."""
    try:
        return document if document is MISSING else orjson.Fragment(encode(document))
    except InvalidValueError:
        return orjson.Fragment(msgspec.json.encode(document))


def encode_cursor(entry: str) -> str:
    """Where in any list an entry stands, as opaque text."""
    return base64.urlsafe_b64encode(":".join(entry.split(":")[-2:]).encode()).decode()


def decode_cursor(cursor: str) -> str:
    try:
        place = base64.b64decode(cursor, b"-_", validate=True).decode()
        created_at, _, segment = place.partition(":")
        if re.fullmatch("[0-9]{16}", created_at) and id_segment(unescape_segment(segment)):
            return place
    except (TypeError, ValueError, InvalidKeyError):
        pass
    raise InvalidValueError(f"this is no cursor of a page: {cursor!r}", operation="list")
