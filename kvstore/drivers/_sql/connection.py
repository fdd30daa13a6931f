"""Connections that SQLAlchemy's asyncio engine makes, and the shortest way to send a statement on one.

SQLAlchemy's execution and pool cost 120 and 200 µs a call, more than the server's answer. So what is asked by every call
goes to the client library itself where that is known here, on connections that are kept.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_CLOSING: set[asyncio.Task[None]] = set()
_MARK = re.compile(r"\$(\d+)")


class Connection(ABC):
    """One connection in autocommit mode. Statements have marks `$1`, `$2`, which may repeat."""

    session: str | None = None
    """What the server knows it by, no matter who asks, and which no other one has had. None: it can't tell."""
    prepares: bool = False
    """Whether it keeps what it prepared of a statement with a list of rows."""
    rows: int = 0
    """How many its last such statement would have had."""

    def __init__(self, made: AsyncConnection, client: Any) -> None:
        self._made = made
        self._client = client

    @property
    def is_open(self) -> bool:
        """False: it was closed by the server, as far as is known yet."""
        return True

    @abstractmethod
    async def fetch(self, sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        """The rows that a statement gives."""

    @abstractmethod
    async def change(self, sql: str, *arguments: Any) -> int:
        """How many rows a statement matched or inserted."""

    @abstractmethod
    def abort(self) -> None:
        """Closes it without waiting: nobody knows what is still under way on it."""

    @abstractmethod
    async def aclose(self) -> None:
        """Closes it, with a farewell to the server."""


class AsyncpgConnection(Connection):
    """By asyncpg, whose statements are prepared once."""

    def abort(self) -> None:
        with suppress(Exception):  # its event loop may be over
            self._client.terminate()

    async def aclose(self) -> None:
        with suppress(Exception):
            await self._client.close()

    @property
    def is_open(self) -> bool:
        return not self._client.is_closed()

    async def fetch(self, sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        rows: Sequence[Sequence[Any]] = await self._client.fetch(sql, *arguments)
        return rows

    async def change(self, sql: str, *arguments: Any) -> int:
        status: str = await self._client.execute(sql, *arguments)
        return int(status.rpartition(" ")[2])


class AsyncmyConnection(Connection):
    """By asyncmy, which prepares each statement that has arguments once (`stmt_cache_size`): 20 µs less a call."""

    prepares = True

    def abort(self) -> None:
        with suppress(Exception):  # its event loop may be over
            self._client.close()

    async def aclose(self) -> None:
        with suppress(Exception):
            await self._client.ensure_closed()

    @property
    def is_open(self) -> bool:
        return not self._client._stream_broken

    async def fetch(self, sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        async with self._client.cursor() as cursor:
            await cursor.execute(*_flattened(sql, arguments))
            rows: Sequence[Sequence[Any]] = await cursor.fetchall()
            return rows

    async def change(self, sql: str, *arguments: Any) -> int:
        async with self._client.cursor() as cursor:
            await cursor.execute(*_flattened(sql, arguments))
            return int(cursor.rowcount)


class AnyConnection(Connection):
    """By any other client that SQLAlchemy knows."""

    @property
    def is_open(self) -> bool:
        return not (self._made.closed or self._made.invalidated)

    def abort(self) -> None:
        with suppress(RuntimeError):  # no event loop runs
            task = asyncio.get_running_loop().create_task(self.aclose())
            _CLOSING.add(task)
            task.add_done_callback(_CLOSING.discard)

    async def aclose(self) -> None:
        with suppress(Exception):
            await self._made.close()

    async def fetch(self, sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        result = await self._made.exec_driver_sql(*_positional(sql, arguments))
        return result.fetchall() if result.returns_rows else []

    async def change(self, sql: str, *arguments: Any) -> int:
        return int((await self._made.exec_driver_sql(*_positional(sql, arguments))).rowcount)


_KNOWN: dict[str, type[Connection]] = {"asyncpg": AsyncpgConnection, "asyncmy": AsyncmyConnection}


async def connected(engine: AsyncEngine) -> Connection:
    """A connection of its own: not one of the engine's pool, for it is not given back as it was."""
    made = await engine.connect()
    try:
        await made.execution_options(isolation_level="AUTOCOMMIT")  # an engine of the user's may have any other
        raw = await made.get_raw_connection()
        client = raw.driver_connection
        raw.detach()
        return _KNOWN.get(engine.dialect.driver, AnyConnection)(made, client)
    except BaseException:
        await made.close()
        raise


@asynccontextmanager
async def transaction(connection: Connection) -> AsyncIterator[None]:
    """All or nothing. Where it is cancelled, its connection is not used any more."""
    await connection.fetch("BEGIN")
    try:
        yield
    except Exception:
        try:
            await connection.fetch("ROLLBACK")
        except Exception:  # the first error tells more
            connection.abort()
        raise
    await connection.fetch("COMMIT")


def _positional(sql: str, arguments: Sequence[Any]) -> tuple[str, tuple[Any, ...] | None]:
    if not arguments:
        return sql, None
    text, places = _places(sql, ())
    return text, tuple([arguments[place] for place in places])


def _flattened(sql: str, arguments: Sequence[Any]) -> tuple[str, list[Any] | None]:
    """The same with an argument for each item of a tuple, filled up to a power of two, for few shapes of statements.

    And for each item of the rows in a list.
    """
    if not arguments:  # it may hold its values, and is not to be kept
        return sql, None
    sizes = tuple([_size(one) for one in arguments])
    text, places = _places(sql, sizes)
    flat: list[Any] = []
    for place in places:
        argument, size = arguments[place], sizes[place]
        if not size:
            flat.append(argument)
        elif size.__class__ is int:
            flat += argument
            flat += [argument[-1]] * (size - len(argument))
        else:
            for row in argument:
                flat += row
    return text, flat


def _size(argument: Any) -> int | tuple[int, int]:
    if argument.__class__ is tuple:
        return 1 << (len(argument) - 1).bit_length()
    return (len(argument), len(argument[0])) if argument.__class__ is list else 0


@lru_cache(1024)
def _places(sql: str, sizes: tuple[int | tuple[int, int], ...]) -> tuple[str, list[int]]:
    """The statement with `%s` for marks, several for one of a size, and which argument belongs to each."""

    def mark(found: re.Match[str]) -> str:
        size = sizes[int(found[1]) - 1] if sizes else 0
        if isinstance(size, tuple):
            count, width = size
            return ",".join([f"({','.join(['%s'] * width)})"] * count)
        return f"({','.join(['%s'] * size)})" if size else "%s"

    return _MARK.sub(mark, sql), [int(number) - 1 for number in _MARK.findall(sql)]
