"""redis-py's connections, kept and written to directly: by its client a command takes 20 µs more, by its timer 15.

Only for one server or Sentinel, with connections of our own. A cluster's client, or one that was handed in, is asked itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection, ConnectionPool


class Wire:
    """Sends one command on each of as many connections as are asked at once."""

    def __init__(self, pool: ConnectionPool, timeout: float) -> None:
        self._pool = pool
        self._timeout = timeout
        self._idle: list[AbstractConnection] = []
        self._left: set[asyncio.Task[None]] = set()  # answers whose callers were cancelled
        self._pack: Callable[[tuple[Any, ...]], bytes] | None
        try:
            from hiredis import pack_command
        except ImportError:  # redis-py has its own
            self._pack = None
        else:
            self._pack = pack_command

    async def ask(self, *command: Any) -> Any:
        """The answer to `command`. If the caller is cancelled, later commands wait until the server has answered this one."""
        if self._left:
            await asyncio.wait(self._left)
        connection = await self._connected()
        try:
            packed = connection.pack_command(*command) if self._pack is None else [self._pack(command)]
            async with asyncio.timeout(self._timeout):
                await connection.send_packed_command(packed, check_health=False)
                answer = await connection.read_response(disconnect_on_error=False)
        except asyncio.CancelledError:
            task = asyncio.create_task(self._drain(connection))
            self._left.add(task)
            task.add_done_callback(self._left.discard)
            raise
        except BaseException as error:
            await self._returned(connection, error)
            raise
        self._idle.append(connection)
        return answer

    async def _connected(self) -> AbstractConnection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_connected and not await self._hung_up(connection):
                return connection
            await self._pool.release(connection)
        pool: Any = self._pool
        fresh: AbstractConnection = await pool.get_connection()
        fresh.socket_timeout = None  # timed here
        return fresh

    async def _hung_up(self, connection: AbstractConnection) -> bool:
        from redis.exceptions import RedisError

        try:
            # An end of what is sent, or an answer to nothing that was asked. Before version 8 it has the other name.
            can_read: Any = getattr(connection, "can_read", None) or connection.can_read_destructive
            unasked = bool(await can_read())
        except (RedisError, OSError):
            unasked = True
        if unasked:
            await connection.disconnect(nowait=True)
        return unasked

    async def _drain(self, connection: AbstractConnection) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await connection.read_response(disconnect_on_error=False)
        except BaseException as error:
            await self._returned(connection, error)
        else:
            self._idle.append(connection)

    async def _returned(self, connection: AbstractConnection, error: BaseException) -> None:
        from redis.exceptions import ResponseError

        if not isinstance(error, ResponseError):  # after which the next command can be sent
            await connection.disconnect(nowait=True)
        self._idle.append(connection)
