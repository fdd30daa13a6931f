"""Redis and Valkey by redis-py: one server, Sentinel or Cluster; one round trip a call."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, urlsplit

from kvstore.driver import Capabilities, Driver, Event, Expect, Stat, Write
from kvstore.drivers._redis import scripts
from kvstore.drivers._redis.wire import Wire
from kvstore.errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ConfigError,
    CorruptValueError,
    KVStoreError,
    MissingDependencyError,
)
from kvstore.keys import past
from kvstore.values import now_ms

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

_CONNECTIONS = 8
"""At once. More are never needed: calls that wait are merged into one. A pool that blocks by itself takes 30 µs a call."""
_PIECE = 2**19
"""Bytes of a value that are sent or read at once."""
_PART_SECONDS = 600
_KEYS = 4000
"""Read by one command: a script can hand over no more than 8,000."""
_OWN_QUERY = {"base": str, "index": bool, "cluster": bool, "connect_timeout": float, "timeout": float}
_TLS_QUERY = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_keyfile_password", "ssl_cert_reqs", "ssl_check_hostname")


class RedisDriver(Driver):
    """Keeps values as plain strings in Redis (7.0 or newer) or Valkey.

    Args:
        url: `redis://[user:password@]host:port/db`, `rediss://` for TLS, `unix://path`, or
            `redis+sentinel://host:port,host:port/service/db`. TLS files as a query: `?ssl_ca_certs=/path/ca.pem`.
        client: In place of `url`, an asyncio client of yours (`decode_responses=False`), which stays open.
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
        for name, seconds in (("connect_timeout", connect_timeout), ("timeout", timeout)):
            if not 0 < seconds < float("inf"):
                raise ConfigError(f"{name} is a positive number of seconds, not {seconds!r}", driver="redis")
        if client is not None:
            cluster = hasattr(client, "get_default_node")
            if _decodes(client):
                raise ConfigError("the client decodes what it reads; make it with decode_responses=False", driver="redis")
        if url is not None and not re.match(r"(redis|rediss|unix|valkey|redis\+sentinel)://", url):
            raise ConfigError("a Redis URL starts with redis://, rediss://, unix:// or redis+sentinel://", driver="redis")
        self._url = url
        self._given = client
        self._client: Any = client
        self._wire: Wire | None = None
        self._cluster = cluster
        self._index = index
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        tag = f"{{{base or 'kvstore'}}}" if cluster else base
        self._prefix = f"{tag}:" if tag else ""
        # `$meta` is no first segment of a key, so these are no one's values.
        self._keys = tuple(f"{self._prefix}$meta:{name}" for name in ("index", "expiring", "written"))
        self._channel = f"{self._prefix}$meta:changes"
        self._writer = token_hex(8)
        self._arguments = (self._prefix, f"{self._prefix}$meta:of:", self._channel, self._writer, "1" if index else "0")
        self._ahead = 0
        self._room = asyncio.Semaphore(_CONNECTIONS)
        self.clock = self._server_time
        self.capabilities = Capabilities(
            atomic=True, conditional=True, ordered=index, metadata=index, watch=True, shared=True, own_clock=False
        )

    def __repr__(self) -> str:
        parts = urlsplit(self._url or "")
        return f"RedisDriver('{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}', base={self._prefix!r})"

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        parts = urlsplit(url)
        own, others = {}, []
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name in _OWN_QUERY:
                own[name] = _parsed(name, value)
            elif name in _TLS_QUERY:
                others.append(f"{name}={value}")
            else:
                raise ConfigError(f"there is no option {name!r} in a Redis URL", driver="redis")
        return cls(url.partition("?")[0] + ("?" + "&".join(others) if others else ""), **(own | options))

    # Connecting

    async def connect(self) -> None:
        try:
            if self._given is None:
                self._client = self._made()
                self._wire = None if self._cluster else Wire(self._client.connection_pool, self._timeout)
            self._room = asyncio.Semaphore(_CONNECTIONS)
            await self._call(lambda client: client.time())  # connects, which takes its time
            before = now_ms()
            seconds, micros = await self._call(lambda client: client.time())
            # The server's clock when it was asked, so never one that lets a key expire early.
            ahead = seconds * 1000 + micros // 1000 - before
            self._ahead = ahead if abs(ahead) > 2 else 0
        except ModuleNotFoundError as error:
            raise MissingDependencyError('the redis driver needs redis-py: pip install "kvstore[redis]"') from error
        except KVStoreError as error:
            raise BackendUnavailable(f"Redis can't be reached: {error.message}") from error.__cause__

    def _made(self) -> Redis | RedisCluster:
        from redis.asyncio import Redis, RedisCluster
        from redis.asyncio.retry import Retry
        from redis.asyncio.sentinel import Sentinel
        from redis.backoff import NoBackoff

        assert self._url is not None
        url = self._url.replace("valkey://", "redis://", 1)
        # Nothing is sent twice on its own: a condition whose answer got lost would fail against itself.
        settings: dict[str, Any] = {
            "socket_connect_timeout": self._connect_timeout,
            "socket_timeout": self._timeout,
            "retry": Retry(NoBackoff(), 0),
        }
        if url.startswith("redis+sentinel://"):
            parts = urlsplit(url)
            service, _, db = parts.path.strip("/").partition("/")
            hosts = [host.rpartition(":") for host in parts.netloc.rpartition("@")[2].split(",")]
            addresses = [(host or port, int(port) if host else 26379) for host, _, port in hosts]
            if parts.username is not None or parts.password is not None:
                settings |= {"username": parts.username or None, "password": parts.password}
            sentinels: Any = Sentinel
            asked = {"socket_connect_timeout": self._connect_timeout, "socket_timeout": self._connect_timeout}
            master: Redis = sentinels(addresses, sentinel_kwargs=asked, **settings).master_for(service, db=int(db or 0))
            return master
        if self._cluster:
            return RedisCluster.from_url(url, **settings)
        return Redis.from_url(url, **settings)

    async def aclose(self) -> None:
        client, self._client, self._wire = self._client, self._given, None
        if client is not None and self._given is None:
            with suppress(OSError, RuntimeError):
                await client.aclose()

    def _server_time(self) -> int:
        return now_ms() + self._ahead

    # Calls

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        if len(keys) == 1:
            data: bytes = await self._command("GETRANGE", self._prefix + keys[0], 0, _PIECE - 1, about=keys)
            if 0 < len(data) < _PIECE:
                return [data]
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
        """A copy, in pieces: as one, a large value holds the event loop while it is parsed."""
        part = self._part()
        pieces: list[bytes] = []
        if not await self._call(lambda client: client.copy(self._prefix + key, part), [key]):
            return None
        await self._call(lambda client: client.expire(part, _PART_SECONDS))
        while not pieces or len(pieces[-1]) == _PIECE:
            pieces.append(await self._piece(part, len(pieces) * _PIECE))
        await self._call(lambda client: client.delete(part))
        return b"".join(pieces)

    async def _sent(self, data: bytes) -> str:
        """Sends a large value in pieces. Returns the name that it lies under."""
        part = self._part()
        for start in range(0, len(data), _PIECE):
            await self._append(part, data[start : start + _PIECE])
            await self._call(lambda client: client.expire(part, _PART_SECONDS))
        return part

    async def _piece(self, part: str, at: int) -> bytes:
        data: bytes = await self._call(lambda client: client.getrange(part, at, at + _PIECE - 1))
        return data

    async def _append(self, part: str, data: bytes) -> None:
        await self._call(lambda client: client.append(part, data), writes=True)

    def _part(self) -> str:
        return f"{self._prefix}$meta:part:{token_hex(8)}"

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        conditions: list[Any] = []
        for key, wanted in (expect or {}).items():
            conditions += (key, "0" if wanted is None else "1", wanted or b"")
        plain: list[Any] = []
        others: list[Any] = []
        for key, data, expires_at in writes:
            at = "" if expires_at is None else expires_at
            if data is None:
                others += (key, "r", b"", "")
            elif len(data) > _PIECE:
                others += (key, "m", await self._sent(data), at)
            elif expires_at is None:
                plain += (key, data)
            else:
                others += (key, "s", data, at)
        counts = (len(conditions) // 3, len(plain) // 2)
        keys = [key for key, _, _ in writes]
        found = await self._script(scripts.WRITE, *counts, *conditions, *plain, *others, about=keys, writes=True)
        if found is None:
            return None
        there = dict(zip((*plain[::2], *others[::4]), found, strict=True))
        return [bool(there[key]) for key in keys]

    async def has(self, keys: Sequence[str]) -> list[bool]:
        async with self._client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.exists(self._prefix + key)
            return [bool(there) for there in await self._call(lambda _: pipeline.execute())]

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
        low, high = _bounds(prefix)
        if after is not None and reverse and (not prefix or after < past(prefix)):
            high = f"({after}"
        elif after is not None and not reverse and after >= prefix:
            low = f"({after}"
        command, bounds = ("ZREVRANGEBYLEX", (high, low)) if reverse else ("ZRANGEBYLEX", (low, high))
        found = await self._script(scripts.SCAN, command, *bounds, limit)
        return [key.decode() for key in found]

    async def count(self, prefix: str) -> int:
        return await self._script(scripts.COUNT, *_bounds(prefix)) if self._index else len(await self._scanned(prefix))

    async def clear(self, prefix: str) -> int:
        if not self._index:
            keys = await self._scanned(prefix)
            return sum(await self.write([(key, None, None) for key in keys]) or ()) if keys else 0
        low, high = _bounds(prefix)
        count = 0
        while keys := await self._script(scripts.CLEAR, low, high, writes=True):
            count += len(keys)
            low = "(" + keys[-1].decode()
        return count

    async def sweep(self) -> int | None:
        due = await self._script(scripts.SWEEP) if self._index else []
        return int(float(due[1])) if due else None

    @asynccontextmanager
    async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[Event]]:
        channel = self._client.pubsub()
        try:
            await self._call(lambda _: channel.subscribe(self._channel))
            await channel.get_message(timeout=self._timeout)  # the subscription
            yield self._events(channel, prefix)
        finally:
            with suppress(Exception):  # it may be what failed
                await channel.aclose()

    async def _events(self, channel: Any, prefix: str) -> AsyncIterator[Event]:
        async for message in channel.listen():
            if message["type"] == "message":
                writer, *changes = message["data"].decode().split("\0")
                for change in changes if writer != self._writer else ():
                    if change.startswith(prefix, 1):
                        yield Event("update" if change[0] == "u" else "remove", change[1:])

    async def rebuild_index(self) -> int:
        """Makes the index what the database holds: keys of other programs are listed from now on. Returns how many keys."""
        keys = await self._scanned("")
        async with self._client.pipeline(transaction=True) as pipeline:
            pipeline.delete(*self._keys)
            for start in range(0, len(keys), 1000):
                pipeline.zadd(self._keys[0], dict.fromkeys(keys[start : start + 1000], 0))
            await self._call(lambda _: pipeline.execute())
        async with self._client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.pexpiretime(self._prefix + key)
            times = await self._call(lambda _: pipeline.execute())
        expiring = {key: at for key, at in zip(keys, times, strict=True) if at > 0}
        if expiring:
            await self._call(lambda client: client.zadd(self._keys[1], expiring))
        return len(keys)

    async def _scanned(self, prefix: str) -> list[str]:
        literal = re.sub(r"([*?\[\]\\^])", r"\\\1", self._prefix + prefix)
        own = f"{self._prefix}$meta:".encode()

        async def collect(client: Any) -> set[bytes]:
            return {name async for name in client.scan_iter(match=f"{literal}*", count=1000, _type="string")}

        found = await self._call(collect)
        return [name[len(self._prefix.encode()) :].decode() for name in found if not name.startswith(own)]

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
        wire = self._wire
        if wire is None:
            return await self._call(lambda client: client.execute_command(*command), about, writes=writes)
        return await self._call(lambda _: wire.ask(*command), about, writes=writes)

    async def _call(self, call: Callable[[Any], Any], about: Sequence[str] = (), *, writes: bool = False) -> Any:
        from redis import exceptions

        if self._client is None:
            raise BackendUnavailable("the connection was closed")
        done = "; whether anything was written is not known" if writes else ""
        began = time.monotonic()
        try:
            async with self._room:
                return await call(self._client)
        except (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError) as error:
            raise BackendUnavailable(f"Redis refuses the login or the command: {error}") from error
        except (TimeoutError, exceptions.TimeoutError) as error:
            if "connecting" in str(error):
                raise BackendUnavailable(f"no connection to Redis in {self._connect_timeout:g} seconds") from error
            raise BackendTimeout(f"Redis did not answer in {time.monotonic() - began:.1f} seconds{done}") from error
        except (exceptions.ConnectionError, exceptions.ClusterDownError, OSError) as error:
            raise BackendUnavailable(f"the connection to Redis failed: {error}{done}") from error
        except exceptions.RedisError as error:
            if "WRONGTYPE" in str(error):
                key = about[0] if len(about) == 1 else None
                raise CorruptValueError("another program keeps no string under this key", key=key) from error
            raise BackendError(f"Redis: {error}") from error


def _stat(size: int, digest: bytes, written: bytes, expires_at: int, custom: bytes | None = None) -> Stat:
    at = int(written)  # 0 for what another program wrote
    etag = f"{at:x}-{digest[:16].decode()}"
    return Stat(size, etag, at // 1000 or None, expires_at if expires_at > 0 else None, custom)


def _bounds(prefix: str) -> tuple[str, str]:
    return (f"[{prefix}", f"({past(prefix)}") if prefix else ("-", "+")


@cache
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def _decodes(client: Any) -> bool:
    pool: Any = getattr(client, "connection_pool", None)
    settings: Mapping[str, Any] = pool.connection_kwargs if pool is not None else getattr(client, "connection_kwargs", {})
    return bool(settings.get("decode_responses"))


def _parsed(name: str, value: str) -> Any:
    kind = _OWN_QUERY[name]
    try:
        return {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
    except (KeyError, ValueError):
        raise ConfigError(
            f"{name} is {'true or false' if kind is bool else 'a number'}, not {value!r}", driver="redis"
        ) from None
