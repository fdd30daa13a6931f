"""Few connections, kept and lent; deadlocks tried again; nobody waits longer than the time that was set."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from kvstore.clock import Clock
from kvstore.drivers._sql.connection import Connection, connected
from kvstore.drivers._sql.limits import Limit, Limits
from kvstore.drivers._sql.server import Fault, Server
from kvstore.errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ConfigError,
    KVStoreError,
    MissingDependencyError,
    install,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_TRIES = 20
_INSTALLED_AS = {"psycopg": "psycopg[binary]"}

T = TypeVar("T")
Work = Callable[[Connection], Awaitable[T]]


class Pool:
    """Runs what is to be done on a connection of `engine`, which it makes for `url` if there is none. Sets `clock`."""

    def __init__(
        self,
        server: Server,
        clock: Clock,
        url: str | None,
        engine: Any,
        connections: int,
        connect_timeout: float,
        timeout: float,
    ) -> None:
        self._server = server
        self._clock = clock
        self._url = url
        self._given = engine
        self._engine: AsyncEngine | None = None
        self._size = connections
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._limits = Limits(timeout)
        self._room = asyncio.Semaphore(connections)
        self._idle: list[Connection] = []
        self._left: set[str] = set()
        """Sessions of writes that were given up, which the server may still carry out."""

    def open(self) -> None:
        """Once an event loop: nothing of another one is of use, and nothing there can be waited for."""
        self._drop()
        self._limits = Limits(self._timeout)
        self._room = asyncio.Semaphore(self._size)
        self._engine = self._given if self._given is not None else self._made()

    async def aclose(self) -> None:
        idle, self._idle, self._engine = self._idle, [], None
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.gather(*(connection.aclose() for connection in idle))
        except TimeoutError:
            for connection in idle:
                connection.abort()

    async def ask(self, work: Work[T], *, writes: bool = False) -> T:
        """What `work` finds or does. It may be done more than once."""
        began = time.monotonic()
        try:
            with Limit(self._limits):
                for tries_left in reversed(range(_TRIES)):
                    try:
                        return await self._lent(work, writes=writes)
                    except KVStoreError:
                        raise
                    except Exception as error:
                        fault = self._fault(error)
                        if not (fault.again and tries_left):
                            raise fault.kind(fault.message, maybe_written=writes and not fault.usable) from error
                    await asyncio.sleep(random.uniform(0, 0.02))
        except TimeoutError as error:
            seconds = time.monotonic() - began
            raise BackendTimeout(
                f"{self._server.name} did not answer in {seconds:.1f} seconds", maybe_written=writes
            ) from error
        raise AssertionError("the last try returns or raises")

    async def _lent(self, work: Work[T], *, writes: bool) -> T:
        """Keeps the connection if it can be used again."""
        room = self._room
        await room.acquire()
        try:
            connection = self._take() or await self._opened()
            try:
                if writes and self._left:
                    await self._end_left(connection)
                answer = await work(connection)
            except BaseException as error:
                if isinstance(error, KVStoreError) or self._fault(error).usable:
                    self._idle.append(connection)
                else:
                    connection.abort()
                    if writes and connection.session is not None:
                        self._left.add(connection.session)
                raise
            self._idle.append(connection)
            return answer
        finally:
            room.release()

    async def _end_left(self, connection: Connection) -> None:
        """Waits until they are over, or a write that was given up might take effect after one that is acknowledged."""
        for session in [*self._left]:
            while await self._server.end(connection, session):
                await asyncio.sleep(0.01)
            self._left.discard(session)

    async def told_time(self, connection: Connection, sql: str) -> Sequence[Any]:
        """Sets the clock by a statement that tells the server's time before all else. Returns that."""
        began = time.monotonic()
        [(now, *rest)] = await connection.fetch(sql)
        self._clock.set(int(now), within=int((time.monotonic() - began) * 1000) + 1)
        return rest

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            connection.abort()
        return None

    def _drop(self) -> None:
        while self._idle:
            self._idle.pop().abort()

    async def _opened(self) -> Connection:
        if self._engine is None:
            raise BackendUnavailable("the connection was closed", maybe_written=False)
        try:
            async with asyncio.timeout(self._connect_timeout):
                connection = await connected(self._engine)
                try:
                    await self._server.begin(connection, self._timeout)
                    await self.told_time(connection, self._server.sql.time)
                except BaseException:
                    connection.abort()
                    raise
                return connection
        except TimeoutError as error:
            raise BackendUnavailable(
                f"no connection to {self._server.name} in {self._connect_timeout:g} seconds", maybe_written=False
            ) from error
        except ModuleNotFoundError as error:
            raise self._missing(str(error.name)) from error
        except UnicodeError:  # which shows what it is about; asyncmy's passwords are Latin-1
            raise ConfigError(f"the client for {self._server.name} can't encode the user name or the password") from None
        except Exception as error:
            fault = self._fault(error)
            kind = BackendUnavailable if fault.kind is BackendError else fault.kind
            raise kind(fault.message, maybe_written=False) from error

    def _fault(self, error: BaseException) -> Fault:
        known = self._server.fault(error)
        if known is not None:
            return known
        if isinstance(error, OSError | EOFError):
            return Fault(BackendUnavailable, f"{self._server.name} can't be reached: {error}", usable=False)
        return Fault(BackendError, f"{self._server.name}: {type(error).__name__}: {error}", usable=False)

    def _made(self) -> AsyncEngine:
        try:
            from sqlalchemy import make_url
            from sqlalchemy.exc import ArgumentError, NoSuchModuleError
            from sqlalchemy.ext.asyncio import create_async_engine
            from sqlalchemy.pool import NullPool
        except ModuleNotFoundError as error:
            raise self._missing("SQLAlchemy") from error
        server = self._server
        try:
            url = make_url(self._url or "")
            scheme, _, client = url.drivername.partition("+")
            client = client or server.client
            own = url.set(drivername=f"{server.schemes[scheme]}+{client}", query={})
            if not own.get_dialect().get_async_dialect_cls(own).is_async:
                raise ConfigError(f"{client} is no client for asyncio; without it the URL names {server.client}")
            return create_async_engine(
                own,
                connect_args=server.connect_arguments(client, {name: str(value) for name, value in url.query.items()}),
                poolclass=NullPool,
                skip_autocommit_rollback=True,
            )
        except ModuleNotFoundError as error:
            raise self._missing(str(error.name)) from error
        except (ArgumentError, NoSuchModuleError, ValueError, OSError) as error:
            # Without the cause: it may show the URL, and a password in it.
            raise ConfigError(f"this URL can't be used: {_without(str(error), self._url)}") from None

    def _missing(self, package: str) -> MissingDependencyError:
        is_ours = package in ("SQLAlchemy", "sqlalchemy", "greenlet", self._server.client)
        line = install(self._server.name.lower()) if is_ours else f'pip install "{_INSTALLED_AS.get(package, package)}"'
        return MissingDependencyError(f"a driver for {self._server.name} needs {package}: {line}")


def _without(message: str, url: str | None) -> str:
    return "see what SQLAlchemy takes" if url and "@" in url and url.partition("@")[0] in message else message
