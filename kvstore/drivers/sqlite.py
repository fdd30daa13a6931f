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
from typing import Any, Literal, Self, TypeVar
from urllib.parse import unquote

from kvstore.budget import TickBudget
from kvstore.driver import NOT_NOW, Batch, Capabilities, Driver, Expect, NotNow, Stat, Write
from kvstore.drivers._options import check_query, own_query, split_url
from kvstore.drivers._sqlite.connection import is_read_only, transaction
from kvstore.drivers._sqlite.file import File
from kvstore.drivers._sqlite.rows import LargeRowError, Rows, array
from kvstore.drivers._sqlite.schema import VERSIONS
from kvstore.drivers._sqlite.statements import INLINE_BYTES, SWEEP_STEP, Statements
from kvstore.errors import BackendError, ConfigError, KVStoreError
from kvstore.keys import bounds, prefix_end

_INLINE_READS = 64
_KEYS_A_READ = 4
"""As many keys of one statement as take the time of a statement."""
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
    cancellable = True

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
        self._path = given if given == ":memory:" else os.path.abspath(os.path.expanduser(given))
        if given == ":memory:":
            self.capabilities = Capabilities(atomic=True, conditional=True, ordered=True, metadata=True, persistent=False)
        self._synchronous = synchronous
        self._table = table
        self._sql = Statements(table)
        self._rows = Rows(table, lambda: self.clock())
        self._file = File(self._path, table=table, synchronous=synchronous, timeout=timeout)
        self._inline: sqlite3.Connection | None = None  # that of the file
        self._reads = TickBudget(_INLINE_READS)
        self._commits = TickBudget(_INLINE_COMMITS)
        self._unchecked = 0  # bytes committed inline since the last checkpoint
        self._checkpointing = False

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
        self._sql = Statements(self._table, at_root=self.at_root)
        await self._file.open(read_only=self.read_only)
        self._inline = self._file.inline

    async def settle(self) -> None:
        await self._file.settle()

    async def aclose(self) -> None:
        self._inline = None
        await self._file.aclose()

    # Reading

    def read_now(self, key: str) -> bytes | NotNow | None:
        if self._inline is None or not self._reads.spend():
            return NOT_NOW
        try:
            row = self._inline.execute(self._sql.small, (key, self.clock())).fetchone()
        except sqlite3.Error as error:
            return self._file.unless_busy(error)
        if row is None:
            return None
        return NOT_NOW if row[0] is None else row[0]

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        if len(keys) <= _INLINE_READS:
            await self._reads.refilled()
        if len(keys) == 1:
            data = self.read_now(keys[0])
            if data is not NOT_NOW:
                return [data]
        else:

            def small(connection: sqlite3.Connection) -> list[bytes | None] | NotNow:
                rows = connection.execute(self._sql.small_many, (array(keys), self.clock())).fetchall()
                found: dict[str, bytes | None] = dict(rows)
                return NOT_NOW if None in found.values() else [found.get(key) for key in keys]

            values = self._look_now(small, len(keys))
            if values is not NOT_NOW:
                return values
        # Too many, too large, or in the way of another process.
        return await self._file.ask(lambda connection: self._rows.read(connection, keys))

    async def has(self, keys: Sequence[str]) -> list[bool]:
        def there(connection: sqlite3.Connection) -> set[str]:
            return {key for (key,) in connection.execute(self._sql.there_many, (array(keys), self.clock()))}

        found = self._look_now(there, len(keys))
        if found is NOT_NOW:
            found = await self._file.ask(there)
        return [key in found for key in keys]

    async def stat(self, keys: Sequence[str]) -> list[Stat | None]:
        def stats(connection: sqlite3.Connection) -> dict[str, Stat]:
            rows = connection.execute(self._sql.stat, (array(keys), self.clock()))
            return {
                key: Stat(size, f"{mtime:x}-{revision:x}", mtime, expires_at, custom)
                for key, size, revision, mtime, expires_at, custom in rows
            }

        found = await self._file.ask(stats)
        return [found.get(key) for key in keys]

    def _look_now(self, look: Callable[[sqlite3.Connection], T | NotNow], keys: int) -> T | NotNow:
        """What `look` finds of so many keys in the event loop, where they are few and nothing is in the way."""
        if self._inline is None or keys > _INLINE_READS or not self._reads.spend(keys // _KEYS_A_READ + 1):
            return NOT_NOW
        try:
            return look(self._inline)
        except sqlite3.Error as error:
            return self._file.unless_busy(error)

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
            self._file.unless_busy(error)
            return False
        self._committed(len(data))
        return True

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        if self._synchronous == "normal" and len(writes) <= _INLINE_COMMITS:
            await self._commits.refilled()
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
                self._file.unless_busy(error)
        (result,) = await self._file.change(lambda writer: self._rows.commit(writer, [(writes, expect)]))
        return result

    async def write_many(self, batches: Sequence[Batch]) -> list[list[bool] | KVStoreError | None]:
        return [*await self._file.change(lambda writer: self._rows.commit(writer, batches))]

    async def touch(self, key: str, expires_at: int | None) -> bool:
        arguments = (expires_at, key, self.clock())
        return await self._file.change(lambda writer: writer.execute(self._sql.touch, arguments).rowcount) > 0

    async def set_meta(self, key: str, custom: bytes | None) -> bool:
        arguments = (custom, key, self.clock())
        return await self._file.change(lambda writer: writer.execute(self._sql.custom, arguments).rowcount) > 0

    async def sweep(self) -> int | None:
        now = self.clock()
        try:
            while await self._file.change(lambda writer: writer.execute(self._sql.sweep, (now,)).rowcount) == SWEEP_STEP:
                pass
        except BackendError as error:
            if is_read_only(error.__cause__):  # those who may write sweep it
                return None
            raise
        due = await self._file.ask(lambda connection: connection.execute(self._sql.next_expiry).fetchone()[0])
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

    def _committed(self, size: int) -> None:
        """After an inline commit of `size` bytes: has the writer move the log to the file, when it has grown."""
        self._unchecked += size + 8192  # the pages that a small write touches
        if self._unchecked > _CHECKPOINT_BYTES:
            self._unchecked, self._checkpointing = 0, True
            self._file.checkpoint(self._checkpointed)

    def _checkpointed(self) -> None:
        self._checkpointing = False

    # Listing

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        low, high, strictly = bounds(prefix, after, reverse=reverse)
        among = self._sql.among.format(low=">" if strictly else ">=")
        order = f"ORDER BY key {'DESC' if reverse else 'ASC'} LIMIT ?"
        short = min(limit, _INLINE_SCAN)

        def page(connection: sqlite3.Connection, limit: int = limit) -> list[str]:
            live, now = self._live(connection)
            return [key for (key,) in connection.execute(f"SELECT key {among}{live} {order}", (low, high, *now, limit))]

        def short_page(connection: sqlite3.Connection) -> list[str] | NotNow:
            """Unless something has expired, for of that there may be any number of rows."""
            keys = NOT_NOW if self._live(connection)[0] else page(connection, short)
            return NOT_NOW if keys is not NOT_NOW and short == len(keys) < limit else keys

        # Most listings are short, whatever their limit is.
        found = self._look_now(short_page, short // 8 + 1)
        return await self._file.ask(page) if found is NOT_NOW else found

    def _live(self, connection: sqlite3.Connection) -> tuple[str, tuple[int, ...]]:
        """The condition for rows that have not expired, and its arguments: none where nothing has, as mostly.

        Then the keys are read from their index, in half the time.
        """
        now = (self.clock(),)
        return (f" AND {self._sql.live}", now) if connection.execute(self._sql.expired, now).fetchone() else ("", ())

    async def count(self, prefix: str) -> int:
        def counted(connection: sqlite3.Connection) -> int:
            live, now = self._live(connection)
            sql = f"SELECT count(*) {self._sql.among.format(low='>=')}{live}"
            return int(connection.execute(sql, (prefix, prefix_end(prefix), *now)).fetchone()[0])

        return await self._file.ask(counted)

    async def clear(self, prefix: str) -> int:
        ends = prefix, prefix_end(prefix)

        def cleared(writer: sqlite3.Connection) -> int:
            with transaction(writer):
                rows, count = writer.execute(self._sql.counts, (self.clock(), *ends)).fetchone()
                # All there is: its pages are freed without a look at the rows.
                if not prefix and (rows,) == writer.execute(self._sql.total).fetchone():
                    writer.execute(self._sql.clear_all)
                else:
                    writer.execute(self._sql.clear, ends)
            return int(count)

        return await self._file.change(cleared)
