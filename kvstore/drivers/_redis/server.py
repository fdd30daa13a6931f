"""The server: how its client is made, and what is asked by it, once and in one round trip."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import cache, partial
from typing import Any

from kvstore.drivers._redis.address import Address
from kvstore.drivers._redis.errors import as_kvstore_error
from kvstore.drivers._redis.wire import ByCluster, Lent, Way, Wire
from kvstore.errors import BackendError, BackendUnavailable, MissingDependencyError, UnsupportedOperation, install
from kvstore.lifetime import Lifetime


class Server:
    """The server at `address`, or that of a `client` of others. No more than `at_once` calls are under way.

    `slot`: a key in that slot of a Cluster which all is kept in.
    """

    def __init__(
        self, address: Address | None, client: Any, *, at_once: int, slot: str | None, connect_timeout: float, timeout: float
    ) -> None:
        self._address = address
        self._given = client
        self.client: Any = client
        self.timeout = timeout
        self.as_kvstore_error = partial(as_kvstore_error, connect_timeout=connect_timeout, address=address)
        self._connect_timeout = connect_timeout
        self._slot = slot
        self._at_once = at_once
        self._room = asyncio.Semaphore(at_once)
        self._home: asyncio.AbstractEventLoop | None = None
        self._wire: Way | None = None
        self._open = Lifetime()

    async def connect(self) -> None:
        """Makes what the first command connects by."""
        loop = asyncio.get_running_loop()
        if self._given is not None and self._home not in (None, loop):
            raise UnsupportedOperation("the client that was handed in belongs to another event loop; give a URL instead")
        self._home = loop
        try:
            own = None if self._address is None else self._made(self._address)
        except ModuleNotFoundError as error:
            raise MissingDependencyError(f"the redis driver needs redis-py: {install('redis')}") from error
        self.client = client = self._given if own is None else own
        wire: Way
        before = self._wire  # of another event loop, with what was under way there
        if self._slot is not None:
            wire = ByCluster(client, self._slot)
        else:
            wire = (Lent if own is None else Wire)(client.connection_pool, self.timeout)
        wire.lost = before is not None
        self._wire = wire
        await self._open.begin(partial(_closed, wire, own))
        self._room = asyncio.Semaphore(self._at_once)

    def _made(self, address: Address) -> Any:
        from redis.asyncio import Redis, RedisCluster
        from redis.asyncio.retry import Retry
        from redis.asyncio.sentinel import Sentinel
        from redis.backoff import NoBackoff

        # Nothing is sent twice on its own: a condition whose answer got lost would fail against itself.
        settings: dict[str, Any] = {
            "socket_connect_timeout": self._connect_timeout,
            "socket_timeout": self.timeout,
            "retry": Retry(NoBackoff(), 0),
        }
        if address.service:
            if address.password is not None or address.username is not None:
                settings |= {"username": address.username, "password": address.password}
            sentinels: Any = Sentinel
            asked = {"socket_connect_timeout": self._connect_timeout, "socket_timeout": self._connect_timeout}
            sentinel = sentinels(address.sentinels, sentinel_kwargs=asked, **settings)
            return sentinel.master_for(address.service, db=address.db)
        return (Redis if self._slot is None else RedisCluster).from_url(address.url, **settings)

    def lost(self) -> bool:
        """Whether since it was asked last a command was given up that may still be carried out."""
        wire = self._wire
        if wire is None or not wire.lost:
            return False
        wire.lost = False
        return True

    async def settle(self) -> None:
        """Returns when what cancelled callers have left is over."""
        if self._wire is not None:
            await self._wire.settled()

    async def aclose(self) -> None:
        await self._open.aclose()
        self.client, self._wire = self._given, None

    async def run(
        self, script: str, keys: Sequence[str], *arguments: Any, about: Sequence[str] = (), writes: bool = False
    ) -> Any:
        from redis.exceptions import NoScriptError

        try:
            return await self.command("EVALSHA", _digest(script), len(keys), *keys, *arguments, about=about, writes=writes)
        except BackendError as error:
            if not isinstance(error.__cause__, NoScriptError):
                raise
            return await self.command("EVAL", script, len(keys), *keys, *arguments, about=about, writes=writes)

    async def command(self, *command: Any, about: Sequence[str] = (), writes: bool = False) -> Any:
        return await self.call(lambda wire: wire.ask(*command), about, writes=writes)

    async def call(self, call: Callable[[Way], Awaitable[Any]], about: Sequence[str] = (), *, writes: bool = False) -> Any:
        """What `call` returns, whose errors are those of the keys that it is `about`."""
        from redis.exceptions import RedisClusterException, RedisError

        wire = self._wire
        if wire is None:
            raise BackendUnavailable("the connection was closed", maybe_written=False)
        began = time.monotonic()
        try:
            async with self._room:
                return await call(wire)
        except (RedisError, RedisClusterException, OSError) as error:  # OSError: TimeoutError too
            raise self.as_kvstore_error(error, about, time.monotonic() - began, writes=writes) from error

    async def names(self, prefix: str) -> set[bytes]:
        """Of the strings that begin so, whoever wrote them."""
        literal = re.sub(r"([*?\[\]\\^])", r"\\\1", prefix)

        async def collect(wire: Way) -> set[bytes]:
            await wire.settled()
            return {name async for name in self.client.scan_iter(match=f"{literal}*", count=1000, _type="string")}

        found: set[bytes] = await self.call(collect)
        return found


async def _closed(wire: Way, client: Any) -> None:
    """Closes a client of our own, once what is left of cancelled callers is over."""
    await wire.settled()
    if client is not None:
        await client.aclose()
        manager: Any = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
        for sentinel in manager.sentinels if manager is not None else ():
            await sentinel.aclose()


@cache
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
