"""Watching: what the core adds to what every driver is tested for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from fakes import Queued
from running import in_loop

import kvstore.watch
from kvstore import BackendError, BackendUnavailable, Event, create_storage, prefix_storage
from kvstore.driver import Capabilities
from kvstore.drivers.memory import MemoryDriver
from kvstore.watch import Listener


def _told(listener: Listener) -> list[tuple[str, str]]:
    """What is queued, without waiting."""
    return [(event.kind, event.key) for event in listener._events]


@in_loop
async def test_changes_in_every_mount_are_told_with_whole_keys() -> None:
    storage = create_storage().mount("a", "memory").mount("a:b", "memory")
    async with storage.watch("a") as inside, storage.watch() as everything, storage.watch("a:b") as inner:
        await storage.set_items({"a:b:1": 1, "a:1": 1, "a": 1})
        await storage.clear("a")

        assert sorted(_told(inside)) == [("remove", "a:1"), ("remove", "a:b:1"), ("update", "a:1"), ("update", "a:b:1")]
        assert sorted(_told(everything)) == sorted([*_told(inside), ("update", "a")])
        assert _told(inner) == [("update", "a:b:1"), ("remove", "a:b:1")]


@in_loop
async def test_nothing_is_told_before_and_after_the_context() -> None:
    storage = create_storage()
    await storage.set_item("before", 1)
    async with storage.watch() as events:
        await storage.set_item("inside", 1)
    await storage.set_item("after", 1)

    assert _told(events) == [("update", "inside")]


@in_loop
async def test_mounts_that_come_later_are_watched_too() -> None:
    storage = create_storage()
    async with storage.watch() as events:
        storage.mount("late", "memory")
        await storage.set_item("late:1", 1)

        assert _told(events) == [("update", "late:1")]


@in_loop
async def test_a_listener_that_falls_too_far_behind_is_told_so() -> None:
    limit, kvstore.watch.BUFFER = kvstore.watch.BUFFER, 10
    try:
        storage = create_storage()
        async with storage.watch() as slow:
            async with storage.watch() as quick:
                for number in range(15):
                    await storage.set_item(f"k{number}", 1)
                    assert (await anext(quick)).key == f"k{number}"
            assert [(await anext(slow)).key for _ in range(10)] == [f"k{number}" for number in range(10)]
            with pytest.raises(BackendError, match="behind"):
                await anext(slow)
            await storage.set_item("still", "works")
    finally:
        kvstore.watch.BUFFER = limit


@in_loop
async def test_a_waiting_listener_is_woken_by_a_change_and_by_the_end() -> None:
    storage = create_storage()
    async with storage.watch() as events:

        async def listen() -> list[Event]:
            return [event async for event in events]

        listening = asyncio.create_task(listen())
        await asyncio.sleep(0)
        await storage.set_item("key", 1)
        await storage.aclose()
        assert await listening == [Event("update", "key")]


@in_loop
async def test_a_listener_that_is_cancelled_can_go_on() -> None:
    storage = create_storage()
    async with storage.watch() as events:
        waiting = asyncio.create_task(anext(events))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await storage.set_item("key", 1)
        assert await anext(events) == Event("update", "key")


class Telling(MemoryDriver):
    """A driver whose store tells of changes, as a server does."""

    capabilities = Capabilities(atomic=True, conditional=True, ordered=True, persistent=False, watch=True)

    def __init__(self) -> None:
        super().__init__()
        self.channel: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self.watching: list[str] = []

    @asynccontextmanager
    async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[Event]]:  # type: ignore[override]
        self.watching.append(prefix)
        try:
            yield self._events()
        finally:
            self.watching.remove(prefix)

    async def _events(self) -> AsyncIterator[Event]:
        while True:
            event = await self.channel.get()
            if isinstance(event, Exception):
                raise event
            yield event


@in_loop
async def test_a_driver_that_tells_of_changes_is_asked_for_them_and_left_in_the_end() -> None:
    driver = Telling()
    storage = create_storage().mount("far", driver)
    async with prefix_storage(storage, "far").watch("base") as events:
        assert driver.watching == ["base:"]
        driver.channel.put_nowait(Event("update", "base:1"))
        driver.channel.put_nowait(Event("remove", "base:2"))

        assert [await anext(events), await anext(events)] == [Event("update", "base:1"), Event("remove", "base:2")]
        await storage.set_item("far:base:3", 1)  # our own is told here, not by the driver
        assert _told(events) == [("update", "base:3")]
    assert driver.watching == []


@in_loop
async def test_W1_a_mount_that_comes_while_a_watch_begins_tells_of_changes_too() -> None:
    class Slow(Telling):
        @asynccontextmanager
        async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[Event]]:  # type: ignore[override]
            storage.mount("far", far)
            async with super().watch(prefix) as events:
                yield events

    near, far = Slow(), Telling()
    storage = create_storage(near)
    async with storage.watch() as events, asyncio.timeout(5):
        far.channel.put_nowait(Event("update", "key"))
        assert await anext(events) == Event("update", "far:key")


@in_loop
async def test_a_mount_that_is_taken_away_is_left_and_the_others_are_told_of_as_before() -> None:
    """W1."""
    for close in (True, False):
        near, far = Telling(), Telling()
        storage = create_storage(near).mount("far", far)
        async with storage.watch() as events:
            await storage.unmount("far", close=close)
            for _ in range(3):
                await asyncio.sleep(0)
            assert (near.watching, far.watching) == ([""], [])
            near.channel.put_nowait(Event("update", "far:now of the other mount"))
            assert await anext(events) == Event("update", "far:now of the other mount")
            await storage.set_item("key", 1)
            assert await anext(events) == Event("update", "key")
        assert near.watching == []


@in_loop
async def test_a_mount_that_comes_later_is_asked_for_the_changes_of_others_too() -> None:
    """W1."""
    storage = create_storage()
    async with storage.watch() as events, storage.watch("elsewhere") as others, storage.watch("late:base") as inner:
        storage.mount("late", driver := Telling())
        driver.channel.put_nowait(Event("update", "1"))
        assert await anext(events) == Event("update", "late:1")
        assert sorted(driver.watching) == ["", "base:"]
        assert _told(others) == _told(inner) == []
        await storage.unmount("late")
        assert driver.watching == []
        storage.mount("late", again := Telling())
        again.channel.put_nowait(Event("remove", "2"))
        assert await anext(events) == Event("remove", "late:2")
    assert again.watching == []


@in_loop
async def test_a_parent_is_asked_once_the_mount_that_masked_it_is_taken_away() -> None:
    """W1."""
    storage = create_storage(driver := Telling()).mount("a", "memory")
    async with storage.watch("a") as events:
        assert driver.watching == []
        await storage.unmount("a")
        driver.channel.put_nowait(Event("update", "a:1"))
        assert await anext(events) == Event("update", "a:1")


@in_loop
async def test_a_watch_leaves_its_drivers_before_they_are_closed() -> None:
    class Closing(Telling):
        left: bool | None = None

        async def aclose(self) -> None:
            self.left = not self.watching

    storage = create_storage(driver := Closing())
    async with storage.watch() as events:
        await storage.aclose()
        assert driver.left is True
        assert [event async for event in events] == []


@in_loop
async def test_a_watch_that_can_not_begin_raises_where_it_is_entered() -> None:
    """E1."""

    class Away(Telling):
        async def connect(self) -> None:
            raise BackendUnavailable("down")

    storage = create_storage().mount("far", Away())
    with pytest.raises(BackendUnavailable) as caught:
        async with storage.watch():
            pass
    assert (caught.value.operation, caught.value.mount) == ("watch", "far")
    assert storage.keyspace.table.watchers.listeners == []


@in_loop
async def test_tasks_that_share_a_listener_share_its_events() -> None:
    """W1: none waits while an event is queued."""
    storage = create_storage()
    async with storage.watch() as events, asyncio.timeout(5):
        waiting = [asyncio.create_task(anext(events)) for _ in range(3)]
        await asyncio.sleep(0)
        await storage.set_items({"a": 1, "b": 1})
        told, [pending] = await asyncio.wait(waiting, timeout=0.1)
        assert sorted(task.result().key for task in told) == ["a", "b"]
        await storage.set_item("c", 1)
        assert (await pending).key == "c"
        ending = [asyncio.create_task(anext(events, None)) for _ in range(3)]
        await asyncio.sleep(0)
        await storage.aclose()
        assert await asyncio.gather(*ending) == [None] * 3


@in_loop
async def test_the_iteration_ends_when_the_context_is_left_and_gives_what_is_queued_before() -> None:
    async with create_storage() as storage, asyncio.timeout(5):
        async with storage.watch() as events:
            waiting = asyncio.create_task(anext(events, None))
            await asyncio.sleep(0)
            async with storage.watch() as queued:
                await storage.set_item("a", 1)
            assert await waiting is not None
            waiting = asyncio.create_task(anext(events, None))
            await asyncio.sleep(0)
        assert await waiting is None
        assert [event.key async for event in queued] == ["a"]


@in_loop
async def test_a_watch_whose_backend_is_gone_raises_and_hurts_no_writer() -> None:
    driver = Telling()
    storage = create_storage(driver)
    async with storage.watch() as events:
        driver.channel.put_nowait(OSError("connection reset"))
        with pytest.raises(BackendError, match="connection reset") as caught:
            await anext(events)
        assert (caught.value.operation, caught.value.driver) == ("watch", "test_watch")
        await storage.set_item("key", 1)
    async with storage.watch() as events:
        driver.channel.put_nowait(BackendUnavailable("down"))
        with pytest.raises(BackendUnavailable):
            await anext(events)


@in_loop
async def test_a_cancelled_write_that_happened_is_told() -> None:
    class Waiting(Queued):
        gate = asyncio.Event()

        async def before(self, call: str, keys: Sequence[str]) -> None:
            if call == "write":
                await self.gate.wait()

    driver = Waiting()
    storage = create_storage(driver)
    async with storage.watch() as events:
        write = asyncio.create_task(storage.set_item("key", 1))
        for _ in range(5):
            await asyncio.sleep(0)
        write.cancel()
        driver.gate.set()
        async with asyncio.timeout(5):
            assert await anext(events) == Event("update", "key")
        assert await storage.get_item("key") == 1


@in_loop
async def test_changes_that_waited_for_their_turn_in_memory_are_told_though_their_callers_were_cancelled() -> None:
    """W1."""
    storage = create_storage()
    async with storage.watch() as events:
        tasks = [asyncio.create_task(storage.set_item(f"k{number}", number)) for number in range(4_500)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

        stored = await storage.get_keys()
        assert len(stored) > 2_000
        assert sorted(_told(events)) == [("update", key) for key in stored]


@in_loop
async def test_changes_in_memory_are_told_in_the_order_in_which_they_took_effect() -> None:
    """W1, A3."""
    storage = create_storage(driver := MemoryDriver())
    await storage.set_item("k", 1)
    async with storage.watch() as events:

        async def set_again() -> None:
            while "k" in driver._entries:  # the removal waits for its turn
                await asyncio.sleep(0)
            await storage.set_item("k", 2)

        calls = [asyncio.create_task(storage.set_item(f"other{number}", 1)) for number in range(2_500)]
        calls.append(asyncio.create_task(storage.remove_item("k")))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await asyncio.gather(*calls, set_again())
        assert [kind for kind, key in _told(events) if key == "k"] == ["remove", "update"]


def test_a_change_that_another_thread_makes_wakes_a_waiting_listener() -> None:
    """W1, A2."""
    storage, waiting = create_storage(), threading.Event()

    def write() -> None:
        waiting.wait()
        for number in range(100):
            asyncio.run(storage.set_item(f"k{number}", 1))
        asyncio.run(storage.aclose())

    async def listen() -> list[Event]:
        loop = asyncio.get_running_loop()
        async with storage.watch() as events, asyncio.timeout(10):
            loop.call_soon(waiting.set)
            before = loop.time()
            told = [event async for event in events]
            assert loop.time() - before < 5, "it was woken by something else"
            return told

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert asyncio.run(listen()) == [Event("update", f"k{number}") for number in range(100)]
    finally:
        waiting.set()
        thread.join()
