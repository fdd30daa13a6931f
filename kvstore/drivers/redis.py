"""Redis and Valkey by redis-py: one server, Sentinel or Cluster; one round trip a call."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache, partial
from inspect import iscoroutinefunction
from secrets import token_hex
from typing import Any, Self

from kvstore.clock import Clock
from kvstore.driver import PAGE, Capabilities, Driver, Event, Expect, Stat, Write
from kvstore.drivers._options import check_client, check_seconds, own_query
from kvstore.drivers._redis import scripts
from kvstore.drivers._redis.address import OWN_QUERY, Address, parsed
from kvstore.drivers._redis.wire import ByCluster, Lent, Way, Wire
from kvstore.errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ConfigError,
    CorruptValueError,
    KVStoreError,
    MissingDependencyError,
    UnsupportedOperation,
)
from kvstore.keys import bounds, is_key, past
from kvstore.lifetime import Lifetime

_AT_ONCE = 8
"""Calls. More are never needed: those that wait are merged into one. A pool that blocks by itself takes 30 µs a call."""
_PIECE = 2**19
"""Bytes of a value that are sent or read at once."""
_ROOM = 2**22
"""Bytes of values that one command carries: packing more holds the event loop. What is beyond is sent apart, before."""
_PART_SECONDS = 600
_TRIES = 3
"""With a large value, whose pieces another write or the server's memory may come between."""
_KEYS = 4000
"""Read by one command: a script can hand over no more than 8,000."""


