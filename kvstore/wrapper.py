"""Wrapper: a driver around a driver, for what is to be done to every value or call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kvstore.driver import Driver, Expect, Write


class Wrapper(Driver):
    """A driver around `inner`, to which it passes on what a subclass does not override.

    To change values, override `read` and `write`: every other call that moves values is built on these two. To change keys,
    override `has`, `scan`, `touch`, `count` and `clear` as well. Metadata and changes by others are not passed on, for
    they may tell of `inner` what is not true of the wrapper: a subclass that adds `stat` and `set_meta`, or `watch`, says so
    in its `capabilities`. `inner` is closed with the wrapper.
    """

    def __init__(self, inner: Driver) -> None:
        self.inner = inner
        self.capabilities = replace(inner.capabilities, metadata=False, watch=False, inline=False)
        self.lanes, self.merges = inner.lanes, inner.merges

    # What a mount tells its driver.

    @property
    def at_root(self) -> bool:
        return self.inner.at_root

    @at_root.setter
    def at_root(self, at_root: bool) -> None:
        self.inner.at_root = at_root

    @property
    def read_only(self) -> bool:
        return self.inner.read_only

    @read_only.setter
    def read_only(self, read_only: bool) -> None:
        self.inner.read_only = read_only

    @property
    def clock(self) -> Callable[[], int]:
        return self.inner.clock

    @clock.setter
    def clock(self, clock: Callable[[], int]) -> None:
        self.inner.clock = clock

    async def connect(self) -> None:
        await self.inner.connect()

    async def aclose(self) -> None:
        await self.inner.aclose()

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self.inner.read(keys)

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        return await self.inner.write(writes, expect)

    async def has(self, keys: Sequence[str]) -> list[bool]:
        return await self.inner.has(keys)

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        return await self.inner.scan(prefix, after=after, limit=limit, reverse=reverse)

    async def touch(self, key: str, expires_at: int | None) -> bool:
        return await self.inner.touch(key, expires_at)

    async def count(self, prefix: str) -> int:
        return await self.inner.count(prefix)

    async def clear(self, prefix: str) -> int:
        return await self.inner.clear(prefix)

    async def sweep(self) -> int | None:
        return await self.inner.sweep()
