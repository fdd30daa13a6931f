"""A database file: its connections, and the threads that wait for it."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from typing import TypeVar

from kvstore.driver import NOT_NOW, NotNow
from kvstore.drivers._sqlite.connection import LONGEST_TIMEOUT, as_kvstore_error, is_busy
from kvstore.drivers._sqlite.schema import begin_log, check, prepare
from kvstore.drivers._sqlite.view import View, connect_to_read
from kvstore.errors import BackendUnavailable, UnsupportedOperation
from kvstore.worker import Worker

T = TypeVar("T")


class File:
    """The file `path`, or a database in memory, with `table` in it.

    `inline` is the connection of the event loop, which waits neither for a lock nor for the disk. All else is asked on two
    threads, one that writes and one that reads.
    """

    def __init__(self, path: str, *, table: str, synchronous: str, timeout: float) -> None:
        self.inline: sqlite3.Connection | None = None
        self._path = path
        self._table = table
        self._synchronous = synchronous
        self._timeout = timeout
        self._patience = timeout  # of the writer, in seconds
        self._in_memory = path == ":memory:"
        self._reading = Worker("kvstore sqlite reads")
        self._writing = Worker("kvstore sqlite writes")
        self._reader: sqlite3.Connection | None = None
        self._view: View | None = None  # where nothing is to be written, in place of reader and writer
        self._writer: sqlite3.Connection | None = None
        self._process: int | None = None
        """That opened the connections."""

    async def open(self, *, read_only: bool) -> None:
        if self._is_inherited:  # https://sqlite.org/howtocorrupt.html, 2.6
            raise UnsupportedOperation(
                "a SQLite file that was open when the process forked can't be used by the child;"
                " close the storage before the fork, or use one that was not used yet"
            )
        if self._writer is None and not (read_only and self._view is not None):
            await self._on(self._writing, lambda: self._open(read_only))

    @property
    def _is_inherited(self) -> bool:
        return self._process is not None and self._process != os.getpid()

    def _open(self, read_only: bool) -> None:
        if self._writer is not None:  # for an event loop that was abandoned meanwhile
            return
        if read_only and not self._in_memory:
            view = View(self._path, self._timeout)
            view.ask(lambda connection: check(connection, self._path, self._table))
            self.inline = None if view.is_fixed else connect_to_read(self._path, 0)
            self._process, self._view = os.getpid(), view
            return
        with ExitStack() as opened:
            writer = opened.enter_context(closing(self._connection(self._timeout)))
            prepare(writer, self._path, self._table, self._timeout)
            if not self._in_memory:
                reader = opened.enter_context(closing(self._connection(self._timeout)))
                inline = opened.enter_context(closing(self._connection(0)))
                # What it commits must not wait for the disk: the checkpoint, which does, is the writer's.
                inline.execute("PRAGMA wal_autocheckpoint = 0")
                if self._synchronous == "normal":
                    begin_log(inline)
                self._reader, self.inline = reader, inline
            self._process = os.getpid()
            self._view, self._writer = None, writer
            opened.pop_all()

    def _connection(self, timeout: float) -> sqlite3.Connection:
        timeout = min(timeout, LONGEST_TIMEOUT)
        connection = sqlite3.connect(self._path, timeout=timeout, isolation_level=None, check_same_thread=False)
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        return connection

    async def settle(self) -> None:
        """Returns when the changes that were asked for so far are over."""
        await self._writing.settle()

    async def aclose(self) -> None:
        if self._is_inherited:
            return
        if self.inline is not None:
            self.inline.close()
            self.inline = None
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

    async def ask(self, look: Callable[[sqlite3.Connection], T]) -> T:
        if self._in_memory:
            return await self._on(self._writing, lambda: look(_open_one(self._writer)))
        if self._view is not None:
            view = self._view
            return await self._on(self._reading, lambda: view.ask(look))
        return await self._on(self._reading, lambda: look(_open_one(self._reader)))

    async def change(self, change: Callable[[sqlite3.Connection], T]) -> T:
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

    def checkpoint(self, done: Callable[[], None]) -> None:
        """Has the writer move the log to the file, and call `done` on its thread."""

        def checkpoint() -> None:
            try:
                with suppress(sqlite3.Error):  # somebody is at it, and the next one comes; or the next write tells
                    writer = _open_one(self._writer)
                    writer.execute("PRAGMA wal_checkpoint(PASSIVE)")
                    begin_log(writer)
            finally:
                done()

        self._writing.submit(checkpoint)

    async def _on(self, worker: Worker, call: Callable[[], T]) -> T:
        try:
            return await worker.run(call)
        except sqlite3.Error as error:
            raise as_kvstore_error(error, self._path, self._timeout) from error

    def unless_busy(self, error: sqlite3.Error) -> NotNow:
        """Raises, unless a thread can wait for what is in the way of the event loop."""
        if not is_busy(error):
            raise as_kvstore_error(error, self._path, self._timeout) from error
        return NOT_NOW


def _open_one(connection: sqlite3.Connection | None) -> sqlite3.Connection:
    if connection is None:
        raise BackendUnavailable("the database was closed", maybe_written=False)
    return connection
