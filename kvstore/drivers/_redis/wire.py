"""How a command goes to the server, once: redis-py's clients repeat what failed, and an addition would fail against itself.

On redis-py's connections, kept and written to directly (`Wire`): by its client a command takes 20 µs more, by its timer 15. On
those of a client that was handed in, which others need too (`Lent`). On a Cluster by its client, which finds the node
(`ByCluster`).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from sys import getsizeof
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection, ConnectionPool

_SMALL = 2**15
"""Bytes that a connection takes at once: asyncio holds a writer up from 64 KiB on."""
_LARGE = 2**18
"""Bytes that hiredis packs at once. A megabyte takes it a millisecond, and redis-py nothing: that leaves values as they are."""


class Way(ABC):
    """A way to the server."""

    lost = False
    """Whether a command was given up that the server may still carry out."""

    @abstractmethod
    async def ask(self, *command: Any) -> Any:
        """The answer to `command`."""

    async def settled(self) -> None:
        """Waits for what is still under way of callers that were cancelled."""


class ByCluster(Way):
    """Asks a Cluster's client for what the node with the slot of `key` says."""

    def __init__(self, client: Any, key: str) -> None:
        self._client = client
        self._key = key

    async def ask(self, *command: Any) -> Any:
        client = self._client
        try:
            await client.initialize()
            # What is meant for one node goes on to another if the slot has moved, but is not repeated.
            return await client.execute_command(*command, target_nodes=client.get_node_from_key(self._key))
        except BaseException as error:
            self.lost = self.lost or not _is_answer(error)
            raise


class Lent(Way):
    """Sends each command on a connection of `pool`, and gives that back. `timeout`: seconds for an answer."""

    def __init__(self, pool: ConnectionPool, timeout: float) -> None:
        self._pool: Any = pool
        self._timeout = timeout

    async def ask(self, *command: Any) -> Any:
        connection = await self._pool.get_connection()
        try:
            async with asyncio.timeout(self._timeout):
                await connection.send_command(*command)
                return await connection.read_response()
        except BaseException as error:
            self.lost = self.lost or not _is_answer(error)
            raise
        finally:
            await self._pool.release(connection)


class Wire(Way):
    """Sends one command on each of as many connections of `pool` as are asked at once. `timeout`: seconds for an answer.

    A command whose caller is cancelled goes on; `settled` waits for its end.
    """

    def __init__(self, pool: ConnectionPool, timeout: float) -> None:
        self._pool = pool
        self._timeout = timeout
        self._idle: list[AbstractConnection] = []
        self._left: set[asyncio.Task[Any]] = set()  # whose callers were cancelled
        self._pack: Callable[[tuple[Any, ...]], bytes] | None
        try:
            from hiredis import pack_command
        except ImportError:  # redis-py has its own
            self._pack = None
        else:
            self._pack = pack_command

    async def ask(self, *command: Any) -> Any:
        connection = await self._connected()
        packed = self._packed(connection, command)
        if len(packed) > 1 or len(packed[0]) > _SMALL:
            until = asyncio.get_running_loop().time() + self._timeout
            return await self._finished(self._exchanged(connection, packed, until))
        # In the caller's own task, which saves 20 µs. It can be cancelled only after all was sent.
        timer = asyncio.timeout(self._timeout)
        try:
            async with timer:
                await connection.send_packed_command(packed, check_health=False)
                answer = await connection.read_response(disconnect_on_error=False)
        except asyncio.CancelledError:
            self._leave(asyncio.create_task(self._exchanged(connection, [], timer.when())))
            raise
        except BaseException as error:
            await self._failed(connection, error)
            raise
        self._idle.append(connection)
        return answer

    async def settled(self) -> None:
        if self._left:
            await asyncio.wait(self._left)

    def _packed(self, connection: AbstractConnection, command: tuple[Any, ...]) -> list[bytes]:
        if self._pack is None:
            return connection.pack_command(*command)
        if sum(map(getsizeof, command)) < _LARGE:
            return [self._pack(command)]
        from redis import connection as of_redis

        serializer: Any = of_redis.PythonRespSerializer
        packed: list[bytes] = serializer(_SMALL, connection.encoder.encode).pack(*command)
        return packed

    async def _finished(self, call: Coroutine[Any, Any, Any]) -> Any:
        task = asyncio.create_task(call)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._leave(task)
            raise

    def _leave(self, task: asyncio.Task[Any]) -> None:
        self._left.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._left.discard(task)
        if not task.cancelled():
            task.exception()  # nobody waits for it any more

    async def _exchanged(self, connection: AbstractConnection, packed: list[bytes], until: float | None) -> Any:
        """The answer to what is sent now, if anything, or was."""
        try:
            async with asyncio.timeout_at(until):
                if packed:
                    await connection.send_packed_command(packed, check_health=False)
                answer = await connection.read_response(disconnect_on_error=False)
        except BaseException as error:
            await self._failed(connection, error)
            raise
        self._idle.append(connection)
        return answer

    async def _connected(self) -> AbstractConnection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_connected and not await self._hung_up(connection):
                return connection
            connection.socket_timeout = self._timeout  # for when it is opened again, which says more than one word
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

    async def _failed(self, connection: AbstractConnection, error: BaseException) -> None:
        """Of a connection that failed, or was left amid an answer, the next command makes a new one."""
        lost = [] if _is_answer(error) else [connection, *self._idle]  # after a failover all lead nowhere
        self._idle.append(connection)
        self.lost = self.lost or bool(lost)
        for one in lost:
            await one.disconnect(nowait=True)


def _is_answer(error: BaseException) -> bool:
    """Whether the server refused a command, and goes on to listen."""
    from redis.exceptions import ResponseError

    return isinstance(error, ResponseError) and not str(error).startswith("Protocol error")
