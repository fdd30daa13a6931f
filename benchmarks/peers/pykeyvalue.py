"""py-key-value-aio. The first segment of a key is its collection, which is how it groups keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, Self

from diskcache import Cache
from key_value.aio.stores.disk import DiskStore
from key_value.aio.stores.filetree import (
    FileTreeStore,
    FileTreeV1CollectionSanitizationStrategy,
    FileTreeV1KeySanitizationStrategy,
)
from key_value.aio.stores.memory import MemoryStore
from key_value.aio.stores.postgresql import PostgreSQLStore
from key_value.aio.stores.redis import RedisStore
from redis.asyncio import BlockingConnectionPool, Redis

from benchmarks.peers.contract import NotOffered, Place, Store


def _split(key: str) -> tuple[str, str]:
    collection, _, rest = key.partition(":")
    return collection, rest


def _disk(place: Place, synchronous: str) -> DiskStore:
    """It keeps diskcache's default, NORMAL, unless it is handed a cache."""
    level = {"FULL": 2, "NORMAL": 1}[synchronous]
    return DiskStore(disk_cache=Cache(place.folder / "disk", sqlite_synchronous=level, eviction_policy="none"))


def _filetree(place: Place, _: str) -> FileTreeStore:
    folder = place.folder / "tree"
    folder.mkdir(exist_ok=True)
    return FileTreeStore(
        data_directory=folder,
        key_sanitization_strategy=FileTreeV1KeySanitizationStrategy(folder),
        collection_sanitization_strategy=FileTreeV1CollectionSanitizationStrategy(folder),
    )


def _redis(place: Place, _: str) -> RedisStore:
    """Its own pool refuses what exceeds it, so it is handed one that waits. It wants text for bytes."""
    pool = BlockingConnectionPool.from_url(place.url, max_connections=50, timeout=60, decode_responses=True)
    return RedisStore(client=Redis.from_pool(pool))


_STORES: dict[str, Callable[[Place, str], Any]] = {
    "memory": lambda place, _: MemoryStore(),
    "disk": _disk,
    "filetree": _filetree,
    "redis": _redis,
    "postgresql": lambda place, _: PostgreSQLStore(url=place.url, table_name="pykeyvalue"),
}


class PyKeyValue(Store):
    def __init__(self, store: Any) -> None:
        self._store = store

    @classmethod
    async def open(cls, place: Place, *, kind: str, synchronous: str = "") -> Self:
        store = cls(_STORES[kind](place, synchronous))
        await store._store.setup()
        return store

    async def get(self, key: str) -> object:
        collection, rest = _split(key)
        return await self._store.get(rest, collection=collection)

    async def set(self, key: str, value: Any) -> None:
        collection, rest = _split(key)
        await self._store.put(rest, value, collection=collection)

    async def get_many(self, keys: Sequence[str]) -> Sequence[object]:
        found: list[object] = []
        for collection, group in groupby(map(_split, keys), key=lambda pair: pair[0]):
            found += await self._store.get_many([rest for _, rest in group], collection=collection)
        return found

    async def set_many(self, items: Mapping[str, Any]) -> None:
        for collection, group in groupby(items, key=lambda key: _split(key)[0]):
            keys = list(group)
            await self._store.put_many([_split(key)[1] for key in keys], [items[key] for key in keys], collection=collection)

    async def list_prefix(self, prefix: str) -> Sequence[object]:
        if not prefix or not hasattr(self._store, "keys"):
            raise NotOffered
        return await self._store.keys(collection=prefix, limit=10_000)  # type: ignore[no-any-return]

    async def clear(self) -> None:
        """The memory's own `destroy` leaves a store that refuses each collection that it had, so it is not that."""
        if hasattr(self._store, "collections") and hasattr(self._store, "keys"):
            for collection in await self._store.collections(limit=10_000):
                await self._store.delete_many(await self._store.keys(collection, limit=10_000), collection=collection)
        elif hasattr(self._store, "destroy"):
            await self._store.destroy()
        elif hasattr(self._store, "destroy_collection"):
            for collection in await self._store.collections(limit=10_000):
                await self._store.destroy_collection(collection)
        else:
            raise NotOffered

    async def close(self) -> None:
        await self._store.close()
