"""The raw clients of servers: the least code that keeps JSON with each, as one would write it by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Self
from urllib.parse import urlsplit

import asyncmy
import asyncpg
import orjson
import redis.asyncio as redis

from benchmarks.peers.contract import Place, Store


class Redis(Store):
    """redis-py with its pool. `pipelined`: what many tasks ask for in one pass of the event loop goes as one pipeline."""

    def __init__(self, client: Any, pipelined: bool) -> None:
        self._client = client
        self._pipelined = pipelined
        self._asked: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []

    @classmethod
    async def open(cls, place: Place, *, pipelined: bool = False) -> Self:
        pool = redis.BlockingConnectionPool.from_url(place.url, max_connections=50, timeout=60)
        return cls(redis.Redis.from_pool(pool), pipelined)

    async def _call(self, *command: Any) -> Any:
        if not self._pipelined:
            return await self._client.execute_command(*command)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._asked.append((command, future))
        if len(self._asked) == 1:
            self._sending = loop.create_task(self._send())
        return await future

    async def _send(self) -> None:
        await asyncio.sleep(0)
        asked, self._asked = self._asked, []
        pipeline = self._client.pipeline(transaction=False)
        for command, _ in asked:
            pipeline.execute_command(*command)
        try:
            answers = await pipeline.execute()
        except Exception as error:
            for _, future in asked:
                future.set_exception(error)
            return
        for (_, future), answer in zip(asked, answers, strict=True):
            future.set_result(answer)

    async def get(self, key: str) -> object:
        return orjson.loads(await self._call("GET", key))

    async def set(self, key: str, value: object) -> None:
        await self._call("SET", key, orjson.dumps(value))

    async def get_many(self, keys: Sequence[str]) -> Sequence[object]:
        return [orjson.loads(value) for value in await self._client.mget(keys)]

    async def set_many(self, items: Mapping[str, object]) -> None:
        await self._client.mset({key: orjson.dumps(value) for key, value in items.items()})

    async def list_prefix(self, prefix: str) -> Sequence[object]:
        pattern = f"{prefix}:*" if prefix else "*"
        return sorted([key.decode() async for key in self._client.scan_iter(pattern, count=1_000)])

    async def clear(self) -> None:
        await self._client.flushdb()

    async def close(self) -> None:
        await self._client.aclose()


class Postgresql(Store):
    """asyncpg with its pool, a table of text and bytes."""

    SET = "INSERT INTO raw_kv VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value"

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    @classmethod
    async def open(cls, place: Place) -> Self:
        pool = await asyncpg.create_pool(place.url)
        await pool.execute('CREATE TABLE IF NOT EXISTS raw_kv (key text COLLATE "C" PRIMARY KEY, value bytea NOT NULL)')
        return cls(pool)

    async def get(self, key: str) -> object:
        return orjson.loads(await self._pool.fetchval("SELECT value FROM raw_kv WHERE key = $1", key))

    async def set(self, key: str, value: object) -> None:
        await self._pool.execute(self.SET, key, orjson.dumps(value))

    async def get_many(self, keys: Sequence[str]) -> Sequence[object]:
        rows = await self._pool.fetch("SELECT key, value FROM raw_kv WHERE key = ANY($1)", keys)
        found = {row[0]: orjson.loads(row[1]) for row in rows}
        return [found[key] for key in keys]

    async def set_many(self, items: Mapping[str, object]) -> None:
        await self._pool.executemany(self.SET, [(key, orjson.dumps(value)) for key, value in items.items()])

    async def list_prefix(self, prefix: str) -> Sequence[object]:
        if prefix:
            query = "SELECT key FROM raw_kv WHERE key >= $1 AND key < $2 ORDER BY key"
            rows = await self._pool.fetch(query, f"{prefix}:", f"{prefix};")
        else:
            rows = await self._pool.fetch("SELECT key FROM raw_kv ORDER BY key")
        return [row[0] for row in rows]

    async def clear(self) -> None:
        await self._pool.execute("DELETE FROM raw_kv")

    async def close(self) -> None:
        await self._pool.close()


class Mysql(Store):
    """asyncmy with its pool, a table of bytes."""

    SET = "INSERT INTO raw_kv VALUES (%s, %s) ON DUPLICATE KEY UPDATE value = VALUES(value)"

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    @classmethod
    async def open(cls, place: Place) -> Self:
        url = urlsplit(place.url)
        pool = await asyncmy.create_pool(
            host=url.hostname,
            port=url.port or 3306,
            user=url.username,
            password=url.password or "",
            db=url.path[1:],
            autocommit=True,
            minsize=10,
            maxsize=10,
        )
        store = cls(pool)
        await store._run(
            "CREATE TABLE IF NOT EXISTS raw_kv (`key` VARBINARY(1024) PRIMARY KEY, value LONGBLOB NOT NULL) ROW_FORMAT=DYNAMIC"
        )
        return store

    async def _run(self, query: str, arguments: Sequence[Any] = ()) -> Any:
        async with self._pool.acquire() as connection, connection.cursor() as cursor:
            await cursor.execute(query, arguments)
            return await cursor.fetchall()

    async def get(self, key: str) -> object:
        return orjson.loads((await self._run("SELECT value FROM raw_kv WHERE `key` = %s", (key,)))[0][0])

    async def set(self, key: str, value: object) -> None:
        await self._run(self.SET, (key, orjson.dumps(value)))

    async def get_many(self, keys: Sequence[str]) -> Sequence[object]:
        marks = ",".join(["%s"] * len(keys))
        rows = await self._run(f"SELECT `key`, value FROM raw_kv WHERE `key` IN ({marks})", keys)
        found = {row[0].decode(): orjson.loads(row[1]) for row in rows}
        return [found[key] for key in keys]

    async def set_many(self, items: Mapping[str, object]) -> None:
        async with self._pool.acquire() as connection, connection.cursor() as cursor:
            await cursor.executemany(self.SET, [(key, orjson.dumps(value)) for key, value in items.items()])

    async def list_prefix(self, prefix: str) -> Sequence[object]:
        if prefix:
            query = "SELECT `key` FROM raw_kv WHERE `key` >= %s AND `key` < %s ORDER BY `key`"
            rows = await self._run(query, (f"{prefix}:", f"{prefix};"))
        else:
            rows = await self._run("SELECT `key` FROM raw_kv ORDER BY `key`")
        return [row[0].decode() for row in rows]

    async def clear(self) -> None:
        await self._run("DELETE FROM raw_kv")

    async def close(self) -> None:
        self._pool.close()
        await self._pool.wait_closed()
