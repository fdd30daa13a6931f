"""aiocache and cashews. Both are handed bytes of JSON where they would keep the object itself, so that all do the same work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self
from urllib.parse import urlsplit

import orjson
from aiocache import RedisCache, SimpleMemoryCache
from aiocache.serializers import BaseSerializer
from cashews import Cache
from redis.asyncio import BlockingConnectionPool

from benchmarks.peers.contract import Place, Store


class Json(BaseSerializer):  # type: ignore[misc]
    """Its own takes json or ujson; orjson is what the others have."""

    DEFAULT_ENCODING = None

    def dumps(self, value: object) -> bytes:
        return orjson.dumps(value)

    def loads(self, value: bytes | None) -> object:
        return None if value is None else orjson.loads(value)


class Aiocache(Store):
    def __init__(self, cache: Any) -> None:
        self._cache = cache

    @classmethod
    async def open(cls, place: Place) -> Self:
        if not place.url:
            return cls(SimpleMemoryCache(serializer=Json()))
        url = urlsplit(place.url)
        database = int(url.path[1:])
        pool = {"pool_max_size": 50, "connection_pool_class": BlockingConnectionPool, "connection_pool_kwargs": {"timeout": 60}}
        return cls(RedisCache(endpoint=url.hostname, port=url.port, db=database, serializer=Json(), **pool))

    async def get(self, key: str) -> object:
        return await self._cache.get(key)

    async def set(self, key: str, value: object) -> None:
        await self._cache.set(key, value)

    async def get_many(self, keys: Sequence[str]) -> Sequence[object]:
        return await self._cache.multi_get(list(keys))  # type: ignore[no-any-return]

    async def set_many(self, items: Mapping[str, object]) -> None:
        await self._cache.multi_set(list(items.items()))

    async def clear(self) -> None:
        await self._cache.clear()

    async def close(self) -> None:
        await self._cache.close()


class Cashews(Store):
    def __init__(self, cache: Any) -> None:
        self._cache = cache

    @classmethod
    async def open(cls, place: Place) -> Self:
        cache = Cache()
        if place.url:
            cache.setup(place.url, max_connections=50, wait_for_connection_timeout=60, suppress=False)
        else:
            cache.setup("mem://?size=10000000")
        await cache.init()
        return cls(cache)

    async def get(self, key: str) -> object:
        return orjson.loads(await self._cache.get(key))

    async def set(self, key: str, value: object) -> None:
        await self._cache.set(key, orjson.dumps(value))

    async def get_many(self, keys: Sequence[str]) -> Sequence[object]:
        return [orjson.loads(value) for value in await self._cache.get_many(*keys)]

    async def set_many(self, items: Mapping[str, object]) -> None:
        await self._cache.set_many({key: orjson.dumps(value) for key, value in items.items()})

    async def list_prefix(self, prefix: str) -> Sequence[object]:
        pattern = f"{prefix}:*" if prefix else "*"
        return [key async for key in self._cache.scan(pattern, batch_size=1_000)]

    async def clear(self) -> None:
        await self._cache.clear()

    async def close(self) -> None:
        await self._cache.close()
