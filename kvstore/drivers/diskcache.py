"""diskcache: a directory with a SQLite file and, for large values, files beside it. Bytes only, never a pickle.

diskcache unpickles whatever a directory's database says is a pickle, so who can write there runs code (CVE-2025-69872).
Here nothing is ever unpickled. The library makes the tables, the transactions and the connections; the statements are the
driver's own, for `Cache.set` removes the old value's file before an outer transaction is committed, and tells time by itself.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self, TypeVar
from urllib.parse import unquote

from kvstore.driver import Batch, Capabilities, Driver, Expect, Stat, Write
from kvstore.drivers._diskcache import files, table
from kvstore.drivers._options import check_seconds, split_url
from kvstore.drivers._sqlite.connection import as_kvstore_error, transaction
from kvstore.drivers._sqlite.rows import array
from kvstore.drivers._sqlite.view import View
from kvstore.errors import (
    BackendError,
    BackendUnavailable,
    ConfigError,
    CorruptValueError,
    KVStoreError,
    MissingDependencyError,
    install,
)
from kvstore.keys import bounds, prefix_end
from kvstore.worker import Worker

_SWEEP_STEP = 500

T = TypeVar("T")


class DiskcacheDriver(Driver):
    """Keeps values in a directory of diskcache, from which nothing is ever evicted. Several processes may use it at once.

    Values are bytes in a SQLite file, or from 32 KiB on in files of their own. What another program pickled there is
    reported as corrupt and left. `~` and `$VARIABLES` in the path are expanded, as diskcache does.

    Args:
        path: The directory; it is created.
        timeout: Seconds to wait while another process writes, then `BackendTimeout`.
        size_limit: Bytes that the directory may take. A write beyond is refused with `BackendError`; nothing is removed for it.
    """

    capabilities = Capabilities(atomic=True, conditional=True, ordered=True, metadata=True, shared=True)
    cancellable = True

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 30.0, size_limit: int | None = None) -> None:
        check_seconds("diskcache", timeout=timeout)
        if size_limit is not None and size_limit <= 0:
            raise ConfigError(f"size_limit is a positive number of bytes, not {size_limit!r}", driver="diskcache")
        given = os.fsdecode(path)
        if not given or "\0" in given:
            raise ConfigError(f"path is that of a directory, not {given!r}", driver="diskcache")
        self._path = os.path.abspath(os.path.expandvars(os.path.expanduser(given)))
        self._timeout = timeout
        self._size_limit = size_limit
        self._reading = Worker("kvstore diskcache reads")
        self._writing = Worker("kvstore diskcache writes")
        self._cache: Any = None
        self._view: View | None = None  # where nothing is to be written, in place of the cache

    def __repr__(self) -> str:
        return f"DiskcacheDriver({self._path!r})"

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """`diskcache:///absolute/directory`."""
        parts = split_url(url, "diskcache")
        if parts.netloc or not parts.path.strip("/") or parts.query or parts.fragment:
            raise ConfigError(
                "a diskcache URL is diskcache:///absolute/directory; give options as keywords", driver="diskcache"
            )
        return cls(unquote(parts.path), **options)

    # Connecting

    async def connect(self) -> None:
        if self._cache is None and not (self.read_only and self._view is not None):
            try:
                await self._on(self._writing, self._open)
            except ModuleNotFoundError as error:
                raise MissingDependencyError(f"the diskcache driver needs diskcache: {install('diskcache')}") from error

    def _open(self) -> None:
        import diskcache

        file = os.path.join(self._path, diskcache.core.DBNAME)
        if self.read_only:
            view = View(file, self._timeout)
            view.ask(lambda connection: connection.execute("SELECT 1 FROM Cache").fetchone())
            self._view = view
            return
        if os.path.exists(file):  # making a Cache waits a minute for a lock, whatever its timeout
            probe = sqlite3.connect(file, timeout=self._timeout, isolation_level=None)
            try:
                probe.execute("BEGIN IMMEDIATE")
                probe.execute("ROLLBACK")
            finally:
                probe.close()
        self._cache = diskcache.Cache(
            self._path, timeout=self._timeout, eviction_policy="none", cull_limit=0, statistics=0, tag_index=0
        )
        self._view = None

    async def settle(self) -> None:
        await self._writing.settle()

    async def aclose(self) -> None:
        if self._cache is not None:
            for worker in (self._reading, self._writing):
                await self._on(worker, self._cache.close)  # each thread has a connection of its own
            self._cache = None
        if self._view is not None:
            await self._on(self._reading, self._view.close)
            self._view = None
        await self._reading.aclose()
        await self._writing.aclose()

    # Reading

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        def read() -> list[bytes | None]:
            found = self._values(keys)
            return [found.get(key) for key in keys]

        return await self._on(self._reading, read)

    def _values(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Once more where a file has gone since its row was read: somebody has overwritten or removed the value."""
        gone: set[str] = set()
        while True:
            found: dict[str, bytes] = {}
            for key, *row in self._all(table.READ, array(keys), self.clock() / 1000):
                try:
                    found[key] = files.load(self._path, key, *row)
                except FileNotFoundError as error:
                    if error.filename in gone:
                        raise CorruptValueError("the file of this value is missing", key=key) from error
                    gone.add(error.filename)
                    break
            else:
                return found

    async def has(self, keys: Sequence[str]) -> list[bool]:
        found = await self._on(self._reading, lambda: self._there(keys))
        return [key in found for key in keys]

    def _there(self, keys: Sequence[str]) -> set[str]:
        return {key for (key,) in self._all(f"SELECT key {table.ASKED}", array(keys), self.clock() / 1000)}

    async def stat(self, keys: Sequence[str]) -> list[Stat | None]:
        rows = await self._on(self._reading, lambda: self._all(table.STAT, array(keys), self.clock() / 1000))
        found = {key: table.stat(*row) for key, *row in rows}
        return [found.get(key) for key in keys]

    def _all(self, sql: str, *arguments: object) -> list[Any]:
        if self._view is not None:
            return self._view.ask(lambda connection: connection.execute(sql, arguments).fetchall())
        return self._connection.execute(sql, arguments).fetchall()

    @property
    def _connection(self) -> sqlite3.Connection:
        """This thread's."""
        if self._cache is None:
            raise BackendUnavailable("the cache was closed", maybe_written=False)
        connection: sqlite3.Connection = self._cache._con
        return connection

    # Writing

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        return await self._on(self._writing, lambda: self._in_transaction(partial(self._apply, writes, expect)))

    async def write_many(self, batches: Sequence[Batch]) -> list[list[bool] | KVStoreError | None]:
        def write() -> list[list[bool] | KVStoreError | None]:
            return self._in_transaction(lambda stored, old: [self._apply(*batch, stored, old) for batch in batches])

        return await self._on(self._writing, write)

    def _in_transaction(self, change: Callable[[list[str], list[str]], T]) -> T:
        """What `change` does, as one. It adds the files that it made to the first list, those it replaced to the second."""
        stored: list[str] = []
        old: list[str] = []
        connection = self._connection
        try:
            with transaction(connection):
                result = change(stored, old)
        except BaseException:
            files.remove(self._cache.disk, stored)
            raise
        files.remove(self._cache.disk, old)
        return result

    def _apply(self, writes: Sequence[Write], expect: Expect | None, stored: list[str], old: list[str]) -> list[bool] | None:
        if expect and [self._values([key]).get(key) for key in expect] != list(expect.values()):
            return None
        now, keys = self.clock() / 1000, [key for key, _, _ in writes]
        there = self._there(keys)
        old += self._names("key IN (SELECT value FROM json_each(?)) AND raw = 1", array(keys))
        sets: list[tuple[object, ...]] = []
        for key, data, expires_at in writes:
            if data is None:
                self._all("DELETE FROM Cache WHERE key = ? AND raw = 1", key)
                continue
            if len(data) < self._cache.disk.min_file_size:
                row: tuple[object, ...] = (0, table.RAW, None, data)
            else:
                row = (len(data), table.BINARY, files.store(self._cache.disk, self._path, key, data, stored), None)
            written = time.time()
            expire_time = None if expires_at is None else expires_at / 1000
            sets.append((key, written, expire_time, written, *row, now))
        self._check_size(sets)
        for arguments in sets:
            self._all(table.UPSERT, *arguments)
        return [key in there for key in keys]

    def _check_size(self, sets: Sequence[tuple[Any, ...]]) -> None:
        if self._size_limit is not None and sets:
            more = sum(row[4] + len(row[7] or b"") for row in sets)
            if self._cache.volume() + more > self._size_limit:
                raise BackendError(
                    f"{self._path} has reached its size_limit of {self._size_limit:,} bytes", maybe_written=False
                )

    def _names(self, where: str, *arguments: object) -> list[str]:
        return [name for (name,) in self._all(f"SELECT filename FROM Cache WHERE {where} AND filename NOTNULL", *arguments)]

    async def touch(self, key: str, expires_at: int | None) -> bool:
        return await self._update("expire_time", None if expires_at is None else expires_at / 1000, key)

    async def set_meta(self, key: str, custom: bytes | None) -> bool:
        return await self._update("tag", custom, key)

    async def _update(self, column: str, value: object, key: str) -> bool:
        def update(stored: list[str], old: list[str]) -> bool:
            sql = f"UPDATE Cache SET {column} = ? WHERE key = ? AND {table.LIVE} RETURNING 1"
            return bool(self._all(sql, value, key, self.clock() / 1000))

        return await self._on(self._writing, lambda: self._in_transaction(update))

    async def sweep(self) -> int | None:
        now = self.clock() / 1000
        expired = f"rowid IN (SELECT rowid FROM Cache WHERE expire_time <= ? LIMIT {_SWEEP_STEP})"

        def sweep(stored: list[str], old: list[str]) -> int:
            old += self._names(expired, now)
            return len(self._all(f"DELETE FROM Cache WHERE {expired} RETURNING 1", now))

        while await self._on(self._writing, lambda: self._in_transaction(sweep)) == _SWEEP_STEP:
            pass
        sql = "SELECT min(expire_time) FROM Cache WHERE expire_time NOTNULL"
        [(due,)] = await self._on(self._reading, lambda: self._all(sql))
        return None if due is None else round(due * 1000)

    # Listing

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        low, high, strictly = bounds(prefix, after, reverse=reverse)
        below = f"{table.BELOW.replace('>=', '>' if strictly else '>=', 1)} AND {self._is_key}"
        sql = f"SELECT key {below} ORDER BY key {'DESC' if reverse else 'ASC'} LIMIT ?"
        rows = await self._on(self._reading, lambda: self._all(sql, low, high, self.clock() / 1000, limit))
        return [key for (key,) in rows]

    async def count(self, prefix: str) -> int:
        arguments = (prefix, prefix_end(prefix), self.clock() / 1000)
        sql = f"SELECT count(*) {table.BELOW} AND {self._is_key}"
        [(total,)] = await self._on(self._reading, lambda: self._all(sql, *arguments))
        return int(total)

    async def clear(self, prefix: str) -> int:
        def clear(stored: list[str], old: list[str]) -> int:
            low, high = prefix, prefix_end(prefix)
            [(total,)] = self._all(f"SELECT count(*) {table.BELOW} AND {self._is_key}", low, high, self.clock() / 1000)
            below = f"key >= ? AND key < ? AND raw = 1 AND {self._is_key}"
            old += self._names(below, low, high)
            self._all(f"DELETE FROM Cache WHERE {below}", low, high)
            return int(total)

        return await self._on(self._writing, lambda: self._in_transaction(clear))

    @property
    def _is_key(self) -> str:
        return table.IS_WHOLE_KEY if self.at_root else table.IS_KEY

    # Threads and errors

    async def _on(self, worker: Worker, call: Callable[[], T]) -> T:
        try:
            return await worker.run(call)
        except sqlite3.Error as error:
            raise as_kvstore_error(error, self._path, self._timeout) from error
        except OSError as error:
            raise BackendUnavailable(f"{self._path} can't be used: {error}") from error
