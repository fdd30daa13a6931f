"""A SQLite file that is only read, also where this process may write neither to it nor beside it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import quote

from kvstore.drivers._sqlite.connection import LONGEST_TIMEOUT, is_busy

T = TypeVar("T")


class View:
    """Looks at the file `path`, which has to be there, and leaves it and its directory as they are.

    In WAL mode SQLite makes files beside it. Where it may not, and nobody who may has the file open, it is read as one that
    does not change (https://sqlite.org/uri.html, `immutable`), and anew whenever it did.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._log = f"{path}-wal"
        self._timeout = timeout
        self._connection: sqlite3.Connection | None = None
        self._version: tuple[object, ...] | None = None  # of what is read as unchanging

    def ask(self, look: Callable[[sqlite3.Connection], T]) -> T:
        """What `look` finds, of one moment."""
        while True:
            connection = self._connection or self._open()
            try:
                found = look(connection)
            except sqlite3.Error:  # perhaps since it changed
                if self._is_current():
                    raise
            else:
                if self._is_current():
                    return found
            self.close()

    @property
    def is_fixed(self) -> bool:
        """Whether it is read as one that does not change."""
        return self._version is not None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        self._version = None
        connection = connect_to_read(self._path, self._timeout)
        try:
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            connection.close()
            if is_busy(error) or os.path.exists(self._log):  # whose rows would be missed
                raise
            self._version = self._seen()
            connection = connect_to_read(self._path, self._timeout, "&immutable=1")
        self._connection = connection
        return connection

    def _is_current(self) -> bool:
        return self._version is None or self._version == self._seen()

    def _seen(self) -> tuple[object, ...]:
        try:
            about = os.stat(self._path)
        except OSError:  # opening it says why
            return ()
        return about.st_mtime_ns, about.st_ctime_ns, about.st_size, about.st_ino, os.path.exists(self._log)


def connect_to_read(path: str, timeout: float, more: str = "") -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(path)}?mode=ro{more}",
        timeout=min(timeout, LONGEST_TIMEOUT),
        isolation_level=None,
        check_same_thread=False,
        uri=True,
    )
