"""What is done with rows, by whatever connection and thread."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence

import orjson

from kvstore.driver import Batch, Expect, Write
from kvstore.drivers._sqlite.connection import snapshot, transaction
from kvstore.drivers._sqlite.statements import INLINE_BYTES, Statements

_PIECE = 2**20


class LargeRowError(Exception):
    """A row that is to be overwritten or removed is too large for that to be done at once."""


class Rows:
    """The rows of one table. `clock` tells which have expired."""

    def __init__(self, table: str, clock: Callable[[], int]) -> None:
        self._table = table
        self._sql = Statements(table)
        self._clock = clock

    def read(self, connection: sqlite3.Connection, keys: Sequence[str]) -> list[bytes | None]:
        rows = connection.execute(self._sql.many, (array(keys), self._clock())).fetchall()
        if any(data is None for _, _, data in rows):
            with snapshot(connection):
                rows = [
                    (key, rowid, self._read_large(connection, rowid) if data is None else data)
                    for key, rowid, data in connection.execute(self._sql.many, (array(keys), self._clock())).fetchall()
                ]
        found: dict[str, bytes | None] = {key: data for key, _, data in rows}
        return [found.get(key) for key in keys]

    def _read_large(self, connection: sqlite3.Connection, rowid: int) -> bytes:
        """In pieces: read as one, 30 MB hold the interpreter, and with it the event loop, for 20 to 130 ms."""
        with connection.blobopen(self._table, "value", rowid, readonly=True) as blob:
            return b"".join(iter(lambda: blob.read(_PIECE), b""))

    def commit(
        self, connection: sqlite3.Connection, batches: Sequence[Batch], *, small: bool = False
    ) -> list[list[bool] | None]:
        """All `batches` in one transaction, so in one wait for the disk. `small`: raises `LargeRowError` for large old rows."""
        with transaction(connection):
            return [self._apply(connection, writes, expect, small) for writes, expect in batches]

    def _apply(
        self, connection: sqlite3.Connection, writes: Sequence[Write], expect: Expect | None, small: bool
    ) -> list[bool] | None:
        now = self._clock()
        if expect and not self._holds(connection, expect, now):
            return None
        keys = [key for key, _, _ in writes]
        if expect and not small and all(key in expect for key in keys):
            there = {key for key, data in expect.items() if data is not None}
        else:
            there = self._there(connection, keys, now, small)
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

    def _there(self, connection: sqlite3.Connection, keys: Sequence[str], now: int, small: bool) -> set[str]:
        one = len(keys) == 1
        old = connection.execute(*((self._sql.old, (now, keys[0])) if one else (self._sql.old_many, (now, array(keys)))))
        there = set()
        for key, lives, is_large in old.fetchall():
            if small and is_large:
                raise LargeRowError
            if lives:
                there.add(key)
        return there

    def _holds(self, connection: sqlite3.Connection, expect: Expect, now: int) -> bool:
        found = {key: (rowid, data) for key, rowid, data in connection.execute(self._sql.many, (array(list(expect)), now))}
        for key, expected in expect.items():
            rowid, data = found.get(key, (None, None))
            if (rowid is None) is not (expected is None):
                return False
            if rowid is None or expected is None:
                continue
            if data is None and len(expected) > INLINE_BYTES:
                if not self._is_large(connection, rowid, expected):
                    return False
            elif data != expected:
                return False
        return True

    def _is_large(self, connection: sqlite3.Connection, rowid: int, expected: bytes) -> bool:
        with connection.blobopen(self._table, "value", rowid, readonly=True) as blob:
            pieces = (expected[start : start + _PIECE] for start in range(0, len(expected), _PIECE))
            return len(blob) == len(expected) and all(blob.read(_PIECE) == piece for piece in pieces)

    def _write_large(self, connection: sqlite3.Connection, key: str, data: bytes, rest: Sequence[int | None]) -> None:
        """In pieces, for the same reason as in `_read_large`."""
        connection.execute(self._sql.upsert.replace("?, ?", "?, zeroblob(?)", 1), (key, len(data), *rest))
        (rowid,) = connection.execute(self._sql.rowid, (key,)).fetchone()
        with connection.blobopen(self._table, "value", rowid) as blob:
            for start in range(0, len(data), _PIECE):
                blob.write(memoryview(data)[start : start + _PIECE])


def array(keys: Sequence[str]) -> str:
    """As `json_each` takes it."""
    return orjson.dumps(keys if isinstance(keys, list | tuple) else list(keys)).decode()
