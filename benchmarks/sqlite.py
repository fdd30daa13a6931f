"""SQLite against the standard library's sqlite3, called in the event loop."""

from __future__ import annotations

import asyncio
import sqlite3
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson

from benchmarks.measure import Figure, medians, ratio, record
from kvstore import create_storage

CALLS = 1_000


def connect(path: Path, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={synchronous}")
    connection.execute("CREATE TABLE kv (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
    return connection


async def figures(*, quick: bool) -> list[Figure]:
    with TemporaryDirectory(dir=".") as folder:
        return await _figures(Path(folder), 3 if quick else 9)


async def _figures(folder: Path, rounds: int) -> list[Figure]:
    fresh = count()
    raw = connect(folder / "raw.db", "FULL")
    raw_normal = connect(folder / "raw_normal.db", "NORMAL")
    async with (
        create_storage("sqlite", path=folder / "full.db") as full,
        create_storage("sqlite", path=folder / "normal.db", synchronous="normal") as normal,
    ):

        def raw_set(connection: sqlite3.Connection, number: int) -> None:
            connection.execute(
                "INSERT INTO kv VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (f"users:{number % CALLS}", orjson.dumps(record(number))),
            )

        async def raw_sets(connection: sqlite3.Connection) -> None:
            for _ in range(CALLS):
                raw_set(connection, next(fresh))

        async def raw_gets() -> None:
            for number in range(CALLS):
                row = raw.execute("SELECT value FROM kv WHERE key = ?", (f"users:{number}",)).fetchone()
                orjson.loads(row[0])

        async def sets(storage: object) -> None:
            for _ in range(CALLS):
                number = next(fresh)
                await storage.set_item(f"users:{number % CALLS}", record(number))  # type: ignore[attr-defined]

        async def gets() -> None:
            for number in range(CALLS):
                await full.get_item(f"users:{number}")

        async def tasks_set() -> None:
            start = next(fresh) * CALLS
            await asyncio.gather(*(full.set_item(f"users:{at}", record(start + at)) for at in range(CALLS)))

        async def tasks_get() -> None:
            await asyncio.gather(*(full.get_item(f"users:{at}") for at in range(CALLS)))

        async def raw_tasks_set() -> None:
            async def one(number: int) -> None:
                raw_set(raw, number)

            await asyncio.gather(*(one(next(fresh)) for _ in range(CALLS)))

        durable = await medians(rounds, CALLS, stdlib=raw_tasks_set, storage=tasks_set)
        reads = await medians(3 * rounds, CALLS, stdlib=raw_gets, storage=gets, storage_1000_tasks=tasks_get)
        one_by_one = await medians(rounds, CALLS, stdlib=lambda: raw_sets(raw), storage=lambda: sets(full))
        quick_sets = await medians(rounds, CALLS, stdlib=lambda: raw_sets(raw_normal), storage=lambda: sets(normal))
    raw.close()
    raw_normal.close()
    return [
        ratio("sqlite get, one after another, against sqlite3", reads, "storage", "stdlib", 2),
        ratio("sqlite durable set, 1,000 tasks: times faster than sqlite3", durable, "storage", "stdlib", 10, at_least=True),
        ratio("sqlite durable set, one after another, against sqlite3", one_by_one, "storage", "stdlib", 2.5),
        ratio("sqlite normal set, one after another, against sqlite3", quick_sets, "storage", "stdlib", 3),
    ]
