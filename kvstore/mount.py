"""Mounts: which driver keeps which keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, NoReturn, TypeVar

from kvstore.answers import mistake
from kvstore.batches import Again, Read, WriteCall
from kvstore.clock import Clock
from kvstore.coalesce import Coalescer, goes_with
from kvstore.driver import Capabilities, Driver, Expect, NotNow, Stat, Write
from kvstore.errors import ClosedError, ConfigError, KVStoreError, ReadOnlyError, UnsupportedOperation, backend_error
from kvstore.expiry import Ttl, check_ttl, expiry
from kvstore.keys import below
from kvstore.sweeper import Sweeper
from kvstore.watch import Listener, Watchers

T = TypeVar("T")
ReadNow = Callable[[str], bytes | NotNow | Awaitable[list[bytes | None]] | None]
WriteNow = Callable[[str, bytes, int | None], bool | Awaitable[object]]


class Mount:
    """A driver at a base: it keeps the keys below `base`, each without it."""

    def __init__(self, base: str, driver: Driver, watchers: Watchers, *, ttl: Ttl = None, read_only: bool = False) -> None:
        try:
            check_ttl(ttl)
        except KVStoreError as error:
            raise ConfigError(error.message, mount=base, driver=driver.name) from error
        if not isinstance(read_only, bool):
            raise ConfigError(f"read_only is true or false, not {read_only!r}", mount=base, driver=driver.name)
        if ttl is not None and not driver.capabilities.expiry:
            raise ConfigError("this driver keeps no time to live, so the mount can have no ttl", mount=base, driver=driver.name)
        self.base = base
        self.prefix = below(base)
        self.driver = driver
        driver.at_root, driver.read_only = not base, read_only
        self.ttl = ttl
        self.read_only = read_only
        self._watchers = watchers
        self._sweeper = Sweeper(driver, needed=not read_only)
        self._updates: set[tuple[asyncio.Task[Any] | None, str]] = set()
        self.pumps: dict[Listener, asyncio.Task[None]] = {}
        """Who tells a listener of the changes by others, where the driver does."""
        self._over: str | None = None
        self._closing: asyncio.Task[None] | None = None
        self._coalescer: Coalescer | None = None
        # A driver that never waits is called directly. Unless it is the library's own, its answers are looked at, for 0.2 µs.
        calls: Driver | Coalescer = driver
        if not driver.capabilities.inline:
            calls = self._coalescer = Coalescer(driver, connected=lambda: self._sweeper.expect(driver.clock()))
        self.read: Read = calls.read
        self.has: Callable[[Sequence[str]], Awaitable[list[bool]]] = calls.has
        self.write: WriteCall = calls.write
        if calls is driver and not type(driver).__module__.startswith("kvstore."):
            self.read, self.has = partial(_checked, "read", driver.read), partial(_checked, "has", driver.has)
            self.write = partial(_checked, "write", driver.write)
        self._write_untold = self.write
        self._write_later: WriteNow = partial(Driver.write_now, driver)
        self.read_now: ReadNow = partial(Driver.read_now, driver)
        self._write_now: WriteNow = self._write_later
        if calls is not driver or goes_with(driver, "read_now", "read"):
            self.read_now = calls.read_now
        if calls is not driver or goes_with(driver, "write_now", "write"):
            self._write_now = calls.write_now
        self.write_now: WriteNow = self._write_now
        self._telling = (
            driver.write_and_tell if goes_with(driver, "write_and_tell", "write") else partial(Driver.write_and_tell, driver)
        )
        self.watched()

    @property
    def capabilities(self) -> Capabilities:
        """What the driver promises."""
        return self.driver.capabilities

    def __repr__(self) -> str:
        return f"<Mount {self.base!r}: {self.driver.name}{', read-only' if self.read_only else ''}>"

    def expiry(self, ttl: Ttl) -> int | None:
        """When what is written now expires. Raises for a bad `ttl`, or for any where the driver keeps none."""
        if ttl is None and self.ttl is None:
            return None
        clock = self.driver.clock
        # A clock that goes on has been rounded down, and nothing may expire early.
        return self.expect(expiry(ttl, self.ttl, clock() + isinstance(clock, Clock)))

    def expect(self, expires_at: int | None) -> int | None:
        """Sees to it that the space of what is going to be written comes back. Raises where the driver keeps no expiry."""
        if expires_at is not None:
            if not self.driver.capabilities.expiry:
                raise UnsupportedOperation("this driver keeps no time to live")
            self._sweeper.expect(expires_at)
        return expires_at

    def check(self, *, conditional: bool = False, atomic: bool = False) -> None:
        """Raises unless the mount can be written to, and the driver promises what is asked."""
        if self.read_only:
            raise ReadOnlyError("the mount is read-only")
        if conditional and not self.driver.capabilities.conditional:
            raise UnsupportedOperation("this driver can't hold conditions against other writers (capabilities.conditional)")
        if atomic and not self.driver.capabilities.atomic:
            raise UnsupportedOperation("this driver can't write several keys as one (capabilities.atomic)")

    def read_soon(self, keys: Sequence[str]) -> Awaitable[list[bytes | None]]:
        """`read` in its place in the order from now on; where a driver never waits, from when it is waited for."""
        return self.read(keys) if self._coalescer is None or self._over else self._coalescer.read_soon(keys)

    def write_soon(self, writes: Sequence[Write], *, blind: bool = False) -> Awaitable[list[bool] | None]:
        return self.write(writes) if self._coalescer is None or self._over else self._coalescer.write_soon(writes, blind=blind)

    async def stat(self, keys: Sequence[str]) -> list[Stat | None]:
        stats = await self.run(partial(self.driver.stat, keys), keys)
        if (wrong := mistake("stat", stats, keys)) is not None:
            raise wrong
        return stats

    def clear_soon(self, prefix: str, masked: Sequence[str]) -> Awaitable[int]:
        """Removes the keys below `prefix`, but not below one of `masked`."""
        work = partial(self._clear, prefix, tuple(masked))
        if self._coalescer is None:
            return self.run(work, None, mutates=True)
        self.check_open()
        return self._coalescer.run_soon(work, None)

    async def _clear(self, prefix: str, masked: tuple[str, ...]) -> int:
        if not masked and not self._watchers.listeners:
            return await self.driver.clear(prefix)
        return await self.driver.clear_and_tell(prefix, masked, self._told)

    async def write_if(self, writes: Sequence[Write], expect: Expect, again: Again) -> list[bool] | None:
        """A write with a condition, and `again` where it did not hold, before any later call on the same keys."""
        if self._coalescer is None:
            found = await self.write(writes, expect)
            return await again(self.read, self.write, writes) if found is None else found
        self.check_open()
        return await self._coalescer.write(writes, expect, again=again)

    async def run(self, call: Callable[[], Coroutine[Any, Any, T]], keys: Sequence[str] | None, *, mutates: bool = False) -> T:
        """A call of the driver other than reads and writes, in order with those on the same `keys` (None: any)."""
        self.check_open()
        try:
            if self._coalescer is None:
                answer = await call()
                self.check_open()  # closing waits for no call of several steps here, and left them nothing
                return answer
            return await self._coalescer.run(call, keys, mutates=mutates)
        except Exception as error:
            raise (known := backend_error(error)) from known.__cause__

    @asynccontextmanager
    async def alone(self, key: str) -> AsyncIterator[tuple[Read, WriteCall]]:
        """The calls to read and write `key` with, while no other call of this process on it is under way."""
        self.check_open()
        if self._coalescer is None:
            yield (lambda keys: self.read(keys)), (lambda writes, expect=None: self.write(writes, expect))
            return
        async with self._coalescer.turn([key], mutates=True) as turn:
            yield partial(self._coalescer.read, turn=turn), partial(self._coalescer.write, turn=turn)

    @contextmanager
    def updating(self, key: str) -> Iterator[None]:
        """Inside, the function of this task's update of `key` may wait."""
        update = asyncio.current_task(), key
        self._updates.add(update)
        try:
            yield
        finally:
            self._updates.remove(update)

    def check_update(self, key: str) -> None:
        """Raises in the function of an update of `key`: each would undo the other for ever."""
        if self._updates and (asyncio.current_task(), key) in self._updates:
            raise UnsupportedOperation("a function that updates a key can't update this very key inside")

    def watched(self) -> None:
        """Called when the first listener came or the last one went."""
        told = bool(self._watchers.listeners)
        if self._over is not None:
            return
        if self._coalescer is not None:
            self._coalescer.on_write(self._told if told else None)
        else:
            self.write = self._write_and_tell if told else self._write_untold
            self.write_now = self._write_later if told else self._write_now

    async def _write_and_tell(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        return await self._telling(writes, expect, partial(self._told, writes))

    def _told(self, writes: Sequence[Write], found: Sequence[bool]) -> None:
        self._watchers.tell(self.prefix, writes, found)

    def check_open(self) -> None:
        if self._over is not None:
            raise ClosedError(self._over)

    def retire(self, reason: str) -> None:
        """What begins from now on raises a `ClosedError` of `reason`, the next step of what is under way included."""

        def refuse(*_: object, **__: object) -> NoReturn:
            raise ClosedError(reason)

        self._over = reason
        for pump in self._pumping():
            pump.cancel()
        # In place of the calls, so that they need not ask.
        self.read = self.has = self.write = self.read_now = self.write_now = refuse

    @property
    def is_closed(self) -> bool:
        return self._closing is not None and self._closing.done()

    def close(self, *, driver: bool = True) -> asyncio.Task[None]:
        """Begins to close, and with `driver` the driver too: once, and to its end, whoever stops waiting for it."""
        closing = self._closing
        if (
            closing is None
            or closing.cancelled()
            or (not closing.done() and closing.get_loop() is not asyncio.get_running_loop())  # left by one that is over
        ):
            closing = self._closing = asyncio.create_task(self._close(driver=driver))
        return closing

    async def _close(self, *, driver: bool) -> None:
        try:
            await self._sweeper.aclose()
            await asyncio.gather(*self._pumping(), return_exceptions=True)
            if self._coalescer is not None:
                await self._coalescer.aclose(close=driver)
            elif driver:
                await self.driver.aclose()
        except Exception as error:
            raise (known := self.at("aclose", error)) from known.__cause__

    def _pumping(self) -> list[asyncio.Task[None]]:
        here = asyncio.get_running_loop()
        return [pump for pump in self.pumps.values() if pump.get_loop() is here]

    def at(self, operation: str, error: Exception) -> KVStoreError:
        """`error` as one of the tree that says where it happened."""
        return backend_error(error).at(operation, None, self.base, self.driver.name)


async def close_all(mounts: Iterable[Mount], *, drivers: bool = True) -> None:
    """Closes mounts and `drivers`, also where the caller is cancelled, and raises the first failure."""
    closings = [closing for closing in [mount.close(driver=drivers) for mount in mounts] if not closing.done()]
    if closings:
        await asyncio.wait(closings)
    errors = [error for closing in closings if not closing.cancelled() and (error := closing.exception()) is not None]
    if errors:
        raise errors[0]


async def _checked(method: str, ask: Callable[..., Awaitable[Any]], asked: Sequence[Any], expect: Expect | None = None) -> Any:
    """What a driver that never waits answers, if it can be one."""
    try:
        answers = await (ask(asked) if expect is None else ask(asked, expect))
        if (answers is not None or expect is None) and (wrong := mistake(method, answers, asked)) is not None:
            raise wrong
        return answers
    except Exception as error:
        raise (known := backend_error(error)) from known.__cause__
