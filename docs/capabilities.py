"""Writes the table of what each driver promises into drivers.md, from what the drivers declare: `make docs`."""

from __future__ import annotations

from pathlib import Path

from kvstore import Driver
from kvstore.drivers.diskcache import DiskcacheDriver
from kvstore.drivers.fs import FsDriver
from kvstore.drivers.fsspec import FsspecDriver
from kvstore.drivers.memory import MemoryDriver
from kvstore.drivers.mongodb import MongodbDriver
from kvstore.drivers.mysql import MysqlDriver
from kvstore.drivers.postgresql import PostgresqlDriver
from kvstore.drivers.redis import RedisDriver
from kvstore.drivers.sqlite import SqliteDriver

PAGE = Path(__file__).parent / "drivers.md"
BEGIN, END = "<!-- capabilities -->\n", "<!-- end -->\n"

NAMES = ("atomic", "conditional", "every_key", "ordered", "expiry", "metadata", "watch", "persistent", "shared")
# Made, and never connected.
DRIVERS: dict[str, Driver] = {
    "`memory`": MemoryDriver(),
    "`fs`": FsDriver("data"),
    '`fs`, `layout="plain"`': FsDriver("data", layout="plain"),
    "`sqlite`": SqliteDriver("app.db"),
    "`diskcache`": DiskcacheDriver("cache"),
    "`postgresql`": PostgresqlDriver("postgresql://localhost/x"),
    "`mysql`": MysqlDriver("mysql://localhost/x"),
    "`redis`": RedisDriver("redis://localhost"),
    "`redis`, `index=False`": RedisDriver("redis://localhost", index=False),
    "`mongodb`": MongodbDriver("mongodb://localhost"),
    "`mongodb`, `replica_set=True`": MongodbDriver("mongodb://localhost", replica_set=True),
    "`fsspec` on S3": FsspecDriver("s3://bucket"),
    "`fsspec` on another file system": FsspecDriver("sftp://host/directory"),
}


def table() -> str:
    """In Markdown."""
    rows = [("driver", *NAMES), ("---",) * (1 + len(NAMES))]
    for driver, made in DRIVERS.items():
        rows.append((driver, *("yes" if getattr(made.capabilities, name) else "–" for name in NAMES)))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def written(text: str) -> str:
    """The page with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
