"""MySQL and MariaDB by SQLAlchemy's asyncio engine and asyncmy: keys as bytes, or case and accents would merge them."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Sequence
from operator import methodcaller
from secrets import token_hex
from typing import Any

from kvstore.drivers._sql.connection import Connection, transaction
from kvstore.drivers._sql.driver import SqlDriver
from kvstore.drivers._sql.server import SCHEMA_VERSION, STEP, Fault, Row, Server
from kvstore.drivers._sql.statements import PIECE, live
from kvstore.errors import BackendError, BackendTimeout, BackendUnavailable

_DUPLICATE = 1062
_NO_THREAD = 1094
_CONFLICT = (1020, 1213, 3572)  # record changed since last read, deadlock
_FORGOTTEN = (1064, 1243)  # how names are quoted, a prepared statement: as where a proxy has reset the session
_TOO_LATE = (1205, 1317, 1969, 3024)  # lock wait timeout, interrupted, statement timeout
_NO_LOGIN = (1040, 1044, 1045, 1049, 1129, 1130, 1142, 1203, 1226, 1251, 1290, 1698, 2059)
_LOST = (1053, 1927, 2002, 2003, 2006, 2013, 2014, 2055, 4031)
_NAMES = ("new_key", "new_value", "new_expires_at", "new_mtime", "new_revision")
_STATEMENTS = 64
"""That one connection keeps prepared: a server keeps 16,382 by default."""
_ROWS = 128
"""That one of them may store, for the server's memory: it takes some KB a row."""
_PACKET_BYTES = 4096


