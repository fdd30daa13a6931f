"""Read-only mounts of drivers that keep files: nothing is changed or made, and who may only read reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from outside import process, said, small_disk, tell
from running import in_loop

from kvstore import BackendError, Storage, create_storage

DRIVERS = pytest.mark.parametrize("driver", ["fs", "sqlite", "diskcache"])


def made(driver: str, path: Path, **options: bool) -> Storage:
    path.mkdir(exist_ok=True)
    return create_storage(driver, path=path / "store", **options)


def contents(path: Path) -> dict[str, bytes | None]:
    return {str(file.relative_to(path)): file.read_bytes() if file.is_file() else None for file in path.rglob("*")}


@DRIVERS
@in_loop
async def test_E1_a_read_only_mount_leaves_what_has_expired(
    driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore.sweeper.INTERVAL", 0.01)

    async with made(driver, tmp_path) as storage:
        await storage.set_item("short", 1, ttl=0.05)
        await storage.set_items({"key": {"a": 1}, "large": "x" * 100_000})
    before = contents(tmp_path)
    async with made(driver, tmp_path, read_only=True) as storage:
        assert await storage.get_item("key") == {"a": 1}
        assert await storage.get_item("large") == "x" * 100_000
        await asyncio.sleep(0.2)
        assert await storage.get_keys() == ["key", "large"]
        assert await storage.count() == 2
        assert (meta := await storage.get_meta("key")) is not None
        assert meta.size == 7
    assert {name: data for name, data in contents(tmp_path).items() if not name.endswith(("-wal", "-shm"))} == before


@DRIVERS
@in_loop
async def test_E1_a_read_only_mount_makes_nothing_and_finds_what_comes_later(driver: str, tmp_path: Path) -> None:
    async with made(driver, tmp_path, read_only=True) as storage:
        for _ in range(2):
            with pytest.raises(BackendError, match=r"No such file|can't be opened") as caught:
                await storage.get_item("key")
            assert (caught.value.key, caught.value.driver) == ("key", driver)
        assert contents(tmp_path) == {}
        async with made(driver, tmp_path) as writing:
            await writing.set_item("key", 1)
            assert await storage.get_item("key") == 1
            await writing.set_item("key", 2)
            assert await storage.get_item("key") == 2


@DRIVERS
@in_loop
async def test_a_driver_that_was_mounted_read_only_writes_where_it_is_mounted_anew(driver: str, tmp_path: Path) -> None:
    async with made(driver, tmp_path) as storage:
        await storage.set_item("key", 1)
    storage = made(driver, tmp_path, read_only=True)
    assert await storage.get_item("key") == 1
    kept = storage.get_mount("key").driver
    await storage.unmount("", close=False)
    async with create_storage(kept) as storage:
        await storage.set_item("key", 2)
        assert await storage.get_item("key") == 2
    async with made(driver, tmp_path) as storage:
        assert await storage.get_item("key") == 2


@DRIVERS
def test_on_a_disk_that_can_only_be_read_a_read_only_mount_reads(driver: str, tmp_path: Path) -> None:
    async def main(remount: Callable[[str], None]) -> None:
        async with made(driver, tmp_path / "disk") as storage:
            await storage.set_items({"key": 1, "large": "x" * 100_000})
        remount("ro")
        try:
            async with made(driver, tmp_path / "disk", read_only=True) as storage:
                assert await storage.get_items(["key", "large"]) == {"key": 1, "large": "x" * 100_000}
                assert await storage.get_keys() == ["key", "large"]
        finally:
            remount("rw")

    with small_disk(tmp_path / "disk", "2m") as remount:
        asyncio.run(main(remount))


@DRIVERS
def test_who_may_only_read_sees_what_others_write_meanwhile(driver: str, tmp_path: Path) -> None:
    async def main() -> None:
        for value in "abc":
            async with made(driver, tmp_path) as storage:
                await storage.set_items({"key": value, "large": value * 100_000})
                if value != "a":  # and first while nobody has it open
                    sees(value)
            sees(value)

    def sees(value: str) -> None:
        for file in (tmp_path, *tmp_path.rglob("*")):
            file.chmod(0o555 if file.is_dir() else 0o444)
        tell(reader, "read")
        assert said(reader) == f"{value} {value * 100_000} ['key', 'large'] True"

    with process("only_read_process.py", driver, tmp_path / "store") as reader:
        asyncio.run(main())
