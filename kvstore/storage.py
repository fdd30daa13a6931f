"""Storage: the surface that programs see, the same in front of every backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self, TypeVar, overload

from kvstore.conditions import update, write_if
from kvstore.driver import NOT_NOW, PAGE
from kvstore.errors import ConfigError, InvalidValueError, KVStoreError, UnsupportedOperation
from kvstore.expiry import Ttl
from kvstore.keys import normalize_base
from kvstore.keyspace import Keyspace, at, check_count, during, inside, on_each
from kvstore.meta import Meta, meta_of
from kvstore.mount import Mount, close_all
from kvstore.mounts import MountTable
from kvstore.resolve import DriverSpec, resolve_driver
from kvstore.values import MISSING, NOT_JSON, decode, decode_as, decode_json, encode, not_json, raw_bytes
from kvstore.watch import Listener

T = TypeVar("T")
D = TypeVar("D")

_DECODED_PER_PASS = 2**18
"""Bytes: five milliseconds of small lists, a fifth of one of text."""


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

    def __init__(self) -> None:
        self._owner = True
        self._see(Keyspace(MountTable()))

    def _see(self, keyspace: Keyspace) -> None:
        self.keyspace = keyspace
        self._routes = keyspace.routes

    def __repr__(self) -> str:
        below = f" below {self.keyspace.prefix!r}" if self.keyspace.prefix else ""
        mounts = ", ".join(f"{mount.base!r}: {mount.driver.name}" for mount in self.keyspace.table)
        return f"<Storage{below}: {mounts or 'no mounts'}>"

    # Mounts

    def mount(self, base: str, driver: DriverSpec, /, *, ttl: Ttl = None, read_only: bool = False, **options: Any) -> Self:
        """Keeps the keys below `base` in `driver`, named as for `create_storage`. Returns this storage.

        `ttl` is the mount's default; `read_only` refuses every write; the other options are the driver's. Raises
        `ConfigError` for a base that is taken, a driver that is mounted already, or an option that neither knows.
        """
        table = self.keyspace.table
        with during("mount"):
            whole = normalize_base(base, self.keyspace.prefix)
        with during("mount", mount=whole if whole and "@" not in whole else None):  # it may be a URL in a wrong place
            table.add(Mount(whole, resolve_driver(driver, options), table.watchers, ttl=ttl, read_only=read_only))
        return self

    async def unmount(self, base: str, close: bool = True) -> None:
        """Takes the mount at `base` away, waits for what is under way, and closes its driver unless `close` is False."""
        with during("unmount"):
            mount = self.keyspace.table.remove(normalize_base(base, self.keyspace.prefix))
        await close_all([mount], drivers=close)

    def get_mount(self, key: str) -> Mount:
        """The mount that keeps `key`."""
        return self.keyspace.located("get_mount", key)[0]

    def get_mounts(self, base: str = "") -> list[Mount]:
        """The mounts that a listing of `base` asks, the longest base first."""
        with during("get_mounts", base or None):
            return self.keyspace.table.touched(self.keyspace.below(base))

    # One key

    @overload
    async def get_item(self, key: str, default: D, *, type: None = None) -> Any | D: ...
    @overload
    async def get_item(self, key: str, default: None = None, *, type: None = None) -> Any: ...
    @overload
    async def get_item(self, key: str, default: D, *, type: type[T]) -> T | D: ...
    @overload
    async def get_item(self, key: str, default: None = None, *, type: type[T]) -> T | None: ...
    @overload  # what is no class to a type checker: `A | B`, `Literal`, `Annotated`
    async def get_item(self, key: str, default: object = None, *, type: object) -> Any: ...
    async def get_item(self, key: str, default: Any = None, *, type: Any = None) -> Any:
        """The JSON value of `key`, `default` where there is none; a stored null gives None.

        With `type` (a dataclass, TypedDict, `msgspec.Struct`, `list[int]` …) it is checked and built as that type. Raises
        `CorruptValueError` where what is stored is not JSON, or not of the type.
        """
        mount = None
        try:
            mount, inner = (self._routes.get(key) if key.__class__ is str else None) or self.keyspace.route(key)
            data = mount.read_now(inner)
            if data is not None and not isinstance(data, bytes):
                (data,) = await (mount.read((inner,)) if data is NOT_NOW else data)
            if data is None:
                return default
            return decode_json(data) if type is None else decode_as(data, type)
        except KVStoreError as error:
            raise at(error, "get_item", key, mount) from error.__cause__
        except NOT_JSON as error:
            raise at(not_json(error), "get_item", key, mount) from error

    @overload
    async def get_item_raw(self, key: str, default: D) -> bytes | D: ...
    @overload
    async def get_item_raw(self, key: str, default: None = None) -> bytes | None: ...
    async def get_item_raw(self, key: str, default: Any = None) -> Any:
        """The bytes of `key` as they are stored, `default` where there are none."""
        mount = None
        try:
            mount, inner = self.keyspace.locate(key)
            (data,) = await mount.read((inner,))
            return default if data is None else data
        except KVStoreError as error:
            raise at(error, "get_item_raw", key, mount) from error.__cause__

    async def set_item(self, key: str, value: object, ttl: Ttl = None) -> None:
        """Stores a JSON value. Raises `InvalidValueError` for what JSON can't say (NaN, bytes, sets, other objects)."""
        mount = None
        try:
            mount, inner = (self._routes.get(key) if key.__class__ is str else None) or self.keyspace.route(key)
            if mount.read_only:
                mount.check()
            data = encode(value)
            expires_at = None if ttl is None and mount.ttl is None else mount.expiry(ttl)
            done = mount.write_now(inner, data, expires_at)
            if done is not True:
                await (done or mount.write(((inner, data, expires_at),)))
        except KVStoreError as error:
            raise at(error, "set_item", key, mount) from error.__cause__

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
            mount, inner = self.keyspace.locate(key)
            (there,) = await mount.has([inner])
            return there
        except KVStoreError as error:
            raise at(error, "has_item", key, mount) from error.__cause__

    async def remove_item(self, key: str) -> bool:
        """Removes `key` with its metadata. False: it was not there."""
        mount = None
        try:
            mount, inner = self.keyspace.locate(key)
            mount.check()
            found = await mount.write([(inner, None, None)])
            return bool(found and found[0])
        except KVStoreError as error:
            raise at(error, "remove_item", key, mount) from error.__cause__

    async def compare_and_set(self, key: str, expected: object, new: object, ttl: Ttl = None) -> bool:
        """Stores `new` if the value is `expected`. False: it is not, and nothing changed.

        Either may be `MISSING`: there is no value, there shall be none. Values are compared as JSON: 1, 1.0 and True
        differ, the order of members does not count.
        """
        return await self._write("compare_and_set", key, lambda: None if new is MISSING else encode(new), ttl, expected)

    @overload
    async def update_item(self, key: str, fn: Callable[[Any], Awaitable[T]], default: Any = None, ttl: Ttl = None) -> T: ...
    @overload
    async def update_item(self, key: str, fn: Callable[[Any], T], default: Any = None, ttl: Ttl = None) -> T: ...
    async def update_item(self, key: str, fn: Callable[[Any], Any], default: Any = None, ttl: Ttl = None) -> Any:
        """Stores what `fn` makes of the value (`default`, which may be `MISSING`, where there is none), and returns it.

        No other writer comes in between: where one was faster, `fn` runs again on what it wrote. `fn` may be async, and
        removes the key by returning `MISSING`. It may update other keys, but to write this one would make it run again for
        ever: an update of it inside is an `UnsupportedOperation`. While an async `fn` waits, other calls on the key go on.
        """
        mount = None
        try:
            mount, inner = self.keyspace.locate(key)
            mount.check(conditional=True)
            if not callable(fn):
                raise InvalidValueError(f"fn is a function of the value, not {type(fn).__name__}")
            mount.expiry(ttl)
            absent = MISSING if default is MISSING else encode(default)
            return await update(mount, inner, fn, absent, lambda: mount.expiry(ttl))
        except KVStoreError as error:
            raise at(error, "update_item", key, mount) from error.__cause__

    async def touch(self, key: str, ttl: Ttl = None) -> bool:
        """Sets the expiry afresh, as a write would, and leaves the value. False: the key is not there."""
        mount = None
        try:
            mount, inner = self.keyspace.locate(key)
            mount.check()
            mount.expiry(ttl)
            return await mount.run(lambda: mount.driver.touch(inner, mount.expiry(ttl)), [inner], mutates=True)
        except KVStoreError as error:
            raise at(error, "touch", key, mount) from error.__cause__

    async def get_meta(self, key: str) -> Meta | None:
        """Size, times, etag and custom metadata; None where the key is not there."""
        mount = None
        try:
            mount, inner = self.keyspace.locate(key)
            (stat,) = await mount.stat([inner])
            return None if stat is None else meta_of(stat)
        except KVStoreError as error:
            raise at(error, "get_meta", key, mount) from error.__cause__

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
    async def get_items(self, keys: Iterable[str], default: object = None, *, type: object) -> dict[str, Any]: ...
    async def get_items(self, keys: Iterable[str], default: Any = None, *, type: Any = None) -> dict[str, Any]:
        """The values of `keys` in the order asked, across mounts; `default` for a missing one. `type` as for `get_item`."""
        items: dict[str, Any] = {}
        size = 0
        found = await self.keyspace.read("get_items", keys)
        are_large = sum(map(len, filter(None, found.values()))) > _DECODED_PER_PASS
        for key, data in found.items():
            try:
                items[key] = default if data is None else decode(data) if type is None else decode_as(data, type)
            except KVStoreError as error:
                raise at(error, "get_items", key, self.get_mount(key)) from error.__cause__
            if are_large and (size := size + len(data or b"")) > _DECODED_PER_PASS:
                size = 0
                await asyncio.sleep(0)
        return items

    async def set_items(self, items: Mapping[str, object], ttl: Ttl = None) -> None:
        """Stores several JSON values, all or nothing per mount where its `capabilities.atomic` says so."""
        await self.keyspace.carry_out("set_items", self.keyspace.plan("set_items", items, (), ttl), blind=True)

    async def remove_items(self, keys: Iterable[str]) -> int:
        """Removes several keys. Returns how many were there."""
        return await self.keyspace.carry_out("remove_items", self.keyspace.plan("remove_items", {}, keys, None))

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
        plan = self.keyspace.plan("commit", items, removes, ttl)
        if not isinstance(expect, Mapping | None):
            raise InvalidValueError(f"expect is a mapping, not {type(expect).__name__}", operation="commit")
        conditions: dict[Mount, dict[str, bytes | None]] = {}
        for key, value in (expect or {}).items():
            mount, inner = self.keyspace.located("commit", key)
            try:
                if inner in conditions.setdefault(mount, {}):
                    raise InvalidValueError("two conditions are about one key")
                conditions[mount][inner] = None if value is MISSING else encode(value)
            except KVStoreError as error:
                raise at(error, "commit", key, mount) from error.__cause__
        mounts = list({**plan, **conditions})
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
            return await write_if(mount, writes, conditions[mount])
        except KVStoreError as error:
            raise self.keyspace.among(error, "commit", list(plan.get(mount, ())), mount) from error.__cause__

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
        self.keyspace.check_open("get_keys")
        check_count("get_keys", "limit", limit)
        with during("get_keys", base or None):
            self.keyspace.below(base)
        found: list[str] = []
        if limit != 0:
            async for page in self.keyspace.pages("get_keys", base, after, reverse, max_depth, min(limit or PAGE, PAGE)):
                found += page
                if limit is not None and len(found) >= limit:
                    return found[:limit]
        return found

    async def iter_keys(self, base: str = "") -> AsyncGenerator[str, None]:
        """The keys below `base` in order, in constant memory. One that is there throughout comes exactly once."""
        async for page in self.keyspace.pages("iter_keys", base):
            for key in page:
                yield key

    @overload
    def iter_items(self, base: str = "", *, type: None = None) -> AsyncGenerator[tuple[str, Any], None]: ...
    @overload
    def iter_items(self, base: str = "", *, type: type[T]) -> AsyncGenerator[tuple[str, T], None]: ...
    @overload
    def iter_items(self, base: str = "", *, type: object) -> AsyncGenerator[tuple[str, Any], None]: ...
    async def iter_items(self, base: str = "", *, type: Any = None) -> AsyncGenerator[tuple[str, Any], None]:
        """The keys below `base` with their values, in order, in constant memory."""
        absent = object()
        async for page in self.keyspace.pages("iter_items", base):
            with inside("iter_items"):
                items = await self.get_items(page, absent, type=type)
            for key, value in items.items():
                if value is not absent:
                    yield key, value

    async def count(self, base: str = "") -> int:
        """How many keys there are below `base`."""
        total = 0
        for mount, prefix, masked in self.keyspace.shares("count", base):
            try:
                total += await mount.run(partial(mount.driver.count, prefix), None)
                for hidden in masked:
                    total -= await mount.run(partial(mount.driver.count, hidden), None)
            except KVStoreError as error:
                raise at(error, "count", base or None, mount) from error.__cause__
        return total

    async def clear(self, base: str = "") -> int:
        """Removes exactly the keys below `base`, in every mount that it touches. Returns how many there were."""
        shares = {mount: (prefix, masked) for mount, prefix, masked in self.keyspace.shares("clear", base)}
        for mount in shares:
            try:
                mount.check()
            except KVStoreError as error:
                raise at(error, "clear", base or None, mount) from error.__cause__
        counts = await on_each(
            shares,
            lambda mount: mount.clear_soon(*shares[mount]),
            lambda mount, error: at(error, "clear", base or None, mount),
        )
        return sum(counts.values())

    @asynccontextmanager
    async def watch(self, base: str = "") -> AsyncIterator[Listener]:
        """Inside the context: an async iterator over every change below `base` as `Event(kind, key)`.

        Changes through this storage, and those of other processes on drivers whose `capabilities.watch` says so. A
        listener that falls 100,000 events behind is told so by a `BackendError` where the next would come.
        """
        self.keyspace.check_open("watch")
        with during("watch", base or None):
            prefix = self.keyspace.below(base)
        async with self.keyspace.table.watch(prefix, len(self.keyspace.prefix)) as listener:
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
            await close_all(self.keyspace.table.close())
        else:
            closed = MountTable()
            closed.close()
            self._see(Keyspace(closed))

    # The names of unstorage

    has = has_item
    get = get_item
    set = set_item
    remove = remove_item
    keys = get_keys

    # Inside

    async def _write(self, operation: str, key: str, make: Callable[[], bytes | None], ttl: Ttl, *expected: object) -> bool:
        mount = None
        try:
            mount, inner = self.keyspace.locate(key)
            mount.check(conditional=bool(expected))
            expires_at, data = mount.expiry(ttl), make()
            writes = [(inner, data, None if data is None else expires_at)]
            if expected:
                return await write_if(mount, writes, {inner: None if expected[0] is MISSING else encode(expected[0])})
            await mount.write(writes)
            return True
        except KVStoreError as error:
            raise at(error, operation, key, mount) from error.__cause__

    async def _set_meta(self, operation: str, key: str, custom: Mapping[str, Any] | None) -> bool:
        mount = None
        try:
            mount, inner = self.keyspace.locate(key)
            mount.check()
            data = None if custom is None else encode(custom)
            return await mount.run(lambda: mount.driver.set_meta(inner, data), [inner], mutates=True)
        except KVStoreError as error:
            raise at(error, operation, key, mount) from error.__cause__


def create_storage(driver: DriverSpec = "memory", /, *, ttl: Ttl = None, read_only: bool = False, **options: Any) -> Storage:
    """A storage on one driver; `Storage.mount` adds others.

    `driver` is a name (`"sqlite"`), a dotted module, a `"package.module:Class"`, a URL (`"sqlite:///app.db"`) or an instance,
    which then belongs to the storage and is closed with it. `ttl` (seconds or a timedelta) is the default time to live;
    the other options are the driver's. Nothing is connected before the first call.

    Raises `DriverNotFoundError` for an unknown name and `ConfigError` for an unknown or wrong option.
    """
    with inside("create_storage"):
        return Storage().mount("", driver, ttl=ttl, read_only=read_only, **options)


def prefix_storage(storage: Storage, base: str) -> Storage:
    """`storage` as seen from below `base`: keys go in and come out without it. Closing it leaves `storage` open."""
    if not isinstance(storage, Storage):
        raise ConfigError(f"a Storage is asked for, not {type(storage).__name__}", operation="prefix_storage")
    seen = Storage()
    seen._owner = False
    with during("prefix_storage", base or None):
        seen._see(Keyspace(storage.keyspace.table, storage.keyspace.below(base)))
    return seen
