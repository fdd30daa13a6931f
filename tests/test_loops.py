"""Event loops: several in turn, and a clear error where two run at once."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fakes import Queued
from running import in_loop

from kvstore import ClosedError, Storage, UnsupportedOperation, copy, create_storage, snapshot
from kvstore.drivers.memory import MemoryDriver


class Connecting(Queued):
    """Writes down in which event loops it was connected."""

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


def test_L1_closing_that_was_left_by_an_event_loop_that_ended_is_done_in_the_next() -> None:
    class Hanging(Connecting):
        async def aclose(self) -> None:
            await super().aclose()
            if self.closed == 1:
                await asyncio.Event().wait()

    driver = Hanging()
    storage = create_storage(driver)

    async def leave() -> None:
        await storage.set_item("key", 1)
        asyncio.create_task(storage.aclose())  # noqa: RUF006 - it is to be left
        while not driver.closed:
            await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    try:
        asyncio.run(asyncio.wait_for(storage.aclose(), 5))
        assert driver.closed == 2
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()


@pytest.mark.parametrize("name", ["fs", "sqlite", "diskcache"])
def test_L1_an_event_loop_that_ends_over_a_write_leaves_no_task_behind(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = create_storage(name, path=tmp_path / "store")

    async def beat() -> None:
        for number in count():
            await storage.set_item("beat", number)

    async def main() -> asyncio.Task[None]:
        beating = asyncio.create_task(beat())
        await asyncio.sleep(0.01)
        return beating

    for _ in range(5):
        assert asyncio.run(main()).cancelled()
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []
    assert asyncio.run(storage.get_item("beat")) is not None
    asyncio.run(storage.aclose())


def test_L1_of_two_threads_that_come_first_at_one_moment_one_is_refused_or_both_are_served(tmp_path: Path) -> None:
    """In asyncio's debug mode too, where it takes longer to make a task."""
    for number in range(5):
        storage, barrier = create_storage("fs", path=tmp_path / f"{number}"), threading.Barrier(2)
        outcomes: list[object] = []

        async def call(storage: Storage = storage, outcomes: list[object] = outcomes) -> None:
            try:
                async with asyncio.timeout(10):
                    await storage.set_item("key", 1)
            except Exception as error:
                outcomes.append(error)
            else:
                outcomes.append(None)

        def run(barrier: threading.Barrier = barrier, call: Callable[[], Coroutine[Any, Any, None]] = call) -> None:
            barrier.wait()
            asyncio.run(call(), debug=True)

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert None in outcomes
        assert all(isinstance(outcome, UnsupportedOperation | None) for outcome in outcomes), outcomes


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
async def test_closing_goes_on_when_the_caller_is_cancelled_and_who_closes_again_waits_for_it() -> None:
    """L1."""
    driver, gate = Connecting(), asyncio.Event()

    async def slowly() -> None:
        await gate.wait()
        driver.closed += 1

    driver.aclose = slowly  # type: ignore[method-assign]
    storage = create_storage(driver)
    await storage.set_item("key", 1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(storage.aclose(), 0.001)
    again = asyncio.create_task(storage.aclose())
    await asyncio.sleep(0.001)
    assert not again.done()
    gate.set()
    await again
    assert driver.closed == 1


@in_loop
async def test_unmounting_goes_on_when_the_caller_is_cancelled() -> None:
    driver = Connecting()
    storage = create_storage().mount("a", driver)
    await storage.set_item("a:key", 1)
    unmounting = asyncio.create_task(storage.unmount("a"))
    await asyncio.sleep(0)
    unmounting.cancel()
    await asyncio.wait([unmounting])
    for _ in range(5):
        await asyncio.sleep(0)
    assert driver.closed == 1


def test_closing_that_an_ended_event_loop_left_behind_is_done_in_the_next() -> None:
    driver = Connecting()
    stuck = True

    async def close() -> None:
        if stuck:
            await asyncio.get_running_loop().create_future()
        driver.closed += 1

    driver.aclose = close  # type: ignore[method-assign]
    storage = create_storage(driver)

    async def leave() -> None:
        await storage.set_item("key", 1)
        closing = asyncio.create_task(storage.aclose())
        await asyncio.sleep(0.001)
        closing.cancel()

    asyncio.run(leave())
    stuck = False
    asyncio.run(storage.aclose())
    asyncio.run(storage.aclose())
    assert driver.closed == 1


def test_closing_waits_for_callers_that_are_still_connecting_in_a_further_event_loop() -> None:
    """L1: the driver may be connected already, and they about to go on."""
    for connects_at_once in (True, False):
        driver = Connecting()
        if connects_at_once:
            driver.connect = MemoryDriver().connect  # type: ignore[method-assign]
        storage = create_storage(driver)

        async def use(storage: Storage = storage) -> None:
            calls = [asyncio.create_task(storage.set_item(f"k{number}", number)) for number in range(20)]
            await asyncio.sleep(0)
            await asyncio.wait_for(storage.aclose(), 10)
            assert await asyncio.gather(*calls) == [None] * 20

        asyncio.run(storage.set_item("first", 1))
        asyncio.run(use())
        assert driver.closed == 1


@pytest.mark.parametrize("driver", ["memory", "fs", "sqlite"])
@in_loop
async def test_a_listing_raises_once_the_storage_is_closed(driver: str, tmp_path: Path) -> None:
    """L1, E1: it neither ends as if it were done, nor opens the driver again."""

    storage = create_storage(driver, **({} if driver == "memory" else {"path": str(tmp_path / "store")}))
    await storage.set_items({f"k:{number:04}": number for number in range(1500)})
    keys, items = storage.iter_keys(), storage.iter_items("k")
    assert await anext(keys) == "k:0000"
    assert await anext(items) == ("k:0000", 0)
    threads = threading.active_count()
    await storage.aclose()

    for rest in (keys, items):
        with pytest.raises(ClosedError):
            async for _ in rest:
                pass
    assert threading.active_count() <= threads


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("work", ["get_keys", "count", "copy", "snapshot"])
@in_loop
async def test_work_in_several_steps_raises_when_the_storage_is_closed_in_between(work: str, inline: bool) -> None:
    """L1."""

    class Closed(Connecting):
        capabilities = replace(Connecting.capabilities, inline=inline)
        closing: asyncio.Task[None] | None = None

        async def scan(self, prefix, *, after, limit, reverse):  # type: ignore[no-untyped-def]
            if self.closing is None and len(self._entries) > 1000:
                self.closing = asyncio.create_task(storage.aclose())
                await asyncio.sleep(0)
            return await super().scan(prefix, after=after, limit=limit, reverse=reverse)

        async def count(self, prefix: str) -> int:
            return len(await self.scan(prefix, after=None, limit=5000, reverse=False))

    storage = create_storage(driver := Closed()).mount("m", "memory")

    await storage.set_items({f"k{number}": number for number in range(2500)})
    async with storage.watch():
        calls = {"copy": lambda: copy(storage, create_storage()), "snapshot": lambda: snapshot(storage)}
        call = calls.get(work) or getattr(storage, work)
        with pytest.raises(ClosedError):
            await call()
    assert driver.closing is not None
    await driver.closing
    assert driver.closed == 1
    assert len(driver._entries) == 2500


@in_loop
async def test_work_on_a_mount_that_was_taken_away_raises() -> None:
    for close in (True, False):
        driver = Connecting()
        storage = create_storage().mount("a", driver)
        await storage.set_item("a:key", 1)

        async def taking_away(value: int, storage: Storage = storage, close: bool = close) -> int:
            await storage.unmount("a", close=close)
            return value + 1

        with pytest.raises(ClosedError, match="taken away"):
            await storage.update_item("a:key", taking_away)
        assert await driver.read(["key"]) == [b"1"]
        assert driver.closed == close


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
