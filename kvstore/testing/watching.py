"""Watching: every change, once, and no writer is held up by who listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from kvstore.driver import Event
from kvstore.errors import UnsupportedOperation
from kvstore.testing.store import LONG, SHORT, Contract, Store, in_loop, promised
from kvstore.values import MISSING

_PATIENCE = 10.0
"""Seconds to wait for an event that comes from elsewhere."""


async def _until(events: AsyncIterator[Event], last: Event) -> list[Event]:
    """What comes before `last`."""
    before: list[Event] = []
    async with asyncio.timeout(_PATIENCE):
        async for event in events:
            if event == last:
                return before
            before.append(event)
    raise AssertionError(f"the watch ended before {last}, after {before}")


def _update(key: str) -> Event:
    return Event("update", key)


def _remove(key: str) -> Event:
    return Event("remove", key)


class Watching(Contract):
    """W1 of the contract."""

    @in_loop
    async def test_every_single_change_is_told_in_order(self, store: Store) -> None:
        """W1: set, raw, overwrite, remove."""
        storage = store.storage
        async with storage.watch() as events:
            await storage.set_item("a", 1)
            await storage.set_item_raw("b:c", b"\xff")
            await storage.set_item("a", 1)
            await storage.remove_item("a")
            await storage.set_item("🙂 *", 1)
            await storage.set_item("end", 1)

            told = await _until(events, _update("end"))
        assert told == [_update("a"), _update("b:c"), _update("a"), _remove("a"), _update("🙂 *")]

    @in_loop
    async def test_every_key_of_a_batch_is_told_once(self, store: Store) -> None:
        """W1: batches and clear; one event a key that changed."""
        storage = store.storage
        await storage.set_items({"old:1": 1, "old:2": 2, "base:old": 3})
        async with storage.watch() as events:
            await storage.set_items({"new:1": 1, "new:2": 2})
            await storage.remove_items(["old:1", "missing", "old:2"])
            await storage.set_item("base:new", 1)
            await storage.clear("base")
            await storage.set_item("end", 1)

            told = await _until(events, _update("end"))
        assert sorted(told[:2], key=str) == [_update("new:1"), _update("new:2")]
        assert sorted(told[2:4], key=str) == [_remove("old:1"), _remove("old:2")]
        assert told[4] == _update("base:new")
        assert sorted(told[5:], key=str) == [_remove("base:new"), _remove("base:old")]

    @in_loop
    @promised("conditional")
    async def test_conditional_changes_are_told_if_they_happened(self, store: Store) -> None:
        """W1: add, compare, update."""
        storage = store.storage
        async with storage.watch() as events:
            await storage.add_item("key", 1)
            await storage.add_item("key", 2)
            await storage.compare_and_set("key", 7, 3)
            await storage.compare_and_set("key", 1, 3)
            await storage.update_item("key", lambda value: value + 1)
            await storage.compare_and_set("key", 4, MISSING)
            await storage.update_item("key", lambda value: MISSING)
            await storage.set_item("end", 1)

            told = await _until(events, _update("end"))
        assert told == [_update("key"), _update("key"), _update("key"), _remove("key")]

    @in_loop
    @promised("atomic")
    async def test_a_commit_tells_each_key_that_it_changed(self, store: Store) -> None:
        """W1: nothing for a removal that found nothing, nor for a commit that did not hold."""
        storage = store.storage
        await storage.set_items({"gone": 1, "kept": 1})
        async with storage.watch() as events:
            await storage.commit({"new": 1, "kept": 2}, removes=["gone", "missing"])
            if store.promises("conditional"):
                await storage.commit({"kept": 3}, expect={"kept": 1})
            await storage.set_item("end", 1)

            told = await _until(events, _update("end"))
        assert sorted(told, key=str) == [_remove("gone"), _update("kept"), _update("new")]

    @in_loop
    async def test_what_changes_nothing_is_not_told(self, store: Store) -> None:
        """W1: nothing for reads, for a removal that found nothing, for touch, metadata or expiry."""
        storage = store.storage
        expiring = store.promises("expiry")
        await storage.set_items({"key": 1})
        await storage.set_items({"short": 1}, ttl=SHORT if expiring else None)
        async with storage.watch() as events:
            await storage.get_item("key")
            await storage.get_keys()
            await storage.remove_item("missing")
            await storage.remove_items(["missing"])
            await storage.clear("missing")
            if store.promises("touch"):
                await storage.touch("key", ttl=LONG if expiring else None)
            if store.promises("metadata"):
                await storage.set_meta("key", {"a": 1})
            if expiring:
                await store.pass_time(SHORT)
                await store.driver.sweep()
                assert await storage.remove_item("short") is False
            await storage.set_item("end", 1)

            assert await _until(events, _update("end")) == []

    @in_loop
    @promised("every_key")
    async def test_a_watch_tells_of_its_base_alone(self, store: Store) -> None:
        """W1: as a listing of that base would; the prefix is literal."""
        storage = store.storage
        async with storage.watch("a*") as events, storage.watch("/a") as others:
            for key in ("a*", "a*:1", "ab:1", "a", "a:1", "a*:2:x", "A*:1"):
                await storage.set_item(key, 1)
            await storage.set_item("a*:end", 1)
            await storage.set_item("a:end", 1)

            assert await _until(events, _update("a*:end")) == [_update("a*:1"), _update("a*:2:x")]
            assert await _until(others, _update("a:end")) == [_update("a:1")]

    @in_loop
    async def test_a_slow_or_failing_listener_hurts_nobody(self, store: Store) -> None:
        """W1: no writer and no other listener."""
        storage = store.storage

        async def fail() -> None:
            async with storage.watch() as events:
                started.set()
                async for _ in events:
                    raise ZeroDivisionError

        started = asyncio.Event()
        failing, count = asyncio.create_task(fail()), store.times(300)
        await started.wait()
        async with storage.watch() as slow, storage.watch() as events:
            for number in range(count):
                await storage.set_item(f"key:{number}", number)
            await storage.set_item("end", 1)

            assert len(await _until(events, _update("end"))) == count
            assert len(await _until(slow, _update("end"))) == count
        outcome = (await asyncio.gather(failing, return_exceptions=True))[0]
        assert isinstance(outcome, ZeroDivisionError)

    @in_loop
    async def test_changes_of_many_tasks_are_all_told(self, store: Store) -> None:
        """W1: each once, and those of one key in their order."""
        storage = store.storage
        async with storage.watch() as events:

            async def write(number: int) -> None:
                await storage.set_item(f"key:{number}", 1)
                await storage.set_item(f"key:{number}", 2)
                await storage.remove_item(f"key:{number}")

            await asyncio.gather(*(write(number) for number in range(50)))
            await storage.set_item("end", 1)

            told = await _until(events, _update("end"))
        for number in range(50):
            mine = [event for event in told if event.key == f"key:{number}"]
            assert [event.kind for event in mine] in (["update", "update", "remove"], ["update", "remove"])
        assert {event.key for event in told} == {f"key:{number}" for number in range(50)}

    @in_loop
    async def test_a_watch_ends_when_the_storage_is_closed(self, store: Store) -> None:
        """W1, L1: after what it still has to tell."""
        storage = store.storage
        async with storage.watch() as events:
            await storage.set_item("a", 1)
            await storage.aclose()
            async with asyncio.timeout(_PATIENCE):
                assert [event async for event in events] == [_update("a")]

    @in_loop
    async def test_changes_by_others_are_told_where_that_is_promised(self, store: Store) -> None:
        """W1: `capabilities.watch`; a driver without it refuses to be watched itself."""
        if not store.capabilities.watch:
            try:
                async with (await store.connected()).watch(""):
                    raise AssertionError("a driver that can't tell of others' changes has to refuse")
            except UnsupportedOperation:
                return
        mine, other = store.writers(2)
        async with mine.watch("base") as events:
            await other.set_item("elsewhere", 1)
            await other.set_item("base:1", 1)
            await other.remove_item("base:1")
            await other.set_item("base:end", 1)

            assert await _until(events, _update("base:end")) == [_update("base:1"), _remove("base:1")]
