"""Mounts: which driver keeps which keys, and how they look as one store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from unittest import mock

import pytest
from fakes import Queued
from hypothesis import given
from hypothesis import strategies as st
from running import in_loop

from kvstore import (
    BackendUnavailable,
    ClosedError,
    ConfigError,
    Event,
    InvalidKeyError,
    InvalidValueError,
    ReadOnlyError,
    Storage,
    UnsupportedOperation,
    copy,
    create_storage,
    prefix_storage,
    restore_snapshot,
    snapshot,
)
from kvstore.driver import Expect, Write
from kvstore.drivers.memory import MemoryDriver
from kvstore.testing import FakeClock


async def _keys(driver: MemoryDriver) -> list[str]:
    return await driver.scan("", after=None, limit=1000, reverse=False)


@in_loop
async def test_a_listing_to_a_depth_does_not_read_what_lies_deeper() -> None:
    """R3: a page costs what it holds: of each folder that is jumped over a few keys, however many it has."""

    class Counting(MemoryDriver):
        scanned = 0

        async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
            found = await super().scan(prefix, after=after, limit=limit, reverse=reverse)
            self.scanned += len(found)
            return found

    storage = create_storage(driver := Counting())
    for folder in range(30):
        await storage.set_items({f"folder{folder:02}:{number:04}": 1 for number in range(1_000)})
    await storage.set_items({"a": 1, "z": 1})
    for reverse in (False, True):
        driver.scanned = 0
        assert sorted(await storage.get_keys(max_depth=0, reverse=reverse)) == ["a", "z"]
        assert driver.scanned < 3_000


@in_loop
async def test_A3_a_clear_spares_what_is_set_after_it_on_every_mount_of_memory() -> None:
    for is_watched in (False, True):
        storage = create_storage().mount("a", "memory").mount("b:c", "memory")
        await storage.set_items({"x": 1, "a:x": 1, "b:c:x": 1})
        async with AsyncExitStack() as stack:
            if is_watched:
                await stack.enter_async_context(storage.watch())
            cleared, *_ = await asyncio.gather(
                storage.clear(), *(storage.set_item(key, 2) for key in ("y", "x", "a:x", "a:y", "b:c:x"))
            )
        assert cleared == 3
        assert await storage.get_items(["y", "x", "a:x", "a:y", "b:c:x"]) == dict.fromkeys(["y", "x", "a:x", "a:y", "b:c:x"], 2)


@in_loop
async def test_a_mount_that_comes_while_keys_are_read_changes_nothing_of_the_answer() -> None:
    class Slow(Queued):
        async def before(self, call: str, keys: Sequence[str]) -> None:
            await asyncio.sleep(0.001)

    storage = create_storage(Slow())
    await storage.set_items({"a:x": 1, "y": 2})
    reading = asyncio.create_task(storage.get_items(["a:x", "y"]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    storage.mount("a", "memory")
    assert await reading == {"a:x": 1, "y": 2}


@in_loop
async def test_L1_closing_waits_for_a_mount_that_was_being_taken_away() -> None:
    class Slow(MemoryDriver):
        closed = False

        async def aclose(self) -> None:
            await asyncio.sleep(0.01)
            self.closed = True

    storage = create_storage().mount("a", driver := Slow())
    leaving = asyncio.create_task(storage.unmount("a"))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await storage.aclose()
    assert driver.closed


@in_loop
async def test_a_text_that_says_it_is_equal_to_another_is_not_taken_for_it() -> None:
    """K1: two keys that differ stay two, whatever a subclass of str compares as."""

    class Folded(str):
        def __hash__(self) -> int:
            return hash(self.lower())

        def __eq__(self, other: object) -> bool:
            return isinstance(other, str) and self.lower() == other.lower()

    storage = create_storage()
    await storage.set_item("ABC", "upper")
    assert await storage.get_item(Folded("ABC")) == "upper"
    await storage.set_item("abc", "lower")
    assert await storage.get_items(["ABC", "abc"]) == {"ABC": "upper", "abc": "lower"}


@in_loop
async def test_a_mount_keeps_the_keys_below_its_base_and_its_parent_the_base_itself() -> None:
    root, cache = MemoryDriver(), MemoryDriver()
    storage = create_storage(root).mount("cache", cache)
    await storage.set_items({"cache": 0, "cache:a": 1, "cached": 2, "cache2:b": 3, "Cache:a": 4, "cache:a:b": 5})

    assert await _keys(root) == ["Cache:a", "cache", "cache2:b", "cached"]
    assert await _keys(cache) == ["a", "a:b"]
    assert await storage.get_items(["cache:a", "cached", "cache", "cache:a:b"]) == {
        "cache:a": 1,
        "cached": 2,
        "cache": 0,
        "cache:a:b": 5,
    }
    assert storage.get_mount("cache").base == ""
    assert storage.get_mount("cache/x").driver is cache


@in_loop
async def test_the_order_asked_is_kept_across_mounts() -> None:
    storage = create_storage().mount("a", "memory").mount("b", "memory")
    await storage.set_items({"b:1": 1, "a:1": 2, "c": 3})

    assert list(await storage.get_items(["c", "b:1", "a:1", "b:2", "a:2"])) == ["c", "b:1", "a:1", "b:2", "a:2"]
    assert await storage.remove_items(["a:1", "b:1", "c", "d"]) == 3


@in_loop
async def test_a_base_is_mounted_once() -> None:
    storage = create_storage().mount("a/b", "memory")
    for base in ("a:b", "/a/b/", ""):
        with pytest.raises(ConfigError) as caught:
            storage.mount(base, "memory")
        assert caught.value.mount == base.strip("/").replace("/", ":")
    for base in ("..", "a:.", "\0", "$meta", 5, None, b"a"):
        with pytest.raises(InvalidKeyError):
            storage.mount(base, "memory")  # type: ignore[arg-type]
        with pytest.raises(InvalidKeyError):
            await storage.unmount(base)  # type: ignore[arg-type]


@in_loop
async def test_a_driver_is_mounted_once() -> None:
    driver = MemoryDriver()
    storage = create_storage().mount("a", driver)
    with pytest.raises(ConfigError, match="'a'"):
        storage.mount("b", driver)
    await storage.unmount("a", close=False)
    assert await storage.mount("b", driver).get_keys() == []


@in_loop
async def test_two_hundred_mounts_keep_their_keys_apart() -> None:
    storage = create_storage()
    drivers = {f"m{number}": MemoryDriver() for number in range(200)}
    for base, driver in drivers.items():
        storage.mount(base, driver)
    await storage.set_items({f"{base}:key": base for base in drivers} | {"m7x:key": "root", "m": "root"})

    for base, driver in drivers.items():
        assert await _keys(driver) == ["key"]
        assert await storage.get_item(f"{base}:key") == base
        assert storage.get_mount(f"{base}:key").driver is driver
    assert await storage.get_keys() == sorted([*(f"{base}:key" for base in drivers), "m7x:key", "m"])
    assert await storage.get_keys(reverse=True, limit=3) == ["m9:key", "m99:key", "m98:key"]
    assert await storage.count() == 202
    assert len(storage.get_mounts()) == 201
    assert await storage.clear() == 202


_BASES = st.sampled_from(["a", "a:b", "a:b:c", "a:c", "ab", "b"])


@given(st.sets(_BASES), st.sampled_from(["", "a:", "a:b:", "b:", "a:b:c:", "z:"]))
def test_the_one_mount_that_keeps_all_below_a_prefix_is_known(bases: set[str], prefix: str) -> None:
    storage = create_storage()
    for base in bases:
        storage.mount(base, MemoryDriver())
    table = storage.keyspace.table
    keepers = {table.find(prefix + key) for key in ("!", "a", "a:!", "a:b:!", "b:!", "b:c:!", "c:!", "ab:!", "z")}
    touched = table.touched(prefix)
    assert table.sole(prefix) is (touched[0] if len(touched) == 1 else None)
    assert table.sole(prefix) is None or keepers == {table.sole(prefix)}


async def _nested() -> tuple[Storage, MemoryDriver, MemoryDriver, MemoryDriver]:
    """Three levels; each driver holds keys below what is mounted over it, too."""
    root, middle, inner = MemoryDriver(), MemoryDriver(), MemoryDriver()
    await root.write([(key, b"0", None) for key in ("a", "a:b", "a:hidden", "a:b:hidden", "a!", "a;", "b", "z:1:2")])
    await middle.write([(key, b"1", None) for key in ("a", "b", "b:hidden", "b:hidden:2", "c:d")])
    await inner.write([(key, b"2", None) for key in ("1", "2:3")])
    return create_storage(root).mount("a", middle).mount("a:b", inner), root, middle, inner


_SEEN = sorted(["a", "a!", "a;", "b", "z:1:2", "a:a", "a:b", "a:c:d", "a:b:1", "a:b:2:3"])


@in_loop
async def test_a_mount_masks_what_lies_under_it() -> None:
    storage, *_ = await _nested()

    assert await storage.get_keys() == _SEEN
    assert await storage.get_keys("a") == [key for key in _SEEN if key.startswith("a:")]
    assert await storage.get_keys("a:b") == ["a:b:1", "a:b:2:3"]
    assert await storage.get_item("a:hidden") is None
    assert [key async for key in storage.iter_keys()] == _SEEN
    assert [await storage.count(base) for base in ("", "a", "a:b", "z")] == [10, 5, 2, 1]


@in_loop
async def test_pages_over_nested_mounts_join_in_both_directions() -> None:
    storage, *_ = await _nested()
    for base in ("", "a", "a:b", "z"):
        whole = [key for key in _SEEN if not base or key.startswith(base + ":")]
        for depth in (None, 0, 1):
            cut = len(base) + 1 if base else 0
            kept = [key for key in whole if depth is None or key[cut:].count(":") <= depth]
            for limit in (1, 2, 3, 100):
                for reverse in (False, True):
                    found: list[str] = []
                    while page := await storage.get_keys(
                        base, limit=limit, after=found[-1] if found else None, reverse=reverse, max_depth=depth
                    ):
                        found += page
                    assert found == (kept[::-1] if reverse else kept), (base, depth, limit, reverse)


@in_loop
async def test_clearing_spares_what_is_masked() -> None:
    storage, root, middle, inner = await _nested()

    assert await storage.clear("a") == 5
    assert await storage.get_keys() == ["a", "a!", "a;", "b", "z:1:2"]
    assert await _keys(root) == ["a", "a!", "a:b", "a:b:hidden", "a:hidden", "a;", "b", "z:1:2"]
    assert await _keys(middle) == ["b:hidden", "b:hidden:2"]
    assert await _keys(inner) == []
    assert await storage.clear() == 5
    assert await _keys(root) == ["a:b", "a:b:hidden", "a:hidden"]


@in_loop
async def test_unmounting_shows_again_what_was_masked() -> None:
    storage, _, middle, _ = await _nested()
    await storage.unmount("/a/", close=False)

    assert await storage.get_item("a:hidden") == 0
    assert await storage.get_keys("a") == ["a:b", "a:b:1", "a:b:2:3", "a:hidden"]
    assert await _keys(middle) == ["a", "b", "b:hidden", "b:hidden:2", "c:d"]
    await storage.unmount("a:b")
    assert await storage.get_keys("a:b") == ["a:b:hidden"]
    for base in ("a", "nothing"):
        with pytest.raises(ConfigError) as caught:
            await storage.unmount(base)
        assert caught.value.mount == base


@in_loop
async def test_an_unmounted_driver_is_closed_unless_it_is_to_be_kept() -> None:
    class Closing(MemoryDriver):
        closed = 0

        async def aclose(self) -> None:
            self.closed += 1

    kept, gone, stays = Closing(), Closing(), Closing()
    async with create_storage(stays) as storage:
        storage.mount("kept", kept).mount("gone", gone)
        await storage.unmount("kept", close=False)
        await storage.unmount("gone")
        assert (kept.closed, gone.closed, stays.closed) == (0, 1, 0)
    assert (kept.closed, gone.closed, stays.closed) == (0, 1, 1)


@in_loop
async def test_L1_of_a_mount_whose_driver_is_kept_nothing_goes_on() -> None:
    class Slow(MemoryDriver):
        capabilities = replace(MemoryDriver.capabilities, inline=False)
        sweeps = 0

        async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
            await asyncio.sleep(0.05)
            return await super().write(writes, expect)

        async def sweep(self) -> int | None:
            self.sweeps += 1
            return await super().sweep()

    driver = Slow()
    with mock.patch("kvstore.sweeper.INTERVAL", 0.01):
        async with create_storage().mount("kept", driver) as storage:
            await storage.set_item("kept:key", 1, ttl=0.2)
            writing = asyncio.create_task(storage.set_item("kept:other", 1))
            await asyncio.sleep(0)
            await storage.unmount("kept", close=False)
            assert await driver.has(["other"]) == [True], "what is under way is waited for"
            await writing
            sweeps = driver.sweeps
            await asyncio.sleep(0.3)
            assert driver.sweeps == sweeps


@in_loop
async def test_T2_what_could_not_be_swept_is_swept_later() -> None:
    class Failing(MemoryDriver):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.swept = 2, asyncio.Event()

        async def sweep(self) -> int | None:
            self.left -= 1
            if self.left >= 0:
                raise BackendUnavailable("not now")
            self.swept.set()
            return None

    driver = Failing()
    with mock.patch("kvstore.sweeper.INTERVAL", 0.01):
        async with create_storage(driver) as storage, asyncio.timeout(5):
            await storage.set_item("key", 1, ttl=0.01)
            await driver.swept.wait()


@in_loop
async def test_a_key_that_no_mount_holds_is_refused() -> None:
    storage = Storage().mount("a", "memory").mount("b", "memory")

    for call in (storage.get_item("c"), storage.set_item("c", 1), storage.get_item("a"), storage.set_items({"a:1": 1, "c": 1})):
        with pytest.raises(ConfigError, match="'a', 'b'"):
            await call
    assert await storage.get_keys() == []
    await storage.set_items({"a:1": 1, "b:1": 1})
    assert await storage.get_keys() == ["a:1", "b:1"]
    with pytest.raises(ConfigError):
        storage.get_mount("c")


@in_loop
async def test_a_read_only_mount_refuses_every_write_and_keeps_what_it_has() -> None:
    driver = MemoryDriver()
    await driver.write([("a", b"1", None), ("b:c", b"1", None)])
    storage = create_storage().mount("ro", driver, read_only=True)
    for operation, call in {
        "set_item": storage.set_item("ro:a", 2),
        "set_item_raw": storage.set_item_raw("ro:a", b"2"),
        "remove_item": storage.remove_item("ro:a"),
        "set_items": storage.set_items({"free": 1, "ro:a": 2}),
        "remove_items": storage.remove_items(["free", "ro:a"]),
        "add_item": storage.add_item("ro:new", 2),
        "compare_and_set": storage.compare_and_set("ro:a", 1, 2),
        "update_item": storage.update_item("ro:a", lambda value: 2),
        "commit": storage.commit({"ro:a": 2}),
        "touch": storage.touch("ro:a"),
        "set_meta": storage.set_meta("ro:a", {}),
        "remove_meta": storage.remove_meta("ro:a"),
        "clear": storage.clear("ro"),
    }.items():
        with pytest.raises(ReadOnlyError) as caught:
            await call
        assert (caught.value.operation, caught.value.mount, caught.value.driver) == (operation, "ro", "memory")
    await storage.set_item("free", 1)
    with pytest.raises(ReadOnlyError):
        await storage.clear()

    assert await storage.get_keys() == ["free", "ro:a", "ro:b:c"]
    assert await storage.get_item("ro:a") == 1
    assert await storage.has_item("ro:a")
    assert await storage.get_meta("ro:a") is not None


@in_loop
async def test_a_commit_lies_on_one_mount() -> None:
    storage = create_storage().mount("a", "memory")
    await storage.set_items({"a:1": 1, "b": 1})
    for call in (
        storage.commit({"a:1": 2, "b": 2}),
        storage.commit({"a:1": 2}, removes=["b"]),
        storage.commit({"a:1": 2}, expect={"b": 1}),
    ):
        with pytest.raises(UnsupportedOperation):
            await call
    assert await storage.get_items(["a:1", "b"]) == {"a:1": 1, "b": 1}


@in_loop
async def test_each_mount_has_its_own_time_to_live() -> None:
    clock = FakeClock()
    short, never = MemoryDriver(), MemoryDriver()
    short.clock = never.clock = clock
    storage = create_storage(never).mount("short", short, ttl=1)
    await storage.set_items({"short:1": 1, "short:2": 2, "long": 3})
    clock.advance(1)

    assert await storage.get_keys() == ["long"]
    for ttl in (0, -1, True, "1", float("nan")):
        with pytest.raises((ConfigError, InvalidValueError)):
            create_storage(ttl=ttl)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        create_storage(read_only=1)  # type: ignore[arg-type]


@in_loop
async def test_a_prefixed_storage_works_below_its_base() -> None:
    storage = create_storage().mount("users:cache", "memory")
    users = prefix_storage(storage, "/users/")
    await users.set_items({"1": "one", "cache:2": "two", "3:x": "three"})
    await storage.set_items({"other": 1, "users": 0, "users2:1": 1})

    assert await users.get_keys() == ["1", "3:x", "cache:2"]
    assert await users.get_items(["cache:2", "1"]) == {"cache:2": "two", "1": "one"}
    assert await users.get_keys("cache") == ["cache:2"]
    assert await users.get_keys(after="1", limit=1) == ["3:x"]
    assert await users.get_keys(max_depth=0) == ["1"]
    assert [item async for item in users.iter_items("3")] == [("3:x", "three")]
    assert await storage.get_item("users:1") == "one"
    assert await users.get_item("/1/") == "one"
    assert await users.add_item("1", 1) is False
    assert await users.commit({"9": 9}, removes=["1"], expect={"1": "one"}) is True
    assert await users.count() == 3
    assert await users.clear() == 3
    assert await storage.get_keys() == ["other", "users", "users2:1"]


@in_loop
async def test_prefixes_add_up_and_the_whole_key_is_what_has_to_be_legal() -> None:
    storage = create_storage()
    inner = prefix_storage(prefix_storage(storage, "a"), "b:c")
    await inner.set_item("d", 1)

    assert await storage.get_keys() == ["a:b:c:d"]
    with pytest.raises(InvalidKeyError):
        await inner.set_item("x" * 1020, 1)
    for key in ("", "..", ":", None):
        with pytest.raises(InvalidKeyError):
            await inner.get_item(key)  # type: ignore[arg-type]
    everything = prefix_storage(storage, "")
    assert await everything.get_keys() == ["a:b:c:d"]


@in_loop
async def test_meta_is_reserved_as_the_first_segment_of_a_whole_key_and_legal_below_a_prefix() -> None:
    """K2, K3."""
    storage, other = create_storage(), create_storage()
    await storage.set_items({"a:$meta:x": 1, "a:b": 2})
    inner = prefix_storage(storage, "a")

    assert await inner.get_item("$meta:x") == 1
    assert [item async for item in inner.iter_items()] == [("$meta:x", 1), ("b", 2)]
    assert await inner.get_keys("$meta") == ["$meta:x"]
    assert await prefix_storage(inner, "$meta").get_keys() == ["x"]
    assert await snapshot(storage, "a") == {"$meta:x": 1, "b": 2}
    await restore_snapshot(other, await snapshot(storage, "a"), "a")
    assert await copy(storage, other, "a") == 2
    assert await other.get_keys() == ["a:$meta:x", "a:b"]
    inner.mount("$meta", "memory")
    assert await inner.set_item("$meta:y", 3) is None
    for refused in (storage, prefix_storage(storage, "")):
        with pytest.raises(InvalidKeyError) as caught:
            await refused.get_item("$meta:x")
        assert caught.value.key == "$meta:x"


@in_loop
async def test_an_illegal_key_below_a_prefix_is_named_as_it_was_asked_for() -> None:
    """E1."""
    inner = prefix_storage(create_storage(), "a")
    for key in ("b:..", "x" * 1023, "\0"):
        with pytest.raises(InvalidKeyError) as caught:
            await inner.get_item(key)
        assert caught.value.key == key


@in_loop
async def test_a_prefixed_storage_tells_changes_without_its_prefix() -> None:
    storage = create_storage()
    users = prefix_storage(storage, "users")
    async with users.watch("x") as events:
        await storage.set_items({"users:x:1": 1, "users:y": 1, "x:1": 1})
        await users.remove_item("x:1")

        assert [await anext(events), await anext(events)] == [Event("update", "x:1"), Event("remove", "x:1")]


@in_loop
async def test_mounting_through_a_prefixed_storage_mounts_below_it() -> None:
    storage = create_storage()
    users = prefix_storage(storage, "users")
    driver = MemoryDriver()
    users.mount("cache", driver)
    await storage.set_item("users:cache:1", 1)

    assert await _keys(driver) == ["1"]
    assert users.get_mount("cache:1").base == "users:cache"
    await users.unmount("cache")
    assert await storage.get_keys() == []


@in_loop
async def test_closing_a_prefixed_storage_leaves_the_other_open() -> None:
    storage = create_storage()
    async with prefix_storage(storage, "users") as users:
        await users.set_item("1", 1)
    with pytest.raises(ClosedError):
        await users.get_item("1")
    assert await storage.get_item("users:1") == 1
    inner = prefix_storage(storage, "users")
    await storage.aclose()
    with pytest.raises(ClosedError):
        await inner.get_item("1")


@in_loop
async def test_get_mounts_names_what_a_listing_asks_the_longest_base_first() -> None:
    storage = create_storage().mount("a", "memory").mount("a:b:c", "memory").mount("ab", "memory")

    def bases(base: str) -> list[str]:
        return [mount.base for mount in storage.get_mounts(base)]

    assert bases("") == ["a:b:c", "ab", "a", ""]
    assert bases("a") == ["a:b:c", "a"]
    assert bases("a:b") == ["a:b:c", "a"]
    assert bases("a:b:c:d") == ["a:b:c"]
    assert bases("a:x") == ["a"]
    assert bases("z") == [""]
    mount = storage.get_mount("ab:1")
    assert (mount.base, mount.driver.name, mount.capabilities.atomic) == ("ab", "memory", True)


@in_loop
async def test_a_driver_that_fails_to_close_does_not_keep_others_open() -> None:
    class Failing(MemoryDriver):
        async def aclose(self) -> None:
            raise RuntimeError("no")

    class Closing(MemoryDriver):
        closed = False

        async def aclose(self) -> None:
            self.closed = True

    last = Closing()
    storage = create_storage(Failing()).mount("a", last)
    with pytest.raises(Exception, match="no"):
        await storage.aclose()
    assert last.closed
    await storage.aclose()


@in_loop
async def test_a_key_that_was_used_goes_to_the_mount_that_comes_later_through_a_prefixed_storage_too() -> None:
    async with create_storage() as storage:
        below = prefix_storage(storage, "a")
        await storage.set_item("a:b:key", "root")
        assert await below.get_item("b:key") == "root"
        storage.mount("a:b", "memory")
        assert await below.get_item("b:key") is None
        await below.set_item("b:key", "mount")
        assert await storage.get_item("a:b:key") == "mount"
        await storage.unmount("a:b")
        assert await storage.get_item("a/b/key") == await below.get_item("b:key") == "root"


@in_loop
async def test_more_keys_than_a_storage_remembers_the_mounts_of_are_found_all_the_same() -> None:
    async with create_storage() as storage:
        storage.mount("m", "memory")
        keys = [f"{'m:' * (number % 2)}key:{number}" for number in range(12_000)]
        for number, key in enumerate(keys):
            await storage.set_item(key, number)
        for number, key in enumerate(keys):
            assert await storage.get_item(key) == number
        assert len(storage._routes) <= 10_000
        assert await storage.get_items(keys) == {key: number for number, key in enumerate(keys)}
        assert len(storage._routes) <= 10_000
        assert await storage.count("m") == 6_000
