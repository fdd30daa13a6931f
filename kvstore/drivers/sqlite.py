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
from contextlib import ExitStack, closing, suppress
from typing import Any, Literal, Self, TypeVar
from urllib.parse import unquote

from kvstore.budget import TickBudget
from kvstore.driver import NOT_NOW, Batch, Capabilities, Driver, Expect, NotNow, Stat, Write
from kvstore.drivers._options import check_query, own_query, split_url
from kvstore.drivers._sqlite.connection import LONGEST_TIMEOUT, as_kvstore_error, is_busy, is_read_only, transaction
from kvstore.drivers._sqlite.rows import LargeRowError, Rows, array
from kvstore.drivers._sqlite.schema import VERSIONS, begin_log, check, prepare
from kvstore.drivers._sqlite.statements import INLINE_BYTES, SWEEP_STEP, Statements
from kvstore.drivers._sqlite.view import View, connect_to_read
from kvstore.errors import BackendError, BackendUnavailable, ConfigError, KVStoreError, UnsupportedOperation
from kvstore.keys import bounds, past
from kvstore.worker import Worker

_INLINE_READS = 64
_INLINE_COMMITS = 16
_INLINE_SCAN = 250
_CHECKPOINT_BYTES = 4 * 2**20

_OWN_QUERY = {"synchronous": str, "table": str, "timeout": float}

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
        if not re.fullmatch(rf"(?!sqlite_|{VERSIONS}$)[a-z][a-z0-9_]*", table, re.IGNORECASE | re.ASCII):
            raise ConfigError(f"table is a plain name of letters, digits and _, not {table!r}", driver="sqlite")
        if not timeout > 0:
            raise ConfigError(f"timeout is a positive number of seconds, not {timeout!r}", driver="sqlite")
        given = os.fspath(path)
        if not given or "\0" in given:
            raise ConfigError(f"path is that of a file, not {given!r}", driver="sqlite")
        self._memory = given == ":memory:"
        self._path = given if self._memory else os.path.abspath(os.path.expanduser(given))
        if self._memory:
            self.capabilities = Capabilities(atomic=True, conditional=True, ordered=True, metadata=True, persistent=False)
        self._synchronous = synchronous
        self._timeout = timeout
        self._table = table
        self._sql = Statements(table)
        self._rows = Rows(table, lambda: self.clock())
        self._reads = TickBudget(_INLINE_READS)
        self._commits = TickBudget(_INLINE_COMMITS)
        self._unchecked = 0  # bytes committed inline since the last checkpoint
        self._checkpointing = False
        self._patience = timeout  # of the writer, in seconds
        self._reading = Worker("kvstore sqlite reads")
        self._writing = Worker("kvstore sqlite writes")
        self._inline: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._view: View | None = None  # where nothing is to be written, in place of reader and writer
        self._writer: sqlite3.Connection | None = None
        self._process: int | None = None
        """That opened the connections."""

    def __repr__(self) -> str:
        return f"SqliteDriver({self._path!r})"

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """`sqlite:///relative.db`, `sqlite:////absolute.db`, `sqlite:///:memory:`; options may follow as a query."""
        address, own = own_query(url, _OWN_QUERY, "sqlite")
        parts = split_url(address, "sqlite")
        if parts.netloc or not parts.path.strip("/") or parts.fragment:
            raise ConfigError("a SQLite URL is sqlite:///relative.db or sqlite:////absolute.db", driver="sqlite")
        check_query(parts.query, _OWN_QUERY, (), "sqlite")
        return cls(unquote(parts.path[1:]), **(own | options))

    # Connecting

    async def connect(self) -> None:
        if self._is_inherited:  # https://sqlite.org/howtocorrupt.html, 2.6
            raise UnsupportedOperation(
                "a SQLite file that was open when the process forked can't be used by the child;"
                " close the storage before the fork, or use one that was not used yet"
            )
        self._sql = Statements(self._table, at_root=self.at_root)
        if self._writer is None and not (self.read_only and self._view is not None):
            await self._on(self._writing, self._open)

    @property
    def _is_inherited(self) -> bool:
        return self._process is not None and self._process != os.getpid()

    def _open(self) -> None:
        if self._writer is not None:  # for an event loop that was abandoned meanwhile
            return
        if self.read_only and not self._memory:
            view = View(self._path, self._timeout)
            view.ask(lambda connection: check(connection, self._path, self._table))
            self._inline = None if view.is_fixed else connect_to_read(self._path, 0)
            self._process, self._view = os.getpid(), view
            return
        with ExitStack() as opened:
            writer = opened.enter_context(closing(self._connection(self._timeout)))
            prepare(writer, self._path, self._table, self._timeout)
            if not self._memory:
                reader = opened.enter_context(closing(self._connection(self._timeout)))
                inline = opened.enter_context(closing(self._connection(0)))
                # What it commits must not wait for the disk: the checkpoint, which does, is the writer's.
                inline.execute("PRAGMA wal_autocheckpoint = 0")
                if self._synchronous == "normal":
                    begin_log(inline)
                self._reader, self._inline = reader, inline
            self._process = os.getpid()
            self._view, self._writer = None, writer
            opened.pop_all()

    def _connection(self, timeout: float) -> sqlite3.Connection:
        timeout = min(timeout, LONGEST_TIMEOUT)
        connection = sqlite3.connect(self._path, timeout=timeout, isolation_level=None, check_same_thread=False)
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        return connection

    async def aclose(self) -> None:
        if self._is_inherited:
            return
        if self._inline is not None:
            self._inline.close()
            self._inline = None
        await self._on(self._reading, self._close_reader)
        await self._on(self._writing, self._close_writer)
        await self._reading.aclose()
        await self._writing.aclose()

    def _close_reader(self) -> None:
        for connection in (self._reader, self._view):
            if connection is not None:
                connection.close()
        self._reader = self._view = None

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
                rows = self._inline.execute(self._sql.small_many, (array(keys), self.clock())).fetchall()
                found: dict[str, bytes | None] = dict(rows)
                if None not in found.values():
                    return [found.get(key) for key in keys]
            except sqlite3.Error as error:
                self._unless_busy(error)
        # Too many, too large, or in the way of another process.
        return await self._ask(lambda connection: self._rows.read(connection, keys))

    async def has(self, keys: Sequence[str]) -> list[bool]:
        def there(connection: sqlite3.Connection) -> set[str]:
            return {key for (key,) in connection.execute(self._sql.there_many, (array(keys), self.clock()))}

        found = await self._look(there, len(keys))
        return [key in found for key in keys]

    async def stat(self, keys: Sequence[str]) -> list[Stat | None]:
        def stats(connection: sqlite3.Connection) -> dict[str, Stat]:
            rows = connection.execute(self._sql.stat, (array(keys), self.clock()))
            return {
                key: Stat(size, f"{mtime:x}-{revision:x}", mtime, expires_at, custom)
                for key, size, revision, mtime, expires_at, custom in rows
            }

        found = await self._ask(stats)
        return [found.get(key) for key in keys]

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        low, high, strictly = bounds(prefix, after, reverse=reverse)
        order = f"ORDER BY key {'DESC' if reverse else 'ASC'} LIMIT ?"
        among = self._sql.among.format(low=">" if strictly else ">=")
        short = min(limit, _INLINE_SCAN)

        def short_page(connection: sqlite3.Connection) -> list[str] | NotNow:
            """Of so many rows, the expired ones included, for there may be any number of these."""
            rows = connection.execute(
                f"SELECT key, {self._sql.live} {among} {order}", (self.clock(), low, high, short)
            ).fetchall()
            keys = [key for key, lives in rows if lives]
            return keys if len(rows) < short or len(keys) == limit else NOT_NOW

        def page(connection: sqlite3.Connection) -> list[str]:
            sql = f"SELECT key {among} AND {self._sql.live} {order}"
            return [key for (key,) in connection.execute(sql, (low, high, self.clock(), limit))]

        # Most listings are short, whatever their limit is.
        found = self._look_now(short_page, short // 8)
        return await self._ask(page) if found is NOT_NOW else found

    async def count(self, prefix: str) -> int:
        def counted(connection: sqlite3.Connection) -> int:
            return int(connection.execute(self._sql.count, (prefix, past(prefix), self.clock())).fetchone()[0])

        return await self._ask(counted)

    async def _look(self, look: Callable[[sqlite3.Connection], T], cost: int) -> T:
        """What `look` finds: in the event loop where that is cheap and nothing is in the way, else on the thread."""
        found = self._look_now(look, cost)
        return await self._ask(look) if found is NOT_NOW else found

    def _look_now(self, look: Callable[[sqlite3.Connection], T | NotNow], cost: int) -> T | NotNow:
        if self._inline is None or cost > _INLINE_READS or not self._reads.spend(cost + 1):
            return NOT_NOW
        try:
            return look(self._inline)
        except sqlite3.Error as error:
            return self._unless_busy(error)

    async def _ask(self, look: Callable[[sqlite3.Connection], T]) -> T:
        if self._memory:
            return await self._on(self._writing, lambda: look(_open_one(self._writer)))
        if self._view is not None:
            view = self._view
            return await self._on(self._reading, lambda: view.ask(look))
        return await self._on(self._reading, lambda: look(_open_one(self._reader)))

    # Writing

    def write_now(self, key: str, data: bytes, expires_at: int | None) -> bool:
        inline = self._may_commit(1, len(data))
        if inline is None:
            return False
        now = self.clock()
        try:  # one statement is a transaction of its own
            values = (key, data, expires_at, time.time_ns() // 1_000_000, now)
            if not inline.execute(self._sql.upsert_small, values).rowcount:
                return False
        except sqlite3.Error as error:
            self._unless_busy(error)
            return False
        self._committed(len(data))
        return True

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        size = sum(len(data) for _, data, _ in writes if data is not None)
        asked = expect or {}
        inline = self._may_commit(
            len(writes) + len(asked), size + sum(len(data) for data in asked.values() if data is not None)
        )
        if inline is not None:
            try:
                (result,) = self._rows.commit(inline, [(writes, expect)], small=True)
                self._committed(size)
                return result
            except LargeRowError:
                pass
            except sqlite3.Error as error:
                self._unless_busy(error)
        (result,) = await self._change(lambda writer: self._rows.commit(writer, [(writes, expect)]))
        return result

    async def write_many(self, batches: Sequence[Batch]) -> list[list[bool] | KVStoreError | None]:
        return [*await self._change(lambda writer: self._rows.commit(writer, batches))]

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
        try:
            while await self._change(lambda writer: writer.execute(self._sql.sweep, (now,)).rowcount) == SWEEP_STEP:
                pass
        except BackendError as error:
            if is_read_only(error.__cause__):  # those who may write sweep it
                return None
            raise
        due = await self._ask(lambda connection: connection.execute(self._sql.next_expiry).fetchone()[0])
        return int(due) if isinstance(due, int | float) else None  # None, or what somebody wrote there

    def _may_commit(self, writes: int, size: int) -> sqlite3.Connection | None:
        """The connection of the event loop, for what need not wait for the disk."""
        if (
            self._synchronous == "normal"
            and not self._checkpointing
            and writes <= _INLINE_COMMITS
            and size <= INLINE_BYTES
            and self._inline is not None
            and self._commits.spend(writes)
        ):
            return self._inline
        return None

    async def _change(self, change: Callable[[sqlite3.Connection], T]) -> T:
        asked = time.monotonic()
        return await self._on(self._writing, lambda: change(self._patient(asked)))

    def _patient(self, asked: float) -> sqlite3.Connection:
        """The writer, which waits for a lock as long as one who asked then may have to wait; his turn he waited for already."""
        writer = _open_one(self._writer)
        late = time.monotonic() - asked
        timeout = self._timeout if late < self._timeout / 10 else max(0, self._timeout - late)
        if timeout != self._patience:
            writer.execute(f"PRAGMA busy_timeout = {int(1000 * min(timeout, LONGEST_TIMEOUT))}")
            self._patience = timeout
        return writer

    def _committed(self, size: int) -> None:
        """After an inline commit of `size` bytes: has the writer move the log to the file, when it has grown."""
        self._unchecked += size + 8192  # the pages that a small write touches

        def checkpoint() -> None:
            try:
                with suppress(sqlite3.Error):  # somebody is at it, and the next one comes; or the next write tells
                    writer = _open_one(self._writer)
                    writer.execute("PRAGMA wal_checkpoint(PASSIVE)")
                    begin_log(writer)
            finally:
                self._checkpointing = False

        if self._unchecked > _CHECKPOINT_BYTES:
            self._unchecked, self._checkpointing = 0, True
            self._writing.submit(checkpoint)

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


def _open_one(connection: sqlite3.Connection | None) -> sqlite3.Connection:
    if connection is None:
        raise BackendUnavailable("the database was closed")
    return connection
