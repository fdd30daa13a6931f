"""The project's own drivers pass the kit that others' drivers pass."""

from __future__ import annotations

from pathlib import Path

from kvstore.drivers.fs import FsDriver
from kvstore.drivers.sqlite import SqliteDriver
from kvstore.testing import DriverSuite


class TestSqlite(DriverSuite):
    """Every write waits for the disk."""

    def make_driver(self, path: Path) -> SqliteDriver:
        return SqliteDriver(path / "store.db")


class TestSqliteNormal(DriverSuite):
    """Small writes run in the event loop."""

    def make_driver(self, path: Path) -> SqliteDriver:
        return SqliteDriver(path / "store.db", synchronous="normal")


class TestFs(DriverSuite):
    """A directory tree, which holds every key beside every other."""

    def make_driver(self, path: Path) -> FsDriver:
        return FsDriver(path / "store")


class TestFsPlain(DriverSuite):
    """Any directory as it is, which can't hold every key."""

    def make_driver(self, path: Path) -> FsDriver:
        return FsDriver(path / "store", layout="plain")
