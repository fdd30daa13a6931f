"""Storage: the surface that programs see, the same in front of every backend."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from random import random
from types import UnionType
from typing import Any, Self, TypeVar, overload

from kvstore.batches import Read, WriteCall
from kvstore.driver import NOT_NOW, PAGE, Expect, Stat, Write
from kvstore.errors import ClosedError, InvalidKeyError, InvalidValueError, KVStoreError, UnsupportedOperation, backend_error
from kvstore.keys import below, normalize_base, normalize_below
from kvstore.listing import pages
from kvstore.mount import Mount, MountTable, Route, close_all
from kvstore.resolve import DriverSpec, resolve_driver
from kvstore.values import (
    MISSING,
    NOT_JSON,
    Ttl,
    as_datetime,
    decode,
    decode_as,
    decode_json,
    encode,
    not_json,
    raw_bytes,
    same_json,
)
from kvstore.watch import Listener

ROUTES = 10_000
"""How many keys a storage remembers the mounts of: some 2 MB at the most."""
MAX_BACK_OFF = 1.0
"""Seconds that an update waits at the most before it tries again."""

T = TypeVar("T")
D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class Meta:
    """What is known of a key besides its value."""

    size: int
    """Of the stored bytes."""
    mtime: datetime | None
    """The last write, aware, in UTC; None where the driver does not know."""
    expires_at: datetime | None
    """Aware, in UTC; None: never, or the driver does not tell (`capabilities.metadata`)."""
    etag: str
    """Differs whenever the value was written in between; without `capabilities.metadata`, whenever the value differs."""
    custom: dict[str, Any]
    """What `set_meta` kept."""


class Storage:
    """A key-value store over mounted drivers. Made by `create_storage` or `open_storage`, used with `async with`.

    Keys are text in segments joined by `:` (see `normalize_key`); those that are returned are whole keys, normalized, in a
    prefixed storage without its prefix. Values are JSON (`get_item`) or bytes (`get_item_raw`), two views of the same stored
    bytes. `ttl` is in seconds (float) or a timedelta: every write sets the expiry afresh, to its `ttl`, else to the mount's,
    else to none; `NEVER` overrides a mount's. An expired key is a missing one.

    Every call may raise an error under `KVStoreError`: `InvalidKeyError`, `InvalidValueError`, `ReadOnlyError` and
    `UnsupportedOperation` before a backend is touched, `BackendError` (with `BackendUnavailable` and `BackendTimeout`) for
    what a backend says, `ClosedError` after `aclose`.
    """

    def __init__(self, table: MountTable | None = None, prefix: str = "") -> None:
        self._table = MountTable() if table is None else table
        self._owner = table is None
        self._prefix = prefix
        self._routes = self._table.routes(prefix)

    def __repr__(self) -> str:
        at = f" below {self._prefix!r}" if self._prefix else ""
        return f"<Storage{at}: {', '.join(f'{mount.base!r}: {mount.driver.name}' for mount in self._table) or 'no mounts'}>"

    # Mounts

    def mount(self, base: str, driver: DriverSpec, /, *, ttl: Ttl = None, read_only: bool = False, **options: Any) -> Self:
        """Keeps the keys below `base` in `driver`, named as for `create_storage`. Returns this storage.

        `ttl` is the mount's default; `read_only` refuses every write; the other options are the driver's. Raises
        `ConfigError` for a base that is taken, a driver that is mounted already, or an option that neither knows.
        """
        base = normalize_base(base, self._prefix)
        instance = resolve_driver(driver, options)
        self._table.add(Mount(base, instance, self._table.watchers, ttl=ttl, read_only=read_only))
        return self

    async def unmount(self, base: str, close: bool = True) -> None:
        """Takes the mount at `base` away, and closes its driver unless `close` is False."""
        mount = self._table.remove(normalize_base(base, self._prefix))
        if close:
            await close_all([mount])

    def get_mount(self, key: str) -> Mount:
        """The mount that keeps `key`."""
        return self._locate(key)[0]

    def get_mounts(self, base: str = "") -> list[Mount]:
        """The mounts that a listing of `base` asks, the longest base first."""
        return self._table.touched(self._below(base))

    # One key

    @overload
    async def get_item(self, key: str, default: D, *, type: None = None) -> Any | D: ...
    @overload
    async def get_item(self, key: str, default: None = None, *, type: None = None) -> Any: ...
    @overload
    async def get_item(self, key: str, default: D, *, type: type[T]) -> T | D: ...
    @overload
    async def get_item(self, key: str, default: None = None, *, type: type[T]) -> T | None: ...
    @overload
    async def get_item(self, key: str, default: object = None, *, type: UnionType) -> Any: ...  # how mypy sees `A | B`
    async def get_item(self, key: str, default: Any = None, *, type: Any = None) -> Any:
        """The JSON value of `key`, `default` where there is none; a stored null gives None.

        With `type` (a dataclass, TypedDict, `msgspec.Struct`, `list[int]` …) it is checked and built as that type. Raises
        `CorruptValueError` where what is stored is not JSON, or not of the type.
        """
        mount = None
        try:
            mount, inner = (self._routes.get(key) if key.__class__ is str else None) or self._route(key)
            data = mount.read_now(inner)
            if data is not None and not isinstance(data, bytes):
                (data,) = await (mount.read((inner,)) if data is NOT_NOW else data)
            if data is None:
                return default
            return decode_json(data) if type is None else decode_as(data, type)
        except KVStoreError as error:
            raise _at(error, "get_item", key, mount) from error.__cause__
        except NOT_JSON as error:
            raise _at(not_json(error), "get_item", key, mount) from error

    @overload
    async def get_item_raw(self, key: str, default: D) -> bytes | D: ...
    @overload
    async def get_item_raw(self, key: str, default: None = None) -> bytes | None: ...
    async def get_item_raw(self, key: str, default: Any = None) -> Any:
        """The bytes of `key` as they are stored, `default` where there are none."""
        mount = None
        try:
            mount, inner = self._locate(key)
            (data,) = await mount.read((inner,))
            return default if data is None else data
        except KVStoreError as error:
            raise _at(error, "get_item_raw", key, mount) from error.__cause__

    async def set_item(self, key: str, value: object, ttl: Ttl = None) -> None:
        """Stores a JSON value. Raises `InvalidValueError` for what JSON can't say (NaN, bytes, sets, other objects)."""
        mount = None
        try:
            mount, inner = (self._routes.get(key) if key.__class__ is str else None) or self._route(key)
            if mount.read_only:
                mount.check()
            data = encode(value)
            expires_at = None if ttl is None and mount.ttl is None else mount.expiry(ttl)
            done = mount.write_now(inner, data, expires_at)
            if done is not True:
                await (done or mount.write(((inner, data, expires_at),)))
        except KVStoreError as error:
            raise _at(error, "set_item", key, mount) from error.__cause__

    async def set_item_raw(self, key: str, data: bytes | bytearray | memoryview, ttl: Ttl = None) -> None:
        """Stores bytes unchanged."""
        await self._write("set_item_raw", key, lambda: raw_bytes(data), ttl)

    async def add_item(self, key: str, value: object, ttl: Ttl = None) -> bool:
        """Stores a JSON value if the key is not there. False: it was, and nothing changed."""
        return await self._write("add_item", key, lambda: encode(value), ttl, MISSING)

    async def has_item(self, key: str) -> bool:
        """Whether `key` is there."""
        mount = None
        try:
            mount, inner = self._locate(key)
            (there,) = await mount.has([inner])
            return there
        except KVStoreError as error:
            raise _at(error, "has_item", key, mount) from error.__cause__

    async def remove_item(self, key: str) -> bool:
        """Removes `key` with its metadata. False: it was not there."""
        mount = None
        try:
            mount, inner = self._locate(key)
            mount.check()
            found = await mount.write([(inner, None, None)])
            return bool(found and found[0])
        except KVStoreError as error:
            raise _at(error, "remove_item", key, mount) from error.__cause__

    async def compare_and_set(self, key: str, expected: object, new: object, ttl: Ttl = None) -> bool:
        """Stores `new` if the value is `expected`. False: it is not, and nothing changed.

        Either may be `MISSING`: there is no value, there shall be none. Values are compared as JSON: 1, 1.0 and True
        differ, the order of members does not count.
        """
        return await self._write("compare_and_set", key, lambda: None if new is MISSING else encode(new), ttl, expected)

    async def update_item(
        self, key: str, fn: Callable[[Any], Any | Awaitable[Any]], default: Any = None, ttl: Ttl = None
    ) -> Any:
        """Stores what `fn` makes of the value (`default`, which may be `MISSING`, where there is none), and returns it.

        No other writer comes in between: where one was faster, `fn` runs again on what it wrote. `fn` may be async, and
        removes the key by returning `MISSING`. It may update other keys, but to write this one would make it run again for
        ever: an update of it inside is an `UnsupportedOperation`. While an async `fn` waits, other calls on the key go on.
        """
        mount = None
        try:
            mount, inner = self._locate(key)
            mount.check(conditional=True)
            mount.check_update(inner)
            mount.expiry(ttl)
            absent = MISSING if default is MISSING else encode(default)

            def made(data: bytes | None) -> Any:
                old = absent if data is None else data
                return fn(MISSING if old is MISSING else decode(old))

            def write(new: object) -> Write:
                return (inner, None, None) if new is MISSING else (inner, encode(new), mount.expiry(ttl))

            async with mount.alone(inner) as (read_alone, write_alone):
                while True:
                    (data,) = await read_alone((inner,))
                    new = made(data)
                    if inspect.isawaitable(new):
                        break
                    if await write_alone([write(new)], {inner: data}) is not None:
                        return new
            # It may wait, for other updates even: the others go on.
            with mount.updating(inner):
                lost, began = 0, time.monotonic()
                while True:
                    new = await new if inspect.isawaitable(new) else new
                    if await mount.write([write(new)], {inner: data}) is not None:
                        return new
                    # One of a crowd gets through each time, so the others come back at times of their own.
                    await asyncio.sleep(random() * min(MAX_BACK_OFF, (time.monotonic() - began) * 2**lost))
                    lost, began = min(lost + 1, 16), time.monotonic()
                    (data,) = await mount.read((inner,))
                    new = made(data)
        except KVStoreError as error:
            raise _at(error, "update_item", key, mount) from error.__cause__

    async def touch(self, key: str, ttl: Ttl = None) -> bool:
        """Sets the expiry afresh, as a write would, and leaves the value. False: the key is not there."""
        mount = None
        try:
            mount, inner = self._locate(key)
            mount.check()
            expires_at = mount.expiry(ttl)
            return await mount.run(lambda: mount.driver.touch(inner, expires_at), [inner], mutates=True)
        except KVStoreError as error:
            raise _at(error, "touch", key, mount) from error.__cause__

    async def get_meta(self, key: str) -> Meta | None:
        """Size, times, etag and custom metadata; None where the key is not there."""
        mount = None
        try:
            mount, inner = self._locate(key)
            (stat,) = await mount.run(lambda: mount.driver.stat([inner]), [inner])
            return None if stat is None else _meta(stat)
        except KVStoreError as error:
            raise _at(error, "get_meta", key, mount) from error.__cause__

    async def set_meta(self, key: str, custom: Mapping[str, Any]) -> bool:
        """Keeps `custom` (a JSON object) for `key`, in place of what was kept. False: the key is not there.

        It stays when the value is overwritten and goes with the key: removed, cleared or expired.
        """
        if not isinstance(custom, Mapping):
            raise InvalidValueError("custom metadata is a mapping", operation="set_meta", key=key)
        return await self._set_meta("set_meta", key, dict(custom))

    async def remove_meta(self, key: str) -> bool:
        """Removes the custom metadata of `key`. False: the key is not there."""
        return await self._set_meta("remove_meta", key, None)

    # Many keys

    @overload
    async def get_items(self, keys: Iterable[str], default: Any = None, *, type: None = None) -> dict[str, Any]: ...
    @overload
    async def get_items(self, keys: Iterable[str], default: D, *, type: type[T]) -> dict[str, T | D]: ...
    @overload
    async def get_items(self, keys: Iterable[str], default: None = None, *, type: type[T]) -> dict[str, T | None]: ...
    @overload
    async def get_items(self, keys: Iterable[str], default: object = None, *, type: UnionType) -> dict[str, Any]: ...
    async def get_items(self, keys: Iterable[str], default: Any = None, *, type: Any = None) -> dict[str, Any]:
        """The values of `keys` in the order asked, across mounts; `default` for a missing one. `type` as for `get_item`."""
        items: dict[str, Any] = {}
        for key, data in (await self._read("get_items", keys)).items():
            try:
                items[key] = default if data is None else decode(data) if type is None else decode_as(data, type)
            except KVStoreError as error:
                raise _at(error, "get_items", key, self.get_mount(key)) from error.__cause__
        return items

    async def set_items(self, items: Mapping[str, object], ttl: Ttl = None) -> None:
        """Stores several JSON values, all or nothing per mount where its `capabilities.atomic` says so."""
        await self._write_all("set_items", self._plan("set_items", items, (), ttl))

    async def remove_items(self, keys: Iterable[str]) -> int:
        """Removes several keys. Returns how many were there."""
        return await self._write_all("remove_items", self._plan("remove_items", {}, keys, None))

    async def commit(
        self,
        items: Mapping[str, object],
        removes: Iterable[str] = (),
        expect: Mapping[str, object] | None = None,
        ttl: Ttl = None,
    ) -> bool:
        """Stores `items` and removes `removes`, all or nothing, if every key of `expect` has that value or is `MISSING`.

        False: `expect` did not hold, and nothing changed. All keys lie on one mount, which promises `atomic`, and with
        `expect` `conditional` too; else `UnsupportedOperation`.
        """
        plan = self._plan("commit", items, removes, ttl)
        conditions: dict[Mount, dict[str, bytes | None]] = {}
        for key, value in (expect or {}).items():
            mount, inner = self._located("commit", key)
            try:
                if inner in conditions.setdefault(mount, {}):
                    raise InvalidValueError("two conditions are about one key")
                conditions[mount][inner] = None if value is MISSING else encode(value)
            except KVStoreError as error:
                raise _at(error, "commit", key, mount) from error.__cause__
        mounts = list(plan | conditions)
        if not mounts:
            return True
        mount = mounts[0]
        try:
            if len(mounts) > 1:
                raise UnsupportedOperation(f"a commit lies on one mount, not on {len(mounts)}")
            mount.check(conditional=bool(expect), atomic=True)
            writes = list(plan.get(mount, {}).values())
            if not expect:
                await mount.write(writes)
                return True
            return await _write_if(mount, writes, conditions[mount])
        except KVStoreError as error:
            raise self._among(error, "commit", list(plan.get(mount, ())), mount) from error.__cause__

    # Listing

    async def get_keys(
        self,
        base: str = "",
        *,
        limit: int | None = None,
        after: str | None = None,
        reverse: bool = False,
        max_depth: int | None = None,
    ) -> list[str]:
        """The keys below `base`, sorted by code point (downwards if `reverse`), over all mounts.

        At most `limit`, those behind `after`, and no more than `max_depth` segments deeper than the first below `base`. A
        page costs what it holds, not what the store holds.
        """
        self._check_open("get_keys")
        _check_count("get_keys", "limit", limit)
        found: list[str] = []
        if limit != 0:
            async for page in self._pages("get_keys", base, after, reverse, max_depth, min(limit or PAGE, PAGE)):
                found += page
                if limit is not None and len(found) >= limit:
                    return found[:limit]
        return found

    async def iter_keys(self, base: str = "") -> AsyncIterator[str]:
        """The keys below `base` in order, in constant memory. One that is there throughout comes exactly once."""
        async for page in self._pages("iter_keys", base):
            for key in page:
                yield key

    @overload
    def iter_items(self, base: str = "", *, type: None = None) -> AsyncIterator[tuple[str, Any]]: ...
    @overload
    def iter_items(self, base: str = "", *, type: type[T]) -> AsyncIterator[tuple[str, T]]: ...
    @overload
    def iter_items(self, base: str = "", *, type: UnionType) -> AsyncIterator[tuple[str, Any]]: ...
    async def iter_items(self, base: str = "", *, type: Any = None) -> AsyncIterator[tuple[str, Any]]:
        """The keys below `base` with their values, in order, in constant memory."""
        absent = object()
        async for page in self._pages("iter_items", base):
            for key, value in (await self.get_items(page, absent, type=type)).items():
                if value is not absent:
                    yield key, value

    async def count(self, base: str = "") -> int:
        """How many keys there are below `base`."""
        total = 0
        for mount, prefix, masked in self._shares("count", base):
            try:
                total += await mount.run(partial(mount.driver.count, prefix), None)
                for hidden in masked:
                    total -= await mount.run(partial(mount.driver.count, hidden), None)
            except KVStoreError as error:
                raise _at(error, "count", base, mount) from error.__cause__
        return total

    async def clear(self, base: str = "") -> int:
        """Removes exactly the keys below `base`, in every mount that it touches. Returns how many there were."""
        shares = {mount: (prefix, masked) for mount, prefix, masked in self._shares("clear", base)}
        for mount in shares:
            try:
                mount.check()
            except KVStoreError as error:
                raise _at(error, "clear", base, mount) from error.__cause__
        counts = await _on_each(
            shares,
            lambda mount: mount.clear_soon(*shares[mount]),
            lambda mount, error: _at(error, "clear", base, mount),
        )
        return sum(counts.values())

    @asynccontextmanager
    async def watch(self, base: str = "") -> AsyncIterator[Listener]:
        """Inside the context: an async iterator over every change below `base` as `Event(kind, key)`.

        Changes through this storage, and those of other processes on drivers whose `capabilities.watch` says so. A
        listener that falls 100,000 events behind is told so by a `BackendError` where the next would come.
        """
        prefix = self._below(base)
        async with self._table.watch(prefix, len(self._prefix)) as listener:
            yield listener

    # Life

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Waits for what is under way and closes the drivers. Whoever comes later waits for the same.

        Every other call raises `ClosedError` from now on, and so does the next step of one that takes several, such as a
        listing. If the caller is cancelled, closing goes on. A prefixed storage only closes itself.
        """
        if self._owner:
            await close_all(self._table.close())
        else:
            self._table = MountTable()
            self._table.close()
            self._routes = self._table.routes("")

    # The names of unstorage

    has = has_item
    get = get_item
    set = set_item
    remove = remove_item
    keys = get_keys

    # Inside

    def _check_open(self, operation: str) -> None:
        if self._table.closed:
            raise ClosedError("the storage is closed", operation=operation)

    def _whole(self, key: str) -> str:
        return normalize_below(self._prefix, key)

    def _below(self, base: str) -> str:
        return below(normalize_base(base, self._prefix))

    def _locate(self, key: str) -> Route:
        """The mount that keeps `key`, and the key as its driver has it."""
        return (self._routes.get(key) if key.__class__ is str else None) or self._route(key)

    def _route(self, key: str) -> Route:
        """The same for the first time. Remembered: to look it up takes 0.05 µs, to find it again 0.3."""
        whole = self._whole(key)
        mount = self._table.find(whole)
        if len(self._routes) >= ROUTES:
            self._routes.clear()
        route = mount, whole[len(mount.prefix) :]
        if key.__class__ is str:  # and no subclass, which may be equal to another text
            self._routes[key] = route
        return route

    def _located(self, operation: str, key: str) -> tuple[Mount, str]:
        try:
            return self._locate(key)
        except KVStoreError as error:
            raise _at(error, operation, key, None) from error.__cause__

    def _by_mount(self, operation: str, keys: Iterable[str]) -> dict[Mount, dict[str, str]]:
        """By mount: the key as its driver has it, and as it is outside."""
        shares: dict[Mount, dict[str, str]] = {}
        for key in _many(operation, keys):
            mount, inner = self._located(operation, key)
            shares.setdefault(mount, {})[inner] = (mount.prefix + inner)[len(self._prefix) :]
        return shares

    async def _read(self, operation: str, keys: Iterable[str]) -> dict[str, bytes | None]:
        """The bytes of `keys` by outward key, in the order asked."""
        self._check_open(operation)
        order: dict[str, bytes | None] = {}
        shares: dict[Mount, list[str]] = {}
        for key in _many(operation, keys):
            mount, inner = self._located(operation, key)
            outward = (mount.prefix + inner)[len(self._prefix) :]
            if outward not in order:
                order[outward] = None
                shares.setdefault(mount, []).append(inner)

        found_on = await _on_each(
            shares,
            lambda mount: mount.read_soon(shares[mount]),
            lambda mount, error: self._among(error, operation, shares[mount], mount),
        )
        for mount, found in found_on.items():
            for key, data in zip(shares[mount], found, strict=True):
                order[(mount.prefix + key)[len(self._prefix) :]] = data
        return order

    def _plan(
        self, operation: str, items: Mapping[str, object], removes: Iterable[str], ttl: Ttl
    ) -> dict[Mount, dict[str, Write]]:
        """What to write where, checked as a whole before anything is touched."""
        self._check_open(operation)
        plan: dict[Mount, dict[str, Write]] = {}
        for key, value in dict(items).items():
            mount, inner = self._located(operation, key)
            try:
                mount.check()
                plan.setdefault(mount, {})[inner] = (inner, encode(value), mount.expiry(ttl))
            except KVStoreError as error:
                raise _at(error, operation, key, mount) from error.__cause__
        for key in _many(operation, removes):
            mount, inner = self._located(operation, key)
            try:
                mount.check()
                if inner in plan.get(mount, ()) and plan[mount][inner][1] is not None:
                    raise InvalidValueError("a key can't be both stored and removed")
            except KVStoreError as error:
                raise _at(error, operation, key, mount) from error.__cause__
            plan.setdefault(mount, {})[inner] = (inner, None, None)
        return plan

    def _among(self, error: KVStoreError, operation: str, inner: Sequence[str], mount: Mount) -> KVStoreError:
        """An error of a batch: of the key that the driver names, or the only one there is."""
        key = error.key if isinstance(error.key, str) else inner[0] if len(inner) == 1 else None
        return _at(error, operation, None if key is None else (mount.prefix + key)[len(self._prefix) :], mount)

    async def _write_all(self, operation: str, plan: Mapping[Mount, Mapping[str, Write]]) -> int:
        """Carries out a plan. Returns how many of its keys were there before."""
        found = await _on_each(
            plan,
            lambda mount: mount.write_soon([*plan[mount].values()]),
            lambda mount, error: self._among(error, operation, [*plan[mount]], mount),
        )
        return sum(sum(there or ()) for there in found.values())

    async def _write(self, operation: str, key: str, make: Callable[[], bytes | None], ttl: Ttl, *expected: object) -> bool:
        mount = None
        try:
            mount, inner = self._locate(key)
            mount.check(conditional=bool(expected))
            expires_at, data = mount.expiry(ttl), make()
            writes = [(inner, data, None if data is None else expires_at)]
            if expected:
                return await _write_if(mount, writes, {inner: None if expected[0] is MISSING else encode(expected[0])})
            await mount.write(writes)
            return True
        except KVStoreError as error:
            raise _at(error, operation, key, mount) from error.__cause__

    async def _set_meta(self, operation: str, key: str, custom: Mapping[str, Any] | None) -> bool:
        mount = None
        try:
            mount, inner = self._locate(key)
            mount.check()
            data = None if custom is None else encode(custom)
            return await mount.run(lambda: mount.driver.set_meta(inner, data), [inner], mutates=True)
        except KVStoreError as error:
            raise _at(error, operation, key, mount) from error.__cause__

    async def _pages(
        self,
        operation: str,
        base: str,
        after: str | None = None,
        reverse: bool = False,
        max_depth: int | None = None,
        limit: int = PAGE,
    ) -> AsyncIterator[list[str]]:
        """Outward keys below `base`, page by page."""
        try:
            _check_count(operation, "max_depth", max_depth)
            prefix = self._below(base)
            behind = None if after is None else self._whole(after)
            async for page in pages(self._table, prefix, after=behind, limit=limit, reverse=reverse, depth=max_depth):
                yield [key[len(self._prefix) :] for key in page] if self._prefix else page
        except KVStoreError as error:
            raise error.at(operation, base) from error.__cause__

    def _shares(self, operation: str, base: str) -> list[tuple[Mount, str, list[str]]]:
        """The mounts below `base`, each with the prefix to look below and the prefixes that others mask of it."""
        try:
            prefix = self._below(base)
            return [
                (
                    mount,
                    prefix[len(mount.prefix) :],
                    [
                        inner.prefix[len(mount.prefix) :]
                        for inner in self._table.inside(mount)
                        if inner.prefix.startswith(prefix)
                    ],
                )
                for mount in self._table.touched(prefix)
            ]
        except KVStoreError as error:
            raise error.at(operation, base) from error.__cause__


def create_storage(driver: DriverSpec = "memory", /, *, ttl: Ttl = None, read_only: bool = False, **options: Any) -> Storage:
    """A storage on one driver; `Storage.mount` adds others.

    `driver` is a name (`"sqlite"`), a dotted module, a `"package.module:Class"`, a URL (`"sqlite:///app.db"`) or an instance,
    which then belongs to the storage and is closed with it. `ttl` (seconds or a timedelta) is the default time to live;
    the other options are the driver's. Nothing is connected before the first call.

    Raises `DriverNotFoundError` for an unknown name and `ConfigError` for an unknown or wrong option.
    """
    return Storage().mount("", driver, ttl=ttl, read_only=read_only, **options)


def prefix_storage(storage: Storage, base: str) -> Storage:
    """`storage` as seen from below `base`: keys go in and come out without it. Closing it leaves `storage` open."""
    return Storage(storage._table, storage._below(base))


async def _on_each(
    mounts: Iterable[Mount],
    begin: Callable[[Mount], Awaitable[T]],
    at: Callable[[Mount, KVStoreError], KVStoreError],
) -> dict[Mount, T]:
    """What a call gives on each of several mounts. All go to their end, then the first error is raised, as `at` tells it."""
    outcomes: dict[Mount, Any] = {}
    for mount in mounts:
        try:
            outcomes[mount] = begin(mount)
        except KVStoreError as error:
            outcomes[mount] = error
    for mount, begun in outcomes.items():
        if inspect.iscoroutine(begun):  # of a driver that never waits, where it begins only now
            try:
                outcomes[mount] = await begun
            except Exception as error:
                outcomes[mount] = error
    waiting = {mount: begun for mount, begun in outcomes.items() if isinstance(begun, asyncio.Future)}
    if waiting:
        outcomes |= zip(waiting, await asyncio.gather(*waiting.values(), return_exceptions=True), strict=True)
    for mount, outcome in outcomes.items():
        if isinstance(outcome, Exception):
            known = backend_error(outcome)
            raise at(mount, known) from known.__cause__
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


async def _write_if(mount: Mount, writes: list[Write], expect: Expect) -> bool:
    """Writes if the values are as expected, compared as JSON. False: they are not."""
    if all(data is None for data in expect.values()):
        return await mount.write(writes, expect) is not None

    async def again(read: Read, write: WriteCall) -> list[bool] | None:
        """The same value may be stored in other bytes, with its members in another order."""
        while True:
            found = dict(zip(expect, await read(list(expect)), strict=True))
            for key, wanted in expect.items():
                data = found[key]
                if data is None or wanted is None:
                    if data is not wanted:
                        return None
                elif not same_json(data, wanted):
                    return None
            if (written := await write(writes, found)) is not None:
                return written

    return await mount.write_if(writes, expect, again) is not None


def _many(operation: str, keys: Iterable[str]) -> Iterable[str]:
    if isinstance(keys, str | bytes):
        raise InvalidKeyError("several keys are asked for; this is one", operation=operation, key=keys)
    return keys


def _check_count(operation: str, name: str, count: int | None) -> None:
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 0):
        raise InvalidValueError(f"{name} is a whole number from 0 on, not {count!r}", operation=operation)


def _at(error: KVStoreError, operation: str, key: object, mount: Mount | None) -> KVStoreError:
    if mount is None:
        return error.at(operation, key)
    at = error.at(operation, key, mount.base, mount.driver.name)
    if error.operation is None and key is not None:
        at.key = key  # a driver names it without its mount
    return at


def _meta(stat: Stat) -> Meta:
    custom = {} if stat.custom is None else decode(stat.custom)
    return Meta(stat.size, as_datetime(stat.mtime), as_datetime(stat.expires_at), stat.etag, custom)
