"""What a driver has to know of its SQL server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

from kvstore.drivers._sql.connection import Connection, transaction
from kvstore.drivers._sql.statements import PIECE, Statements
from kvstore.errors import BackendError

VERSIONS = "kvstore_schema"
"""The table that tells the schema's version, by table."""
SCHEMA_VERSION = 1
STEP = 5000
"""Rows that a sweep or a clear removes at once."""
_ROW_BYTES = 64


class Row(NamedTuple):
    """One value to be stored."""

    key: str
    data: bytes
    expires_at: int | None
    mtime: int
    revision: int
    """No other write has the same. It is even, and one more where the key was there, so that the row itself tells."""


class Fault(NamedTuple):
    """What an error of the server means."""

    kind: type[BackendError]
    message: str
    again: bool = False
    """Nothing was done, and the next time it may be."""
    usable: bool = True
    """The connection can go on, and nothing was written."""


class Server(ABC):
    """One kind of SQL server, and one table on it. Every statement sees what was committed before it began."""

    name: ClassVar[str]
    client: ClassVar[str]
    """The client library that is used where the URL names none."""
    schemes: ClassVar[dict[str, str]]
    """Of URLs, with what SQLAlchemy calls them."""
    options: ClassVar[tuple[str, ...]]
    """What may stand in a URL's query besides the driver's own options."""
    here: ClassVar[str]
    """The schema that is used where none is named."""
    among: ClassVar[str]
    digest: ClassVar[str]
    """Of a value: SHA-256."""
    time: ClassVar[str]
    """The server's own, in milliseconds since 1970."""
    largest = 10**9
    """Bytes that a value may have."""
    piece = PIECE
    """Bytes that one statement carries."""
    key_out: Callable[[str], Any] = str
    """A key as the server is given it."""
    key_in: Callable[[Any], str] = str
    """A key as the server gives it."""
    holds_all = False
    """Whether a deadlock costs so much that a transaction makes the rows that are missing before all else, in order."""

    def __init__(self, schema: str | None, table: str) -> None:
        self.schema = f"'{schema}'" if schema else self.here
        self.table = table
        place = f'"{schema}".' if schema else ""
        self.qualified, self.versions = f'{place}"{table}"', f'{place}"{VERSIONS}"'
        self.sql = Statements(self.qualified, self.among, self.digest, self.time)

    def keys_out(self, keys: Iterable[str]) -> Sequence[Any]:
        return [*map(self.key_out, keys)]

    @abstractmethod
    def connect_arguments(self, client: str, query: dict[str, str]) -> dict[str, Any]:
        """What the client library is given for the query of a URL. Raises `ValueError` or `OSError` where it is wrong."""

    @abstractmethod
    async def begin(self, connection: Connection, patience: float) -> None:
        """Makes the settings of a new connection, and tells its session. A lock is waited for at most `patience` seconds."""

    @abstractmethod
    async def end(self, connection: Connection, session: str) -> bool:
        """Ends another session, with what it is doing. Returns whether it was there: it is over once it is not any more."""

    @abstractmethod
    async def look_at(self, connection: Connection) -> None:
        """Raises `BackendError` where the server can't be used."""

    @abstractmethod
    async def create(self, connection: Connection) -> None:
        """Makes the tables, whoever of several programs comes first."""

    @abstractmethod
    async def apply(self, connection: Connection, rows: Sequence[Row], removes: Sequence[str], now: int) -> set[str]:
        """Stores and removes. Returns which of the keys were there."""

    @abstractmethod
    async def add(self, connection: Connection, rows: Sequence[Row], now: int) -> set[str]:
        """Stores each of small `rows` whose key is absent. Returns which."""

    async def apply_in_steps(self, connection: Connection, rows: Sequence[Row], removes: Sequence[str], now: int) -> set[str]:
        """`apply` in a transaction of several statements."""
        keys = sorted([*(row.key for row in rows), *removes])
        async with transaction(connection):
            if self.holds_all:
                await self.hold(connection, keys)
            locked = await connection.fetch(self.sql.lock_keys, self.keys_out(keys), now)
            # What another program adds meanwhile was not found, and is not locked: it stays.
            if gone := sorted({self.key_in(name) for name, _ in locked}.intersection(removes)):
                await connection.change(self.sql.remove, self.keys_out(gone))
            await self.put(connection, rows, now)
        return {self.key_in(name) for name, lives in locked if lives}

    async def store(self, connection: Connection, rows: Sequence[Row], now: int) -> None:
        """Stores, all or nothing, and does not ask what was there."""
        if self.is_one_share(rows):
            await self.put_share(connection, rows, now)
        else:
            await self.apply_in_steps(connection, rows, (), now)

    async def put(self, connection: Connection, rows: Sequence[Row], now: int) -> None:
        """Stores, in a transaction."""
        for share in self.shares([row for row in rows if len(row.data) <= self.piece]):
            await self.put_share(connection, share, now)
        for row in rows:
            if len(row.data) > self.piece:
                await self.put_large(connection, row, now)

    @abstractmethod
    async def put_share(self, connection: Connection, rows: Sequence[Row], now: int) -> None:
        """Stores what one statement carries."""

    @abstractmethod
    async def put_large(self, connection: Connection, row: Row, now: int) -> None:
        """Stores one value that is sent in pieces, in a transaction: 30 MB in one would hold the event loop."""

    def shares(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        """Small `rows`, in parts that one statement carries each."""
        share: list[Row] = []
        size = 0
        for row in rows:
            size += _size(row)
            if share and size > self.piece:
                yield share
                share, size = [], _size(row)
            share.append(row)
        if share:
            yield share

    def is_one_share(self, rows: Sequence[Row]) -> bool:
        return sum(map(_size, rows)) <= self.piece

    @abstractmethod
    async def hold(self, connection: Connection, keys: Sequence[str]) -> None:
        """Makes expired rows for absent keys, and locks those of the others, in a transaction."""

    @abstractmethod
    async def sweep_some(self, connection: Connection, now: int) -> int:
        """Removes at most `STEP` expired rows. Returns how many."""

    @abstractmethod
    async def clear_some(self, connection: Connection, low: Any, high: Any, now: int) -> int:
        """Removes at most `STEP` of the keys from `low` to before `high`. Returns how many."""

    @abstractmethod
    def fault(self, error: BaseException) -> Fault | None:
        """What `error` means if it is the server's."""

    async def is_made(self, connection: Connection) -> bool:
        """Whether the table is there. Raises `BackendError` where it can't be used."""
        sql = f"SELECT table_name FROM information_schema.tables WHERE table_schema = {self.schema} AND table_name IN ($1, $2)"
        found = {
            name.decode() if isinstance(name, bytes) else name for (name,) in await connection.fetch(sql, self.table, VERSIONS)
        }
        version = None
        if VERSIONS in found:
            for (version,) in await connection.fetch(f"SELECT version FROM {self.versions} WHERE name = $1", self.table):
                if version > SCHEMA_VERSION:
                    raise BackendError(
                        f"table {self.table!r} has schema version {version}, written by a newer kvstore than this one,"
                        f" which knows {SCHEMA_VERSION}"
                    )
        if version is None and self.table in found:
            raise BackendError(f"there is a table {self.table!r} that is another program's; choose another `table`")
        return self.table in found


def _size(row: Row) -> int:
    return len(row.data) + len(row.key) + _ROW_BYTES
