"""From the first call to the last: connecting, closing, event loops in turn, the next program, a sudden end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kvstore.errors import ClosedError
from kvstore.testing.limit import limited
from kvstore.testing.processes import Job, killed_after
from kvstore.testing.store import Contract, Store, in_loop, promised


class Lifetime(Contract):
    """A1, L1 and E1 of the contract."""

    @in_loop
    async def test_a_driver_says_what_it_can(self, store: Store) -> None:
        """Section 2: `capabilities` are facts that do not change, and it has a name."""
        driver = store.suite.make_driver(store.path)
        before = driver.capabilities
        assert driver.name
        await store.storage.set_item("key", 1)
        assert store.capabilities == before
        assert not (before.shared and not before.persistent), "what several programs share outlasts one of them"

    @in_loop
    async def test_nothing_is_connected_before_the_first_call_and_then_once(self, store: Store) -> None:
        """L1: whoever comes first."""
        driver, calls = store.make_driver(), 0
        connect = driver.connect

        async def counted() -> None:
            nonlocal calls
            calls += 1
            await connect()

        driver.connect = counted  # type: ignore[method-assign]
        storage = store.adopt(driver)
        await asyncio.sleep(0)
        assert calls == 0
        await asyncio.gather(*(storage.set_item(f"key:{number}", number) for number in range(20)))
        assert calls == (0 if driver.capabilities.inline else 1)
        assert await storage.count() == 20

    @in_loop
    async def test_use_after_close_is_refused(self, store: Store) -> None:
        """L1: by every call; closing twice is fine."""
        storage = store.storage
        await storage.set_item("key", 1)
        await storage.aclose()
        await storage.aclose()

        for call in (
            storage.get_item("key"),
            storage.set_item("key", 1),
            storage.has_item("key"),
            storage.remove_item("key"),
            storage.get_items(["key"]),
            storage.set_items({"key": 1}),
            storage.remove_items(["key"]),
            storage.get_item_raw("key"),
            storage.set_item_raw("key", b"1"),
            storage.add_item("key", 1),
            storage.compare_and_set("key", 1, 2),
            storage.update_item("key", lambda value: 2),
            storage.commit({"key": 1}),
            storage.get_items([]),
            storage.set_items({}),
            storage.remove_items([]),
            storage.commit({}),
            storage.touch("key"),
            storage.get_meta("key"),
            storage.set_meta("key", {}),
            storage.get_keys(),
            storage.get_keys(limit=0),
            anext(aiter(storage.iter_keys())),
            anext(aiter(storage.iter_items())),
            storage.count(),
            storage.clear(),
            storage.watch().__aenter__(),
        ):
            with pytest.raises(ClosedError):
                await call
        with pytest.raises(ClosedError):
            storage.get_mount("key")

    @in_loop
    async def test_closing_without_a_call_is_fine(self, store: Store) -> None:
        """L1: a storage that was never used."""
        await store.open().aclose()

    @in_loop
    async def test_closing_waits_for_what_is_under_way(self, store: Store) -> None:
        """L1, A1: what was asked before is carried out."""
        storage, persistent = store.storage, store.capabilities.persistent
        tasks = [asyncio.create_task(storage.set_item(f"key:{number}", number)) for number in range(30)]
        await asyncio.sleep(0)
        await storage.aclose()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)

        assert outcomes == [None] * 30
        if persistent:
            assert await store.open().count() == 30

    @in_loop
    @promised("conditional")
    async def test_an_update_that_is_under_way_when_the_storage_is_closed_raises_and_writes_nothing(self, store: Store) -> None:
        """L1: use after close raises, the next step of an earlier call included."""
        storage, persistent = store.storage, store.capabilities.persistent
        await storage.set_item("key", "before")
        waiting, closed = asyncio.Event(), asyncio.Event()

        async def late(value: str) -> str:
            waiting.set()
            await closed.wait()
            return "late"

        update = asyncio.create_task(storage.update_item("key", late, ttl=60 if store.capabilities.expiry else None))
        begun = asyncio.create_task(waiting.wait())
        await asyncio.wait([begun, update], return_when=asyncio.FIRST_COMPLETED)
        assert not update.done(), await update
        await storage.aclose()
        closed.set()
        with pytest.raises(ClosedError):
            await update
        if persistent:
            assert await store.open().get_item("key") == "before"

    def test_a_storage_is_used_from_several_event_loops_in_turn(self, tmp_path: Path) -> None:
        """L1: as tests and scripts do."""
        storage = Store(self, tmp_path).storage

        async def use(number: int) -> None:
            await asyncio.gather(*(storage.set_item(f"{number}:{task}", task) for task in range(20)))
            assert await storage.count() == 20 * (number + 1)
            assert await storage.get_items([f"{loop}:7" for loop in range(number + 1)]) == {
                f"{loop}:7": 7 for loop in range(number + 1)
            }

        with limited(self.time_limit):
            for number in range(3):
                asyncio.run(use(number))
            asyncio.run(storage.aclose())

    def test_an_event_loop_that_ended_in_the_midst_of_calls_leaves_the_storage_usable(self, tmp_path: Path) -> None:
        """L1: its unfinished calls are over."""
        storage = Store(self, tmp_path).storage

        async def leave() -> None:
            for number in range(30):
                asyncio.get_running_loop().create_task(storage.set_item(f"left:{number}", number))
            await asyncio.sleep(0)

        async def use() -> None:
            await storage.set_item("key", 1)
            assert await storage.get_item("key") == 1
            assert await storage.get_keys("key") == []
            await storage.aclose()

        with limited(self.time_limit):
            asyncio.run(leave())
            asyncio.run(use())

    @in_loop
    async def test_the_next_program_finds_everything(self, store: Store) -> None:
        """A1: what was written is there, what was removed is not."""
        await store.storage.set_items({f"key:{number:03}": number for number in range(200)})
        await store.storage.remove_items([f"key:{number:03}" for number in range(0, 200, 2)])
        await store.storage.set_item("key:001", "new")

        storage = await store.reopened()
        assert await storage.get_keys() == [f"key:{number:03}" for number in range(1, 200, 2)]
        assert await storage.get_item("key:001") == "new"
        await storage.set_item("key:000", "again")
        assert await (await store.reopened()).count("key") == 101

    @in_loop
    async def test_a_killed_process_loses_nothing_that_was_acknowledged(self, store: Store) -> None:
        """A1: values are whole, and batches too where writes are atomic."""
        if not store.capabilities.persistent:
            assert not store.capabilities.shared
            return
        with killed_after(Job(type(self), store.path, "killed"), acknowledged=25) as numbers:
            storage = store.storage
            assert len(numbers) >= 25
            lost = []
            for number in numbers:
                found = await storage.get_items([f"{part}:{number:06}" for part in "abc"])
                lost += [key for key, value in found.items() if value != [number] * 500]
            assert not lost, f"{len(lost)} of {3 * len(numbers)} values that were acknowledged are gone or not whole"
            newest = (await storage.get_item("newest"))[1]
            assert newest >= numbers[-1]
            held = [len(await storage.get_keys(part)) for part in "abc"]
            torn = [key async for key, value in storage.iter_items() if key != "newest" and value != [int(key[2:])] * 500]
            assert not torn, f"{len(torn)} values are not whole"
            if store.promises("atomic"):
                assert len(set(held)) == 1
            assert await storage.count() == sum(held) + 1
            await storage.set_item("newest", 1)
            assert await storage.clear() == sum(held) + 1
