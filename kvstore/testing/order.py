"""One after another and all at once: whole values, order on a key, cancellation, an event loop that is never held."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable

from kvstore.driver import Event
from kvstore.storage import Storage
from kvstore.testing.pauses import leaves_the_loop_free
from kvstore.testing.store import Contract, Store, in_loop, promised

_LONGEST_PAUSE = 0.15
"""Seconds. The promise is 0.03; a busy machine pauses by itself."""


class Order(Contract):
    """A1, A3 and L2 of the contract."""

    @in_loop
    async def test_no_reader_sees_half_a_value(self, store: Store) -> None:
        """A1: nor a missing one while it is overwritten, through this driver or another on the store."""
        writer, reader = store.writers(2)
        whole = [letter * 200_000 for letter in "ab"]
        await writer.set_item("key", whole[0])
        done = asyncio.Event()

        async def read() -> int:
            count = 0
            while not done.is_set():
                assert await reader.get_item("key") in whole
                count += 1
                await asyncio.sleep(0)
            return count

        readers = [asyncio.create_task(read()) for _ in range(3)]
        for number in range(30):
            await writer.set_item("key", whole[number % 2])
            await asyncio.sleep(0)
        done.set()
        assert min(await asyncio.gather(*readers)) > 0

    @in_loop
    @promised("atomic")
    async def test_no_reader_sees_half_a_batch(self, store: Store) -> None:
        """A1: `set_items` is all or nothing to who reads the keys together."""
        writer, reader = store.writers(2)
        keys = [f"key:{number}" for number in range(20)]
        await writer.set_items(dict.fromkeys(keys, 0))
        done = asyncio.Event()

        async def read() -> None:
            while not done.is_set():
                found = await reader.get_items(keys)
                assert len(set(found.values())) == 1, found
                await asyncio.sleep(0)

        readers = [asyncio.create_task(read()) for _ in range(3)]
        for number in range(1, 40):
            await writer.set_items(dict.fromkeys(keys, number))
            await asyncio.sleep(0)
        done.set()
        await asyncio.gather(*readers)

    @in_loop
    async def test_what_was_written_is_read_at_once(self, store: Store) -> None:
        """A1: through this driver and through any other on the store."""
        writer, reader = store.writers(2)
        for number in range(30):
            await writer.set_item("key", number)
            assert await writer.get_item("key") == number
            assert await reader.get_item("key") == number
            await writer.set_item(f"many:{number:02}", number)
            assert len(await reader.get_keys("many")) == number + 1
        await writer.remove_item("key")
        assert await reader.has_item("key") is False

    @in_loop
    async def test_calls_on_one_key_take_effect_in_the_order_they_were_gathered(self, store: Store) -> None:
        """A3: hundreds of crowds of all kinds of calls, each checked against one call after another."""
        chance = random.Random(11)
        for _ in range(store.times(300)):
            await _gather_and_compare(store, chance, calls=chance.randint(2, 9))

    @in_loop
    async def test_calls_on_one_key_keep_their_order_in_a_crowd(self, store: Store) -> None:
        """A3: while thousands of calls on other keys are under way."""
        chance = random.Random(12)
        await store.storage.set_items({f"crowd:{number}": number for number in range(500)})
        for size in (store.times(300), store.times(3_000)):
            await _gather_and_compare(store, chance, calls=12, crowd=size)

    @in_loop
    async def test_a_clear_takes_effect_in_the_order_it_was_gathered(self, store: Store) -> None:
        """A3: it takes what was set before, however much that is, and spares what is set after."""
        storage = store.storage
        for base in ("", "base"):
            await storage.set_items({f"base:{number}": number for number in range(store.times(1_100))})
            before, _, after = await asyncio.gather(
                storage.set_item("base:before", 1), storage.clear(base), storage.set_item("base:after", 1)
            )
            assert (before, after) == (None, None)
            assert await storage.get_keys() == ["base:after"], base

    @in_loop
    async def test_a_clear_that_is_told_takes_effect_in_its_order_too(self, store: Store) -> None:
        """A3, W1: and where another mount keeps some of the keys below."""
        storage = store.storage
        for is_parted in (False, True):
            if is_parted:
                storage.mount("base:inner", "memory")
            await storage.set_items({"base:1": 1, "base:inner:1": 1})
            async with storage.watch() as events:
                cleared, _ = await asyncio.gather(storage.clear("base"), storage.set_item("base:1", 2))
                told = {await anext(events) for _ in range(3)}
            assert (cleared, await storage.get_item("base:1")) == (2, 2)
            assert told == {Event("remove", "base:1"), Event("remove", "base:inner:1"), Event("update", "base:1")}

    @in_loop
    async def test_a_batch_over_several_mounts_takes_effect_in_its_order(self, store: Store) -> None:
        """A3: on each of them."""
        storage = store.storage.mount("other", "memory")
        for number in range(store.times(20)):
            first, found, _, _ = await asyncio.gather(
                storage.set_items({"key": number, "other:key": number}),
                storage.get_items(["other:key", "key"]),
                storage.set_item("key", "last"),
                storage.set_item("other:key", "last"),
            )
            assert (first, found) == (None, {"other:key": number, "key": number})
            assert await storage.get_items(["key", "other:key"]) == {"key": "last", "other:key": "last"}

    @in_loop
    @promised("conditional")
    async def test_a_condition_is_decided_before_any_later_call(self, store: Store) -> None:
        """A3, A2: also where the value has to be looked at, since it is another one or has its members in another order."""
        storage = store.storage
        for _ in range(store.times(10)):
            await storage.set_item("key", 1)
            results = await asyncio.gather(
                storage.get_item("key"), storage.compare_and_set("key", 2, "stolen"), storage.set_item("key", 2)
            )
            assert [*results, await storage.get_item("key")] == [1, False, None, 2]

            await storage.set_item("key", {"a": 1, "b": 2})
            others = await asyncio.gather(
                storage.get_item("other"),
                storage.compare_and_set("key", {"b": 2, "a": 1}, "won"),
                storage.get_item("key"),
                storage.set_item("key", "later"),
            )
            assert [*others, await storage.get_item("key")] == [None, True, "won", None, "later"]

    @in_loop
    @promised("conditional")
    async def test_conditional_writes_keep_their_order(self, store: Store) -> None:
        """A3: adds, compares and plain writes on one key, gathered."""
        storage = store.storage
        for _ in range(store.times(30)):
            results = await asyncio.gather(
                storage.remove_item("key"),
                storage.add_item("key", 1),
                storage.add_item("key", 2),
                storage.compare_and_set("key", 1, 3),
                storage.set_item("key", 4),
                storage.compare_and_set("key", 3, 5),
                storage.get_item("key"),
                storage.remove_item("key"),
                storage.add_item("key", 6),
            )
            assert results[1:] == [True, False, True, None, False, 4, True, True]
            assert await storage.get_item("key") == 6

    @in_loop
    async def test_a_cancelled_write_never_overtakes_a_later_one(self, store: Store) -> None:
        """A3: set, cancelled at any moment, then set again: the last one wins and stays."""
        storage = store.storage
        for ticks in range(6):
            for _ in range(store.times(20)):
                first = asyncio.create_task(storage.set_item("key", "cancelled"))
                crowd = [asyncio.create_task(storage.set_item(f"other:{number}", 1)) for number in range(ticks % 3)]
                for _ in range(ticks):
                    await asyncio.sleep(0)
                first.cancel()
                await storage.set_item("key", "last")
                assert await storage.get_item("key") == "last"
                await asyncio.gather(first, *crowd, return_exceptions=True)
            await asyncio.sleep(0.02)  # for what a thread might still have to do
            assert await storage.get_item("key") == "last"

    @in_loop
    async def test_a_cancelled_write_never_happens_after_a_call_that_did_not_find_it(self, store: Store) -> None:
        """A3: whether it happens is open, but not any more once a later call has looked."""
        storage = store.storage
        for number in range(store.times(10)):
            write = asyncio.create_task(storage.set_item(f"key:{number}", "x" * 500_000))
            await asyncio.sleep(0)
            write.cancel()
            await asyncio.gather(write, return_exceptions=True)
            found = await storage.has_item(f"key:{number}")
            await asyncio.sleep(0.01)
            assert await storage.has_item(f"key:{number}") is found

    @in_loop
    async def test_a_cancelled_caller_takes_nobody_with_it(self, store: Store) -> None:
        """A3: the others of its batch get their answers."""
        storage = store.storage
        await storage.set_items({f"key:{number:02}": number for number in range(40)})
        for ticks in range(5):
            reads = [asyncio.create_task(storage.get_item(f"key:{number:02}")) for number in range(40)]
            writes = [asyncio.create_task(storage.set_item(f"new:{number:02}", ticks)) for number in range(40)]
            for _ in range(ticks):
                await asyncio.sleep(0)
            for task in (*reads[::4], *writes[::4]):
                task.cancel()
            found = await asyncio.gather(*reads, return_exceptions=True)
            await asyncio.gather(*writes, return_exceptions=True)
            assert [found[number] for number in range(40) if number % 4] == [number for number in range(40) if number % 4]
            kept = await storage.get_items([f"new:{number:02}" for number in range(40) if number % 4])
            assert set(kept.values()) == {ticks}

    @in_loop
    async def test_a_thousand_tasks_do_not_hold_the_event_loop(self, store: Store) -> None:
        """L2: nor lose or mix up anything. Of a slow driver, a hundred."""
        storage = store.storage
        sets = 2 if store.capabilities.atomic else 1  # others pay for each single write

        async def task(number: int) -> None:
            key = f"task:{number}"
            for round_ in range(sets):
                await storage.set_item(key, [number, round_])
                assert await storage.get_item(key) == [number, round_]
            assert await storage.has_item(key)

        async def thousand() -> None:
            await asyncio.gather(*(task(number) for number in range(store.times(1_000))))

        await leaves_the_loop_free(thousand, _LONGEST_PAUSE)

    @in_loop
    async def test_a_large_value_does_not_hold_the_event_loop(self, store: Store) -> None:
        """L2: 30 MB, written, read and removed."""
        storage = store.storage
        data = bytes(1000) * 30_000

        async def large() -> None:
            await storage.set_item_raw("large", data)
            assert await storage.get_item_raw("large") == data
            await storage.remove_item("large")

        await leaves_the_loop_free(large, _LONGEST_PAUSE)


async def _crowd(storage: Storage, number: int) -> None:
    if number % 3:
        await storage.get_item(f"crowd:{number % 500}")
    else:
        await storage.set_item(f"crowd:{number % 500}", number)


async def _gather_and_compare(store: Store, chance: random.Random, *, calls: int, crowd: int = 0) -> None:
    """Gathers `calls` random calls on one key, and holds their answers against what they give one after another.

    Ahead of them go `crowd` calls on other keys.
    """
    storage, key = store.storage, "base:key"
    value: object = None
    await storage.remove_item(key)
    gathered: list[Awaitable[object]] = []
    answers: list[object] = []
    told: list[str] = []
    kinds = ["set", "set", "set raw", "set items", "remove", "remove items", "get", "get items", "has", "meta", "clear"]
    kinds += ["touch"] * store.promises("touch") + ["custom"] * store.promises("metadata")
    kinds += ["add", "compare"] * store.promises("conditional")
    for number in range(1, calls + 1):
        kind = chance.choice(kinds)
        told.append(kind)
        there, size = value is not None, len(str(value))
        if kind == "set":
            gathered.append(storage.set_item(key, number))
            answers.append(None)
        elif kind == "set raw":
            gathered.append(storage.set_item_raw(key, b"%d" % number))
            answers.append(None)
        elif kind == "set items":
            gathered.append(storage.set_items({key: number, "base:beside": 1}))
            answers.append(None)
        elif kind == "remove":
            gathered.append(storage.remove_item(key))
            answers.append(there)
        elif kind == "remove items":
            gathered.append(storage.remove_items([key]))
            answers.append(int(there))
        elif kind == "get":
            gathered.append(storage.get_item(key))
            answers.append(value)
        elif kind == "get items":
            gathered.append(storage.get_items([key]))
            answers.append({key: value})
        elif kind == "has":
            gathered.append(storage.has_item(key))
            answers.append(there)
        elif kind == "meta":
            gathered.append(_size(storage, key))
            answers.append(size if there else None)
        elif kind == "clear":
            gathered.append(_cleared(storage))
            answers.append(None)
        elif kind == "touch":
            gathered.append(storage.touch(key))
            answers.append(there)
        elif kind == "custom":
            gathered.append(storage.set_meta(key, {"number": number}))
            answers.append(there)
        elif kind == "add":
            gathered.append(storage.add_item(key, number))
            answers.append(not there)
        else:
            gathered.append(storage.compare_and_set(key, value if there else number, number))
            answers.append(there)
        if kind in ("set", "set raw", "set items") or (kind == "add" and not there) or (kind == "compare" and there):
            value = number
        elif kind in ("remove", "remove items", "clear"):
            value = None
    others = [_crowd(storage, number) for number in range(crowd)]
    assert (await asyncio.gather(*others, *gathered))[crowd:] == answers, told
    assert await storage.get_item(key) == value, told


async def _size(storage: Storage, key: str) -> int | None:
    meta = await storage.get_meta(key)
    return None if meta is None else meta.size


async def _cleared(storage: Storage) -> None:
    await storage.clear("base")
