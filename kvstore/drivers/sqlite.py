"""SQLite by the standard library: one file, many processes, group commit.

Reads, and commits that need not wait for the disk, run in the event loop within a small budget a pass, for a thread hop
costs more than they do; all else runs on two threads, one that writes and one that reads.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, Self, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import orjson

from kvstore.budget import TickBudget
from kvstore.driver import NOT_NOW, Batch, Capabilities, Driver, Expect, NotNow, Stat, Write
from kvstore.drivers._sqlite.connection import as_kvstore_error, is_busy, snapshot, transaction
from kvstore.drivers._sqlite.schema import VERSIONS, prepare
from kvstore.drivers._sqlite.statements import INLINE_BYTES, SWEEP_STEP, Statements
from kvstore.errors import BackendUnavailable, ConfigError, KVStoreError
from kvstore.keys import past
from kvstore.worker import Worker

_INLINE_READS = 64
_INLINE_COMMITS = 16
_INLINE_SCAN = 250
_CHECKPOINT_BYTES = 4 * 2**20
_PIECE = 2**20

T = TypeVar("T")


class SqliteDriver(Driver):
    """Keeps values in a table of a SQLite file (3.35 or newer) in WAL mode. Several processes may use one file at once.

    Args:
        path: The file; it is created, its directory is not. `":memory:"` keeps everything in this process.
        synchronous: `"full"`: what is written survives a power cut when the call returns. `"normal"`: it survives the end
            of the process, and a power cut may take the last moments, never more.
        table: Its name, so that several mounts or programs can share a file.
        timeout: Seconds to wait while another process holds the file locked, then `BackendTimeout`.
    """

    capabilities = Capabilities(atomic=True, conditional=True, ordered=True, metadata=True, shared=True)

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Literal["full", "normal"] = "full",
        table: str = "kvstore",
        timeout: float = 30.0,
    ) -> None:
        if synchronous not in ("full", "normal"):
            raise ConfigError(f"synchronous is 'full' or 'normal', not {synchronous!r}", driver="sqlite")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", table) or table == VERSIONS or table.startswith("sqlite_"):
            raise ConfigError(f"table is a plain name of letters, digits and _, not {table!r}", driver="sqlite")
        if not timeout > 0:
            raise ConfigError(f"timeout is a positive number of seconds, not {timeout!r}", driver="sqlite")
        self._path = os.path.expanduser(os.fspath(path))
        if not self._path or "\0" in self._path:
            raise ConfigError(f"path is that of a file, not {self._path!r}", driver="sqlite")
        self._memory = self._path == ":memory:"
        if self._memory:
            self.capabilities = Capabilities(atomic=True, conditional=True, ordered=True, metadata=True, persistent=False)
        self._synchronous = synchronous
        self._timeout = timeout
        self._table = table
        self._sql = Statements(table)
        self._reads = TickBudget(_INLINE_READS)
        self._commits = TickBudget(_INLINE_COMMITS)
        self._unchecked = 0  # bytes committed inline since the last checkpoint
        self._reading = Worker("kvstore sqlite reads")
        self._writing = Worker("kvstore sqlite writes")
        self._inline: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None

    def __repr__(self) -> str:
        return f"SqliteDriver({self._path!r})"

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """`sqlite:///relative.db`, `sqlite:////absolute.db`, `sqlite:///:memory:`; options may follow as a query."""
        parts = urlsplit(url)
        if parts.netloc or not parts.path.strip("/") or parts.fragment:
            raise ConfigError("a SQLite URL is sqlite:///relative.db or sqlite:////absolute.db", driver="sqlite")
        query: dict[str, Any] = dict(parse_qsl(parts.query, keep_blank_values=True))
        if "timeout" in query:
            try:
                query["timeout"] = float(query["timeout"])
            except ValueError:
                raise ConfigError(f"timeout is a number of seconds, not {query['timeout']!r}", driver="sqlite") from None
        unknown = set(query) - {"synchronous", "table", "timeout"}
        if unknown:
            raise ConfigError(f"there is no option {min(unknown)!r} in a SQLite URL", driver="sqlite")
        return cls(unquote(parts.path[1:]), **(query | options))

    # Connecting

    async def connect(self) -> None:
        if self._writer is None:
            await self._on(self._writing, self._open)

    def _open(self) -> None:
        writer = self._connection(self._timeout)
        try:
            prepare(writer, self._path, self._table, self._timeout)
            if not self._memory:
                self._reader = self._connection(self._timeout)
                self._inline = self._connection(0)
                # What it commits must not wait for the disk: the checkpoint, which does, is the writer's.
                self._inline.execute("PRAGMA wal_autocheckpoint = 0")
        except BaseException:
            writer.close()
            raise
        self._writer = writer

    def _connection(self, timeout: float) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=timeout, isolation_level=None, check_same_thread=False)
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        return connection

    async def aclose(self) -> None:
        if self._inline is not None:
            self._inline.close()
            self._inline = None
        await self._on(self._reading, self._close_reader)
        await self._on(self._writing, self._close_writer)
        await self._reading.aclose()
        await self._writing.aclose()

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # Reading

    def read_now(self, key: str) -> bytes | NotNow | None:
        if self._inline is None or not self._reads.spend():
            return NOT_NOW
        try:
            row = self._inline.execute(self._sql.small, (key, self.clock())).fetchone()
        except sqlite3.Error as error:
            return self._unless_busy(error)
        if row is None:
            return None
        return NOT_NOW if row[0] is None else row[0]

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        if len(keys) == 1:
            data = self.read_now(keys[0])
            if data is not NOT_NOW:
                return [data]
        elif self._inline is not None and len(keys) <= _INLINE_READS and self._reads.spend(len(keys)):
            try:
                rows = self._inline.execute(self._sql.small_many, (_array(keys), self.clock())).fetchall()
                found: dict[str, bytes | None] = dict(rows)
                if None not in found.values():
                    return [found.get(key) for key in keys]
            except sqlite3.Error as error:
                self._unless_busy(error)
        # Too many, too large, or in the way of another process.
        return await self._ask(lambda connection: self._read_all(connection, keys))

    def _read_all(self, connection: sqlite3.Connection, keys: Sequence[str]) -> list[bytes | None]:
        rows = connection.execute(self._sql.many, (_array(keys), self.clock())).fetchall()
        if any(data is None for _, _, data in rows):
            with snapshot(connection):
                rows = [
                    (key, rowid, self._read_large(connection, rowid) if data is None else data)
                    for key, rowid, data in connection.execute(self._sql.many, (_array(keys), self.clock())).fetchall()
                ]
        found: dict[str, bytes | None] = {key: data for key, _, data in rows}
        return [found.get(key) for key in keys]

    def _read_large(self, connection: sqlite3.Connection, rowid: int) -> bytes:
        """In pieces: read as one, 30 MB hold the interpreter, and with it the event loop, for 20 to 130 ms."""
        with connection.blobopen(self._table, "value", rowid, readonly=True) as blob:
            return b"".join(iter(lambda: blob.read(_PIECE), b""))

    async def has(self, keys: Sequence[str]) -> list[bool]:
        def there(connection: sqlite3.Connection) -> set[str]:
            return {key for (key,) in connection.execute(self._sql.there_many, (_array(keys), self.clock()))}

        found = await self._look(there, len(keys))
        return [key in found for key in keys]

    async def stat(self, keys: Sequence[str]) -> list[Stat | None]:
        def stats(connection: sqlite3.Connection) -> dict[str, Stat]:
            rows = connection.execute(self._sql.stat, (_array(keys), self.clock()))
            return {
                key: Stat(size, f"{mtime:x}-{revision:x}", mtime, expires_at, custom)
                for key, size, revision, mtime, expires_at, custom in rows
            }

        found = await self._ask(stats)
        return [found.get(key) for key in keys]

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        low, high, strictly = prefix, past(prefix), False
        if after is not None and reverse:
            high = min(high, after)
        elif after is not None and after >= low:
            low, strictly = after, True
        sql = f"SELECT key {self._sql.range} ORDER BY key {'DESC' if reverse else 'ASC'} LIMIT ?"
        sql = sql.format(low=">" if strictly else ">=")

        def page(connection: sqlite3.Connection, limit: int = limit) -> list[str]:
            return [key for (key,) in connection.execute(sql, (low, high, self.clock(), limit))]

        # Most listings are short, whatever their limit is.
        short = min(limit, _INLINE_SCAN)
        found = self._look_now(lambda connection: page(connection, short), short // 8)
        return found if found is not NOT_NOW and (len(found) < short or limit == short) else await self._ask(page)

    async def count(self, prefix: str) -> int:
        def counted(connection: sqlite3.Connection) -> int:
            return int(connection.execute(self._sql.count, (prefix, past(prefix), self.clock())).fetchone()[0])

        return await self._ask(counted)

    async def _look(self, look: Callable[[sqlite3.Connection], T], cost: int) -> T:
        """What `look` finds: in the event loop where that is cheap and nothing is in the way, else on the thread."""
        found = self._look_now(look, cost)
        return await self._ask(look) if found is NOT_NOW else found

    def _look_now(self, look: Callable[[sqlite3.Connection], T], cost: int) -> T | NotNow:
        if self._inline is None or cost > _INLINE_READS or not self._reads.spend(cost + 1):
            return NOT_NOW
        try:
            return look(self._inline)
        except sqlite3.Error as error:
            return self._unless_busy(error)

    async def _ask(self, look: Callable[[sqlite3.Connection], T]) -> T:
        if self._memory:
            return await self._on(self._writing, lambda: look(_open_one(self._writer)))
        return await self._on(self._reading, lambda: look(_open_one(self._reader)))

    # Writing

    def write_now(self, key: str, data: bytes, expires_at: int | None) -> bool:
        inline = self._may_commit(1, len(data))
        if inline is None:
            return False
        now = self.clock()
        try:  # one statement is a transaction of its own
            inline.execute(self._sql.upsert, (key, data, expires_at, time.time_ns() // 1_000_000, now))
        except sqlite3.Error as error:
            self._unless_busy(error)
            return False
        self._committed(len(data))
        return True

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        size = sum(len(data) for _, data, _ in writes if data is not None)
        inline = self._may_commit(len(writes), size)
        if inline is not None:
            try:
                (result,) = self._commit(inline, [(writes, expect)])
                self._committed(size)
                return result
            except sqlite3.Error as error:
                self._unless_busy(error)
        (result,) = await self._change(lambda writer: self._commit(writer, [(writes, expect)]))
        return result

    async def write_many(self, batches: Sequence[Batch]) -> list[list[bool] | KVStoreError | None]:
        return [*await self._change(lambda writer: self._commit(writer, batches))]

    async def touch(self, key: str, expires_at: int | None) -> bool:
        arguments = (expires_at, key, self.clock())
        return await self._change(lambda writer: writer.execute(self._sql.touch, arguments).rowcount) > 0

    async def set_meta(self, key: str, custom: bytes | None) -> bool:
        arguments = (custom, key, self.clock())
        return await self._change(lambda writer: writer.execute(self._sql.custom, arguments).rowcount) > 0

    async def clear(self, prefix: str) -> int:
        def cleared(writer: sqlite3.Connection) -> int:
            with transaction(writer):
                (count,) = writer.execute(self._sql.count, (prefix, past(prefix), self.clock())).fetchone()
                writer.execute(self._sql.clear, (prefix, past(prefix)))
            return int(count)

        return await self._change(cleared)

    async def sweep(self) -> int | None:
        now = self.clock()
        while await self._change(lambda writer: writer.execute(self._sql.sweep, (now,)).rowcount) == SWEEP_STEP:
            pass
        due = await self._ask(lambda connection: connection.execute(self._sql.next_expiry).fetchone()[0])
        return None if due is None else int(due)

    def _may_commit(self, writes: int, size: int) -> sqlite3.Connection | None:
        """The connection of the event loop, for what need not wait for the disk nor pass a write whose caller was cancelled."""
        if (
            self._synchronous == "normal"
            and self._writing.idle
            and writes <= _INLINE_COMMITS
            and size <= INLINE_BYTES
            and self._inline is not None
            and self._commits.spend(writes)
        ):
            return self._inline
        return None

    async def _change(self, change: Callable[[sqlite3.Connection], T]) -> T:
        return await self._on(self._writing, lambda: change(_open_one(self._writer)))

    def _committed(self, size: int) -> None:
        """After an inline commit of `size` bytes: has the writer move the log to the file, when it has grown."""
        self._unchecked += size + 8192  # the pages that a small write touches

        def checkpoint() -> None:
            with suppress(sqlite3.OperationalError):  # somebody is at it; the next one comes
                _open_one(self._writer).execute("PRAGMA wal_checkpoint(PASSIVE)")

        if self._unchecked > _CHECKPOINT_BYTES:
            self._unchecked = 0
            self._writing.submit(checkpoint)

    def _commit(self, connection: sqlite3.Connection, batches: Sequence[Batch]) -> list[list[bool] | None]:
        """All `batches` in one transaction, so in one wait for the disk."""
        with transaction(connection):
            return [self._apply(connection, writes, expect) for writes, expect in batches]

    def _apply(self, connection: sqlite3.Connection, writes: Sequence[Write], expect: Expect | None) -> list[bool] | None:
        now = self.clock()
        if expect:
            held = self._read_all(connection, list(expect))
            if held != list(expect.values()):
                return None
        keys = [key for key, _, _ in writes]
        if len(keys) == 1:
            there = set(keys) if connection.execute(self._sql.there, (keys[0], now)).fetchone() else set()
        else:
            there = {key for (key,) in connection.execute(self._sql.there_many, (_array(keys), now))}
        mtime = time.time_ns() // 1_000_000
        sets = [(key, data, expires_at, mtime, now) for key, data, expires_at in writes if data is not None]
        if sets:
            connection.executemany(self._sql.upsert, [write for write in sets if len(write[1]) <= _PIECE])
            for key, data, *rest in sets:
                if len(data) > _PIECE:
                    self._write_large(connection, key, data, rest)
        if len(sets) < len(writes):
            connection.executemany(self._sql.delete, [(key,) for key, data, _ in writes if data is None])
        return [key in there for key in keys]

    def _write_large(self, connection: sqlite3.Connection, key: str, data: bytes, rest: Sequence[int | None]) -> None:
        """In pieces, for the same reason as in `_read_large`."""
        connection.execute(self._sql.upsert.replace("?, ?", "?, zeroblob(?)", 1), (key, len(data), *rest))
        (rowid,) = connection.execute(f"SELECT rowid FROM {self._table} WHERE key = ?", (key,)).fetchone()
        with connection.blobopen(self._table, "value", rowid) as blob:
            for start in range(0, len(data), _PIECE):
                blob.write(memoryview(data)[start : start + _PIECE])

    # Threads and errors

    async def _on(self, worker: Worker, call: Callable[[], T]) -> T:
        try:
            return await worker.run(call)
        except sqlite3.Error as error:
            raise as_kvstore_error(error, self._path, self._timeout) from error

    def _unless_busy(self, error: sqlite3.Error) -> NotNow:
        """Raises, unless the thread can wait for what is in the way."""
        if not is_busy(error):
            raise as_kvstore_error(error, self._path, self._timeout) from error
        return NOT_NOW


def _array(keys: Sequence[str]) -> str:
    return orjson.dumps(keys if isinstance(keys, list | tuple) else list(keys)).decode()


def _open_one(connection: sqlite3.Connection | None) -> sqlite3.Connection:
    if connection is None:
        raise BackendUnavailable("the database was closed")
    return connection
