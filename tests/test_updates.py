"""`update_item` with functions that wait: whatever they wait for, no update is lost and none waits for ever (A2)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from fakes import Queued
from running import in_loop

from kvstore import Storage, UnsupportedOperation, create_storage
from kvstore.drivers.memory import MemoryDriver


class Waiting(Queued):
    """Each of its calls lets others in between."""

    async def before(self, call: str, keys: Sequence[str]) -> None:
        await asyncio.sleep(0)


async def _add(value: int) -> int:
    await asyncio.sleep(0)
    return value + 1


def _after_updating(storage: Storage, other: str) -> Callable[[int], Awaitable[int]]:
    async def add(value: int) -> int:
        await asyncio.sleep(0.001)
        await storage.update_item(other, _add, 0)
        return value + 1

    return add


@pytest.mark.parametrize("driver", ["memory", "waiting", "sqlite", "fs"])
@in_loop
async def test_fifty_tasks_with_functions_that_wait_count_exactly(driver: str, tmp_path: Path) -> None:
    options = {"path": str(tmp_path / "store")} if driver in ("sqlite", "fs") else {}

    async with create_storage(Waiting() if driver == "waiting" else driver, **options) as storage, asyncio.timeout(30):
        await asyncio.gather(*(storage.update_item("counter", _add, 0) for _ in range(50)))
        assert await storage.get_item("counter") == 50


@pytest.mark.parametrize("driver", [MemoryDriver, Waiting])
@in_loop
async def test_updates_that_update_each_others_keys_come_to_an_end(driver: type[MemoryDriver]) -> None:
    async with create_storage(driver()) as storage, asyncio.timeout(30):
        ab, ba = _after_updating(storage, "b"), _after_updating(storage, "a")
        for _ in range(10):
            await asyncio.gather(storage.update_item("a", ab, 0), storage.update_item("b", ba, 0))
        # What an inner update did stays, also where the outer one had to begin again.
        assert await storage.get_item("a") >= 20
        assert await storage.get_item("b") >= 20


@in_loop
async def test_an_update_may_wait_for_another_task_that_updates_the_same_key() -> None:
    async with create_storage(Waiting()) as storage, asyncio.timeout(30):
        helped = 0

        async def helper() -> None:
            nonlocal helped
            if not helped:
                helped = await storage.update_item("key", _add, 0)

        wanted: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()

        async def serve() -> None:
            while True:
                done = await wanted.get()
                await helper()
                done.set_result(None)

        serving = asyncio.create_task(serve())

        async def with_help(value: int) -> int:
            done = asyncio.get_running_loop().create_future()
            wanted.put_nowait(done)
            await done
            return value + 1

        assert await storage.update_item("key", with_help, 0) == 2
        serving.cancel()


@pytest.mark.parametrize("driver", [MemoryDriver, Waiting])
@in_loop
async def test_an_update_of_a_key_inside_an_update_of_it_is_refused_rather_than_repeated_for_ever(
    driver: type[MemoryDriver],
) -> None:
    async with create_storage(driver()) as storage, asyncio.timeout(30):
        await storage.set_item("key", 1)
        for inner in (_add, lambda value: value + 1):

            async def outer(value: int, inner: Callable[[int], object] = inner) -> int:
                await storage.update_item("key", inner)
                return value + 1

            with pytest.raises(UnsupportedOperation) as caught:
                await storage.update_item("key", outer)
            assert (caught.value.operation, caught.value.key) == ("update_item", "key")
        with pytest.raises(UnsupportedOperation):  # by a detour too
            await storage.update_item("key", _after_updating_by(storage, "other", "key"))
        assert await storage.update_item("key", _add) == 2  # nothing was done, and it is free again


def _after_updating_by(storage: Storage, other: str, key: str) -> Callable[[int], Awaitable[int]]:
    async def add(value: int) -> int:
        await storage.update_item(other, _after_updating(storage, key), 0)
        return value + 1

    return add
