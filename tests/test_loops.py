"""Event loops: several in turn, and a clear error where two run at once."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from running import in_loop

from kvstore import ClosedError, UnsupportedOperation, create_storage
from kvstore.driver import Capabilities
from kvstore.drivers.memory import MemoryDriver


class Connecting(MemoryDriver):
    """Memory behind the coalescer, which writes down in which event loops it was connected."""

    capabilities = Capabilities(atomic=True, conditional=True, ordered=True, metadata=True, persistent=False)

    def __init__(self) -> None:
        super().__init__()
        self.loops: list[asyncio.AbstractEventLoop] = []
        self.closed = 0

    async def connect(self) -> None:
        self.loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)

    async def aclose(self) -> None:
        self.closed += 1


def test_a_driver_is_connected_once_in_each_event_loop() -> None:
    driver = Connecting()
    storage = create_storage(driver)

    async def use(number: int) -> None:
        await asyncio.gather(*(storage.set_item(f"{number}:{task}", task) for task in range(10)))
        assert await storage.count() == 10 * (number + 1)

    for number in range(3):
        asyncio.run(use(number))
    asyncio.run(storage.aclose())

    assert len(driver.loops) == 3
    assert driver.closed == 1


def test_watching_and_updating_work_in_each_event_loop() -> None:
    storage = create_storage(Connecting())

    async def use() -> None:
        async with storage.watch() as events:
            await asyncio.gather(*(storage.update_item("counter", lambda value: value + 1, 0) for _ in range(5)))
            assert (await anext(events)).key == "counter"

    for _ in range(3):
        asyncio.run(use())
    assert asyncio.run(storage.get_item("counter")) == 15


def test_expired_keys_are_swept_in_each_event_loop() -> None:
    swept = []

    class Sweeping(Connecting):
        async def sweep(self) -> int | None:
            swept.append(asyncio.get_running_loop())
            return None

    storage = create_storage(Sweeping())

    async def use() -> None:
        await storage.set_item("key", 1, ttl=0.001)
        mount = storage.get_mounts()[0]
        assert mount._sweeper._timer is not None
        mount._sweeper._start()  # as the timer does, a second later
        await asyncio.sleep(0)

    asyncio.run(use())
    asyncio.run(use())
    assert len(swept) == 2


def test_calls_that_an_ended_event_loop_left_behind_do_not_hold_up_the_next() -> None:
    class Stuck(Connecting):
        stuck = True

        async def write(self, writes, expect=None):  # type: ignore[no-untyped-def]
            if self.stuck:
                await asyncio.get_running_loop().create_future()
            return await super().write(writes, expect)

    driver = Stuck()
    storage = create_storage(driver)

    async def leave() -> None:
        tasks = [asyncio.create_task(storage.set_item("key", number)) for number in range(5)]
        await asyncio.sleep(0.001)
        del tasks

    async def use() -> None:
        async with asyncio.timeout(5):
            await storage.set_item("key", "free")
            assert await storage.get_item("key") == "free"
            await storage.aclose()

    asyncio.run(leave())
    driver.stuck = False
    asyncio.run(use())
    assert driver.closed == 1


def test_two_event_loops_at_once_are_refused_with_a_clear_error() -> None:
    storage = create_storage(Connecting())
    started, finish = threading.Event(), threading.Event()

    async def hold() -> None:
        await storage.set_item("key", 1)
        started.set()
        await asyncio.to_thread(finish.wait, 10)

    other = threading.Thread(target=lambda: asyncio.run(hold()))
    other.start()
    assert started.wait(10)
    try:
        with pytest.raises(UnsupportedOperation, match="storage of its own"):
            asyncio.run(storage.get_item("key"))
    finally:
        finish.set()
        other.join()
    assert asyncio.run(storage.get_item("key")) == 1


@pytest.mark.parametrize("driver", ["memory", "sqlite"])
def test_the_projects_drivers_work_in_several_event_loops(driver: str, tmp_path: Path) -> None:
    options = {"path": str(tmp_path / "store.db")} if driver == "sqlite" else {}
    storage = create_storage(driver, **options)
    for number in range(3):
        asyncio.run(storage.set_item(f"k{number}", number))
    assert asyncio.run(storage.get_keys()) == ["k0", "k1", "k2"]
    asyncio.run(storage.aclose())


@in_loop
async def test_closing_twice_at_once_is_fine() -> None:
    driver = Connecting()
    storage = create_storage(driver)
    await storage.set_item("key", 1)
    await asyncio.gather(storage.aclose(), storage.aclose())
    await storage.aclose()

    assert driver.closed == 1
    with pytest.raises(ClosedError):
        await storage.get_item("key")
    with pytest.raises(ClosedError):
        storage.mount("a", "memory")
    with pytest.raises(ClosedError):
        await storage.unmount("")


@in_loop
async def test_a_storage_is_closed_when_its_block_fails() -> None:
    driver = Connecting()

    async def fail() -> None:
        async with create_storage(driver) as storage:
            await storage.set_item("key", 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert driver.closed == 1


def test_a_storage_is_made_and_mounted_without_an_event_loop() -> None:
    storage = create_storage(Connecting()).mount("a", "memory")

    assert [mount.base for mount in storage.get_mounts()] == ["a", ""]
