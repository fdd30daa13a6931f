"""Repository: the records of one kind, as an app sees them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic

from kvstore.clock import now_ms
from kvstore.errors import CorruptValueError, InvalidValueError
from kvstore.keyspace import check_count
from kvstore.storage import Storage
from kvstore.values import MISSING
from persistence.errors import RecordNotFoundError
from persistence.shape import R, Shape, created_at
from persistence.table import Table, has_members


@dataclass(frozen=True, slots=True)
class Page(Generic[R]):
    """A part of a list."""

    items: list[R]
    """Newest first by `created_at`, then by id."""
    cursor: str | None
    """What to give `list` for the next page; None: there is none. A next page can turn out empty."""
    unreadable: list[str] = field(default_factory=list)
    """Keys of records that would stand among `items` and can't be read; `get` tells of each what is wrong."""

    def __iter__(self) -> Iterator[R]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class Repository(Generic[R]):
    """Keeps records of one class by their id: any text of at most 512 bytes once escaped, else `InvalidKeyError`.

    Every change holds against every task, instance and process on the store. A stored record that does not fit its class
    raises `CorruptValueError`, is named by a list's `unreadable`, and is left as it was until it is saved anew or deleted.
    Records do not expire: a mount's default `ttl` is not theirs.
    """

    def __init__(self, storage: Storage, type: type[R]) -> None:
        self.table = Table(storage, Shape(type))

    async def save(self, record: R) -> R:
        """Stores a record, whether or not there is one with its id. Returns it as stored, with the times filled in.

        Raises `InvalidValueError`, before anything is touched, for what does not fit the class or is not JSON.
        """
        now = now_ms()
        self.table.shape.document(record, createdAt=now, updatedAt=now)

        def saved(old: Any) -> dict[str, Any]:
            return self.table.shape.document(record, createdAt=created_at(old, now), updatedAt=now)

        return await self._change(getattr(record, self.table.shape.id_field), saved, any=True)

    async def get(self, record_id: str) -> R | None:
        """The record, None where there is none."""
        key = self.table.shape.key(record_id, "get")
        document = await self.table.get(key)
        return None if document is MISSING else self.table.record(key, document)

    async def exists(self, record_id: str) -> bool:
        """Whether there is a record."""
        return await self.table.has(self.table.shape.key(record_id, "exists"))

    async def update(self, record_id: str, change: Callable[[R], R]) -> R:
        """Stores what `change`, a plain function, makes of the stored record, and `updated_at`. Returns it as stored.

        No other writer comes in between: where one was faster, `change` runs again on what it wrote. It may change the
        record that it is given and return that. Raises `RecordNotFoundError` where there is none.
        """
        return await self._update("update", record_id, change)

    async def _update(self, operation: str, record_id: str, change: Callable[[R], R]) -> R:
        shape, key = self.table.shape, self.table.shape.key(record_id, operation)
        if not callable(change):
            raise InvalidValueError(f"change is a function, not {type(change).__name__}", operation=operation, key=key)

        def changed(old: Any) -> dict[str, Any]:
            if old is MISSING:
                raise self._not_found(operation, record_id)
            record = change(self.table.record(key, old))
            if not isinstance(record, shape.type):
                text = f"change has to return the {shape.type.__name__}, not {type(record).__name__}"
                if inspect.iscoroutine(record):
                    record.close()
                    text = "change is a plain function, not an async one"
                raise InvalidValueError(text, operation=operation, key=key)
            now = now_ms()
            document = shape.document(record, operation, createdAt=created_at(old, now), updatedAt=now) | {"updatedAt": now}
            if shape.key(getattr(record, shape.id_field)) != key:
                raise InvalidValueError("a record keeps its id", operation=operation, key=key)
            return document

        return await self._change(record_id, changed)

    async def delete(self, record_id: str, *, cascade: bool = False) -> bool:
        """Removes a record, with `cascade` what belongs to it too. False: there was none."""
        key = self.table.shape.key(record_id, "delete")
        if cascade:
            await self._delete_below(record_id)
        found = await self._delete(key, {})
        if cascade:  # what came in the meantime
            await self._delete_below(record_id)
        return found

    async def _delete(self, key: str, members: Mapping[str, str]) -> bool:
        """Removes a record if it has these members, whoever writes it meanwhile. False: there is none that has."""
        while True:
            try:
                old = await self.table.get(key)
            except CorruptValueError:  # not even JSON; its entries are not known, so repair takes them
                return not members and await self.table.storage.remove_item(key)
            if old is MISSING or not has_members(old, members):
                return False
            if await self.table.swap(key, old, MISSING):
                return True

    async def _delete_below(self, record_id: str) -> None:
        """Deletes what belongs to a record."""

    async def _change(self, record_id: str, make: Callable[[Any], dict[str, Any]], *, any: bool = False) -> R:
        """Exchanges a record for what `make` makes of it, or raises; with `any` also what is not even JSON, and not told."""
        key = self.table.shape.key(record_id)
        entered: dict[str, object] = {}
        async with self.table.lock(key):
            while True:
                try:
                    old = await self.table.get(key)
                except CorruptValueError:
                    if not any:
                        raise
                    await self.table.storage.remove_item(key)  # it can't be exchanged; its entries are left to repair
                    continue
                try:
                    new = make(old)
                except Exception:
                    if entered:  # others were faster, and nothing calls for these any more
                        await self.table.drop(key, entered)
                    raise
                if await self.table.swap(key, old, new, entered=entered):
                    return self.table.shape.record(key, new)

    def _not_found(self, operation: str, record_id: str) -> RecordNotFoundError:
        shape = self.table.shape
        return RecordNotFoundError(f"{shape.name} have no {record_id!r}", operation=operation, key=shape.key(record_id))

    async def _page(self, limit: int | None, cursor: str | None, **filters: str | None) -> Page[R]:
        check_count("list", "limit", limit, least=1)
        return Page(*await self.table.page(self.table.shape.record, self.table.shape.filters(filters), limit, cursor))

    async def _delete_all(self, **filters: str) -> None:
        """Deletes the records of a list, and what belongs to them, until there are none.

        What has been moved to another list stays. What is not even JSON does not say that it belongs there.
        """
        shape = self.table.shape
        members = shape.filters(filters)

        def its_key(key: str, document: object) -> str:
            return key

        while keys := (await self.table.page(its_key, members, 100, None))[0]:
            for key in keys:
                # First the record, for until it is gone it may be moved, with all that is below it.
                if await self._delete(key, members):
                    await self._delete_below(shape.id(key))


class Records(Repository[R]):
    """The repository of a record class of an app's own. Made by `Persistence.repository`."""

    async def list(self, *, limit: int | None = None, cursor: str | None = None, **filters: str | None) -> Page[R]:
        """Records newest first: all, or those whose indexed fields are as `filters` say; None is no filter.

        `limit` None: the whole list. Raises `InvalidValueError` for a field that has no index, a bad limit or cursor.
        """
        return await self._page(limit, cursor, **filters)
