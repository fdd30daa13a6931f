"""The schema: tables, and which version of them a file has."""

from __future__ import annotations

import sqlite3
import time
from contextlib import suppress

from kvstore.drivers._sqlite.connection import is_busy, transaction
from kvstore.errors import BackendError

SCHEMA_VERSION = 1
VERSIONS = "kvstore_schema"
"""The table that tells the versions, by table."""


def prepare(writer: sqlite3.Connection, path: str, table: str, timeout: float) -> None:
    """WAL mode and the tables, whoever of several processes comes first. What is another program's is left as it was."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            is_made = _check(writer, path, table)
            (mode,) = writer.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as error:  # SQLite does not wait for this lock by itself
            if not is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    if mode not in ("wal", "memory"):
        raise BackendError(f"{path} can't be in WAL mode, only in {mode!r}; WAL needs a local disk")
    if is_made:
        return
    with transaction(writer):
        if not _check(writer, path, table):  # somebody else may have made it
            _create(writer, table)


def check(connection: sqlite3.Connection, path: str, table: str) -> None:
    """Raises `BackendError` where the table is not there or can't be used."""
    if not _check(connection, path, table):
        raise BackendError(f"{path} has no table {table!r}, and a read-only mount makes none")


def begin_log(writer: sqlite3.Connection) -> None:
    """Commits, and changes nothing: the first commit of a log that begins anew waits for the disk, even in `normal` mode."""
    with suppress(sqlite3.OperationalError), transaction(writer):  # where it is locked or only to be read, nobody commits
        writer.execute(f"INSERT INTO {VERSIONS} VALUES ('', 0)")
        writer.execute(f"DELETE FROM {VERSIONS} WHERE name = ''")


def _check(writer: sqlite3.Connection, path: str, table: str) -> bool:
    """Whether the table is there. Raises `BackendError` where it can't be used."""
    is_there, version = _is_there(writer, table), _version(writer, table)
    if version is not None and version > SCHEMA_VERSION:
        raise BackendError(
            f"table {table!r} in {path} has schema version {version}, written by a newer kvstore than this one,"
            f" which knows {SCHEMA_VERSION}"
        )
    if version is None and is_there:
        raise BackendError(f"{path} has a table {table!r} that is another program's; choose another `table`")
    if writer.execute("PRAGMA encoding").fetchone() != ("UTF-8",):  # only its order is that of the code points
        raise BackendError(f"{path} has another encoding than UTF-8; choose another file")
    return is_there


def _create(writer: sqlite3.Connection, table: str) -> None:
    writer.execute(f"CREATE TABLE IF NOT EXISTS {VERSIONS} (name TEXT PRIMARY KEY, version INTEGER NOT NULL)")
    # The value stands last, so that the other columns of a large one are read without it. A rowid table: without
    # rowid, values over a few hundred bytes take three times the space.
    writer.execute(
        f'CREATE TABLE IF NOT EXISTS "{table}" (key TEXT NOT NULL PRIMARY KEY, expires_at INTEGER, mtime INTEGER NOT NULL,'
        " revision INTEGER NOT NULL DEFAULT 1, custom BLOB, value BLOB NOT NULL)"
    )
    writer.execute(f'CREATE INDEX IF NOT EXISTS "{table}_expires_at" ON "{table}" (expires_at) WHERE expires_at IS NOT NULL')
    writer.execute(f"INSERT OR IGNORE INTO {VERSIONS} VALUES (?, ?)", (table, SCHEMA_VERSION))


def _version(writer: sqlite3.Connection, table: str) -> int | None:
    if not _is_there(writer, VERSIONS):
        return None
    row = writer.execute(f"SELECT version FROM {VERSIONS} WHERE name = ?", (table,)).fetchone()
    return None if row is None else int(row[0])


def _is_there(writer: sqlite3.Connection, name: str) -> bool:
    return writer.execute("SELECT 1 FROM sqlite_master WHERE name = ? COLLATE NOCASE", (name,)).fetchone() is not None
