"""The diskcache driver: the kit, and that nothing planted in its directory is run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import diskcache
import pytest
from outside import in_directory

from kvstore import CorruptValueError, create_storage
from kvstore.drivers.diskcache import DiskcacheDriver
from kvstore.testing import DriverSuite


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
