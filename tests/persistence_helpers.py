"""Stores to test persistence on, and drivers that count, interleave and crash."""

from __future__ import annotations

import asyncio
import importlib
import itertools
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from servers import own_name

from kvstore import BackendUnavailable, Capabilities, Driver, Expect, Storage, Write, create_storage
from kvstore.drivers.memory import MemoryDriver
from kvstore.resolve import resolve_driver
from persistence import Image, Persistence, Session, create_persistence

T = TypeVar("T")

KINDS = ("memory", "steps", "sqlite", "fs", "redis", "mongodb", "postgresql", "mysql")


def run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(main, 60))


class Wrapped(Driver):
    """Another driver, which stays open."""

    def __init__(self, inner: Driver) -> None:
        self.inner = inner
        self.capabilities = inner.capabilities

    async def connect(self) -> None:
        await self.inner.connect()

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self.inner.read(keys)

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        return await self.inner.write(writes, expect)

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        return await self.inner.scan(prefix, after=after, limit=limit, reverse=reverse)


class Steps(Wrapped):
    """Keeps only what a driver has to: conditions on one key. Several keys are written and read one after another."""

    def __init__(self, inner: Driver) -> None:
        super().__init__(inner)
        self.capabilities = Capabilities(conditional=True, persistent=inner.capabilities.persistent)

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        found = []
        for key in keys:
            await asyncio.sleep(0)
            found += await self.inner.read([key])
        return found

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        assert expect is None or [*expect] == [key for key, _, _ in writes], "conditions are asked of the key that is written"
        found = []
        for write in writes:
            await asyncio.sleep(0)
            there = await self.inner.write([write], expect)
            if there is None:
                return None
            found += there
        return found


class Counting(Wrapped):
    """Counts round trips."""

    def __init__(self, inner: Driver) -> None:
        super().__init__(inner)
        self.calls: list[str] = []
        self.keys = 0

    def taken(self) -> list[str]:
        calls, self.calls, self.keys = self.calls, [], 0
        return calls

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        self.calls.append("read")
        self.keys += len(keys)
        return await super().read(keys)

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        self.calls.append("write")
        return await super().write(writes, expect)

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        self.calls.append("scan")
        return await super().scan(prefix, after=after, limit=limit, reverse=reverse)


class Crashing(Wrapped):
    """Stops for good after so many steps: writes, and of a driver that is not atomic, keys written."""

    def __init__(self, inner: Driver, steps: int) -> None:
        super().__init__(inner)
        self.left = steps

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        if self.capabilities.atomic:
            self._step()
            return await super().write(writes, expect)
        found = []
        for write in writes:
            self._step()
            there = await super().write([write], expect)
            if there is None:
                return None
            found += there
        return found

    def _step(self) -> None:
        if self.left <= 0:
            raise BackendUnavailable("crashed")
        self.left -= 1


def place_on_a_server(kind: str, path: Path) -> tuple[str, dict[str, str]]:
    """The URL of the server that the tests share, and the option for a name space as much `path`'s own as a directory there."""
    server: Any = importlib.import_module(f"servers.{kind}")
    place = {"redis": "base", "mongodb": "collection"}.get(kind, "table")
    return server.url(), {place: own_name(path)}


class Store:
    """One store, and as many persistences on it as are asked for."""

    def __init__(self, kind: str, path: Path) -> None:
        self.kind = kind
        self.path = path
        self._memory = Steps(MemoryDriver()) if kind == "steps" else MemoryDriver()

    def driver(self) -> Driver:
        if self.kind == "sqlite":
            from kvstore.drivers.sqlite import SqliteDriver

            return SqliteDriver(self.path / "store.db", synchronous="normal")
        if self.kind == "fs":
            from kvstore.drivers.fs import FsDriver

            return FsDriver(self.path / "store")
        if self.kind in ("memory", "steps"):
            return Wrapped(self._memory)
        kind, _, unindexed = self.kind.partition("-")
        url, options = place_on_a_server(kind, self.path)
        return resolve_driver(kind, {"url": url} | options | ({"index": False} if unindexed else {}))

    def open(self, wrap: Callable[[Driver], Driver] = lambda driver: driver) -> Persistence:
        return create_persistence(wrap(self.driver()))

    def storage(self) -> Storage:
        return create_storage(self.driver())


def image(image_id: str, name: str = "Helper", container_id: str = "c1", **members: Any) -> Image:
    return Image(image_id=image_id, container_id=container_id, session_id="s1", name=name, **members)


def session(session_id: str, image_id: str = "i1", container_id: str = "c1", **members: Any) -> Session:
    return Session(session_id=session_id, image_id=image_id, container_id=container_id, **members)


def message(message_id: str, **members: Any) -> dict[str, Any]:
    return {"id": message_id, "subtype": "user", "role": "user", "content": "hi", "timestamp": 1, **members}


def ids(messages: Sequence[Any]) -> list[str]:
    return [message["id"] for message in messages]


async def crashes(store: Callable[[], Store], prepare: Any, act: Any, check: Any) -> int:
    """`act` on a fresh store each time, crashing after 0, 1, 2 … steps, until it comes through. `check` after each crash."""
    for steps in itertools.count():
        fresh = store()
        async with fresh.open() as before:
            await prepare(before)
        crashing: list[Crashing] = []

        def wrap(driver: Driver, steps: int = steps, crashing: list[Crashing] = crashing) -> Driver:
            crashing.append(Crashing(driver, steps))
            return crashing[0]

        done = True
        async with fresh.open(wrap) as during:
            try:
                await act(during)
            except BackendUnavailable:
                done = False
        async with fresh.open() as after:
            await check(after, done)
            await after.repair()
            await check(after, done)
        await assert_clean(fresh)
        if done:
            return steps
    raise AssertionError


async def assert_clean(store: Store) -> None:
    """No key is there that nothing calls for, and none is missing; a further repair finds nothing."""
    async with store.open() as persistence:
        report = await persistence.repair()
        found = (report.added_entries, report.removed_entries, report.mended_heads, report.removed_messages)
        assert found == (0, 0, 0, 0), report
    async with store.storage() as storage:
        everything = {key: value async for key, value in storage.iter_items()}
    wanted = set()
    for key, value in everything.items():
        kind = key.partition(":")[0]
        if kind in ("containers", "images", "sessions"):
            from persistence.records import Container
            from persistence.shape import Shape

            shape = Shape({"containers": Container, "images": Image, "sessions": Session}[kind])
            wanted |= {key, *shape.entries(key, value)}
        if kind == "heads":
            assert not value.keys() & {"staged", "done"}, everything
            its = key.partition(":")[2]
            generations = [segment["generation"] for segment in value.get("closed", [])] + [value["generation"]]
            wanted |= {key} | {
                other for other in everything if any(other.startswith(f"messages:{its}:{name}:") for name in generations)
            }
    assert set(everything) == wanted, set(everything) ^ wanted
