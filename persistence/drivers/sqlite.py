"""SQLite: one file."""

from __future__ import annotations

import os
from typing import Literal

from kvstore.drivers.sqlite import SqliteDriver
from persistence.places import PLACES


def sqlite_driver(
    *,
    path: str | os.PathLike[str] = PLACES["sqlite"].value,
    synchronous: Literal["full", "normal"] = "full",
    table: str = "kvstore",
    timeout: float = 30.0,
) -> SqliteDriver:
    """A driver for `create_persistence`; the options are those of `kvstore.drivers.sqlite.SqliteDriver`."""
    return SqliteDriver(path, synchronous=synchronous, table=table, timeout=timeout)