class RedisDriver(Driver):
    """Keeps values as plain strings in Redis (7.0 or newer) or Valkey.

    Args:
        url: `redis://[user:password@]host:port/db`, `rediss://` for TLS, `unix://path`, or
            `redis+sentinel://host:port,host:port/service/db`. TLS files as a query: `?ssl_ca_certs=/path/ca.pem`.
        client: In place of `url`, an asyncio client of yours (`decode_responses=False`), which stays open, and belongs to the
            event loop that it is first used in.
        base: What stands before every key in Redis, literally, followed by `:`.
        index: Keep a sorted set of the keys, so that a listing costs what it returns, and when each was written. Without, a
            listing scans the whole database, and there is no custom metadata.
        cluster: The URL is that of a node of a Redis Cluster. All keys of the mount lie in one slot, tagged `{base}`.
        connect_timeout: Seconds to wait for a connection, then `BackendUnavailable`.
        timeout: Seconds to wait for an answer, then `BackendTimeout`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        client: Any = None,
        base: str = "",
        index: bool = True,
        cluster: bool = False,
        connect_timeout: float = 5.0,
        timeout: float = 10.0,
    ) -> None:
        if (url is None) == (client is None):
            raise ConfigError("give either a url or a client", driver="redis")
        check_seconds("redis", connect_timeout=connect_timeout, timeout=timeout)
        is_one = iscoroutinefunction(getattr(client, "execute_command", None))
        check_client("redis", "client", client, "an asyncio client of redis-py", is_one=is_one)
        settings: Mapping[str, Any] = {}
        if client is not None:
            cluster = hasattr(client, "get_default_node")
            settings = _settings(client)
            if settings.get("decode_responses"):
                raise ConfigError("the client decodes what it reads; make it with decode_responses=False", driver="redis")
        self._address = None if url is None else parsed(url)
        if cluster and self._address is not None and (self._address.service or self._address.db):
            raise ConfigError("the URL of a Cluster's node has no database and no Sentinel", driver="redis")
        self._given = client
        self._client: Any = client
        self._home: asyncio.AbstractEventLoop | None = None
        self._wire: Way | None = None
        self._open = Lifetime()
        self._cluster = cluster
        # When a slot moves, a cluster's client breaks off whatever else is under way on it.
        self._at_once, self.lanes = (1, 1) if cluster else (_AT_ONCE, 2)
        self.cancellable = client is None and not cluster
        self._index = index
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        if cluster and base.startswith("}"):
            raise ConfigError("on a Cluster a base can't start with }, where its tag would end", driver="redis")
        tag = f"{{{base or 'kvstore'}}}" if cluster else base
        self._prefix = f"{tag}:" if tag else ""
        # Behind an empty segment, which no key has, so these are no one's values.
        self._own = f"{self._prefix}:$meta:"
        self._keys = tuple(f"{self._own}{name}" for name in ("index", "expiring", "written"))
        # All databases of a server have the same channels.
        db = self._address.db if self._address is not None else settings.get("db") or 0
        self._channel = f"{self._own}changes:{db}"
        self._writer = token_hex(8)
        self._arguments = (self._prefix, f"{self._own}of:", self._channel, self._writer, "1" if index else "0")
        self._room = asyncio.Semaphore(self._at_once)
        self._time = self.clock = Clock()
        self.capabilities = Capabilities(
            atomic=True, conditional=True, ordered=index, metadata=index, watch=True, shared=True, own_clock=False
        )

    def __repr__(self) -> str:
        address = "a client" if self._address is None else self._address.shown
        return f"RedisDriver({address!r}, base={self._prefix!r})"

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """The options of the driver may stand in the query."""
        address, own = own_query(url, OWN_QUERY, "redis")
        return cls(address, **(own | options))

    # Connecting

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        if self._given is not None and self._home not in (None, loop):
            raise UnsupportedOperation("the client that was handed in belongs to another event loop; give a URL instead")
        self._home = loop
        try:
            own = None if self._given is not None else self._made()
            self._client = client = self._given if own is None else own
            wire: Way
            if self._cluster:
                wire = ByCluster(client, self._keys[0])
            else:
                wire = (Lent if own is None else Wire)(client.connection_pool, self._timeout)
            self._wire = wire
            await self._open.begin(partial(_closed, wire, own))
            self._room = asyncio.Semaphore(self._at_once)
            await self._script(scripts.TIME)  # connects, which takes its time
            began = time.monotonic()
            [now] = await self._script(scripts.TIME)
            self._time.set(now + _since(began))  # of what it may be by now the latest: nothing expires early
        except ModuleNotFoundError as error:
            raise MissingDependencyError('the redis driver needs redis-py: pip install "kvstore[redis]"') from error
        except KVStoreError as error:
            raise BackendUnavailable(f"Redis can't be reached: {error.message}") from error.__cause__

    def _made(self) -> Any:
        from redis.asyncio import Redis, RedisCluster
        from redis.asyncio.retry import Retry
        from redis.asyncio.sentinel import Sentinel
        from redis.backoff import NoBackoff

        assert self._address is not None
        # Nothing is sent twice on its own: a condition whose answer got lost would fail against itself.
        settings: dict[str, Any] = {
            "socket_connect_timeout": self._connect_timeout,
            "socket_timeout": self._timeout,
            "retry": Retry(NoBackoff(), 0),
        }
        if self._address.service:
            if self._address.password is not None or self._address.username is not None:
                settings |= {"username": self._address.username, "password": self._address.password}
            sentinels: Any = Sentinel
            asked = {"socket_connect_timeout": self._connect_timeout, "socket_timeout": self._connect_timeout}
            sentinel = sentinels(self._address.sentinels, sentinel_kwargs=asked, **settings)
            return sentinel.master_for(self._address.service, db=self._address.db)
        if self._cluster:
            return RedisCluster.from_url(self._address.url, **settings)
        return Redis.from_url(self._address.url, **settings)

    async def aclose(self) -> None:
        await self._open.aclose()
        self._client, self._wire = self._given, None

    # Calls

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        if len(keys) == 1:
            data: bytes = await self._command("GETRANGE", self._prefix + keys[0], 0, _PIECE - 1, about=keys)
            if data:
                return [data if len(data) < _PIECE else await self._large(keys[0])]
        found: list[bytes | int | None] = []
        for start in range(0, len(keys), _KEYS):
            found += await self._run(
                scripts.READ, self._keys[:1], self._prefix, _PIECE, *keys[start : start + _KEYS], about=keys
            )
        for key, value in zip(keys, found, strict=True):
            if value == -1:
                raise CorruptValueError("another program keeps no string under this key", key=key)
        return [await self._large(key) if isinstance(value, int) else value for key, value in zip(keys, found, strict=True)]

    async def _large(self, key: str) -> bytes | None:
        """In pieces: as one, a large value holds the event loop while it is parsed. By their hash they are of one value."""
        name = self._prefix + key
        for _ in range(_TRIES):
            pieces: list[bytes] = []
            digest = hashlib.sha1(usedforsecurity=False)
            while not pieces or len(pieces[-1]) == _PIECE:
                at = len(pieces) * _PIECE
                pieces.append(await self._command("GETRANGE", name, at, at + _PIECE - 1, about=[key]))
                digest.update(pieces[-1])
            is_all = await self._run(scripts.IS, (name,), digest.hexdigest(), about=[key])
            if is_all is None:
                return None
            if is_all:
                return b"".join(pieces)
        # Others write it all the time. In one step, which costs the server more, and has one timeout for all.
        found: list[bytes] | None = await self._run(scripts.PIECES, (name,), _PIECE, about=[key])
        return None if found is None else b"".join(found)

    async def _sent(self, data: bytes | bytearray) -> str:
        """Sends what is large in pieces. Returns the name that it lies under."""
        part = f"{self._own}part:{token_hex(8)}"
        for start in range(0, len(data), _PIECE):
            piece = bytes(memoryview(data)[start : start + _PIECE])
            await self._run(scripts.APPEND, (part,), start, piece, _PART_SECONDS, writes=True)
        return part

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        for _ in range(_TRIES - 1):
            try:
                return await self._write(writes, expect)
            except BackendError as error:
                if scripts.LOST not in str(error.__cause__):
                    raise
        return await self._write(writes, expect)

    async def _write(self, writes: Sequence[Write], expect: Expect | None) -> list[bool] | None:
        conditions: list[Any] = []
        plain: list[Any] = []
        others: list[Any] = []
        apart, room = bytearray(), _ROOM

        def put_apart(data: bytes) -> str:
            start = len(apart)
            apart.extend(data)
            return f"{start} {len(apart) - 1}"

        for key, wanted in (expect or {}).items():
            if wanted is None:
                conditions += (key, "0", b"")
            elif len(wanted) > room:
                conditions += (key, "2", put_apart(wanted))
            else:
                conditions += (key, "1", wanted)
                room -= len(wanted)
        for key, data, expires_at in writes:
            at = "" if expires_at is None else expires_at
            if data is None:
                others += (key, "r", b"", "")
            elif len(data) > _PIECE:
                others += (key, "m", await self._sent(data), at)
            elif len(data) > room:
                others += (key, "p", put_apart(data), at)
            else:
                room -= len(data)
                if expires_at is None:
                    plain += (key, data)
                else:
                    others += (key, "s", data, at)
        head = (len(conditions) // 3, len(plain) // 2, await self._sent(apart) if apart else "")
        keys = [key for key, _, _ in writes]
        found = await self._script(scripts.WRITE, *head, *conditions, *plain, *others, about=keys, writes=True)
        if found is None:
            return None
        there = dict(zip((*plain[::2], *others[::4]), found, strict=True))
        return [bool(there[key]) for key in keys]

    async def has(self, keys: Sequence[str]) -> list[bool]:
        if len(keys) == 1:
            return [bool(await self._command("EXISTS", self._prefix + keys[0]))]
        return [bool(there) for there in await self._run(scripts.HAS, self._keys[:1], self._prefix, *keys, about=keys)]

    async def stat(self, keys: Sequence[str]) -> list[Stat | None]:
        found = await self._script(scripts.STAT, *keys, about=keys)
        return [row and _stat(*row) for row in found]

    async def touch(self, key: str, expires_at: int | None) -> bool:
        at = "" if expires_at is None else expires_at
        return bool(await self._script(scripts.TOUCH, key, at, about=[key], writes=True))

    async def set_meta(self, key: str, custom: bytes | None) -> bool:
        if not self._index:
            return await super().set_meta(key, custom)
        return bool(await self._script(scripts.SET_META, key, custom or b"", about=[key], writes=True))

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        if not self._index:
            keys = await self._scanned(prefix)
            keys = [key for key in sorted(keys, reverse=reverse) if after is None or (key < after if reverse else key > after)]
            return keys[:limit]
        first, end, strictly = bounds(prefix, after, reverse=reverse)
        low, high = f"{'(' if strictly else '['}{first}", f"({end}"
        command, ends = ("ZREVRANGEBYLEX", (high, low)) if reverse else ("ZRANGEBYLEX", (low, high))
        found = await self._script(scripts.SCAN, command, *ends, limit)
        return [key.decode() for key in found]

    async def count(self, prefix: str) -> int:
        return await self._script(scripts.COUNT, *_bounds(prefix)) if self._index else len(await self._scanned(prefix))

    async def clear(self, prefix: str) -> int:
        if not self._index:
            return await self._remove(await self._scanned(prefix))
        low, high = _bounds(prefix)
        count = 0
        while keys := await self._script(scripts.CLEAR, low, high, writes=True):
            count += len(keys)
            low = "(" + keys[-1].decode()
        return count

    async def _remove(self, keys: Sequence[str]) -> int:
        total = 0
        for start in range(0, len(keys), PAGE):
            total += sum(await self.write([(key, None, None) for key in keys[start : start + PAGE]]) or ())
        return total

    async def sweep(self) -> int | None:
        began = time.monotonic()
        now, *due = await self._script(scripts.SWEEP if self._index else scripts.TIME)
        self._time.set(now, within=_since(began))
        return int(float(due[0])) if due else None

    @asynccontextmanager
    async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[Event]]:
        channel: Any = None

        async def subscribe(_: Way) -> None:
            nonlocal channel
            channel = self._client.pubsub()
            await channel.subscribe(self._channel)
            await channel.get_message(timeout=self._timeout)  # the subscription

        try:
            await self._call(subscribe)
            yield self._events(channel, prefix)
        finally:
            with suppress(Exception):  # it may be what failed
                await channel.aclose()

    async def _events(self, channel: Any, prefix: str) -> AsyncIterator[Event]:
        from redis.exceptions import RedisError

        messages = channel.listen()
        while True:
            try:
                message = await anext(messages)
            except (RedisError, OSError) as error:
                raise self._error(error) from error
            if message["type"] == "message":
                writer, *changes = message["data"].decode().split("\0")
                for change in changes if writer != self._writer else ():
                    if change.startswith(prefix, 1):
                        yield Event("update" if change[0] == "u" else "remove", change[1:])

    async def rebuild_index(self) -> int:
        """Makes the index what the database holds: keys of other programs are listed from now on. Returns how many keys."""
        keys = {*await self._scanned("")}
        after: str | None = None
        while page := await self.scan("", after=after, limit=PAGE, reverse=False):
            keys.update(page)
            after = page[-1]
        ordered, total = sorted(keys), 0
        for start in range(0, len(ordered), PAGE):
            total += await self._script(scripts.REINDEX, *ordered[start : start + PAGE], writes=True)
        return total

    async def _scanned(self, prefix: str) -> list[str]:
        """The keys there are, whoever wrote them: of another program's texts those that are keys."""
        literal = re.sub(r"([*?\[\]\\^])", r"\\\1", self._prefix + prefix)

        async def collect(wire: Way) -> set[bytes]:
            await wire.settled()
            return {name async for name in self._client.scan_iter(match=f"{literal}*", count=1000, _type="string")}

        cut = len(self._prefix.encode())
        texts = [name[cut:].decode(errors="surrogateescape") for name in await self._call(collect)]
        return [text for text in texts if is_key(text, at_root=self.at_root)]

    async def _script(self, script: str, *arguments: Any, about: Sequence[str] = (), writes: bool = False) -> Any:
        return await self._run(script, self._keys, *self._arguments, *arguments, about=about, writes=writes)

    async def _run(
        self, script: str, keys: Sequence[str], *arguments: Any, about: Sequence[str] = (), writes: bool = False
    ) -> Any:
        from redis.exceptions import NoScriptError

        try:
            return await self._command("EVALSHA", _digest(script), len(keys), *keys, *arguments, about=about, writes=writes)
        except BackendError as error:
            if not isinstance(error.__cause__, NoScriptError):
                raise
            return await self._command("EVAL", script, len(keys), *keys, *arguments, about=about, writes=writes)

    async def _command(self, *command: Any, about: Sequence[str] = (), writes: bool = False) -> Any:
        return await self._call(lambda wire: wire.ask(*command), about, writes=writes)

    async def _call(self, call: Callable[[Way], Awaitable[Any]], about: Sequence[str] = (), *, writes: bool = False) -> Any:
        from redis.exceptions import RedisError

        wire = self._wire
        if wire is None:
            raise BackendUnavailable("the connection was closed")
        began = time.monotonic()
        try:
            async with self._room:
                return await call(wire)
        except (RedisError, OSError) as error:  # OSError: TimeoutError too
            raise self._error(error, about, time.monotonic() - began, writes=writes) from error

    def _error(
        self, error: Exception, about: Sequence[str] = (), seconds: float = 0.0, *, writes: bool = False
    ) -> KVStoreError:
        """What redis-py says, as an error of the tree."""
        from redis import exceptions

        done = "; whether anything was written is not known" if writes else ""
        if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError | exceptions.NoPermissionError):
            return BackendUnavailable(f"Redis refuses the login or the command: {error}")
        if isinstance(error, TimeoutError | exceptions.TimeoutError):
            if "connecting" in str(error):
                return BackendUnavailable(f"no connection to Redis in {self._connect_timeout:g} seconds{done}")
            return BackendTimeout(f"Redis did not answer in {seconds:.1f} seconds{done}")
        if type(error).__name__ == "MasterNotFoundError" and self._address is not None:
            return BackendUnavailable(_no_master(self._address, str(error)))
        if isinstance(error, exceptions.ConnectionError | exceptions.ClusterDownError | OSError):
            return BackendUnavailable(f"the connection to Redis failed: {error}{done}")
        if "WRONGTYPE" in str(error):
            key = about[0] if len(about) == 1 else None
            return CorruptValueError("another program keeps no string under this key", key=key)
        return BackendError(f"Redis: {error}")


