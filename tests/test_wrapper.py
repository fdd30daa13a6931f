"""Wrappers: a driver around a driver keeps every promise of the one inside that it declares."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from running import in_loop

from kvstore import BackendError, Expect, Stat, Wrapper, Write, create_storage
from kvstore.driver import Driver
from kvstore.drivers.fs import FsDriver
from kvstore.drivers.memory import MemoryDriver
from kvstore.drivers.sqlite import SqliteDriver
from kvstore.testing import DriverSuite


class Compressed(Wrapper):
    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        return [data and zlib.decompress(data) for data in await super().read(keys)]

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        packed = [(key, _packed(data), expires_at) for key, data, expires_at in writes]
        return await super().write(packed, expect and {key: _packed(data) for key, data in expect.items()})


def _packed(data: bytes | None) -> bytes | None:
    return None if data is None else zlib.compress(data)


class Counted(Wrapper):
    """Changes nothing, so it may pass metadata on."""

    def __init__(self, inner: Driver) -> None:
        super().__init__(inner)
        self.capabilities = inner.capabilities
        self.reads = 0

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        self.reads += 1
        return await super().read(keys)

    async def stat(self, keys: Sequence[str]) -> list[Stat | None]:
        return await self.inner.stat(keys)

    async def set_meta(self, key: str, custom: bytes | None) -> bool:
        return await self.inner.set_meta(key, custom)


class TestCompressedFiles(DriverSuite):
    slow = True  # its races are those of the driver inside

    def make_driver(self, path: Path) -> Driver:
        return Compressed(FsDriver(path / "files"))


@pytest.mark.parametrize("driver", [SqliteDriver, FsDriver])
@in_loop
async def test_a_read_only_mount_of_a_wrapper_makes_nothing(
    driver: type[SqliteDriver] | type[FsDriver], tmp_path: Path
) -> None:
    async with create_storage(Compressed(driver(tmp_path / "absent")), read_only=True) as storage:
        with pytest.raises(BackendError):
            await storage.get_item("key")
    assert not (tmp_path / "absent").exists()


@in_loop
async def test_K2_below_a_mount_a_wrapper_keeps_the_keys_that_are_reserved_at_the_root() -> None:
    async with create_storage() as storage:
        storage.mount("c", Compressed(SqliteDriver(":memory:")))
        await storage.set_item("c:$meta:x", 1)
        assert (await storage.get_keys("c"), await storage.count("c")) == (["c:$meta:x"], 1)
        assert await storage.clear("c") == 1
        assert await storage.get_item("c:$meta:x") is None


@in_loop
async def test_R4_a_driver_that_leaves_clearing_to_the_default_keeps_what_is_no_key() -> None:
    class Plain(MemoryDriver):
        clear = Driver.clear
        clear_and_tell = Driver.clear_and_tell

    driver = Plain()
    async with create_storage(driver) as storage:
        await driver.write([(key, b"1", None) for key in ("$meta:a", "a//b", "a:b", "c")])
        assert await storage.clear() == 2
        assert await driver.scan("", after=None, limit=10, reverse=False) == ["$meta:a", "a//b"]


@in_loop
async def test_wrappers_call_inwards_and_may_pass_metadata_on() -> None:
    inner = Counted(MemoryDriver())
    async with create_storage(Compressed(inner)) as storage:
        await storage.set_item("key", "value")
        assert await storage.get_item("key") == "value"
        assert inner.reads == 1
    async with create_storage(Counted(SqliteDriver(":memory:"))) as storage:
        await storage.set_item("key", "value")
        assert await storage.set_meta("key", {"by": "me"})
        meta = await storage.get_meta("key")
        assert meta is not None
        assert (meta.size, meta.custom) == (7, {"by": "me"})
