"""The diskcache driver: the kit, and that nothing planted in its directory is run."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import diskcache
import pytest
from outside import files, in_directory, small_disk

from kvstore import BackendError, BackendUnavailable, CorruptValueError, create_storage, snapshot
from kvstore.drivers.diskcache import DiskcacheDriver
from kvstore.testing import HOSTILE_KEYS, DriverSuite


class TestDiskcache(DriverSuite):
    def make_driver(self, path: Path) -> DiskcacheDriver:
        return DiskcacheDriver(path / "cache")


class Planted:
    """Makes a directory where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@in_directory
async def test_a_planted_pickle_is_corrupt_by_its_key_never_loaded_and_left(path: Path) -> None:
    marker = path.parent / "it-ran"
    with diskcache.Cache(str(path)) as cache:
        cache.set("planted", Planted(marker))
        cache.set("planted:large", [Planted(marker), "x" * 100_000])
        cache.set("text", "by another program")
    async with create_storage("diskcache", path=path) as storage:
        for key in ("planted", "planted:large"):
            with pytest.raises(CorruptValueError) as caught:
                await storage.get_item_raw(key)
            assert (caught.value.key, caught.value.driver) == (key, "diskcache")
        assert await storage.get_item_raw("text") == b"by another program"
        assert await storage.get_keys() == ["planted", "planted:large", "text"]
        await storage.set_item("planted", 1)
        assert await storage.get_item("planted") == 1
    assert not marker.exists()


NO_KEYS = ("", ".", "..", ":a", "a:", "a::b", "a/b", "/", "a//b", "a:.", "a:..:b", "..:a", "a\0b", "x" * 1025, 7, b"bytes")


@in_directory
async def test_R3_R4_what_is_no_key_is_another_programs_and_not_listed_counted_or_cleared(path: Path) -> None:
    keys = sorted(HOSTILE_KEYS)
    with diskcache.Cache(str(path)) as cache:
        for key in (*NO_KEYS, *keys):
            cache.set(key, b"1")
    async with create_storage("diskcache", path=path) as storage:
        assert await storage.get_keys() == keys
        assert await storage.count() == len(keys)
        assert list(await snapshot(storage)) == keys
        async with storage.watch():
            assert await storage.clear("a") == sum(key.startswith("a:") for key in keys)
        assert await storage.clear() == len([key for key in keys if not key.startswith("a:")])
        assert await storage.get_keys() == []
    with diskcache.Cache(str(path)) as cache:
        assert set(cache) == set(NO_KEYS)


@in_directory
async def test_R4_what_lies_under_the_reserved_segment_at_the_root_is_another_programs(path: Path) -> None:
    async with create_storage().mount("c", "diskcache", path=path) as storage:
        await storage.set_items({f"c:{key}": 1 for key in ("$", "$meta", "$meta:a", "$meta:b:c", "$metal", "a")})
    async with create_storage("diskcache", path=path) as storage:
        assert await storage.get_keys() == ["$", "$metal", "a"]
        assert await storage.get_keys(reverse=True) == ["a", "$metal", "$"]
        assert await snapshot(storage) == {"$": 1, "$metal": 1, "a": 1}
        for size in (1, 2):
            found: list[str] = []
            while page := await storage.get_keys(limit=size, after=found[-1] if found else None):
                found += page
            assert found == ["$", "$metal", "a"]
        assert await storage.count() == await storage.clear() == 3
    async with create_storage().mount("c", "diskcache", path=path) as storage:
        assert await storage.get_keys() == ["c:$meta", "c:$meta:a", "c:$meta:b:c"]


def test_A1_a_value_that_the_disk_has_no_room_for_fails_alone_and_leaves_the_room_to_others(tmp_path: Path) -> None:
    async def main(path: Path) -> None:
        async with create_storage("diskcache", path=path) as storage:
            await storage.set_item("key", "old")
            writes = (storage.set_item(key, value) for key, value in (("a", 1), ("b", 2), ("key", "x" * 5_000_000)))
            first, second, large = await asyncio.gather(*writes, return_exceptions=True)
            assert (first, second) == (None, None)
            assert isinstance(large, BackendError)
            assert "full; nothing was written" in str(large)
            assert (large.key, large.driver) == ("key", "diskcache")
            assert await storage.get_items(["a", "b", "key"]) == {"a": 1, "b": 2, "key": "old"}
            assert [file.name for file in files(path) if file.suffix == ".val"] == []
            await storage.set_item("key", "x" * 100_000)
            assert await storage.remove_item("key") is True
            assert await storage.clear() == 2

    with small_disk(tmp_path / "disk", "3m"):
        asyncio.run(main(tmp_path / "disk" / "cache"))


@in_directory
async def test_E1_a_value_whose_file_can_not_be_read_is_its_own_callers(path: Path) -> None:
    async with create_storage("diskcache", path=path) as storage:
        await storage.set_items({"broken": "x" * 100_000, "large": "y" * 100_000, "small": 1})
        [file] = [file for file in files(path) if b"xxx" in file.read_bytes()]
        file.unlink()
        file.mkdir()
        keys = ("small", "broken", "large")
        small, broken, large = await asyncio.gather(*map(storage.get_item, keys), return_exceptions=True)
        assert (small, large) == (1, "y" * 100_000)
        assert isinstance(broken, BackendError)
        assert not isinstance(broken, BackendUnavailable)
        assert (broken.key, broken.driver) == ("broken", "diskcache")


@in_directory
async def test_T2_the_file_of_a_large_value_goes_with_it(path: Path) -> None:
    def held() -> int:
        return sum(file.suffix == ".val" for file in files(path))

    async with create_storage("diskcache", path=path) as storage:
        for key in ("a", "a", "b:1", "b:2", "c"):
            await storage.set_item(key, "x" * 100_000)
        assert held() == 4
        await storage.set_item("c", "small")
        assert held() == 3
        await storage.remove_item("a")
        assert held() == 2
        await storage.clear("b")
        assert held() == 0
