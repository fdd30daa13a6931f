"""Listing, counting, clearing, batches."""

from __future__ import annotations

import asyncio
import random

import pytest

from kvstore.driver import PAGE
from kvstore.errors import InvalidValueError, UnsupportedOperation
from kvstore.keys import after_all
from kvstore.storage import Storage
from kvstore.testing.store import SHORT, Contract, Store, in_loop, promised

_TREE = ("a", "a:1", "a:1:x", "a:1:x:y", "a:2", "a:é", "a b", "a!", "a;", "ab:1", "b:1:x", "b:2", "c", "🙂:1")


async def _planted(store: Store) -> Storage:
    await store.storage.set_items({key: key for key in _TREE})
    return store.storage


class Listing(Contract):
    """R1 to R4 of the contract."""

    @in_loop
    @promised("every_key")
    async def test_a_base_ends_at_a_segment(self, store: Store) -> None:
        """R3: `foo` lists neither `foobar` nor `foo` itself."""
        storage = await _planted(store)

        assert await storage.get_keys() == sorted(_TREE)
        assert await storage.get_keys("a") == ["a:1", "a:1:x", "a:1:x:y", "a:2", "a:é"]
        assert await storage.get_keys("a:1") == ["a:1:x", "a:1:x:y"]
        assert await storage.get_keys("/a//1/") == ["a:1:x", "a:1:x:y"]
        assert await storage.get_keys("c") == []
        assert await storage.get_keys("nothing") == []
        assert [key async for key in storage.iter_keys("a:1")] == ["a:1:x", "a:1:x:y"]
        assert [item async for item in storage.iter_items("b")] == [("b:1:x", "b:1:x"), ("b:2", "b:2")]

    @in_loop
    @promised("every_key")
    async def test_every_combination_of_limit_after_reverse_and_depth(self, store: Store) -> None:
        """R3: `after` need not be a key, `max_depth` counts from the base, and a limit takes the first of the rest."""
        storage = await _planted(store)
        cursors = (None, "a", "a:1", "a:1:x:y", "a:0", "a:1:w", "a:99", "a:\U0010ffff", "0", "zz", "a;", "🙂:1")
        for base in ("", "a", "a:1", "b"):
            prefix = base and base + ":"
            for after in cursors[:: 6 if store.suite.slow else 1]:
                for reverse in (False, True):
                    for depth in (None, 0, 1, 5):
                        left = [
                            key
                            for key in sorted(_TREE, reverse=reverse)
                            if key.startswith(prefix)
                            and (after is None or (key < after if reverse else key > after))
                            and (depth is None or key[len(prefix) :].count(":") <= depth)
                        ]
                        for limit in (None, 0, 1, 3, 100):
                            found = await storage.get_keys(base, limit=limit, after=after, reverse=reverse, max_depth=depth)
                            assert found == left[:limit], (base, after, reverse, depth, limit)

    @in_loop
    async def test_what_is_no_count_is_refused(self, store: Store) -> None:
        """R3: `limit` and `max_depth` are whole numbers from 0 on."""
        for wrong in (-1, 1.5, "1", True):
            with pytest.raises(InvalidValueError):
                await store.storage.get_keys(limit=wrong)  # type: ignore[arg-type]
            with pytest.raises(InvalidValueError):
                await store.storage.get_keys(max_depth=wrong)  # type: ignore[arg-type]

    @in_loop
    @promised("every_key")
    async def test_pages_join_to_the_whole_listing(self, store: Store) -> None:
        """R3: of any size, in both directions."""
        storage = await _planted(store)
        for size in (1, 2, 5):
            for reverse in (False, True):
                found: list[str] = []
                while page := await storage.get_keys(limit=size, after=found[-1] if found else None, reverse=reverse):
                    assert len(page) <= size
                    found += page
                assert found == sorted(_TREE, reverse=reverse)

    @in_loop
    async def test_a_listing_of_many_pages_is_whole(self, store: Store) -> None:
        """R3: more keys than are asked of a driver at a time."""
        storage = store.storage
        keys = [f"many:{number:05}" for number in range(PAGE + 50)]
        await storage.set_items({key: number for number, key in enumerate(keys)})

        assert await storage.get_keys() == keys
        assert await storage.get_keys("many", reverse=True) == keys[::-1]
        assert [key async for key in storage.iter_keys()] == keys
        assert [item async for item in storage.iter_items("many")] == [(key, number) for number, key in enumerate(keys)]
        assert await storage.count() == len(keys)
        assert await storage.clear("many") == len(keys)
        assert await storage.get_keys() == []

    @in_loop
    async def test_pages_give_what_stays_exactly_once_while_others_write(self, store: Store) -> None:
        """R3: whatever comes, goes and is overwritten meanwhile, also right at the cursor."""
        storage = store.storage
        chance = random.Random(7)
        numbers = store.times(300)
        stay = [f"k{number:03}" for number in range(0, numbers, 3)]
        await storage.set_items(dict.fromkeys(stay, 0))
        done = asyncio.Event()

        async def churn() -> None:
            while not done.is_set():
                number = chance.randrange(numbers)
                key = f"k{number:03}" if number % 3 == 0 else f"k{number:03}:{chance.randrange(3)}"
                if key in stay or chance.random() < 0.6:
                    await storage.set_item(key, 1)
                else:
                    await storage.remove_item(key)
                await asyncio.sleep(0)

        async def walk(reverse: bool, size: int) -> None:
            found: list[str] = []
            while page := await storage.get_keys(limit=size, after=found[-1] if found else None, reverse=reverse):
                found += page
                if page[-1] not in stay:
                    await storage.remove_item(page[-1])
                await asyncio.sleep(0)
            assert found == sorted(set(found), reverse=reverse)
            assert [key for key in found if key in stay] == sorted(stay, reverse=reverse)

        writers = [asyncio.create_task(churn()) for _ in range(3)]
        await asyncio.gather(walk(False, 7), walk(True, 7), walk(False, 1))
        done.set()
        await asyncio.gather(*writers)

    @in_loop
    async def test_removing_while_iterating_reaches_every_key(self, store: Store) -> None:
        """R3: the usual loop that lists and removes."""
        storage = store.storage
        count = store.times(PAGE + 20)
        await storage.set_items({f"k{number:04}": number for number in range(count)})

        seen = 0
        async for key in storage.iter_keys():
            seen += 1
            assert await storage.remove_item(key) is True
        assert seen == count
        assert await storage.count() == 0

    @in_loop
    @promised("every_key")
    async def test_clear_removes_exactly_what_lies_below(self, store: Store) -> None:
        """R4: neither the base itself nor its neighbours, and says how many there were."""
        storage = await _planted(store)

        assert await storage.clear("a:1") == 2
        assert await storage.clear("a") == 3
        assert await storage.clear("a") == 0
        assert await storage.get_keys() == sorted(key for key in _TREE if not key.startswith("a:"))
        assert await storage.clear() == len(_TREE) - 5
        assert await storage.get_keys() == []
        await storage.set_item("a:1", "again")
        assert await storage.get_keys("a") == ["a:1"]

    @in_loop
    async def test_clear_spares_what_another_mount_hides(self, store: Store) -> None:
        """R4: exactly the keys that are seen below the base."""
        storage = store.storage
        await storage.set_items({"a": 1, "c:hidden:1": 2, "c:hidden:2": 3, "d": 4})
        storage.mount("c", "memory")
        await storage.set_item("c:seen", 5)

        assert await storage.clear() == 3
        await storage.unmount("c")
        assert await storage.get_keys() == ["c:hidden:1", "c:hidden:2"]

    @in_loop
    @promised("every_key")
    async def test_removing_says_whether_the_key_was_there(self, store: Store) -> None:
        """R2: one, and how many of several."""
        storage = await _planted(store)

        assert await storage.remove_item("a") is True
        assert await storage.remove_item("a") is False
        assert await storage.remove_items(["a", "a:1", "c", "missing", "a:1"]) == 2
        assert await storage.remove_items([]) == 0
        assert await storage.get_keys() == sorted(set(_TREE) - {"a", "a:1", "c"})

    @in_loop
    @promised("every_key")
    async def test_batches_keep_the_order_asked(self, store: Store) -> None:
        """R2: with missing keys in between, and a key asked for twice once."""
        storage = await _planted(store)
        asked = ["c", "missing", "a:1", "🙂:1", "a", "c"]

        found = await storage.get_items(asked, "default")
        assert list(found.items()) == [("c", "c"), ("missing", "default"), ("a:1", "a:1"), ("🙂:1", "🙂:1"), ("a", "a")]
        assert await storage.get_items([]) == {}
        await storage.set_items({})
        assert await storage.count() == len(_TREE)

    @in_loop
    async def test_the_short_names_are_the_same_calls(self, store: Store) -> None:
        """R1: `has get set remove keys`."""
        storage = store.storage
        await storage.set("a", 1)

        assert await storage.get("a") == 1
        assert await storage.has("a") is True
        assert await storage.keys() == ["a"]
        assert await storage.remove("a") is True


