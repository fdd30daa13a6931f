"""What needs no server, bare: the least code that keeps JSON with it, as one would write it by hand."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import orjson

from benchmarks.peers.contract import Message, Place, SessionStore, Store

UPSERT = "INSERT INTO kv VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


class Memory(Store):
    """A dict of bytes. The async functions are what any asyncio interface costs."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    @classmethod
    async def open(cls, place: Place, **options: Any) -> Self:
        return cls()

    async def get(self, key: str) -> object:
        return orjson.loads(self._values[key])

    async def set(self, key: str, value: object) -> None:
        self._values[key] = orjson.dumps(value)

    async def get_many(self, keys: Sequence[str]) -> Sequence[object]:
        return [orjson.loads(self._values[key]) for key in keys]

    async def set_many(self, items: Mapping[str, object]) -> None:
        self._values.update((key, orjson.dumps(value)) for key, value in items.items())

    async def list_prefix(self, prefix: str) -> Sequence[object]:
        base = prefix and f"{prefix}:"
        return sorted(key for key in self._values if key.startswith(base))

    async def clear(self) -> None:
        self._values.clear()


def connect(path: Path, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=60)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={synchronous}")
    return connection


class Sqlite(Store):
    """The standard library's sqlite3, called in the event loop."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute("CREATE TABLE IF NOT EXISTS kv (key TEXT PRIMARY KEY, value BLOB NOT NULL)")

    @classmethod
    async def open(cls, place: Place, *, synchronous: str) -> Self:
        return cls(connect(place.folder / "raw.db", synchronous))

    async def get(self, key: str) -> object:
        return orjson.loads(self._connection.execute("SELECT value FROM kv WHERE key = ?", (key,)).fetchone()[0])

    async def set(self, key: str, value: object) -> None:
        self._connection.execute(UPSERT, (key, orjson.dumps(value)))

    async def get_many(self, keys: Sequence[str]) -> Sequence[object]:
        marks = ",".join("?" * len(keys))
        rows = self._connection.execute(f"SELECT key, value FROM kv WHERE key IN ({marks})", keys)
        found = {key: orjson.loads(value) for key, value in rows}
        return [found[key] for key in keys]

    async def set_many(self, items: Mapping[str, object]) -> None:
        self._connection.execute("BEGIN")
        self._connection.executemany(UPSERT, ((key, orjson.dumps(value)) for key, value in items.items()))
        self._connection.execute("COMMIT")

    async def list_prefix(self, prefix: str) -> Sequence[object]:
        if prefix:
            rows = self._connection.execute(
                "SELECT key FROM kv WHERE key >= ? AND key < ? ORDER BY key", (f"{prefix}:", f"{prefix};")
            )
        else:
            rows = self._connection.execute("SELECT key FROM kv ORDER BY key")
        return [row[0] for row in rows]

    async def clear(self) -> None:
        self._connection.execute("DELETE FROM kv")

    async def close(self) -> None:
        self._connection.close()


class Files(Store):
    """Calls of the operating system, in the event loop: written beside and renamed, so that a write is all or nothing."""

    def __init__(self, root: Path, fsync: bool) -> None:
        self._root = str(root)
        self._fsync = fsync
        self._folders: set[str] = set()

    @classmethod
    async def open(cls, place: Place, *, fsync: bool) -> Self:
        root = place.folder / "files"
        root.mkdir(parents=True, exist_ok=True)
        return cls(root, fsync)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key.replace(':', '/')}"

    async def get(self, key: str) -> object:
        descriptor = os.open(self._path(key), os.O_RDONLY)
        try:
            return orjson.loads(os.read(descriptor, os.fstat(descriptor).st_size))
        finally:
            os.close(descriptor)

    async def set(self, key: str, value: object) -> None:
        path = self._path(key)
        folder = path.rpartition("/")[0]
        if folder not in self._folders:
            os.makedirs(folder, exist_ok=True)
            self._folders.add(folder)
        descriptor = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            os.write(descriptor, orjson.dumps(value))
            if self._fsync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(f"{path}.tmp", path)
        if self._fsync:
            directory = os.open(folder, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)

    async def list_prefix(self, prefix: str) -> Sequence[object]:
        start = len(self._root) + 1
        return sorted(
            f"{folder}/{name}"[start:].replace("/", ":") for folder, _, names in os.walk(self._path(prefix)) for name in names
        )

    async def clear(self) -> None:
        for folder, folders, names in os.walk(self._root, topdown=False):
            for name in names:
                os.unlink(f"{folder}/{name}")
            for name in folders:
                os.rmdir(f"{folder}/{name}")
        self._folders.clear()


class Sessions(SessionStore):
    """One table of messages on sqlite3, called in the event loop."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute("CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY, session TEXT, data BLOB)")
        connection.execute("CREATE INDEX IF NOT EXISTS by_session ON messages (session, id)")
        connection.execute("CREATE TABLE IF NOT EXISTS records (owner TEXT, id TEXT, data BLOB, PRIMARY KEY (owner, id))")

    @classmethod
    async def open(cls, place: Place, *, synchronous: str) -> Self:
        return cls(connect(place.folder / "raw.db", synchronous))

    async def append(self, session: str, message: Message) -> None:
        self._connection.execute("INSERT INTO messages (session, data) VALUES (?, ?)", (session, orjson.dumps(message)))

    async def append_many(self, session: str, messages: Sequence[Message]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(
            "INSERT INTO messages (session, data) VALUES (?, ?)", [(session, orjson.dumps(message)) for message in messages]
        )
        self._connection.execute("COMMIT")

    async def last(self, session: str, count: int) -> Sequence[Any]:
        query = "SELECT data FROM messages WHERE session = ? ORDER BY id DESC LIMIT ?"
        return [orjson.loads(row[0]) for row in self._connection.execute(query, (session, count))][::-1]

    async def all(self, session: str) -> Sequence[Any]:
        rows = self._connection.execute("SELECT data FROM messages WHERE session = ? ORDER BY id", (session,))
        return [orjson.loads(row[0]) for row in rows]

    async def truncate(self, session: str, *, through: str, drop: int) -> None:
        query = "SELECT id FROM messages WHERE session = ? ORDER BY id DESC LIMIT ?"
        self._connection.execute(f"DELETE FROM messages WHERE id IN ({query})", (session, drop))

    async def fork(self, session: str, new: str, *, through: str, count: int) -> None:
        self._connection.execute(
            "INSERT INTO messages (session, data) SELECT ?, data FROM messages WHERE session = ? ORDER BY id LIMIT ?",
            (new, session, count),
        )

    async def add_record(self, owner: str, number: int) -> None:
        data = orjson.dumps({"id": f"img_{number}", "container": owner, "session": f"s{number}", "name": f"Helper {number}"})
        self._connection.execute("INSERT INTO records VALUES (?, ?, ?)", (owner, f"img_{number}", data))

    async def list_records(self, owner: str) -> Sequence[object]:
        rows = self._connection.execute("SELECT data FROM records WHERE owner = ? ORDER BY id", (owner,))
        return [orjson.loads(row[0]) for row in rows]

    async def close(self) -> None:
        self._connection.close()
