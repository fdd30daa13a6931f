"""Redis and Valkey by redis-py: one server, Sentinel or Cluster; one round trip a call."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from inspect import iscoroutinefunction
from typing import Any, Self

from kvstore.clock import Clock
from kvstore.driver import PAGE, Capabilities, Driver, Event, Expect, Stat, Write
from kvstore.drivers._options import check_client, check_seconds, own_query
from kvstore.drivers._redis import scripts
from kvstore.drivers._redis.address import OWN_QUERY, parsed
from kvstore.drivers._redis.author import Author
from kvstore.drivers._redis.changes import changes
from kvstore.drivers._redis.errors import no_string
from kvstore.drivers._redis.pieces import PIECE, TRIES, Pieces
from kvstore.drivers._redis.server import Server
from kvstore.errors import BackendError, BackendUnavailable, ConfigError, KVStoreError
from kvstore.keys import bounds, is_key, prefix_end

_AT_ONCE = 8
"""Calls. More are never needed: those that wait are merged into one. A pool that blocks by itself takes 30 µs a call."""
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
            raise ConfigError("give either a url, such as redis://localhost:6379/0, or a client", driver="redis")
        check_seconds("redis", connect_timeout=connect_timeout, timeout=timeout)
        is_one = iscoroutinefunction(getattr(client, "execute_command", None))
        check_client("redis", "client", client, "an asyncio client of redis-py", is_one=is_one)
        # What a client that was handed in was made with.
        settings: dict[str, Any] = getattr(getattr(client, "connection_pool", client), "connection_kwargs", {})
        if settings.get("decode_responses"):
            raise ConfigError("the client decodes what it reads; make it with decode_responses=False", driver="redis")
        address = None if url is None else parsed(url)
        if address is None:
            cluster = hasattr(client, "get_default_node")
        elif cluster and (address.service or address.db):
            raise ConfigError("the URL of a Cluster's node has no database and no Sentinel", driver="redis")
        if cluster and base.startswith("}"):
            raise ConfigError("on a Cluster a base can't start with }, where its tag would end", driver="redis")
        self._shown = "a client" if address is None else address.shown
        self._index = index
        tag = f"{{{base or 'kvstore'}}}" if cluster else base
        self._prefix = f"{tag}:" if tag else ""
        # Behind an empty segment, which no key has, so these are no one's values.
        own = f"{self._prefix}:$meta:"
        self._keys = tuple(f"{own}{name}" for name in ("index", "expiring", "written"))
        # All databases of a server have the same channels.
        self._channel = f"{own}changes:{settings.get('db') or 0 if address is None else address.db}"
        # When a slot moves, a cluster's client breaks off whatever else is under way on it.
        at_once, self.lanes = (1, 1) if cluster else (_AT_ONCE, 2)
        self.cancellable = client is None and not cluster
        slot = self._keys[0] if cluster else None
        self._server = Server(address, client, at_once=at_once, slot=slot, connect_timeout=connect_timeout, timeout=timeout)
        self._pieces = Pieces(self._server, self._prefix, own)
        self._own = f"{own}of:"
        self._author = Author(self._server, self._own)
        self._time = self.clock = Clock()
        self.capabilities = Capabilities(
            atomic=True, conditional=True, ordered=index, metadata=index, watch=True, shared=True, own_clock=False
        )

    def __repr__(self) -> str:
        return f"RedisDriver({self._shown!r}, base={self._prefix!r})"

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """The options of the driver may stand in the query."""
        address, own = own_query(url, OWN_QUERY, "redis")
        return cls(address, **(own | options))

    # Connecting

    async def connect(self) -> None:
        await self._server.connect()
        try:
            await self._script(scripts.TIME)  # connects, which takes its time
            began = time.monotonic()
            [now] = await self._script(scripts.TIME)
        except KVStoreError as error:
            raise BackendUnavailable(error.message, maybe_written=False) from error.__cause__
        self._time.set(now + _since(began))  # of what it may be by now the latest: nothing expires early

    async def settle(self) -> None:
        await self._server.settle()

    async def aclose(self) -> None:
        await self._server.aclose()

    # Reading

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        if len(keys) == 1:
            data: bytes = await self._server.command("GETRANGE", self._prefix + keys[0], 0, PIECE - 1, about=keys)
            if data:
                return [data if len(data) < PIECE else await self._pieces.read(keys[0])]
        found: list[bytes | int | None] = []
        for start in range(0, len(keys), _KEYS):
            found += await self._server.run(
                scripts.READ, self._keys[:1], self._prefix, PIECE, *keys[start : start + _KEYS], about=keys
            )
        for key, value in zip(keys, found, strict=True):
            if value == -1:
                raise no_string(key)
        return [
            await self._pieces.read(key) if isinstance(value, int) else value for key, value in zip(keys, found, strict=True)
        ]

    async def has(self, keys: Sequence[str]) -> list[bool]:
        if len(keys) == 1:
            types = [await self._server.command("TYPE", self._prefix + keys[0])]
        else:
            types = await self._server.run(scripts.TYPES, self._keys[:1], self._prefix, *keys, about=keys)
        for key, kind in zip(keys, types, strict=True):
            if kind not in (b"string", b"none"):
                raise no_string(key)
        return [kind == b"string" for kind in types]

    async def stat(self, keys: Sequence[str]) -> list[Stat | None]:
        found = await self._script(scripts.STAT, *keys, about=keys)
        return [row and _stat(*row) for row in found]

    # Writing

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        tries = 0
        while True:
            tries += 1
            try:
                arguments, order = await self._pieces.packed(writes, expect or {})
                found = await self._script(scripts.WRITE, *arguments, about=order, writes=True)
                break
            except BackendError as error:
                if scripts.LOST not in error.message or tries == TRIES:
                    raise
        if found is None:
            return None
        there = dict(zip(order, found, strict=True))
        return [bool(there[key]) for key, _, _ in writes]

    async def touch(self, key: str, expires_at: int | None) -> bool:
        at = "" if expires_at is None else expires_at
        return bool(await self._script(scripts.TOUCH, key, at, about=[key], writes=True))

    async def set_meta(self, key: str, custom: bytes | None) -> bool:
        if not self._index:
            return await super().set_meta(key, custom)
        return bool(await self._script(scripts.SET_META, key, custom or b"", about=[key], writes=True))

    async def sweep(self) -> int | None:
        began = time.monotonic()
        now, *due = await self._script(scripts.SWEEP if self._index else scripts.TIME)
        self._time.set(now, within=_since(began))
        return int(float(due[0])) if due else None

    # Listing and watching

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
        if not self._index:
            return len(await self._scanned(prefix))
        return int(await self._script(scripts.COUNT, f"[{prefix}", f"({prefix_end(prefix)}"))

    async def clear(self, prefix: str) -> int:
        count = 0
        if not self._index:
            keys = await self._scanned(prefix)
            for start in range(0, len(keys), PAGE):
                count += sum(await self.write([(key, None, None) for key in keys[start : start + PAGE]]) or ())
            return count
        low, high = f"[{prefix}", f"({prefix_end(prefix)}"
        while found := await self._script(scripts.CLEAR, low, high, writes=True):
            there, last = found
            count += there
            low = f"({last.decode()}"
        return count

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

    def watch(self, prefix: str) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        return changes(self._server, self._channel, self._author.token, prefix)

    async def _scanned(self, prefix: str) -> list[str]:
        """The keys there are, whoever wrote them: of another program's texts those that are keys."""
        cut = len(self._prefix.encode())
        texts = [name[cut:].decode(errors="surrogateescape") for name in await self._server.names(self._prefix + prefix)]
        return [text for text in texts if is_key(text, at_root=self.at_root)]

    async def _script(self, script: str, *arguments: Any, about: Sequence[str] = (), writes: bool = False) -> Any:
        while True:
            name = await self._author.sign() if writes else self._author.name
            head = (self._prefix, self._own, self._channel, name, "1" if self._index else "0")
            try:
                return await self._server.run(script, self._keys, *head, *arguments, about=about, writes=writes)
            except BackendError as error:
                if scripts.FENCED not in error.message or name == self._author.name:
                    raise


def _since(began: float) -> int:
    """Milliseconds, rounded up."""
    return int((time.monotonic() - began) * 1000) + 1


def _stat(size: int, digest: bytes, written: bytes, expires_at: int, custom: bytes | None = None) -> Stat:
    at = int(written)  # 0 for what another program wrote
    etag = f"{at:x}-{digest[:16].decode()}"
    return Stat(size, etag, at // 1000 or None, expires_at if expires_at > 0 else None, custom)