class _Mysql(Server):
    name = "MySQL"
    client = "asyncmy"
    schemes = {"mysql": "mysql", "mariadb": "mysql"}  # noqa: RUF012
    options = ("unix_socket", "ssl", "ssl_ca", "ssl_cert", "ssl_key", "ssl_check_hostname")
    here = "DATABASE()"
    among = "IN $1"
    digest = 'UNHEX(SHA2("value", 256))'
    time = "CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)"
    key_out = methodcaller("encode")
    key_in = methodcaller("decode")

    def __init__(self, schema: str | None, table: str) -> None:
        super().__init__(schema, table)
        self._insert = f'INSERT INTO {self.qualified} ("key", "value", "expires_at", "mtime", "revision") VALUES '
        self._on_duplicate = self._put = self._tell = ""
        low_to_high = f'WHERE "key" >= $1 AND "key" < $2 AND {live("$3")} ORDER BY "key" LIMIT {STEP}'
        self._clear = f"DELETE FROM {self.qualified} {low_to_high}"
        self._sweep = f'DELETE FROM {self.qualified} WHERE "expires_at" <= $1 LIMIT {STEP}'
        self._remove_expired = f'DELETE FROM {self.qualified} WHERE "key" = $1 AND "expires_at" <= $2'

    def keys_out(self, keys: Iterable[str]) -> tuple[bytes, ...]:
        return tuple(map(self.key_out, keys))

    def connect_arguments(self, client: str, query: dict[str, str]) -> dict[str, Any]:
        arguments: dict[str, Any] = {name: query[name] for name in query if not name.startswith("ssl")}
        if query.get("ssl") not in (None, "true", "false"):
            raise ValueError("ssl is true or false")
        if query.get("ssl") != "false" and len(query) > len(arguments):
            context = ssl.create_default_context(cafile=query.get("ssl_ca"))
            context.check_hostname = query.get("ssl_check_hostname") != "false"
            if "ssl_cert" in query:
                context.load_cert_chain(query["ssl_cert"], query.get("ssl_key"))
            arguments["ssl"] = context
        return arguments | ({"stmt_cache_size": _STATEMENTS} if client == "asyncmy" else {})

    async def begin(self, connection: Connection, patience: float) -> None:
        # Literals are bytes, with backslashes as asyncmy writes them; names stand in double quotes.
        await connection.fetch("SET NAMES binary")
        # Strict, and what MySQL warns of where strict stands without it.
        modes = "STRICT_ALL_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,ANSI_QUOTES,NO_ENGINE_SUBSTITUTION"
        waits = max(1, int(patience * 0.9))
        # In UTC no hour comes twice: UNIX_TIMESTAMP reads a local time.
        settings = f"sql_mode = '{modes}', innodb_lock_wait_timeout = {waits}, sql_notes = 0, time_zone = '+00:00'"
        await connection.fetch(f"SET SESSION {settings}")
        await connection.fetch("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        # The session is known by a lock that it has as long as it lives: its number may be another's on another server, or
        # after a restart.
        session = f"kvstore {token_hex(12)}"
        try:
            await connection.fetch(f"SELECT GET_LOCK('{session}', 0)")
            connection.session = session
        except Exception as error:
            if _code(error) in (None, *_LOST):  # else there are no such locks, as in a Galera cluster
                raise

    async def end(self, connection: Connection, session: str) -> bool:
        [(number,)] = await connection.fetch(f"SELECT IS_USED_LOCK('{session}')")
        if number is None:
            return False
        try:
            await connection.fetch(f"KILL {int(number)}")
        except Exception as error:
            if _code(error) != _NO_THREAD:  # it has ended by itself
                raise
        return True

    async def look_at(self, connection: Connection) -> None:
        [(version, packet)] = await connection.fetch("SELECT VERSION(), @@max_allowed_packet")
        is_mariadb = b"MariaDB" in _bytes(version)
        number = tuple(map(int, re.findall(rb"\d+", _bytes(version))[:3]))
        if number < ((10, 4) if is_mariadb else (8, 0, 19)):
            raise BackendError("MySQL 8.0.19, MariaDB 10.4 or newer is needed")
        self.largest = min(10**9, int(packet) - _PACKET_BYTES)
        self.piece = min(PIECE, int(packet) // 4)
        # MariaDB does not know an alias for the new row, and MySQL warns of all else.
        alias = "" if is_mariadb else f" AS new ({', '.join(_NAMES)})"
        new = {name[4:]: f'VALUES("{name[4:]}")' if is_mariadb else name for name in _NAMES[1:]}
        # In this order: what follows sees what was set before.
        lives = live("$NOW")
        new["revision"] += f" + CASE WHEN {lives} THEN 1 ELSE 0 END"
        sets = [f'"custom" = CASE WHEN {lives} THEN "custom" END']
        sets += [f'"{name}" = {new[name]}' for name in ("revision", "value", "expires_at", "mtime")]
        self._on_duplicate = f"{alias} ON DUPLICATE KEY UPDATE {', '.join(sets)}"
        # MySQL can't tell what an upsert of several rows found, and has to be asked before.
        self._tell = ' RETURNING "key", "revision" & 1' if is_mariadb and number >= (10, 5) else ""
        self._put = f"{self._insert}$1{self._on_duplicate.replace('$NOW', '$2')}"

    async def create(self, connection: Connection) -> None:
        await connection.fetch(
            f"CREATE TABLE IF NOT EXISTS {self.versions} (name VARCHAR(64) PRIMARY KEY, version INTEGER NOT NULL)"
            " ENGINE=InnoDB DEFAULT CHARSET=ascii"
        )
        # Before the table: whoever sees the table sees its version too.
        version = f"INSERT INTO {self.versions} VALUES ($1, $2) ON DUPLICATE KEY UPDATE name = name"
        await connection.fetch(version, self.table, SCHEMA_VERSION)
        await connection.fetch(
            f'CREATE TABLE IF NOT EXISTS {self.qualified} ("key" VARBINARY(1024) NOT NULL PRIMARY KEY, "expires_at" BIGINT,'
            ' "mtime" BIGINT NOT NULL, "revision" BIGINT NOT NULL, "custom" LONGBLOB, "value" LONGBLOB NOT NULL,'
            ' INDEX ("expires_at")) ENGINE=InnoDB ROW_FORMAT=DYNAMIC'
        )

    async def apply(self, connection: Connection, rows: Sequence[Row], removes: Sequence[str], now: int) -> set[str]:
        is_one_statement = not removes and self.is_one_share(rows)
        if is_one_statement and self._tell:
            sql, *arguments = self._upsert(connection, rows, now)
            told = await connection.fetch(sql + self._tell, *arguments)
            return {self.key_in(name) for name, was_there in told if was_there}
        if is_one_statement and len(rows) == 1:  # MySQL counts an update twice
            return {rows[0].key} if await connection.change(*self._upsert(connection, rows, now)) == 2 else set()
        if len(removes) == 1 and not rows:
            return set(removes) if await connection.change(self.sql.remove_one, self.key_out(removes[0]), now) else set()
        if not is_one_statement:
            return await self.apply_in_steps(connection, rows, removes, now)
        found = await connection.fetch(self.sql.there, self.keys_out([row.key for row in rows]), now)
        await connection.change(*self._upsert(connection, rows, now))
        return {self.key_in(name) for (name,) in found}

    async def add(self, connection: Connection, rows: Sequence[Row], now: int) -> set[str]:
        if len(rows) == 1:
            [row] = rows
            for _ in range(2):
                try:
                    await connection.change(f"{self._insert}($1, $2, $3, $4, $5)", *self._values(row))
                    return {row.key}
                except Exception as error:
                    if _code(error) != _DUPLICATE:
                        raise
                if not await connection.change(self._remove_expired, self.key_out(row.key), now):
                    break
            return set()
        async with transaction(connection):
            names = [row.key for row in rows]
            await self.hold(connection, names)
            locked = await connection.fetch(self.sql.lock, self.keys_out(names), now)
            absent = {self.key_in(name) for name, lives, _ in locked if not lives}
            await self.put(connection, [row for row in rows if row.key in absent], now)
        return absent

    async def put_share(self, connection: Connection, rows: Sequence[Row], now: int) -> None:
        await connection.change(*self._upsert(connection, rows, now))

    def _upsert(self, connection: Connection, rows: Sequence[Row], now: int) -> tuple[str, *tuple[Any, ...]]:
        """A statement and its arguments.

        One row, or as many as the last time, as a crowd sends them, are worth a prepared one, which takes the server a fifth
        less. In any other the values are literals in hexadecimal, which are made four times as fast as asyncmy's.
        """
        usual, connection.rows = connection.rows, len(rows)
        if connection.prepares and len(rows) in (1, usual) and len(rows) <= _ROWS:
            return self._put, [self._values(row) for row in rows], now
        values = ",".join(
            [
                f"(X'{key.encode().hex()}',X'{data.hex()}',{'NULL' if at is None else at},{mtime},{revision})"
                for key, data, at, mtime, revision in rows
            ]
        )
        return (f"{self._insert}{values}{self._on_duplicate.replace('$NOW', str(now))}",)

    async def put_large(self, connection: Connection, row: Row, now: int) -> None:
        """By variables of the session."""
        pieces = {f"@kvstore_{at}": row.data[at : at + self.piece] for at in range(0, len(row.data), self.piece)}
        for name, piece in pieces.items():
            await connection.fetch(f"SET {name} = $1", piece)
        sql = f"{self._insert}($1, CONCAT({', '.join(pieces)}), $2, $3, $4){self._on_duplicate.replace('$NOW', '$5')}"
        await connection.change(sql, self.key_out(row.key), *row[2:], now)
        await connection.fetch(f"SET {', '.join(f'{name} = NULL' for name in pieces)}")

    def _values(self, row: Row) -> tuple[Any, ...]:
        return (self.key_out(row.key), *row[1:])

    async def hold(self, connection: Connection, keys: Sequence[str]) -> None:
        values = ",".join([f"(X'{key.encode().hex()}','',0,0,0)" for key in keys])
        await connection.change(f'{self._insert}{values} ON DUPLICATE KEY UPDATE "mtime" = "mtime"')

    async def sweep_some(self, connection: Connection, now: int) -> int:
        return await connection.change(self._sweep, now)

    async def clear_some(self, connection: Connection, low: bytes, high: bytes, now: int) -> int:
        return await connection.change(self._clear, low, high, now)

    def fault(self, error: BaseException) -> Fault | None:
        code = _code(error)
        if code is None:
            return None
        message = f"MySQL: {_told(error)}"
        if code in _CONFLICT:
            return Fault(BackendError, message, again=True)
        if code in _FORGOTTEN:
            return Fault(BackendError, message, again=True, usable=False)
        if code in _TOO_LATE:
            return Fault(BackendTimeout, message)
        if code in _NO_LOGIN:
            return Fault(BackendUnavailable, message)
        if code in _LOST:
            return Fault(BackendUnavailable, f"the connection to MySQL failed: {_told(error)}", usable=False)
        return Fault(BackendError, message, usable=code != 0)


class MysqlDriver(SqlDriver):
    """Keeps values in an InnoDB table of MySQL (8.0.19 or newer) or MariaDB (10.4 or newer), by SQLAlchemy and asyncmy.

    Args:
        url: `mysql://user:password@host:port/database`, or `mariadb://`. TLS with the files as a query:
            `?ssl_ca=/path/ca.pem&ssl_cert=…&ssl_key=…`, or `?ssl=true` with the system's. A Unix socket: `?unix_socket=/path`.
        engine: In place of `url`, an `AsyncEngine` of yours, which stays open. The connections are made by it, in
            autocommit mode, and are not those of its pool.
        table: Its name. It is made where it is missing.
        schema: Another database than that of the URL, which has to be there.
        connections: How many at most. They are opened as they are needed; calls that wait are merged into one.
        connect_timeout: Seconds to wait for a connection, then `BackendUnavailable`.
        timeout: Seconds to wait for an answer, or for rows that another program has locked, then `BackendTimeout`.
    """

    server = _Mysql


def _code(error: BaseException | None) -> int | None:
    """MySQL's number of an error, wherever in the chain it stands."""
    while error is not None:
        number = error.args[0] if error.args else None
        if isinstance(number, int) and not isinstance(error, OSError):
            return number
        error = getattr(error, "orig", None) or error.__cause__
    return None


def _told(error: BaseException) -> str:
    known: BaseException = getattr(error, "orig", None) or error
    return str(known.args[1]) if len(known.args) > 1 else str(known)


def _bytes(found: str | bytes) -> bytes:
    return found.encode() if isinstance(found, str) else found