class DriverCalls(Contract):
    """Section 2: the calls of a driver as the storage makes them."""

    @in_loop
    async def test_a_driver_reads_in_the_order_asked(self, store: Store) -> None:
        """Section 2: None for a missing key."""
        driver = await store.connected()
        await driver.write([("a", b"1", None), ("b:c", b"", None)])

        found = await driver.read(["b:c", "missing", "a"])
        assert found == [b"", None, b"1"]
        assert [type(data) for data in found] == [bytes, type(None), bytes]  # a `memoryview` is equal, and is none
        assert await driver.has(["missing", "b:c", "a"]) == [False, True, True]
        assert [stat and stat.size for stat in await driver.stat(["missing", "b:c", "a"])] == [None, 0, 1]

    @in_loop
    async def test_a_driver_says_of_each_write_whether_the_key_was_there(self, store: Store) -> None:
        """Section 2: sets and removes in one go."""
        driver = await store.connected()

        assert await driver.write([("a", b"1", None)]) == [False]
        assert await driver.write([("a", b"2", None), ("b", b"1", None), ("c", None, None)]) == [True, False, False]
        assert await driver.write([("b", None, None), ("c", b"1", None), ("a", None, None)]) == [True, False, True]
        assert await driver.read(["a", "b", "c"]) == [None, None, b"1"]

    @in_loop
    @promised("every_key")
    async def test_a_scan_starts_behind_any_text(self, store: Store) -> None:
        """Section 2: `after` need not be a key, lie below the prefix, or be as short as one."""
        driver = await store.connected()
        await driver.write([(key, b"1", None) for key in _TREE])
        texts = [None, "", ":", "a", "a:", "a:0", "a:1", "a:1:", "a;", "a:1:x:y:z", "zz", "b:", "a" * 2000, "\U0010ffff"]
        texts += [after_all(""), after_all("a:"), after_all("a:1:"), "a:1:" + "x" * 1500, "a!\n", "🙂"]
        for prefix in ("", "a:", "a:1:", "b:", "c:", "missing:"):
            for after in texts[:: 3 if store.suite.slow else 1]:
                for reverse in (False, True):
                    left = [key for key in sorted(_TREE, reverse=reverse) if key.startswith(prefix)]
                    left = [key for key in left if after is None or (key < after if reverse else key > after)]
                    found = await driver.scan(prefix, after=after, limit=100, reverse=reverse)
                    assert found == left, (prefix, after, reverse)
                    first = await driver.scan(prefix, after=after, limit=1, reverse=reverse)
                    assert first == left[:1], (prefix, after, reverse)

    @in_loop
    @promised("every_key")
    async def test_a_driver_counts_and_clears_below_a_prefix(self, store: Store) -> None:
        """Section 2: by its defaults or by ways of its own."""
        driver = await store.connected()
        await driver.write([(key, b"1", None) for key in _TREE])

        assert [await driver.count(prefix) for prefix in ("", "a:", "a:1:", "c:")] == [len(_TREE), 5, 2, 0]
        assert [await driver.clear(prefix) for prefix in ("c:", "a:1:", "a:", "")] == [0, 2, 3, len(_TREE) - 5]
        assert await driver.scan("", after=None, limit=10, reverse=False) == []

    @in_loop
    async def test_a_driver_puts_what_it_writes_without_saying_what_was_there(self, store: Store) -> None:
        """Section 2: `put` is `write` otherwise: of many keys and of large ones, with their expiry and metadata."""
        driver = await store.connected()
        large = b"x" * (3 * 2**19)
        await driver.write([("old", b"1", None)])
        if store.promises("metadata"):
            await driver.set_meta("old", b"{}")
        await driver.put([(f"key {number}", b"%d" % number, None) for number in range(40)])
        await driver.put([("old", b"2", None), ("large", large, None), ("key 7", b"", None)])

        assert await driver.read(["old", "key 7", "large", "key 39"]) == [b"2", b"", large, b"39"]
        if store.promises("metadata"):
            assert [stat and stat.custom for stat in await driver.stat(["old", "key 1"])] == [b"{}", None]
        if store.promises("expiry"):
            at = driver.clock() + round(SHORT * 1000)
            await driver.put([("old", b"3", at), ("key 1", b"3", None)])
            await store.pass_time(SHORT)
            assert await driver.has(["old", "key 1"]) == [False, True]
            await driver.put([("old", b"4", None), ("key 2", b"4", None)])
            assert await driver.read(["old", "key 2"]) == [b"4", b"4"]
            if store.promises("metadata"):
                assert [stat and stat.custom for stat in await driver.stat(["old"])] == [None]

    @in_loop
    async def test_batches_of_writes_are_carried_out_in_order(self, store: Store) -> None:
        """Section 2: `write_many` gives each batch its own result."""
        driver = await store.connected()
        results = await driver.write_many(
            [([("a", b"1", None)], None), ([("a", b"2", None), ("b", b"1", None)], None), ([("a", None, None)], None)]
        )
        assert results == [[False], [True, False], [True]]
        if store.promises("conditional"):
            results = await driver.write_many(
                [
                    ([("b", b"2", None)], {"b": b"wrong"}),
                    ([("b", b"3", None)], {"b": b"1"}),
                    ([("a", b"4", None)], {"b": b"3", "a": None}),
                ]
            )
            *alone, other = results
            assert alone == [None, [True]]
            # A condition on another key than the one written may be more than a driver can hold that is not atomic.
            refused = isinstance(other, UnsupportedOperation) and not store.promises("atomic")
            assert refused or other == [False]
            assert await driver.read(["a", "b"]) == [None if refused else b"4", b"3"]
