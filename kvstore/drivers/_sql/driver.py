"""A driver for a table of an SQL server. What the servers differ in is their `Server`'s."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from secrets import randbits
from typing import Any, ClassVar, NamedTuple, Self

from kvstore.clock import Clock
from kvstore.driver import Batch, Capabilities, Driver, Expect, Stat, Write
from kvstore.drivers._options import check_client, check_query, check_seconds, own_query, parted
from kvstore.drivers._sql.connection import Connection, transaction
from kvstore.drivers._sql.pool import Pool
from kvstore.drivers._sql.server import STEP, VERSIONS, Row, Server
from kvstore.drivers._sql.statements import PIECE
from kvstore.errors import BackendTimeout, ConfigError, InvalidValueError, KVStoreError
from kvstore.keys import bounds, prefix_end
from kvstore.lifetime import Lifetime

_TRIES_OF_PIECES = 10
_Wanted = Mapping[str, tuple[bytes, bytes] | None]
"""What must be there: a value and its digest."""
_LOGIN = re.compile(r"[^:/]*(?::[^@]*)?@")
"""What SQLAlchemy takes: a password may hold all but an `@`."""
_OWN_QUERY = {"table": str, "schema": str, "connections": int, "connect_timeout": float, "timeout": float}


class _New(NamedTuple):
    """A value that an earlier one of several writes gave a key."""

    data: bytes


class SqlDriver(Driver):
    """Everything that the drivers for SQL servers share. A plain write or a read is one statement, and one answer."""

    capabilities = Capabilities(atomic=True, conditional=True, ordered=True, metadata=True, shared=True)
    server: ClassVar[type[Server]]

    lanes = 2

    def __init__(
        self,
        url: str | None = None,
        *,
        engine: Any = None,
        table: str = "kvstore",
        schema: str | None = None,
        connections: int = 4,
        connect_timeout: float = 5.0,
        timeout: float = 10.0,
    ) -> None:
        if (url is None) == (engine is None):
            raise ConfigError(
                f"give either a url, such as {self.name}://user@localhost/database, or an engine", driver=self.name
            )
        check_client(self.name, "engine", engine, "an AsyncEngine of SQLAlchemy", is_one=hasattr(engine, "sync_engine"))
        self._address = "an engine"
        if url is not None:
            scheme, marks, rest = url.partition("://")
            scheme = scheme.lower()
            if not marks or not re.fullmatch(rf"({'|'.join(self.server.schemes)})(\+\w+)?", scheme):
                starts = " or ".join(f"{scheme}://" for scheme in self.server.schemes)
                raise ConfigError(f"a URL of {self.server.name} starts with {starts}", driver=self.name)
            self._address = f"{scheme}://{parted(url, _LOGIN, self.name).address}"
            check_query(rest.partition("?")[2], _OWN_QUERY, self.server.options, self.name)
            url = f"{scheme}://{rest}"
        for option, name in (("table", table), ("schema", schema or "x")):
            if not re.fullmatch(rf"(?!{VERSIONS}$)[a-z_][a-z0-9_]{{0,50}}", name, re.IGNORECASE | re.ASCII):
                raise ConfigError(f"{option} is a plain name of letters, digits and _", driver=self.name)
        if not connections > 0:
            raise ConfigError(f"connections is a positive number, not {connections!r}", driver=self.name)
        check_seconds(self.name, connect_timeout=connect_timeout, timeout=timeout)
        self._server = self.server(schema, table)
        self._sql = self._server.sql
        self._time = self.clock = Clock()
        self._pool = Pool(self._server, self._time, url, engine, connections, connect_timeout, timeout)
        self._open = Lifetime()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address!r}, table={self._server.qualified!r})"

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """A URL as SQLAlchemy has it; the options of this driver may stand in its query."""
        address, own = own_query(url, _OWN_QUERY, cls.__module__.rpartition(".")[2])
        return cls(address, **(own | options))

    async def connect(self) -> None:
        await self._open.begin(self._pool.aclose)
        self._pool.open()
        await self._pool.ask(self._prepare)

    async def _prepare(self, connection: Connection) -> None:
        await self._server.look_at(connection)
        if not await self._server.is_made(connection):
            await self._server.create(connection)

    async def aclose(self) -> None:
        await self._open.aclose()

    # Reading

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        names = self._server.keys_out(keys)
        rows: Sequence[Any]
        if len(keys) == 1:
            sql, name = self._sql.read, names[0]
            rows = await self._pool.ask(lambda connection: connection.fetch(sql, name, self.clock()))
            found = {name: rows[0][0]} if rows else {}
        else:
            sql = self._sql.read_many
            rows = await self._pool.ask(lambda connection: connection.fetch(sql, names, self.clock()))
            found = dict(rows)
        if None in found.values():
            for name in [name for name, data in found.items() if data is None]:
                found[name] = await self._large(name)
        return [*map(found.get, names)]

    async def _large(self, name: Any) -> bytes | None:
        """In pieces, all of one revision."""
        for _ in range(_TRIES_OF_PIECES):
            data, revision = bytearray(), None
            while True:
                rows = await self._pool.ask(partial(self._piece, name, len(data) + 1))
                if not rows:
                    return None
                [(found, piece)] = rows
                if revision not in (None, found):
                    break  # overwritten meanwhile
                revision = found
                data += piece
                if len(piece) < PIECE:
                    return bytes(data)
        raise BackendTimeout("the value was overwritten again and again while it was read", key=self._server.key_in(name))

    async def _piece(self, name: Any, at: int, connection: Connection) -> Sequence[Sequence[Any]]:
        return await connection.fetch(self._sql.piece, name, self.clock(), at, PIECE)

    async def has(self, keys: Sequence[str]) -> list[bool]:
        names = self._server.keys_out(keys)
        rows = await self._pool.ask(lambda connection: connection.fetch(self._sql.there, names, self.clock()))
        found = {self._server.key_in(name) for (name,) in rows}
        return [key in found for key in keys]

    async def stat(self, keys: Sequence[str]) -> list[Stat | None]:
        names = self._server.keys_out(keys)
        rows = await self._pool.ask(lambda connection: connection.fetch(self._sql.stat, names, self.clock()))
        found = {
            self._server.key_in(name): Stat(size, f"{revision:x}", mtime, expires_at, custom)
            for name, size, revision, mtime, expires_at, custom in rows
        }
        return [found.get(key) for key in keys]

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        low, high, strictly = bounds(prefix, after, reverse=reverse)
        sql = self._sql.scan.format(low=">" if strictly else ">=", order="DESC" if reverse else "ASC")
        ends = self._server.keys_out([low, high])
        rows = await self._pool.ask(lambda connection: connection.fetch(sql, *ends, self.clock(), limit))
        return [self._server.key_in(name) for (name,) in rows]

    async def count(self, prefix: str) -> int:
        ends = self._server.keys_out([prefix, prefix_end(prefix)])
        [(count,)] = await self._pool.ask(lambda connection: connection.fetch(self._sql.count, *ends, self.clock()))
        return int(count)

    # Writing

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        self._check(writes)
        rows, removes = self._rows(writes)
        if not expect:
            there = await self._pool.ask(
                lambda connection: self._server.apply(connection, rows, removes, self.clock()), writes=True
            )
            return [key in there for key, _, _ in writes]
        if len(writes) == 1 and [*expect] == [writes[0][0]] and self._are_small(writes[0][1], expect[writes[0][0]]):
            return await self._pool.ask(lambda connection: self._swap(connection, writes[0], expect[writes[0][0]]), writes=True)
        [result] = await self._decided([(writes, expect)])
        return result

    async def put(self, writes: Sequence[Write]) -> None:
        self._check(writes)
        rows, _ = self._rows(writes)
        await self._pool.ask(lambda connection: self._server.store(connection, rows, self.clock()), writes=True)

    async def write_many(self, batches: Sequence[Batch]) -> list[list[bool] | KVStoreError | None]:
        results: list[list[bool] | KVStoreError | None] = [None] * len(batches)
        sound: list[int] = []
        for place, (writes, _) in enumerate(batches):
            try:
                self._check(writes)
                sound.append(place)
            except InvalidValueError as error:
                results[place] = error
        some = [batches[place] for place in sound]
        answers = await (self._added(some) if self._only_add(some) else self._decided(some))
        for place, result in zip(sound, answers, strict=True):
            results[place] = result
        return results

    async def _added(self, batches: Sequence[Batch]) -> list[list[bool] | None]:
        """Many tasks that each add one key: one statement."""
        rows, _ = self._rows([write for [write], _ in batches])
        added = await self._pool.ask(lambda connection: self._server.add(connection, rows, self.clock()), writes=True)
        return [[False] if write[0] in added else None for [write], _ in batches]

    async def _swap(self, connection: Connection, write: Write, wanted: bytes | None) -> list[bool] | None:
        """One key, if it holds `wanted`: one statement."""
        now, name = self.clock(), self._server.key_out(write[0])
        rows, _ = self._rows([write])
        if wanted is not None:
            if rows:
                changed = await connection.change(self._sql.compare, name, now, wanted, *rows[0][1:])
            else:
                changed = await connection.change(self._sql.compare_remove, name, now, wanted)
            return [True] if changed else None
        if rows:
            return [False] if await self._server.add(connection, rows, now) else None
        return None if await connection.fetch(self._sql.there, self._server.keys_out([write[0]]), now) else [False]

    async def _decided(self, batches: Sequence[Batch]) -> list[list[bool] | None]:
        size = sum(len(data or b"") for _, expect in batches for data in (expect or {}).values())
        wanted = _wanted(batches) if size <= PIECE else await asyncio.to_thread(_wanted, batches)
        return await self._pool.ask(lambda connection: self._decide(connection, batches, wanted), writes=True)

    async def _decide(
        self, connection: Connection, batches: Sequence[Batch], wanted: Sequence[_Wanted]
    ) -> list[list[bool] | None]:
        """Several writes, with or without conditions, in one transaction that locks all their keys in one order."""
        server, now = self._server, self.clock()
        keys = sorted({key for writes, expect in batches for key in (*(expect or ()), *(write[0] for write in writes))})
        held = sorted({key for conditions in wanted for key, data in conditions.items() if data is None})
        if server.holds_all and (held or _may_add(batches)):
            held = keys
        results: list[list[bool] | None] = []
        final: dict[str, Write] = {}
        removed: set[str] = set()
        async with transaction(connection):
            if held:
                await server.hold(connection, held)
            locked = await connection.fetch(self._sql.lock, server.keys_out(keys), now)
            # What each key holds, as its digest, or as the value that an earlier one of the batches gave it.
            found: dict[str, bytes | _New] = {server.key_in(name): digest for name, lives, digest in locked if lives}
            there = {server.key_in(name) for name, _, _ in locked}
            dead = there - found.keys()
            for (writes, _), conditions in zip(batches, wanted, strict=True):
                if all(_holds(found.get(key), data) for key, data in conditions.items()):
                    results.append([write[0] in found for write in writes])
                    for write in writes:
                        final[write[0]] = write
                        if write[1] is None:
                            found.pop(write[0], None)
                            removed.add(write[0])
                        else:
                            found[write[0]] = _New(write[1])
                else:
                    results.append(None)
            rows, _ = self._rows(final.values())
            # Also what is set again, for its metadata; but nothing that is not locked, which another program added meanwhile.
            if gone := sorted((removed & there) | dead.difference(final)):
                await connection.change(self._sql.remove, server.keys_out(gone))
            if rows:
                await server.put(connection, rows, now)
        return results

    async def touch(self, key: str, expires_at: int | None) -> bool:
        return await self._update(self._sql.touch, key, expires_at)

    async def set_meta(self, key: str, custom: bytes | None) -> bool:
        self._check_size("metadata", key, custom)
        return await self._update(self._sql.custom, key, custom)

    async def _update(self, sql: str, key: str, value: int | bytes | None) -> bool:
        name = self._server.key_out(key)
        return await self._pool.ask(lambda connection: connection.change(sql, name, self.clock(), value), writes=True) > 0

    async def clear(self, prefix: str) -> int:
        low, high = self._server.keys_out([prefix, prefix_end(prefix)])
        total = 0
        while True:
            count = await self._pool.ask(
                lambda connection: self._server.clear_some(connection, low, high, self.clock()), writes=True
            )
            total += count
            if count < STEP:
                return total

    async def sweep(self) -> int | None:
        at = await self._next_expiry()  # which sets the clock, before anything is removed by it
        if at is None or at > self.clock():
            return at
        while await self._pool.ask(lambda connection: self._server.sweep_some(connection, self.clock()), writes=True) == STEP:
            pass
        return await self._next_expiry()

    async def _next_expiry(self) -> int | None:
        [at] = await self._pool.ask(lambda connection: self._pool.told_time(connection, self._sql.next_expiry))
        return None if at is None else int(at)

    def _rows(self, writes: Iterable[Write]) -> tuple[list[Row], list[str]]:
        """What is to be stored, and what to be removed; both by key, so that two writers lock in one order."""
        now, revision, rows, removes = self._time(), 2 * randbits(60), [], []
        for key, data, expires_at in sorted(writes, key=itemgetter(0)):
            if data is None:
                removes.append(key)
            else:
                rows.append(Row(key, data, expires_at, now, revision))
                revision += 2
        return rows, removes

    def _only_add(self, batches: Sequence[Batch]) -> bool:
        """Whether each adds one small value under a key of its own."""
        keys = {
            writes[0][0]
            for writes, expect in batches
            if len(writes) == 1 and writes[0][1] and self._are_small(writes[0][1]) and expect == {writes[0][0]: None}
        }
        return len(keys) == len(batches)

    def _are_small(self, *values: bytes | None) -> bool:
        return all(data is None or len(data) <= self._server.piece for data in values)

    def _check(self, writes: Sequence[Write]) -> None:
        for key, data, _ in writes:
            self._check_size("value", key, data)

    def _check_size(self, what: str, key: str, data: bytes | None) -> None:
        if data is not None and len(data) > self._server.largest:
            largest = f"{self._server.name} takes at most {self._server.largest:,}"
            raise InvalidValueError(f"the {what} has {len(data):,} bytes, and this {largest}", key=key)


def _may_add(batches: Sequence[Batch]) -> bool:
    """Whether a key is set that may be absent."""
    return any(data is not None and not (expect and key in expect) for writes, expect in batches for key, data, _ in writes)


def _wanted(batches: Sequence[Batch]) -> list[_Wanted]:
    return [
        {key: None if data is None else (data, hashlib.sha256(data).digest()) for key, data in (expect or {}).items()}
        for _, expect in batches
    ]


def _holds(found: bytes | _New | None, wanted: tuple[bytes, bytes] | None) -> bool:
    if found is None or wanted is None:
        return found is None and wanted is None
    return found.data == wanted[0] if isinstance(found, _New) else found == wanted[1]
