"""PostgreSQL by SQLAlchemy's asyncio engine and asyncpg: a batch is one statement, keys are ordered by their bytes."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from kvstore.drivers._sql.connection import Connection, transaction
from kvstore.drivers._sql.driver import SqlDriver
from kvstore.drivers._sql.server import SCHEMA_VERSION, STEP, VERSIONS, Fault, Row, Server
from kvstore.drivers._sql.statements import PIECE, live
from kvstore.errors import BackendError, BackendTimeout, BackendUnavailable

_OLDEST = 110_000  # as the server numbers version 11, the first one with sha256()
_LIBPQ = ("sslmode", "sslrootcert", "sslcert", "sslkey")
_CONFLICT = ("40001", "40P01")
_TOO_LATE = ("55P03", "57014")  # lock_not_available, query_canceled
_FORGOTTEN = "26000"  # a prepared statement, as where a proxy has reset the session
_SESSION = "concat(pid, ' ', extract(epoch FROM backend_start))"  # a pid alone may come again
_UNREACHABLE = ("08", "28", "3D", "53300", "57P", "42501", "25006")
_BROKEN = ("InterfaceError", "InternalClientError", "ConnectionDoesNotExistError", "OperationalError")
"""What clients raise without a code of the server's."""


class _Postgresql(Server):
    name = "PostgreSQL"
    client = "asyncpg"
    schemes = {"postgresql": "postgresql", "postgres": "postgresql"}  # noqa: RUF012
    options = ("host", *_LIBPQ)
    here = "current_schema()"
    among = "= ANY($1::text[])"
    digest = 'sha256("value")'
    time = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
    holds_all = True  # the server looks for a deadlock after a second

    def __init__(self, schema: str | None, table: str) -> None:
        super().__init__(schema, table)
        insert = f'INSERT INTO {self.qualified} AS old ("key", "value", "expires_at", "mtime", "revision")'
        rows = "unnest($1::text[], $2::bytea[], $3::bigint[], $4::bigint[], $5::bigint[])"
        new = ", ".join(f'"{name}" = excluded."{name}"' for name in ("value", "expires_at", "mtime", "revision"))
        lives = live("$6", "old.")
        # Custom metadata of a live key stays, that of an expired one goes.
        overwrite = f"""ON CONFLICT ("key") DO UPDATE SET {new.rpartition(",")[0]},
            "revision" = excluded."revision" + CASE WHEN {lives} THEN 1 ELSE 0 END,
            "custom" = CASE WHEN {lives} THEN old."custom" END"""
        self._put = f"{insert} SELECT * FROM {rows} {overwrite}"
        tell = 'RETURNING "key", "revision" & 1'
        self._put_and_tell = f"{self._put} {tell}"
        self._put_one = f"{insert} VALUES ($1, $2, $3, $4, $5) {overwrite} {tell}"
        # All that locks several rows does it by key, or two programs would each wait for the other.
        locked = f'SELECT "key" FROM {self.qualified} WHERE "key" = ANY($1::text[]) ORDER BY "key" FOR UPDATE'
        remove = f'DELETE FROM {self.qualified} WHERE "key"'
        self._remove_and_tell = f'{remove} IN ({locked}) RETURNING "key", {live("$2")}'
        # A row without a value is one to be removed: it is locked in its place among those that are stored, and then deleted.
        stored = f"""CASE WHEN v IS NULL THEN (SELECT false FROM {self.qualified} WHERE "key" = k FOR UPDATE) ELSE true END"""
        self._both = f"""WITH put AS ({insert} SELECT * FROM {rows} AS new (k, v) WHERE {stored} {overwrite} {tell}),
            gone AS ({remove} = ANY($7::text[]) RETURNING "key", {live("$6")}::int)
            SELECT * FROM put UNION ALL SELECT * FROM gone"""
        self._add = f"""{insert} SELECT * FROM {rows}
            ON CONFLICT ("key") DO UPDATE SET {new}, "custom" = NULL WHERE NOT {lives} RETURNING "key" """
        # An update that changes nothing locks all the same, where `DO NOTHING` would not.
        self._hold = f"""{insert} SELECT k, '', 0, 0, 0 FROM unnest($1::text[]) AS keys (k)
            ON CONFLICT ("key") DO UPDATE SET "mtime" = 0 WHERE false"""
        self._put_large = f"{insert} VALUES ($1, lo_get($2::bigint::oid), $3, $4, $5) {overwrite}"
        expired = f'SELECT "key" FROM {self.qualified} WHERE "expires_at" <= $1 LIMIT {STEP} FOR UPDATE SKIP LOCKED'
        self._sweep = f'DELETE FROM {self.qualified} WHERE "key" IN ({expired})'
        some = f'SELECT "key" FROM {self.qualified} WHERE "key" >= $1 AND "key" < $2 AND {live("$3")}'
        some = f'{some} ORDER BY "key" LIMIT {STEP} FOR UPDATE'
        self._clear = f'DELETE FROM {self.qualified} WHERE "key" IN ({some})'

    def connect_arguments(self, client: str, query: dict[str, str]) -> dict[str, Any]:
        if client != "asyncpg":  # the others take what libpq takes
            return dict(query)
        arguments: dict[str, Any] = {name: query[name] for name in query if name not in _LIBPQ}
        mode = query.get("sslmode")
        if mode not in (None, "disable", "allow", "prefer", "require", "verify-ca", "verify-full"):
            raise ValueError("sslmode is one of libpq's: disable, allow, prefer, require, verify-ca or verify-full")
        if "sslrootcert" in query or "sslcert" in query or mode in ("verify-ca", "verify-full"):
            context = ssl.create_default_context(cafile=query.get("sslrootcert"))
            context.check_hostname = mode == "verify-full"
            if mode not in ("verify-ca", "verify-full") and "sslrootcert" not in query:
                context.verify_mode = ssl.CERT_NONE
            if "sslcert" in query:
                context.load_cert_chain(query["sslcert"], query.get("sslkey"))
            arguments["ssl"] = context
        elif mode is not None:
            arguments["ssl"] = mode
        return arguments

    async def begin(self, connection: Connection, patience: float) -> None:
        settings = "set_config('lock_timeout', $1, false), set_config('default_transaction_isolation', 'read committed', false)"
        session = f"(SELECT {_SESSION} FROM pg_stat_activity WHERE pid = pg_backend_pid())"
        # A little before the caller's patience ends, so that it learns that nothing was written.
        lock_timeout = f"{max(1, int(patience * 900))}ms"
        [(connection.session, *_)] = await connection.fetch(f"SELECT {session}, {settings}", lock_timeout)

    async def end(self, connection: Connection, session: str) -> bool:
        ended = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_SESSION} = $1"
        return bool(await connection.fetch(ended, session))

    async def look_at(self, connection: Connection) -> None:
        [(encoding, version)] = await connection.fetch(
            "SELECT current_setting('server_encoding'), current_setting('server_version_num')::int"
        )
        if encoding != "UTF8":
            raise BackendError(f"the database's encoding is {encoding}, which can't hold every key; it has to be UTF8")
        if version < _OLDEST:
            raise BackendError("PostgreSQL 11 or newer is needed")

    async def create(self, connection: Connection) -> None:
        async with transaction(connection):
            await connection.fetch("SELECT pg_advisory_xact_lock(hashtext('kvstore'))")
            if await self.is_made(connection):  # somebody else was faster
                return
            place, dot, _ = self.qualified.rpartition(".")
            if dot and not await connection.fetch(f"SELECT 1 FROM pg_namespace WHERE nspname = {self.schema}"):
                await connection.fetch(f"CREATE SCHEMA {place}")
            await connection.fetch(
                f"CREATE TABLE IF NOT EXISTS {self.versions} (name TEXT, version INTEGER NOT NULL,"
                f' CONSTRAINT "{VERSIONS}.name" PRIMARY KEY (name))'
            )
            sql = f"INSERT INTO {self.versions} VALUES ($1, $2) ON CONFLICT DO NOTHING"
            await connection.fetch(sql, self.table, SCHEMA_VERSION)
            await connection.fetch(
                f'CREATE TABLE {self.qualified} ("key" TEXT COLLATE "C", "expires_at" BIGINT, "mtime" BIGINT NOT NULL,'
                ' "revision" BIGINT NOT NULL, "custom" BYTEA, "value" BYTEA NOT NULL,'
                f' CONSTRAINT "{self.table}.key" PRIMARY KEY ("key"))'
            )
            # Uncompressed, so that a piece of a large value is read without the rest.
            await connection.fetch(f'ALTER TABLE {self.qualified} ALTER COLUMN "value" SET STORAGE EXTERNAL')
            # Indexes share the names of tables: with a point, no table that a driver takes has theirs.
            index = f'CREATE INDEX "{self.table}.expires_at" ON {self.qualified} ("expires_at")'
            await connection.fetch(f'{index} WHERE "expires_at" IS NOT NULL')

    async def apply(self, connection: Connection, rows: Sequence[Row], removes: Sequence[str], now: int) -> set[str]:
        if not self.is_one_share(rows):
            return await self.apply_in_steps(connection, rows, removes, now)
        if rows and removes:
            gone = [(key, None, None, None, None) for key in removes]
            told = await connection.fetch(self._both, *_columns(sorted([*rows, *gone], key=itemgetter(0))), now, removes)
        elif len(removes) > 1:
            told = await connection.fetch(self._remove_and_tell, removes, now)
        elif removes:
            told = [(removes[0], await connection.change(self.sql.remove_one, removes[0], now))]
        else:
            sql, values = (self._put_one, rows[0]) if len(rows) == 1 else (self._put_and_tell, _columns(rows))
            told = await connection.fetch(sql, *values, now)
        return {key for key, was_there in told if was_there}

    async def add(self, connection: Connection, rows: Sequence[Row], now: int) -> set[str]:
        if self.is_one_share(rows):
            return await self._add_share(connection, rows, now)
        async with transaction(connection):
            return set().union(*[await self._add_share(connection, share, now) for share in self.shares(rows)])

    async def _add_share(self, connection: Connection, rows: Sequence[Row], now: int) -> set[str]:
        return {key for (key,) in await connection.fetch(self._add, *_columns(rows), now)}

    async def put_share(self, connection: Connection, rows: Sequence[Row], now: int) -> None:
        await connection.fetch(self._put, *_columns(rows), now)

    async def put_large(self, connection: Connection, row: Row, now: int) -> None:
        """By a large object that does not outlive the transaction."""
        key, data, *rest = row
        [(part,)] = await connection.fetch("SELECT lo_from_bytea(0, $1)::bigint", data[:PIECE])
        for at in range(PIECE, len(data), PIECE):
            await connection.fetch("SELECT lo_put($1::bigint::oid, $2, $3)", part, at, data[at : at + PIECE])
        await connection.fetch(self._put_large, key, part, *rest, now)
        await connection.fetch("SELECT lo_unlink($1::bigint::oid)", part)

    async def hold(self, connection: Connection, keys: Sequence[str]) -> None:
        await connection.fetch(self._hold, keys)

    async def sweep_some(self, connection: Connection, now: int) -> int:
        return await connection.change(self._sweep, now)

    async def clear_some(self, connection: Connection, low: str, high: str, now: int) -> int:
        return await connection.change(self._clear, low, high, now)

    def fault(self, error: BaseException) -> Fault | None:
        found: BaseException | None = error
        while found is not None and not isinstance(getattr(found, "sqlstate", None), str):
            found = getattr(found, "orig", None) or found.__cause__
        if found is None:
            if type(error).__name__ not in _BROKEN:
                return None
            message = f"the connection to PostgreSQL failed: {getattr(error, 'orig', None) or error}"
            return Fault(BackendUnavailable, message, usable=False)
        code: str = getattr(found, "sqlstate")  # noqa: B009
        message = f"PostgreSQL: {found}"
        if code in _CONFLICT:
            return Fault(BackendError, message, again=True)
        if code == _FORGOTTEN:
            return Fault(BackendError, message, again=True, usable=False)
        if code in _TOO_LATE:
            return Fault(BackendTimeout, message)
        if code.startswith(_UNREACHABLE):
            return Fault(BackendUnavailable, message, usable=code in ("42501", "25006"))
        return Fault(BackendError, message)


class PostgresqlDriver(SqlDriver):
    """Keeps values in a table of a PostgreSQL database (11 or newer), by SQLAlchemy and asyncpg.

    Args:
        url: `postgresql://user:password@host:port/database`; another client as `postgresql+psycopg://`. TLS as libpq has
            it: `?sslmode=verify-full&sslrootcert=/path/ca.pem`. A Unix socket as `?host=/path`.
        engine: In place of `url`, an `AsyncEngine` of yours, which stays open. The connections are made by it, in
            autocommit mode, and are not those of its pool.
        table: Its name. It is made where it is missing.
        schema: That of the table, made where it is missing; by default the first one of the search path.
        connections: How many at most. They are opened as they are needed; calls that wait are merged into one.
        connect_timeout: Seconds to wait for a connection, then `BackendUnavailable`.
        timeout: Seconds to wait for an answer, or for rows that another program has locked, then `BackendTimeout`.
    """

    server = _Postgresql


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
