"""Drivers for the tests of what stands above a driver."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from contextlib import closing
from typing import Any, TypeVar

from kvstore.driver import Batch, Capabilities, Driver, Expect, Stat, Write
from kvstore.drivers.memory import MemoryDriver
from kvstore.errors import KVStoreError

T = TypeVar("T")


class Queued(MemoryDriver):
    """Memory behind the coalescer, as a driver of a server is. Each call awaits `before`, acts, and awaits `after`."""

    capabilities = Capabilities(atomic=True, conditional=True, ordered=True, metadata=True, persistent=False)

    async def before(self, call: str, keys: Sequence[str]) -> None:
        """What a subclass waits for, notes or raises."""

    async def after(self) -> None:
        """The same, once the call has taken effect."""

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self._around("read", keys, super().read(keys))

    async def has(self, keys: Sequence[str]) -> list[bool]:
        return await self._around("has", keys, super().has(keys))

    async def stat(self, keys: Sequence[str]) -> list[Stat | None]:
        return await self._around("stat", keys, super().stat(keys))

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        keys = [key for key, _, _ in writes]
        assert len(set(keys)) == len(keys), "a key is named twice"
        return await self._around("write if" if expect else "write", keys, super().write(writes, expect))

    async def write_many(self, batches: Sequence[Batch]) -> list[list[bool] | KVStoreError | None]:
        return await Driver.write_many(self, batches)

    async def touch(self, key: str, expires_at: int | None) -> bool:
        return await self._around("touch", [key], super().touch(key, expires_at))

    async def clear(self, prefix: str) -> int:
        return await self._around("clear", [prefix], super().clear(prefix))

    async def _around(self, call: str, keys: Sequence[str], work: Coroutine[Any, Any, T]) -> T:
        with closing(work):
            await self.before(call, keys)
            result = await work
        await self.after()
        return result