async def _closed(wire: Way, client: Any) -> None:
    """Closes a client of our own, once what is left of cancelled callers is over."""
    await wire.settled()
    if client is not None:
        await client.aclose()
        manager: Any = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
        for sentinel in manager.sentinels if manager is not None else ():
            await sentinel.aclose()


def _since(began: float) -> int:
    """Milliseconds, rounded up."""
    return int((time.monotonic() - began) * 1000) + 1


def _no_master(address: Address, said: str) -> str:
    asked = ", ".join(f"{host}:{port}" for host, port in address.sentinels)
    why = "not every one can be reached" if " : " in said else "they know none"
    return f"the Sentinels at {asked} name no master {address.service!r}: {why}; nothing was written"


def _stat(size: int, digest: bytes, written: bytes, expires_at: int, custom: bytes | None = None) -> Stat:
    at = int(written)  # 0 for what another program wrote
    etag = f"{at:x}-{digest[:16].decode()}"
    return Stat(size, etag, at // 1000 or None, expires_at if expires_at > 0 else None, custom)


def _bounds(prefix: str) -> tuple[str, str]:
    return (f"[{prefix}", f"({past(prefix)}") if prefix else ("-", "+")


@cache
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def _settings(client: Any) -> Mapping[str, Any]:
    """What a client that was handed in was made with."""
    pool: Any = getattr(client, "connection_pool", None)
    settings: Mapping[str, Any] = pool.connection_kwargs if pool is not None else getattr(client, "connection_kwargs", {})
    return settings
