"""Whole parts of a storage at once: snapshot, restore, copy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from kvstore.batches import MAX_BATCH_BYTES
from kvstore.driver import PAGE, Driver, Stat, Write
from kvstore.errors import InvalidValueError, KVStoreError, UnsupportedOperation
from kvstore.keyspace import inside
from kvstore.mount import Mount
from kvstore.storage import Storage, prefix_storage
from kvstore.wrapper import Wrapper


async def snapshot(storage: Storage, base: str = "") -> dict[str, Any]:
    """The JSON values below `base`, by key without it."""
    with inside("snapshot"):
        return {key: value async for key, value in prefix_storage(storage, base).iter_items()}


async def restore_snapshot(storage: Storage, data: Mapping[str, Any], base: str = "") -> None:
    """Stores what `snapshot` gave below `base`. Other keys there stay."""
    with inside("restore_snapshot"):
        await prefix_storage(storage, base).set_items(data)


async def copy(source: Storage, target: Storage, base: str = "", *, into: str | None = None, overwrite: bool = True) -> int:
    """Copies the keys below `base` with their bytes, expiry and custom metadata. Returns how many were copied.

    They come below `into`, by default `base`, in `target`. Without `overwrite`, a key that is there stays as it is.
    Each value comes with the expiry and metadata that it had, while others write too; some megabytes are held at a time.

    Where `into` lies below `base` in one storage, what lies below `into` is left out: a backup does not hold itself.

    Raises `UnsupportedOperation` where a driver can't tell or keep an expiry or custom metadata that is to be copied, and
    `InvalidValueError`, before anything is touched, where `base` lies below `into` and would have to be copied over itself.
    """
    with inside("copy"):
        origin, goal = prefix_storage(source, base), prefix_storage(target, base if into is None else into)
    left_out = await _left_out(origin, goal)
    copied, after = 0, None
    while page := await origin.get_keys(limit=PAGE, after=after):
        after = page[-1]
        keys = page if left_out is None else [key for key in page if not key.startswith(left_out)]
        while keys:
            stats = await _stats(origin, keys)
            some = _share(stats)
            found = await origin.keyspace.read("copy", some)
            entries: dict[str, tuple[bytes, Stat]] = {}
            for key, now in (await _stats(origin, some)).items():
                data = found[key]
                if data is not None and now.etag == stats[key].etag:
                    entries[key] = (data, now)
            copied += await _put(goal, entries, overwrite=overwrite)
            # What was written meanwhile is read again; what is gone has no stat the next time.
            keys = [key for key in stats if key not in entries]
    return copied


async def _left_out(origin: Storage, goal: Storage) -> str | None:
    """The prefix in `origin` of what a copy to `goal` would write there itself, if any."""
    if origin.keyspace.table is not goal.keyspace.table or origin.keyspace.prefix == goal.keyspace.prefix:
        return None
    if goal.keyspace.prefix.startswith(origin.keyspace.prefix):
        return goal.keyspace.prefix[len(origin.keyspace.prefix) :]
    if origin.keyspace.prefix.startswith(goal.keyspace.prefix):
        over = origin.keyspace.prefix[len(goal.keyspace.prefix) :].removesuffix(":")
        if keys := await origin.get_keys(over, limit=1):
            raise InvalidValueError("this key would be copied over another that is to be copied", operation="copy", key=keys[0])
    return None


def _share(stats: Mapping[str, Stat]) -> list[str]:
    """The first of the keys, whose values make up one batch."""
    some: list[str] = []
    size = 0
    for key, stat in stats.items():
        if some and size + stat.size > MAX_BATCH_BYTES:
            break
        some.append(key)
        size += stat.size
    return some


async def _stats(storage: Storage, keys: Iterable[str]) -> dict[str, Stat]:
    """Of the keys that are there, in their order."""
    found: dict[str, Stat] = {}
    for mount, inner in storage.keyspace.by_mount("copy", keys).items():
        try:
            if mount.capabilities.expiry and not _tells_expiry(mount.driver):
                raise UnsupportedOperation("this driver can't tell when its keys expire")
            stats = await mount.stat(list(inner))
        except KVStoreError as error:
            raise storage.keyspace.among(error, "copy", list(inner), mount) from error.__cause__
        found |= {key: stat for key, stat in zip(inner.values(), stats, strict=True) if stat is not None}
    return {key: found[key] for key in keys if key in found}


async def _put(storage: Storage, entries: Mapping[str, tuple[bytes, Stat]], *, overwrite: bool) -> int:
    """Returns how many keys were written."""
    count = 0
    for mount, inner in storage.keyspace.by_mount("copy", entries).items():
        try:
            mount.check(conditional=not overwrite)
            stats = {key: entries[outward][1] for key, outward in inner.items()}
            if not mount.capabilities.metadata and any(stat.custom is not None for stat in stats.values()):
                raise UnsupportedOperation("this driver keeps no custom metadata")
            writes: list[Write] = [
                (key, entries[outward][0], mount.expect(stats[key].expires_at)) for key, outward in inner.items()
            ]
            there = await _write(mount, writes, overwrite=overwrite)
            for key, was_there in there.items():
                if stats[key].custom is not None or (was_there and mount.capabilities.metadata):
                    await mount.run(partial(mount.driver.set_meta, key, stats[key].custom), [key], mutates=True)
        except KVStoreError as error:
            raise storage.keyspace.among(error, "copy", list(inner), mount) from error.__cause__
        count += len(there)
    return count


async def _write(mount: Mount, writes: list[Write], *, overwrite: bool) -> dict[str, bool]:
    """The keys that were written: were they there before."""
    if overwrite:
        found = await mount.write(writes)
        return dict(zip((key for key, _, _ in writes), found or (), strict=True))
    added = await asyncio.gather(*(mount.write([write], {write[0]: None}) for write in writes))
    return {key: False for (key, _, _), done in zip(writes, added, strict=True) if done is not None}


def _tells_expiry(driver: Driver) -> bool:
    while isinstance(driver, Wrapper):
        driver = driver.inner
    return type(driver).stat is not Driver.stat
