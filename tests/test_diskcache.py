"""The diskcache driver: the kit, and that nothing planted in its directory is run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import diskcache
import pytest
from outside import in_directory

from kvstore import CorruptValueError, create_storage, snapshot
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
