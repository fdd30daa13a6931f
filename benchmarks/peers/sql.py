"""aiosqlite and SQLAlchemy's asyncio, as their documentation keeps rows with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import aiosqlite
import orjson
from sqlalchemy import Column, LargeBinary, MetaData, String, Table, delete, event, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from benchmarks.peers.contract import Place, Store
from benchmarks.peers.raw import UPSERT


class Aiosqlite(Store):
    """One connection, as its thread is one."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, place: Place, *, synchronous: str) -> Self:
        connection = await aiosqlite.connect(place.folder / "aiosqlite.db", isolation_level=None)
        await connection.execute("PRAGMA journal_mode=WAL")
        await connection.execute(f"PRAGMA synchronous={synchronous}")
        await connection.execute("CREATE TABLE kv (key TEXT PRIMARY KEY, value BLOB NOT NULL)")
        return cls(connection)

    async def _rows(self, query: str, arguments: Sequence[Any]) -> Any:
        return await self._connection.execute_fetchall(query, arguments)

    async def get(self, key: str) -> object:
        return orjson.loads((await self._rows("SELECT value FROM kv WHERE key = ?", (key,)))[0][0])

    async def set(self, key: str, value: object) -> None:
        await self._connection.execute(UPSERT, (key, orjson.dumps(value)))

    async def get_many(self, keys: Sequence[str]) -> Sequence[object]:
        marks = ",".join("?" * len(keys))
        rows = await self._rows(f"SELECT key, value FROM kv WHERE key IN ({marks})", keys)
        found = {key: orjson.loads(value) for key, value in rows}
        return [found[key] for key in keys]

    async def set_many(self, items: Mapping[str, object]) -> None:
        await self._connection.execute("BEGIN")
        await self._connection.executemany(UPSERT, [(key, orjson.dumps(value)) for key, value in items.items()])
        await self._connection.execute("COMMIT")

    async def list_prefix(self, prefix: str) -> Sequence[object]:
        if prefix:
            query = "SELECT key FROM kv WHERE key >= ? AND key < ? ORDER BY key"
            rows = await self._rows(query, (f"{prefix}:", f"{prefix};"))
        else:
            rows = await self._rows("SELECT key FROM kv ORDER BY key", ())
        return [row[0] for row in rows]

    async def clear(self) -> None:
        await self._connection.execute("DELETE FROM kv")

    async def close(self) -> None:
        await self._connection.close()


class SqlAlchemy(Store):
    """A mapped table and a short session a call, on aiosqlite or asyncpg."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._session = async_sessionmaker(engine, expire_on_commit=False)
        self.metadata = MetaData()
        self._table = Table(
            "alchemy", self.metadata, Column("key", String(1024), primary_key=True), Column("value", LargeBinary)
        )

    @classmethod
    async def open(cls, place: Place, *, synchronous: str = "") -> Self:
        if place.url:
            engine = create_async_engine(place.url.replace("postgresql://", "postgresql+asyncpg://"), pool_timeout=120)
        else:
            engine = create_async_engine(
                f"sqlite+aiosqlite:///{place.folder}/alchemy.db", connect_args={"timeout": 60}, pool_timeout=120
            )

            @event.listens_for(engine.sync_engine, "connect")
            def configure(connection: Any, _: object) -> None:
                cursor = connection.cursor()
                cursor.execute("PRAGMA journal_mode=WAL")
                cursor.execute(f"PRAGMA synchronous={synchronous}")
                cursor.close()

        store = cls(engine)
        async with engine.begin() as connection:
            await connection.run_sync(store.metadata.create_all)
        return store

    def _upsert(self) -> Any:
        dialect = sqlite if self._engine.dialect.name == "sqlite" else postgresql
        statement = dialect.insert(self._table)
        return statement.on_conflict_do_update(index_elements=["key"], set_={"value": statement.excluded.value})

    async def get(self, key: str) -> object:
        async with self._session() as session:
            value = await session.scalar(select(self._table.c.value).where(self._table.c.key == key))
        assert value is not None
        return orjson.loads(value)

    async def set(self, key: str, value: object) -> None:
        async with self._session() as session, session.begin():
            await session.execute(self._upsert(), {"key": key, "value": orjson.dumps(value)})

    async def get_many(self, keys: Sequence[str]) -> Sequence[object]:
        async with self._session() as session:
            rows = await session.execute(select(self._table).where(self._table.c.key.in_(keys)))
            found = {key: orjson.loads(value) for key, value in rows}
        return [found[key] for key in keys]

    async def set_many(self, items: Mapping[str, object]) -> None:
        rows = [{"key": key, "value": orjson.dumps(value)} for key, value in items.items()]
        async with self._session() as session, session.begin():
            await session.execute(self._upsert(), rows)

    async def list_prefix(self, prefix: str) -> Sequence[object]:
        query = select(self._table.c.key).order_by(self._table.c.key)
        if prefix:
            query = query.where(self._table.c.key >= f"{prefix}:", self._table.c.key < f"{prefix};")
        async with self._session() as session:
            return list(await session.scalars(query))

    async def clear(self) -> None:
        async with self._session() as session, session.begin():
            await session.execute(delete(self._table))

    async def close(self) -> None:
        await self._engine.dispose()
