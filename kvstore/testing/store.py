"""The store under test: what every part of the suite stands on."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest

from kvstore.driver import Capabilities, Driver
from kvstore.errors import ClosedError, InvalidKeyError, UnsupportedOperation
from kvstore.expiry import Ttl
from kvstore.storage import Storage, create_storage
from kvstore.testing.clock import FakeClock
from kvstore.testing.limit import limited

SHORT = 0.5
"""Seconds: a time to live that a test outlives. Slept through only where the clock is a server's."""
LONG = 3600.0
"""Seconds: a time to live that no test outlives by itself."""

Capability = Literal["atomic", "conditional", "every_key", "expiry", "metadata", "touch"]
"""What a driver may refuse. `touch`: it has conditional writes, or a way of its own."""


class Contract(ABC):
    """What a driver's author says: how a driver is made. The parts of the suite are built on it."""

    slow: bool = False
    """A call takes milliseconds, as to an object store. What is repeated for the sake of rare faults is so a tenth as often."""
    time_limit: float = 60.0
    """Seconds after which a test fails, and says which call of the driver did not return. See `limited` for where it can't."""

    @abstractmethod
    def make_driver(self, path: Path) -> Driver:
        """A new driver on the store below `path`, an empty directory that is the test's own.

        The same path again is the same store, where `capabilities.persistent`. A driver of a server takes the text of the
        path as a namespace.
        """


S = TypeVar("S", bound=Contract)


