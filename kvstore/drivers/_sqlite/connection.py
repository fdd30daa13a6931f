"""Transactions, and what SQLite's errors mean."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from kvstore.errors import BackendError, BackendTimeout, BackendUnavailable, CorruptValueError, KVStoreError

LONGEST_TIMEOUT = 2_000_000.0  # seconds; SQLite counts milliseconds in 32 bits

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_UNREACHABLE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH)


@contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Several reads of one moment."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:  # SQLite may have ended it by itself after an error
            connection.execute("COMMIT")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, with nobody else writing from its beginning on."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite has ended it by itself where the disk is full
            connection.execute("ROLLBACK")
        raise


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection is in the way for now."""
    return _code(error) in _BUSY


def is_read_only(error: BaseException | None) -> bool:
    """Whether this process may not write to the file."""
    return isinstance(error, sqlite3.Error) and _code(error) == sqlite3.SQLITE_READONLY


def as_kvstore_error(error: sqlite3.Error, path: str, timeout: float) -> KVStoreError:
    """What to tell the caller."""
    code = _code(error)
    if code in _BUSY:
        return BackendTimeout(f"{path} was locked by another program for {timeout:g} seconds", maybe_written=False)
    if code == sqlite3.SQLITE_NOTADB:
        return BackendError(f"{path} is no SQLite database: {error}", maybe_written=False)
    if code == sqlite3.SQLITE_CORRUPT:
        return CorruptValueError(f"{path} is damaged: {error}")
    if code in _UNREACHABLE:
        return BackendUnavailable(f"{path} can't be opened: {_obstacle(path, error)}", maybe_written=False)
    if code == sqlite3.SQLITE_FULL:
        return BackendError(f"the disk of {path} is full", maybe_written=False)
    if code == sqlite3.SQLITE_READONLY:
        return BackendError(f"{path} can only be read", maybe_written=False)
    if code == sqlite3.SQLITE_TOOBIG:
        return BackendError("the value is too large for SQLite", maybe_written=False)
    return BackendError(f"{path}: {error}")


def _obstacle(path: str, error: sqlite3.Error) -> str:
    directory = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        return "it is a directory"
    if not os.path.isdir(directory):
        return f"there is no directory {directory}"
    if not os.path.exists(path) and os.access(directory, os.W_OK):  # else it would have been made
        return "it is not there, and a read-only mount makes none"
    return f"{error}; are its permissions right?"


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
