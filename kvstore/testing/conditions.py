"""Conditions: they hold against every task, every driver and every process on the store."""

from __future__ import annotations

import asyncio
import random

import pytest

from kvstore.errors import InvalidValueError
from kvstore.testing.processes import Job, run_processes
from kvstore.testing.store import Contract, Store, in_loop, promised
from kvstore.values import MISSING


class Conditions(Contract):
    """A2 of the contract."""

    @in_loop
    @promised("conditional")
    async def test_add_stores_only_what_was_absent(self, store: Store) -> None:
        """A2: False: it was there, and nothing changed."""
        storage = store.storage

        assert await storage.add_item("key", 1) is True
        assert await storage.add_item("key", 2) is False
        assert await storage.get_item("key") == 1
        await storage.remove_item("key")
        assert await storage.add_item("key", None) is True
        assert await storage.add_item("key", 3) is False

    @in_loop
    @promised("conditional")
    async def test_compare_and_set_changes_only_what_is_as_expected(self, store: Store) -> None:
        """A2: either side may be `MISSING`."""
        storage = store.storage

        assert await storage.compare_and_set("key", 1, 2) is False
        assert await storage.compare_and_set("key", MISSING, 1) is True
        assert await storage.compare_and_set("key", MISSING, 2) is False
        assert await storage.compare_and_set("key", 2, 3) is False
        assert await storage.compare_and_set("key", 1, 2) is True
        assert await storage.get_item("key") == 2
        assert await storage.compare_and_set("key", 1, MISSING) is False
        assert await storage.compare_and_set("key", 2, MISSING) is True
        assert await storage.compare_and_set("key", MISSING, MISSING) is True
        assert await storage.has_item("key") is False

    @in_loop
    @promised("conditional")
    async def test_an_empty_value_is_not_missing_to_conditions(self, store: Store) -> None:
        """A2, V4: nor is a missing one empty."""
        storage = store.storage
        await storage.set_item_raw("key", b"")

        assert await storage.add_item("key", 1) is False
        assert await storage.compare_and_set("key", MISSING, 1) is False
        assert await storage.get_item_raw("key") == b""
        assert await store.driver.write([("other", b"1", None)], {"other": b""}) is None
        assert await storage.has_item("other") is False

    @in_loop
    @promised("conditional")
    async def test_values_are_compared_as_json(self, store: Store) -> None:
        """A2: 1, 1.0 and True differ, the order of members and the spelling of what is stored do not count."""
        storage = store.storage
        kinds: tuple[object, ...] = (1, 1.0, True, "1", None, 0, 0.0, False, "", [], {}, [1], {"1": 1}, 2**63, 2.0**63)
        for stored in kinds:
            for expected in kinds:
                await storage.set_item("key", stored)
                equal = stored is expected
                assert await storage.compare_and_set("key", expected, "new") is equal, (stored, expected)

        await storage.set_item("key", {"a": 1, "b": {"c": 1, "d": 2}})
        assert await storage.compare_and_set("key", {"b": {"d": 2, "c": 1}, "a": 1}, [1, 2]) is True
        assert await storage.compare_and_set("key", [2, 1], "new") is False
        await storage.set_item_raw("key", b' { "b" : [ 1 , "\\u00fc" ] } ')
        assert await storage.compare_and_set("key", {"b": [1, "ü"]}, "new") is True

    @in_loop
    @promised("conditional")
    async def test_update_stores_what_the_function_makes_of_the_value(self, store: Store) -> None:
        """A2: from the default where there is none, async functions too; `MISSING` removes."""
        storage = store.storage

        async def double(value: int) -> int:
            await asyncio.sleep(0)
            return value * 2

        assert await storage.update_item("key", lambda value: value + 1, 20) == 21
        assert await storage.update_item("key", double) == 42
        assert await storage.get_item("key") == 42
        assert await storage.update_item("key", lambda value: MISSING) is MISSING
        assert await storage.has_item("key") is False
        assert await storage.update_item("key", lambda value: MISSING) is MISSING
        assert await storage.update_item("key", lambda value: value is MISSING, MISSING) is True
        await storage.remove_item("key")
        assert await storage.update_item("key", lambda value: value) is None
        assert await storage.has_item("key") is True

    @in_loop
    @promised("conditional")
    async def test_an_update_that_fails_changes_nothing(self, store: Store) -> None:
        """A2: the function's own error comes through, and the key is free afterwards."""
        storage = store.storage
        await storage.set_item("key", [1])

        def spoil(value: list[int]) -> object:
            value.append(2)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await storage.update_item("key", spoil)
        with pytest.raises(InvalidValueError):
            await storage.update_item("key", lambda value: {1, 2})
        assert await storage.get_item("key") == [1]
        assert await storage.update_item("key", lambda value: [*value, 3]) == [1, 3]

    @in_loop
    @promised("conditional")
    async def test_an_update_runs_again_when_another_was_faster(self, store: Store) -> None:
        """A2: on what the other wrote, whoever it was."""
        mine, other = store.writers(2)
        await mine.set_item("key", "old")
        seen = []

        async def slowly(value: str) -> str:
            seen.append(value)
            if len(seen) == 1:
                await other.set_item("key", "theirs")
            return value + "+mine"

        assert await mine.update_item("key", slowly) == "theirs+mine"
        assert seen == ["old", "theirs"]
        assert await other.get_item("key") == "theirs+mine"

    @in_loop
    @promised("conditional")
    async def test_fifty_tasks_count_exactly(self, store: Store) -> None:
        """A2: no update is lost, over as many drivers as may share the store."""
        writers, rounds = store.writers(2), store.times(4)

        async def count(number: int) -> None:
            for _ in range(rounds):
                await writers[number % 2].update_item("counter", lambda value: value + 1, 0)

        await asyncio.gather(*(count(number) for number in range(50)))
        assert await store.storage.get_item("counter") == 50 * rounds

    @in_loop
    @promised("conditional")
    async def test_one_of_many_wins(self, store: Store) -> None:
        """A2: `add_item` and `compare_and_set` say True to exactly one of those who come at once."""
        writers = store.writers(2)
        for round_ in range(store.times(10)):
            key = f"key:{round_}"
            added = await asyncio.gather(*(writers[task % 2].add_item(key, task) for task in range(20)))
            assert sum(added) == 1
            winner = added.index(True)
            assert await store.storage.get_item(key) == winner
            swapped = await asyncio.gather(*(writers[task % 2].compare_and_set(key, winner, [task]) for task in range(20)))
            assert sum(swapped) == 1
            assert await store.storage.get_item(key) == [swapped.index(True)]

    @in_loop
    @promised("conditional")
    async def test_each_of_a_crowd_of_adds_is_told_its_own_answer(self, store: Store) -> None:
        """A2: whatever the order of their keys is, and whichever of these are there."""
        storage, chance = store.storage, random.Random(13)
        for _ in range(store.times(10)):
            keys = chance.sample([f"key:{number:02}" for number in range(20)], 20)
            await storage.clear()
            await storage.set_items(dict.fromkeys(keys[::3], "old"))
            busy = [storage.set_item(f"busy:{number}", number) for number in range(2)]
            added = await asyncio.gather(*busy, *(storage.add_item(key, "new") for key in keys))
            assert added[2:] == [bool(place % 3) for place in range(20)]
            assert await storage.get_items(keys) == {key: "new" if place % 3 else "old" for place, key in enumerate(keys)}

    @in_loop
    @promised("atomic")
    async def test_a_commit_is_all_or_nothing(self, store: Store) -> None:
        """A1, A2: sets and removes together; a value that is refused stops all of it."""
        storage = store.storage
        await storage.set_items({"a": 1, "b": 1})

        assert await storage.commit({"a": 2, "c": 2}, removes=["b", "missing"]) is True
        assert await storage.get_items(list("abc")) == {"a": 2, "b": None, "c": 2}
        with pytest.raises(InvalidValueError):
            await storage.commit({"a": 3, "bad": {1, 2}}, removes=["c"])
        with pytest.raises(InvalidValueError):
            await storage.commit({"a": 3}, removes=["a"])
        assert await storage.commit({}) is True
        assert await storage.get_items(list("abc")) == {"a": 2, "b": None, "c": 2}

    @in_loop
    @promised("atomic", "conditional")
    async def test_a_commit_holds_only_if_all_is_as_expected(self, store: Store) -> None:
        """A2: also of keys that it does not write, compared as JSON."""
        storage = store.storage
        await storage.set_items({"a": {"x": 1, "y": 2}, "b": 1})

        assert await storage.commit({"a": 0, "c": 0}, removes=["b"], expect={"a": {"x": 1, "y": 2}, "b": 2}) is False
        assert await storage.commit({"c": 0}, expect={"a": {"x": 1, "y": 2}, "c": 1}) is False
        assert await storage.commit({"c": 0}, expect={"b": MISSING}) is False
        assert await storage.get_items(list("abc")) == {"a": {"x": 1, "y": 2}, "b": 1, "c": None}
        assert await storage.commit({"c": 0}, removes=["b"], expect={"a": {"y": 2, "x": 1}, "b": 1, "c": MISSING}) is True
        assert await storage.get_items(list("abc")) == {"a": {"x": 1, "y": 2}, "b": None, "c": 0}
        assert await storage.commit({}, expect={"c": 0, "b": MISSING}) is True
        assert await storage.commit({}, expect={"c": 1}) is False

    @in_loop
    @promised("atomic", "conditional")
    async def test_transfers_between_two_keys_lose_nothing(self, store: Store) -> None:
        """A1, A2: many tasks move amounts between keys; every reader sees the whole sum."""
        writers = store.writers(2)
        await store.storage.set_items({"left": 100, "right": 100})
        done = asyncio.Event()

        async def move(number: int) -> None:
            storage = writers[number % 2]
            for _ in range(3):
                while True:
                    held = await storage.get_items(["left", "right"])
                    moved = {"left": held["left"] - number, "right": held["right"] + number}
                    if await storage.commit(moved, expect=held):
                        break

        async def watch_sum() -> None:
            while not done.is_set():
                held = await writers[-1].get_items(["left", "right"])
                assert held["left"] + held["right"] == 200, held
                await asyncio.sleep(0)

        reader = asyncio.create_task(watch_sum())
        await asyncio.gather(*(move(number) for number in range(10)))
        done.set()
        await reader
        assert await store.storage.get_items(["left", "right"]) == {"left": 100 - 3 * 45, "right": 100 + 3 * 45}

    @in_loop
    @promised("conditional")
    async def test_processes_count_exactly_and_one_of_them_wins(self, store: Store) -> None:
        """A2: against every process, where several may share the store."""
        if not store.capabilities.shared:
            assert await store.storage.add_item("alone", 1)
            return
        jobs = [Job(type(self), store.path, name) for name in ("one", "two", "three")]
        won = await asyncio.to_thread(run_processes, jobs)

        storage = store.storage
        assert await storage.get_item("counter") == 30 * len(jobs)
        assert sorted(key for keys in won for key in keys) == [f"claim:{number:02}" for number in range(20)]
        for job, keys in zip(jobs, won, strict=True):
            assert await storage.get_items(keys) == dict.fromkeys(keys, job.name)
