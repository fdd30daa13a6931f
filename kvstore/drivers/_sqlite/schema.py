"""The schema: tables, and which version of them a file has."""

from __future__ import annotations

import sqlite3
import time

from kvstore.drivers._sqlite.connection import is_busy, transaction
from kvstore.errors import BackendError

SCHEMA_VERSION = 1
VERSIONS = "kvstore_schema"
"""The table that tells the versions, by table."""


def prepare(writer: sqlite3.Connection, path: str, table: str, timeout: float) -> None:
    """WAL mode and the tables, whoever of several processes comes first."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            writer.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:  # SQLite does not wait for this lock by itself
            if not is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    if _version(writer, table) == SCHEMA_VERSION:
        return
    with transaction(writer):
        _create(writer, path, table)


def _create(writer: sqlite3.Connection, path: str, table: str) -> None:
    version = _version(writer, table)
    if version is not None and version > SCHEMA_VERSION:
        raise BackendError(
            f"table {table!r} in {path} has schema version {version}, written by a newer kvstore than this one,"
            f" which knows {SCHEMA_VERSION}"
        )
    if version is None and writer.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
        raise BackendError(f"{path} has a table {table!r} that is another program's; choose another `table`")
    writer.execute(f"CREATE TABLE IF NOT EXISTS {VERSIONS} (name TEXT PRIMARY KEY, version INTEGER NOT NULL)")
    # The value stands last, so that the other columns of a large one are read without it. A rowid table: without
    # rowid, values over a few hundred bytes take three times the space.
    writer.execute(
        f"CREATE TABLE IF NOT EXISTS {table} (key TEXT NOT NULL PRIMARY KEY, expires_at INTEGER, mtime INTEGER NOT NULL,"
        " revision INTEGER NOT NULL DEFAULT 1, custom BLOB, value BLOB NOT NULL)"
    )
    writer.execute(f"CREATE INDEX IF NOT EXISTS {table}_expires_at ON {table} (expires_at) WHERE expires_at IS NOT NULL")
    writer.execute(f"INSERT OR IGNORE INTO {VERSIONS} VALUES (?, ?)", (table, SCHEMA_VERSION))


def _version(writer: sqlite3.Connection, table: str) -> int | None:
    if not writer.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (VERSIONS,)).fetchone():
        return None
    row = writer.execute(f"SELECT version FROM {VERSIONS} WHERE name = ?", (table,)).fetchone()
    return None if row is None else int(row[0])