class Store:
    """The store of one test: opens drivers on it, turns their clock, and closes in the end what it opened."""

    def __init__(self, suite: Contract, path: Path) -> None:
        self.suite = suite
        self.path = path
        self.clock = FakeClock()
        self._open: list[Storage] = []
        self._storage: Storage | None = None

    def make_driver(self) -> Driver:
        """One more driver on this store, with the clock of the test where it has one of its own."""
        driver = self.suite.make_driver(self.path)
        if driver.capabilities.own_clock:
            driver.clock = self.clock
        return driver

    def open(self, *, ttl: Ttl = None) -> Storage:
        """One more storage on this store, with a driver of its own."""
        return self.adopt(self.make_driver(), ttl=ttl)

    def adopt(self, driver: Driver, *, ttl: Ttl = None) -> Storage:
        """A storage on `driver`, closed with the test."""
        storage = create_storage(driver, ttl=ttl)
        self._open.append(storage)
        return storage

    def mounted(self, base: str) -> Storage:
        """A storage with one more driver on this store at `base`, closed with the test."""
        storage = Storage().mount(base, self.make_driver())
        self._open.append(storage)
        return storage

    @property
    def storage(self) -> Storage:
        """The one that most tests need only."""
        if self._storage is None:
            self._storage = self.open()
        return self._storage

    @property
    def driver(self) -> Driver:
        return self.storage.get_mounts()[0].driver

    @property
    def capabilities(self) -> Capabilities:
        return self.driver.capabilities

    def promises(self, capability: Capability) -> bool:
        if capability == "touch":
            limited = self.capabilities.expiry and not self.capabilities.conditional
            return not limited or type(self.driver).touch is not Driver.touch
        return bool(getattr(self.capabilities, capability))

    async def connected(self) -> Driver:
        """The driver itself, ready to be called without the storage."""
        await self.storage.has_item("connect")
        return self.driver

    def times(self, count: int) -> int:
        """How often to repeat what only fails now and then, or of how many keys."""
        return max(2, count // 10) if self.suite.slow else count

    def writers(self, count: int) -> list[Storage]:
        """`count` writers: storages of their own where the store can be shared, else the one over and over."""
        if not self.capabilities.shared:
            return [self.storage] * count
        return [self.storage, *(self.open() for _ in range(count - 1))]

    async def reopened(self) -> Storage:
        """What another program finds that comes later. The same storage where nothing is to outlast it."""
        if self.capabilities.persistent:
            await self.storage.aclose()
            self._storage = None
        return self.storage

    async def pass_time(self, seconds: float) -> None:
        """Lets `seconds` go by: at once where the driver tells time by its own clock, else in truth and a little more."""
        if self.capabilities.own_clock:
            self.clock.advance(seconds)
        else:
            await asyncio.sleep(seconds + 0.1)

    async def aclose(self) -> None:
        for storage in self._open:
            with suppress(ClosedError):
                await storage.aclose()


def in_loop(test: Callable[[S, Store], Coroutine[Any, Any, None]]) -> Callable[[S, Path], None]:
    """Makes of an async test a plain one, which gives it a store of its own and runs it in an event loop of its own."""

    async def run(suite: S, path: Path) -> None:
        store = Store(suite, path)
        try:
            await test(suite, store)
        finally:
            await store.aclose()

    @wraps(test)
    def plain(self: S, tmp_path: Path) -> None:
        with limited(self.time_limit):
            asyncio.run(run(self, tmp_path))

    del plain.__wrapped__  # pytest would look for its arguments there
    return plain


def promised(
    *capabilities: Capability,
) -> Callable[[Callable[[S, Store], Coroutine[Any, Any, None]]], Callable[[S, Store], Coroutine[Any, Any, None]]]:
    """The test of a promise that not every driver makes. One that does not has to refuse, which is tested instead."""

    def decorate(test: Callable[[S, Store], Coroutine[Any, Any, None]]) -> Callable[[S, Store], Coroutine[Any, Any, None]]:
        @wraps(test)
        async def run(self: S, store: Store) -> None:
            refused = [capability for capability in capabilities if not store.promises(capability)]
            for capability in refused:
                await _REFUSED[capability](store.storage)
            if not refused:
                await test(self, store)

        return run

    return decorate


async def refuses(call: Awaitable[object]) -> None:
    """`call` raises `UnsupportedOperation`."""
    with pytest.raises(UnsupportedOperation):
        await call


async def _refuses_conditions(storage: Storage) -> None:
    await storage.set_item("kept", 1)
    await refuses(storage.add_item("refused", 2))
    await refuses(storage.compare_and_set("kept", 1, 2))
    await refuses(storage.update_item("kept", lambda value: 2))
    await refuses(storage.commit({"kept": 2}, expect={"kept": 1}))
    assert [await storage.get_item("kept"), await storage.get_item("refused")] == [1, None]


async def _refuses_commits(storage: Storage) -> None:
    await storage.set_item("kept", 1)
    await refuses(storage.commit({"kept": 2, "refused": 2}))
    await refuses(storage.commit({}, removes=["kept"]))
    assert [await storage.get_item("kept"), await storage.get_item("refused")] == [1, None]


async def _refuses_expiry(storage: Storage) -> None:
    await storage.set_item("kept", 1)
    await refuses(storage.set_item("kept", 2, ttl=LONG))
    await refuses(storage.set_items({"kept": 2, "refused": 2}, ttl=LONG))
    await refuses(storage.set_item_raw("kept", b"2", ttl=LONG))
    await refuses(storage.touch("kept", ttl=LONG))
    assert [await storage.get_item("kept"), await storage.get_item("refused")] == [1, None]


async def _refuses_metadata(storage: Storage) -> None:
    await storage.set_item("kept", 1)
    await refuses(storage.set_meta("kept", {"a": 1}))
    await refuses(storage.remove_meta("kept"))
    meta = await storage.get_meta("kept")
    assert meta is not None
    assert (meta.size, meta.custom) == (1, {})


async def _refuses_touch(storage: Storage) -> None:
    await storage.set_item("kept", 1)
    await refuses(storage.touch("kept"))


async def _refuses_some_keys(storage: Storage) -> None:
    await storage.set_item("kept", 1)
    for key in ("kept:below", "x" * 1000):
        with pytest.raises((InvalidKeyError, UnsupportedOperation)) as caught:
            await storage.set_item(key, 2)
        assert caught.value.key == key
    assert await storage.get_keys() == ["kept"]
    assert await storage.get_item("kept") == 1


_REFUSED: dict[Capability, Callable[[Storage], Coroutine[Any, Any, None]]] = {
    "atomic": _refuses_commits,
    "conditional": _refuses_conditions,
    "every_key": _refuses_some_keys,
    "expiry": _refuses_expiry,
    "metadata": _refuses_metadata,
    "touch": _refuses_touch,
}
