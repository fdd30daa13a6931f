"""What is the file driver's own: other processes, others' files, full and broken disks, names on disk. The kit has the rest."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import threading
import time
import unicodedata
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any
from unittest import mock

import pytest
from fs_helpers import fill, found, locked, plain, private, tree
from hypothesis import given, settings
from hypothesis import strategies as st
from outside import files, in_directory, process, rounds, said, small_disk, tell
from running import in_loop

from kvstore import (
    BackendError,
    BackendTimeout,
    ConfigError,
    CorruptValueError,
    InvalidKeyError,
    KVStoreError,
    UnsupportedOperation,
    create_storage,
    normalize_key,
    snapshot,
)
from kvstore.driver import NotNow
from kvstore.drivers._footer import Footer, tail
from kvstore.drivers._fs.files import Files, read_footer
from kvstore.drivers._fs.folders import Folders
from kvstore.drivers._fs.paths import tree_path
from kvstore.drivers._fs.walk import _sorted
from kvstore.drivers.fs import FsDriver
from kvstore.testing import FakeClock
from kvstore.testing.pauses import leaves_the_loop_free

# The lock


@in_directory
async def test_writers_wait_for_the_lock_of_another_process_and_the_event_loop_goes_on(path: Path) -> None:
    async with tree(path) as storage:
        await storage.set_item("before", 1)

        async def wait() -> None:
            with ExitStack() as stack:
                release = await asyncio.to_thread(stack.enter_context, locked(path))
                loop = asyncio.get_running_loop()
                began = loop.time()
                loop.call_later(0.6, release)
                assert await storage.get_item("before") == 1
                assert loop.time() - began < 0.5, "who reads does not wait"
                await asyncio.gather(*(storage.set_item(f"key:{number}", number) for number in range(20)))
                assert loop.time() - began >= 0.6

        await leaves_the_loop_free(wait)
        assert await storage.count("key") == 20


@in_directory
async def test_a_lock_that_outlasts_the_timeout_is_told_and_nothing_was_written(path: Path) -> None:
    async with tree(path, timeout=0.2) as storage:
        await storage.set_item("key", "old")
        with locked(path) as release:
            with pytest.raises(
                BackendTimeout, match=r"locked by another process for 0.2 seconds; nothing was written"
            ) as caught:
                await storage.set_item("key", "new")
            assert (caught.value.key, caught.value.driver, caught.value.operation) == ("key", "fs", "set_item")
            assert await storage.get_item("key") == "old"
            release()
            await storage.set_item("key", "new")
        assert await storage.get_item("key") == "new"


@in_directory
async def test_who_only_reads_never_waits_for_the_lock(path: Path) -> None:
    async with tree(path) as storage:
        await storage.set_item("key", 1)
    (path / ".kvstore/tmp/0123456789abcdef").write_bytes(b"left by the dead")
    with locked(path):
        async with tree(path) as storage, asyncio.timeout(5):
            assert await storage.get_item("key") == 1
            assert await storage.get_keys() == ["key"]


@in_directory
async def test_A2_updates_hold_between_a_process_and_its_forks(path: Path) -> None:
    with process("fs_process.py", "fork", path) as started:
        assert started.wait(60) == 0
    async with tree(path) as storage:
        assert await storage.get_item("counter") == 500


@in_directory
async def test_the_lock_ends_with_the_process_that_held_it(path: Path) -> None:
    async with tree(path) as storage:
        await storage.set_item("key", 1)
        with process("fs_process.py", "lock", path) as holder:
            assert said(holder) == "locked"
            waiting = asyncio.create_task(storage.set_item("key", 2))
            await asyncio.sleep(0.01)
            assert not waiting.done()
            holder.kill()
            await waiting
        assert await storage.get_item("key") == 2


@in_directory
async def test_a_write_after_a_cancelled_one_wins(path: Path) -> None:
    async with tree(path) as storage:
        await storage.set_item("key", 0)
        with locked(path) as release:
            cancelled = asyncio.create_task(storage.set_item("key", "cancelled"))
            await asyncio.sleep(0.01)
            cancelled.cancel()
            later = asyncio.create_task(storage.set_item("key", "later"))
            await asyncio.sleep(0.01)
            release()
            await later
        assert await storage.get_item("key") == "later"
        await storage.set_item("other", 1)  # whatever was under way is over
        assert await storage.get_item("key") == "later"


# The end of a process


@in_directory
async def test_killed_writers_lose_nothing_acknowledged_and_leave_nothing_half_written(path: Path) -> None:
    kept: dict[str, int] = {}
    with process("fs_process.py", "writers", path) as writers:

        def kill(name: str) -> None:
            tell(writers, f"kill {name}")
            while (line := said(writers).split()) != ["dead", name]:
                kept[line[0]] = int(line[1])

        living = [f"writer{number}" for number in range(4)]
        for name in living:
            tell(writers, f"start {name}")
        for round_ in range(rounds(8)):
            before, deadline = dict(kept), time.monotonic() + 30
            while any(kept.get(name, -1) < before.get(name, -1) + 3 for name in living):
                assert time.monotonic() < deadline, "a writer has failed"
                name, number = said(writers).split()
                kept[name] = int(number)
            kill(living.pop(0))
            async with tree(path) as storage:
                newest = await storage.get_items([f"{name}:newest" for name in kept])
                for number, value in zip(kept.values(), newest.values(), strict=True):
                    assert value == [value[0]] * 3000
                    assert value[0] >= number
            living.append(f"writer{round_ + 4}")
            tell(writers, f"start {living[-1]}")
        for name in living:
            kill(name)
    async with tree(path) as storage:
        for name, last in kept.items():
            keys = [f"{name}:{number:06}" for number in range(last + 1)]
            assert list((await storage.get_items(keys)).values()) == [[number] * 200 for number in range(last + 1)]
        async for key, value in storage.iter_items():
            assert key == "counter" or value in ([value[0]] * 200, [value[0]] * 3000)
        assert await storage.get_item("counter") >= sum(kept.values()) + len(kept)
        await storage.set_item("last", 1)
    assert private(path, "tmp") == []


@in_directory
async def test_what_dead_writers_left_is_swept_and_what_live_ones_write_is_not(path: Path) -> None:
    async with tree(path) as storage:
        await storage.set_item("key", 1)
        left = path / ".kvstore/tmp/0123456789abcdef"
        left.write_bytes(b"half")
        foreign = path / ".kvstore/tmp/README"
        foreign.write_bytes(b"not ours")
        with locked(path) as release:
            async with tree(path) as other:
                writing = asyncio.create_task(other.set_item("other", 1))
                assert await other.get_item("key") == 1
                assert left.exists(), "whoever holds the lock may be writing it"
                release()
                await writing
                assert private(path, "tmp") == [foreign]
        assert await storage.get_keys() == ["key", "other"]


# The disk


@in_directory
async def test_a_full_disk_leaves_the_old_value_and_nothing_else(path: Path) -> None:
    with small_disk(path):
        async with tree(path) as storage:
            await storage.set_item("key", "old", ttl=3600)
            before = found(path)
            for data in (b"x" * 300_000, os.urandom(10_000_000)):
                with pytest.raises(BackendError, match="the disk is full") as caught:
                    await storage.set_item_raw("key", data)
                assert (caught.value.key, caught.value.driver) == ("key", "fs")
                with pytest.raises(BackendError, match="the disk is full"):
                    await storage.set_item_raw("new:folder:key", data, ttl=60)
            assert found(path) == before
            assert private(path, "tmp") == []
            assert not (path / "new").exists()
            assert await storage.get_keys() == ["key"]
            assert await storage.get_item("key") == "old"
            await storage.set_item("key", "new")
            assert await storage.get_item("key") == "new"


@in_directory
async def test_a_read_only_directory_is_read_and_says_that_it_is(path: Path) -> None:
    with small_disk(path) as remount:
        async with tree(path) as storage:
            await storage.set_item("key", "value", ttl=3600)
        (path / ".kvstore/tmp/0123456789abcdef").write_bytes(b"left by the dead")
        remount("ro")
        async with tree(path) as storage:
            assert await storage.get_item("key") == "value"
            assert await storage.get_keys() == ["key"]
            for call in (storage.set_item("key", 1), storage.remove_item("key"), storage.touch("key"), storage.clear()):
                with pytest.raises(BackendError, match=r"[Rr]ead-only"):
                    await call
            assert await storage.get_item("key") == "value"


@in_directory
async def test_a_store_without_fsync_never_waits_for_the_disk(path: Path) -> None:
    assert await _synced(path, fsync=False) == []


@in_directory
async def test_fsync_waits_for_the_file_and_every_directory_that_changed(path: Path) -> None:
    synced = await _synced(path, fsync=True)
    assert synced.count("file") == 1
    assert set(synced) >= {str(path.parent), str(path), str(path / "folder"), "file"}
    assert synced.index("file") < len(synced) - 1
    assert synced[-1] == str(path / "folder"), "the directory comes after what was put into it"


async def _synced(path: Path, *, fsync: bool) -> list[str]:
    """What a write waits for, in order."""
    synced: list[str] = []
    true = os.fsync

    def count(descriptor: int) -> None:
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append(target if os.path.isdir(target) else "file")
        true(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", count)
        async with tree(path, fsync=fsync) as storage:
            await storage.set_item("folder:key", 1)
            await storage.get_item("folder:key")
    return synced


@in_directory
async def test_R3_a_directory_that_changed_twice_at_one_time_by_its_clock_is_listed_anew(path: Path) -> None:
    stat, began = os.stat, time.time_ns()

    def at_one_time(place: Any, **options: Any) -> Any:
        about = stat(place, **options)
        times = {"st_ctime_ns": began, "st_mtime_ns": began}
        return mock.Mock(**{name: getattr(about, name) for name in dir(about) if name.startswith("st_")} | times)

    async with plain(path) as storage:
        with mock.patch("kvstore.drivers._fs.walk.os.stat", at_one_time):
            await storage.set_item("a", 1)
            assert await storage.get_keys() == ["a"]
            (path / "b").write_bytes(b"1")
            assert await storage.get_keys() == ["a", "b"]


# Files that are broken, or not the driver's


@pytest.mark.parametrize(
    "content",
    [
        b'1\n{"expires_at":1}0000001g#kvstore',
        b'1\n{"expires_at":1}00000fff#kvstore',
        b'1\n{"expires_at":1}-000010#kvstore',
        b'1{"expires_at":1}00000010#kvstore',
        b'1\n{"expires_at":"1"}00000013#kvstore',
        b'1\n{"expires_at":1000010#kvstore',
        b"100000000#kvstore",
        b"1-0000010#kvstore",
        b"1#kvstore",
        b"\n{}00000fff#kvstore",
    ],
)
@in_loop
async def test_a_footer_that_can_not_be_read_is_told_and_the_file_is_left_as_it_was(tmp_path: Path, content: bytes) -> None:
    fill(tmp_path, {"folder/key.json": content, "folder/other.json": b"2"})
    async with tree(tmp_path) as storage:
        for call in (storage.get_item, storage.get_item_raw, storage.has_item, storage.get_meta, storage.touch):
            with pytest.raises(CorruptValueError) as caught:
                await call("folder:key")
            assert (caught.value.key, caught.value.driver) == ("folder:key", "fs")
            assert "footer" in str(caught.value)
        assert await storage.get_keys() == ["folder:key", "folder:other"]
        assert found(tmp_path) == {"folder/key.json": content, "folder/other.json": b"2"}
        await storage.set_item("folder:key", "mended")
        assert await storage.get_item("folder:key") == "mended"
        (tmp_path / "folder/key.json").write_bytes(content)
        assert await storage.clear() == 2
    assert found(tmp_path) == {}


@in_directory
async def test_a_file_that_was_cut_short_is_corrupt_and_left_as_it_was(path: Path) -> None:
    async with tree(path) as storage:
        await storage.set_item("key", {"name": "Ada"}, ttl=3600)
        whole = (path / "key.json").read_bytes()
        for size in range(len(whole)):
            (path / "key.json").write_bytes(whole[:size])
            if whole[:size] == b'{"name":"Ada"}' or whole[:size] == b'{"name":"Ada"}\n':
                continue
            with pytest.raises(CorruptValueError) as caught:
                await storage.get_item("key")
            assert (caught.value.key, caught.value.driver) == ("key", "fs")
            assert (path / "key.json").read_bytes() == whole[:size]


ENDS = [b"", b"#kvstore", tail(b"", Footer(1)), tail(b"#kvstore", Footer())]


@given(st.binary(max_size=40), st.sampled_from(ENDS))
def test_a_value_may_end_in_what_looks_like_a_footer(data: bytes, end: bytes) -> None:
    value = data + end
    for footer in (Footer(), Footer(5), Footer(None, '{"a":"#kvstore"}'), Footer(7, "x" * 600)):
        with TemporaryFile() as file:
            file.write(value + tail(value, footer))
            file.flush()
            assert read_footer(file.fileno()) == (len(value), footer)


@in_directory
async def test_values_that_end_like_a_footer_are_kept_as_they_are(path: Path) -> None:
    values = [b"#kvstore", b"00000000#kvstore", *(b"1" + end for end in ENDS), *(end + end for end in ENDS)]
    async with tree(path) as storage:
        for value in values:
            await storage.set_item_raw("key", value)
            assert await storage.get_item_raw("key") == value
            meta = await storage.get_meta("key")
            assert meta is not None
            assert (meta.size, meta.expires_at) == (len(value), None)


@pytest.mark.parametrize("layout", ["tree", "plain"])
@in_loop
async def test_a_link_out_of_the_directory_is_followed_by_no_call(tmp_path: Path, layout: str) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    end = ".json" if layout == "tree" else ""
    fill(outside, {f"secret{end}": b"1", f"folder/secret{end}": b"2"})
    fill(inside, {f"own{end}": b"3"})
    before = found(outside)
    (inside / f"file{end}").symlink_to(outside / f"secret{end}")
    (inside / f"up{end}").symlink_to(f"../outside/secret{end}")
    (inside / "folder").symlink_to(outside / "folder")
    (inside / "around").symlink_to(outside)
    async with create_storage("fs", path=str(inside), layout=layout) as storage:
        for key in ("file", "up", "folder:secret", "around:folder:secret"):
            for call in (
                storage.get_item(key),
                storage.has_item(key),
                storage.get_meta(key),
                storage.set_item(key, "new"),
                storage.remove_item(key),
                storage.add_item(key, 1),
            ):
                with pytest.raises(BackendError, match=r"is a link out of .*; it is not followed") as caught:
                    await call
                assert (caught.value.key, caught.value.driver) == (key, "fs")
        for key in ("folder:new", "around:new", "around:new:folder"):
            with pytest.raises(BackendError, match="is a link out of"):
                await storage.set_item(key, 1)
        assert await storage.get_keys() == ["own"]
        assert await storage.get_keys("folder") == await storage.get_keys("around") == []
        assert await storage.count() == await storage.clear() == 1
    assert found(outside) == before
    assert sorted(entry.name for entry in outside.rglob("*")) == sorted([f"secret{end}", "folder", f"secret{end}"])
    assert (inside / f"file{end}").is_symlink()


@in_directory
async def test_links_inside_the_directory_are_followed_and_a_loop_or_a_link_to_nowhere_does_no_harm(path: Path) -> None:
    fill(path, {"folder/file": b"1"})
    (path / "link").symlink_to("folder/file")
    (path / "nowhere").symlink_to("missing")
    (path / "loop").symlink_to("loop")
    (path / "folder/up").symlink_to("..")
    async with plain(path) as storage:
        assert await storage.get_item("link") == 1
        assert await storage.get_item("folder:up:folder:file") == 1
        assert await storage.get_keys() == ["folder:file", "link"]
        with pytest.raises(BackendError, match="symbolic links"):
            await storage.get_item("loop")
        assert await storage.get_item("nowhere") is None
        assert await storage.add_item("nowhere", 2)
        assert await storage.get_item("nowhere") == 2
        assert await storage.clear() == 3
    assert not (path / "missing").exists()


@pytest.mark.parametrize("folder", ["", "tmp", "expiry"])
@in_loop
async def test_the_drivers_own_directory_is_no_link(tmp_path: Path, folder: str) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    fill(outside, {"0123456789abcdef": b"another's", "tmp/0123456789abcdef": b"another's"})
    link = inside / ".kvstore" / folder
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    async with tree(inside) as storage:
        with pytest.raises(BackendError, match="is a link"):
            await storage.set_item("key", 1, ttl=60)
    assert len(found(outside)) == 2


@pytest.mark.parametrize("layout", ["tree", "plain"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "directory", "device"])
def test_what_is_no_file_hangs_nobody_and_is_left_alone(
    tmp_path: Path, layout: str, kind: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    name = "key.json" if layout == "tree" else "key"
    monkeypatch.chdir(tmp_path)  # a socket's path is short

    if kind == "pipe":
        os.mkfifo(name)
        late = threading.Timer(5, os.open, (name, os.O_RDWR))  # whoever waits for the other end waits no longer
        request.addfinalizer(late.cancel)
        late.start()
    elif kind == "socket":
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(name)
        listening.close()
    elif kind == "directory":
        os.mkdir(name)
    else:
        try:
            os.mknod(name, 0o20666, os.makedev(1, 5))  # /dev/zero
        except PermissionError:
            pytest.skip("making a device needs root")
    there = os.lstat(name)

    async def run() -> None:
        async with create_storage("fs", path=str(tmp_path), layout=layout) as storage, asyncio.timeout(4):
            if kind == "directory":
                assert await storage.get_item("key") is None
                assert not await storage.has_item("key")
                assert not await storage.remove_item("key")
            else:
                for call in (storage.get_item("key"), storage.has_item("key"), storage.remove_item("key")):
                    with pytest.raises(BackendError, match="is no file"):
                        await call
            for call in (storage.set_item("key", 1), storage.add_item("key", 1)):
                with pytest.raises(KVStoreError, match=r"is no file|[Ii]s a directory") as caught:
                    await call
                assert caught.value.key == "key"
            assert await storage.get_keys() == []
            assert await storage.clear() == 0

    asyncio.run(run())
    assert os.path.samestat(os.lstat(name), there)
    assert private(tmp_path, "tmp") == []


@in_directory
async def test_files_of_others_are_neither_listed_nor_cleared(path: Path) -> None:
    fill(
        path,
        {
            "README.md": b"1",
            "Image.json": b"2",
            "images/.hidden.json": b"3",
            "images/notes": b"4",
            "images/draft.json~": b"5",
            "images/%41%4a.json": b"6",
            "images/.json": b"7",
            "images/con.json": b"8",
            "images/%2F.json": b"9",
            "images/a%3Ab.json": b"10",
            "images/%00.json": b"11",
            "images/%2E%2E.json": b"12",
            "backup~/x.json": b"13",
            "Folder/x.json": b"14",
            "a.json/x.json": b"15",
            "images/%FF.json": b"16",
            "images/\N{LATIN SMALL LETTER E WITH ACUTE}.json": b"17",
        },
    )
    os.mknod(os.fsencode(path) + b"/images/\xff.json")
    before = found(path)
    async with tree(path) as storage:
        await storage.set_item("images:img_1", 1)
        assert await storage.get_keys() == ["images:img_1"]
        assert await storage.clear() == 1
        assert await storage.clear("images") == 0
    assert found(path) == before


# Expiry


@pytest.fixture
def swept_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.sweeper.INTERVAL", 0.02)


@pytest.mark.usefixtures("swept_often")
@in_directory
async def test_an_expired_keys_file_and_its_marker_vanish_without_the_users_doing(path: Path) -> None:
    async with tree(path) as storage:
        await storage.set_item("folder:short", 1, ttl=0.001)
        await storage.set_item("long", 1, ttl=3600)
        async with asyncio.timeout(10):
            while len(files(path)) > 2 or os.path.exists(path / "folder"):
                await asyncio.sleep(0.02)
        assert list(found(path)) == ["long.json"]


@pytest.mark.usefixtures("swept_often")
@in_directory
async def test_a_store_that_is_opened_sweeps_what_expired_while_it_was_closed(path: Path) -> None:
    driver = FsDriver(path)
    driver.clock = FakeClock(1_000_000)
    async with create_storage(driver) as storage:
        await storage.set_items({f"key:{number}": number for number in range(500)}, ttl=60)
    async with tree(path) as storage:
        assert await storage.get_keys() == []
        async with asyncio.timeout(10):
            while files(path):
                await asyncio.sleep(0.02)


@in_directory
async def test_T2_a_minute_in_which_nothing_expires_any_more_leaves_no_directory(path: Path) -> None:
    async with tree(path) as storage:
        for number in range(20):
            await storage.set_item("key", number, ttl=3600 + 60 * number)
        assert len(os.listdir(path / ".kvstore/expiry")) == 1
        await storage.remove_item("key")
        assert os.listdir(path / ".kvstore/expiry") == []


@in_directory
async def test_a_key_has_one_marker_however_often_it_is_written(path: Path) -> None:
    driver = FsDriver(path)
    driver.clock = clock = FakeClock()
    async with create_storage(driver) as storage:
        for number in range(20):
            clock.advance(0.5)
            await storage.set_item("key", number, ttl=3600)
            await storage.touch("key", ttl=7200)
        assert len(private(path, "expiry")) == 1
        await storage.set_meta("key", {"kept": True})
        assert len(private(path, "expiry")) == 1
        clock.advance(7199)
        assert await storage.get_item("key") == 19
        clock.advance(2)
        assert await storage.get_keys() == []
        await driver.sweep()
        assert found(path) == {}
        assert private(path, "expiry") == []
        await storage.set_item("key", 1, ttl=3600)
        await storage.set_item("key", 1)
        assert private(path, "expiry") == []
        await storage.set_item("key", 1, ttl=3600)
        await storage.remove_item("key")
        assert private(path, "expiry") == []


@in_directory
async def test_the_sweep_tells_when_the_next_key_expires_and_others_files_do_not_disturb_it(path: Path) -> None:
    driver = FsDriver(path)
    driver.clock = clock = FakeClock(600_000)
    fill(path, {".kvstore/expiry/.DS_Store": b"x", ".kvstore/expiry/9/.DS_Store": b"x", ".kvstore/expiry/9/1-x": b"x"})
    fill(path, {".kvstore/expiry/9/1-" + "0" * 32: b"", ".kvstore/expiry/9/2-" + "0" * 32: b"\xff:never written"})
    async with create_storage(driver) as storage:
        await storage.set_item("later", 1, ttl=3600)
        assert await driver.sweep() == 4_200_000
        await storage.set_item("soon", 1, ttl=5)
        assert await driver.sweep() == 605_000
        clock.advance(5)
        assert await driver.sweep() == 4_200_000
        assert await storage.get_keys() == ["later"]
        clock.advance(3600)
        assert await driver.sweep() is None
    assert found(path) == {}


@in_directory
async def test_a_marker_stays_while_its_file_can_not_be_read(path: Path) -> None:
    driver = FsDriver(path)
    driver.clock = clock = FakeClock()
    async with create_storage(driver) as storage:
        await storage.set_item("key", 1, ttl=10)
        clock.advance(20)
        (path / "key.json").rename(path / "kept")
        (path / "key.json").symlink_to("key.json")
        for call in (driver.sweep, storage.get_keys):
            with pytest.raises(BackendError, match="symbolic links"):
                await call()
        (path / "kept").rename(path / "key.json")
        assert await storage.get_keys() == []
        assert await driver.sweep() is None
    assert found(path) == {}
    assert private(path, "expiry") == []


@in_directory
async def test_a_key_that_is_written_anew_outlives_the_marker_of_its_old_value(path: Path) -> None:
    first, second = FsDriver(path), FsDriver(path)
    first.clock = second.clock = clock = FakeClock()
    async with create_storage(first) as one, create_storage(second) as two:
        await one.set_item("key", 1, ttl=10)
        clock.advance(20)
        assert await two.add_item("key", 2)
        assert await first.sweep() is None
        assert await one.get_item("key") == 2


@in_directory
async def test_a_read_only_disk_with_expired_keys_is_no_error(path: Path) -> None:
    with small_disk(path) as remount:
        driver = FsDriver(path)
        driver.clock = clock = FakeClock()
        async with create_storage(driver) as storage:
            await storage.set_item("key", 1, ttl=10)
            clock.advance(20)
            remount("ro")
            assert await storage.get_keys() == []
            assert await driver.sweep() is None


# Any directory as it is


@in_directory
async def test_an_existing_directory_is_read_as_keys_and_values(path: Path) -> None:
    fill(path, {"index.html": b"<p>", "css/site.css": b"a{}", "css/deep/A b.css": b"", ".htaccess": b"x", "a/.kvstore/x": b"y"})
    fill(path, {".kvstore/tmp/other": b"hidden", "with:colon": b"hidden", "fol:der/x": b"hidden"})
    os.mknod(os.fsencode(path) + b"/\xff\xfe.txt")
    async with plain(path) as storage:
        keys = [".htaccess", "a:.kvstore:x", "css:deep:A b.css", "css:site.css", "index.html"]
        assert await storage.get_keys() == keys
        assert await storage.count() == 5
        assert await storage.get_item_raw("css/site.css") == b"a{}"
        assert await storage.get_item_raw("css:deep:A b.css") == b""
        meta = await storage.get_meta("css:site.css")
        assert meta is not None
        assert (meta.size, meta.expires_at, meta.custom) == (3, None, {})
        assert await storage.get_item("css") is None
        await storage.set_item_raw("css:deep:new", b"#kvstore")
        assert (path / "css/deep/new").read_bytes() == b"#kvstore"
        assert await storage.get_item_raw("css:deep:new") == b"#kvstore"
        assert await storage.clear() == 6
    assert sorted(os.listdir(os.fsencode(path))) == [b".kvstore", b"fol:der", b"with:colon", b"\xff\xfe.txt"]


@in_directory
async def test_where_a_file_and_a_directory_need_one_name_nothing_is_touched(path: Path) -> None:
    fill(path, {"file": b"1", "folder/file": b"2"})
    (path / "empty").mkdir()
    before = found(path)
    async with plain(path) as storage:
        for key, message in {
            "folder": "is a directory; layout='plain' can't keep a key beside keys below it",
            "empty": "is a directory",
            "file:below": "a file is in the way of .*; layout='plain' can't keep keys below a key",
            "file:far:below": "a file is in the way",
        }.items():
            for call in (
                storage.set_item(key, 1),
                storage.add_item(key, 1),
                storage.set_items({"new": 1, key: 1}),
                storage.update_item(key, lambda _: 1),
            ):
                with pytest.raises(UnsupportedOperation, match=message) as caught:
                    await call
                assert (caught.value.key, caught.value.driver) == (key, "fs")
            assert await storage.get_item(key) is None
            assert not await storage.remove_item(key)
        with pytest.raises(UnsupportedOperation, match="a file is in the way"):
            await storage.set_items({"both:below:here": 1, "new": 1, "both": 1})
        assert found(path) == before
        await storage.remove_item("file")
        await storage.set_item("file:below", 1)
        assert await storage.get_keys() == ["file:below", "folder:file"]


@in_directory
async def test_keys_that_can_not_be_spelled_are_refused_and_nothing_is_touched(path: Path) -> None:
    async with plain(path) as storage:
        for key in ("x" * 256, "folder:" + "x" * 256, "é" * 128):
            with pytest.raises(InvalidKeyError, match="the name of a file has at most 255 bytes") as caught:
                await storage.set_items({"new": 1, key: 1})
            assert caught.value.driver == "fs"
            with pytest.raises(InvalidKeyError):
                await storage.get_item(key)
            assert await storage.get_keys(key) == []
        for key in (".kvstore", ".kvstore:tmp:x", ".KVStore:x"):
            with pytest.raises(InvalidKeyError, match="the driver's own directory") as caught:
                await storage.set_items({"new": 1, key: 1})
            assert caught.value.key == key
        await storage.set_item("folder:.kvstore:x", 1)
    assert list(found(path)) == []
    assert (path / "folder/.kvstore/x").read_bytes() == b"1"


@in_directory
async def test_R3_R4_a_file_whose_name_is_no_key_is_not_seen_and_left(path: Path) -> None:
    for name in ("$meta", "..a", "ok", "a b"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"1")
    (path / "below").mkdir()
    (path / "below" / "$meta").write_bytes(b"1")
    async with plain(path) as storage:
        keys = ["..a", "a b", "below:$meta", "ok"]
        assert await storage.get_keys() == keys
        assert await storage.count() == len(keys)
        assert await snapshot(storage) == dict.fromkeys(keys, 1)
        assert await storage.clear() == len(keys)
    assert (path / "$meta").read_bytes() == b"1"
    async with create_storage().mount("c", FsDriver(path, layout="plain")) as storage:
        assert await storage.get_keys() == ["c:$meta"]
        assert await storage.get_item("c:$meta") == 1


@in_directory
async def test_a_plain_directory_keeps_no_expiry_and_no_metadata_and_says_so(path: Path) -> None:
    async with plain(path) as storage:
        await storage.set_item("key", 1)
        for call in (storage.set_item("key", 2, ttl=1), storage.touch("key", ttl=1), storage.set_meta("key", {})):
            with pytest.raises(UnsupportedOperation):
                await call
        assert await storage.get_item("key") == 1


@in_directory
async def test_a_file_that_is_overwritten_keeps_its_permissions(path: Path) -> None:
    fill(path, {"secret": b"1", "script": b"2"})
    (path / "secret").chmod(0o600)
    (path / "script").chmod(0o755)
    async with plain(path) as storage:
        await storage.set_items({"secret": 1, "script": 2, "new": 3})
    assert [(path / name).stat().st_mode & 0o777 for name in ("secret", "script")] == [0o600, 0o755]


@in_directory
async def test_a_file_that_another_program_makes_is_never_overwritten_by_add(path: Path) -> None:
    async with plain(path) as storage:
        await storage.set_item("other", 1)
        link = os.link

        def late(source: str, target: str, *, dst_dir_fd: int) -> None:
            (path / "key").write_bytes(b"another's")
            link(source, target, dst_dir_fd=dst_dir_fd)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "link", late)
            assert not await storage.add_item("key", "ours")
    assert (path / "key").read_bytes() == b"another's"
    assert private(path, "tmp") == []


# Names on the disk


@in_directory
async def test_files_have_readable_names(path: Path) -> None:
    names = {
        "images:img_1": "images/img_1.json",
        "messages:s-1:2026.01:000017": "messages/s-1/2026.01/000017.json",
        "a": "a.json",
        "a:b": "a/b.json",
        "a.json": "a.json.json",
        "a.json:b": "a%2Ejson/b.json",
        "Ada Lovelace": "%41da%20%4Covelace.json",
        ".hidden": "%2Ehidden.json",
        "dots.": "dots%2E.json",
        ".a.:b": "%2Ea%2E/b.json",
        "con": "%63on.json",
        "aux.txt:b": "%61ux.txt/b.json",
        "50%": "50%25.json",
        "back~:up~": "back%7E/up%7E.json",
        "x" * 450: "/".join(["x" * 200 + "~", "x" * 200 + "~", "x" * 50 + ".json"]),
        "y" * 250 + ":z": "/".join(["y" * 200 + "~", "y" * 50, "z.json"]),
    }
    async with tree(path) as storage:
        await storage.set_items(names)
        assert found(path) == {name: f'"{name}"'.encode() for name in names.values()}
        assert await storage.get_keys() == sorted(names)
        assert await storage.get_items(list(names)) == names


_PIECES = st.sampled_from(
    [*"aAbBkKsSiI.~%_- :/2e0é", "ß", "ss", "ẞ", "İ", "ı", "K", "ﬁ", "e\u0301", "con", "NUL", ".json", ".JSON", "Å", "x" * 197]
)
_KEYS = st.lists(_PIECES, min_size=1, max_size=6).map(
    lambda pieces: ":".join(filter(None, "".join(pieces).replace("/", ":").split(":")))
)


def _legal(key: str) -> bool:
    try:
        return normalize_key(key) == key
    except InvalidKeyError:
        return False


@settings(max_examples=200)
@given(_KEYS.filter(_legal), _KEYS.filter(_legal), st.data())
def test_no_file_system_takes_the_paths_of_two_keys_for_one(first: str, second: str, data: st.DataObject) -> None:
    change = data.draw(st.sampled_from([str, str.swapcase, str.casefold, lambda text: unicodedata.normalize("NFKD", text)]))
    for one, other in ((first, second), (first, change(first))):
        if one == other or not _legal(other):
            continue
        paths = [[_folded(name) for name in tree_path(key)] for key in (one, other)]
        assert paths[0] != paths[1]
        for short, long in (paths, paths[::-1]):
            assert long[: len(short)] != short, "the file of one is the directory of another"
        for name in [*tree_path(one), *tree_path(other)]:
            assert len(name) <= 255
            assert re.fullmatch(r"[a-zA-Z0-9%_.~-]+", name)
            assert not name.startswith(".")
            assert not name.endswith((".", " "))
            assert not re.match(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)", name)


def _folded(name: str) -> str:
    """As a file system may see it that folds case and normalizes."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


# Listing

_SEGMENTS = st.sampled_from(
    ["a", "b", "A", "a!", "a.", "a~", "aa", "é", "😀", "~", "%", "a" * 199, "a" * 201, "a" * 420, "a" * 420 + "!"]
)
_LISTED = st.lists(_SEGMENTS, min_size=1, max_size=3).map(":".join).filter(_legal)


@settings(max_examples=25)
@given(
    st.sets(_LISTED, min_size=1, max_size=15),
    st.lists(_LISTED | st.text(max_size=3), max_size=4),
    st.sampled_from(["", "a", "a:a", "é"]),
)
def test_every_page_of_a_listing_is_that_of_a_sorted_list(keys: set[str], cursors: list[str], base: str) -> None:
    async def run(path: str) -> None:
        driver = FsDriver(path)
        async with create_storage(driver) as storage:
            await storage.set_items(dict.fromkeys(keys, 1))
            prefix = base + ":" if base else ""
            model = sorted(key for key in keys if key.startswith(prefix))
            for after in [None, *sorted(keys)[:6], *cursors, prefix, prefix + "\U0010ffff"]:
                for reverse in (False, True):
                    behind = [key for key in model if after is None or (key < after if reverse else key > after)]
                    behind.sort(reverse=reverse)
                    for limit in (1, 2, 100):
                        assert await driver.scan(prefix, after=after, limit=limit, reverse=reverse) == behind[:limit]
            assert await driver.count(prefix) == len(model)
            assert await driver.clear(prefix) == len(model)
            assert await storage.get_keys() == sorted(keys - set(model))

    with TemporaryDirectory() as path:
        asyncio.run(run(path))


@in_directory
async def test_a_listing_sees_what_another_process_changes(path: Path) -> None:
    keys = {f"folder:key{number}" for number in range(5)}
    async with tree(path) as storage:
        await storage.set_items(dict.fromkeys(keys, 1))
        with process("fs_process.py", "serve", path) as other:
            assert said(other) == "ready"
            for line in (
                "+folder:new",
                "-folder:key1",
                "+other:new",
                "-other:new",
                "-folder:new",
                "+folder:new",
                "+folder:" + "x" * 300,
                "+folder:" + "x" * 301,
                "-folder:" + "x" * 300,
            ):
                await asyncio.sleep(0.06)  # so long that a directory's listing may be kept
                assert await storage.get_keys() == sorted(keys)
                (keys.add if line[0] == "+" else keys.remove)(line[1:])
                tell(other, line)
                assert said(other) == "done"
                assert await storage.get_keys() == sorted(keys)


@in_directory
async def test_a_directory_that_was_restored_with_its_old_time_is_listed_anew(path: Path) -> None:
    async with tree(path) as storage:
        await storage.set_item("folder:old", 1)
        await asyncio.sleep(0.06)
        assert await storage.get_keys() == ["folder:old"]
        about = (path / "folder").stat()
        (path / "folder/restored.json").write_bytes(b"1")
        os.utime(path / "folder", ns=(about.st_atime_ns, about.st_mtime_ns))
        assert await storage.get_keys() == ["folder:old", "folder:restored"]


def test_many_entries_are_sorted_as_few_are() -> None:
    entries = [(f"{number * 7919 % 20_011}", "") for number in range(20_000)]
    assert _sorted(iter(entries)) == sorted(entries)
    assert _sorted(iter([])) == []


@in_directory
async def test_sorting_a_large_directory_does_not_hold_the_event_loop(path: Path) -> None:
    entries = [(f"{number * 7919 % 200_003:06}", "name") for number in range(200_000)]
    await leaves_the_loop_free(lambda: asyncio.to_thread(_sorted, iter(entries)))


@in_directory
async def test_clearing_lists_a_large_directory_once(path: Path) -> None:
    fill(path, {f"many/{number:04}.json": b"1" for number in range(1_200)})
    listed = []
    scandir = os.scandir
    async with tree(path) as storage:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "scandir", lambda folder: listed.append(folder) or scandir(folder))
            assert await storage.clear("many") == 1_200
    assert listed == [str(path / "many")]
    assert found(path) == {}


@in_directory
async def test_a_long_key_that_goes_while_its_neighbours_are_listed_takes_none_of_them_along(path: Path) -> None:
    scandir = os.scandir

    def late(folder: str) -> object:
        if folder.endswith("~"):
            os.rename(folder, path / "Gone")
        return scandir(folder)

    async with tree(path) as storage:
        await storage.set_items({"folder:a": 1, "folder:" + "b" * 300: 1, "folder:c": 1})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "scandir", late)
            assert await storage.get_keys() == ["folder:a", "folder:c"]


# Large values


@in_directory
async def test_thirty_megabytes_do_not_hold_the_event_loop_with_a_time_to_live_either(path: Path) -> None:
    data = bytes(1000) * 30_000
    async with tree(path) as storage:

        async def large() -> None:
            await storage.set_item_raw("large", data, ttl=3600)
            assert await storage.get_item_raw("large") == data
            assert await storage.touch("large", ttl=7200)
            meta = await storage.get_meta("large")
            assert meta is not None
            assert meta.size == len(data)
            assert await storage.remove_item("large")

        await leaves_the_loop_free(large)
    assert found(path) == {}


# The directory itself, and the options


@in_directory
async def test_a_directory_that_was_removed_is_made_anew_by_the_next_write(path: Path) -> None:
    async with tree(path, timeout=0.2) as storage:
        await storage.set_items({"folder:old": 1, "old": 1})
        assert await storage.count() == 2
        shutil.rmtree(path)
        assert await storage.get_item("old") is None
        assert not await storage.has_item("folder:old")
        assert await storage.get_keys() == []
        await storage.set_item("folder:new", 1, ttl=60)
        assert await storage.get_keys() == ["folder:new"]
        shutil.rmtree(path)
        os.mkdir(path)
        with locked(path), pytest.raises(BackendTimeout):  # the lock is that of the new one
            await storage.set_item("key", 1)
        await storage.set_item("key", 1)
        assert await storage.get_keys() == ["key"]


@pytest.mark.parametrize("name", ["file", "file/below", "file/far/below"])
def test_a_path_that_is_a_file_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"kept")

    async def run() -> None:
        async with tree(tmp_path / name) as storage:
            for _ in range(2):
                with pytest.raises(BackendError, match="is a file or lies below one, where a directory is needed") as caught:
                    await storage.get_item("key")
                assert caught.value.driver == "fs"

    asyncio.run(run())
    assert (tmp_path / "file").read_bytes() == b"kept"


@in_directory
async def test_nothing_is_made_before_the_first_call(path: Path) -> None:
    async with tree(path / "far/below") as storage:
        assert os.listdir(path.parent) == []
        assert await storage.get_keys() == []
        assert os.listdir(path / "far/below") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "option 'path' is missing"),
        ({"path": ""}, "path is that of a directory, not ''"),
        ({"path": "a\0b"}, "path is that of a directory"),
        ({"path": 7}, "option 'path' is wrong"),
        ({"path": "x", "fsnc": True}, "no option 'fsnc'; did you mean 'fsync'"),
        ({"path": "x", "fsync": "yes"}, "option 'fsync' is wrong"),
        ({"path": "x", "layout": "tre"}, "layout"),
        ({"path": "x", "timeout": 0}, "timeout is a positive number of seconds, not 0"),
        ({"path": "x", "timeout": float("nan")}, "timeout is a positive number of seconds, not nan"),
        ({"path": "x", "timeout": "1"}, "option 'timeout' is wrong"),
    ],
)
def test_options_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        create_storage("fs", **options)
    assert caught.value.driver == "fs"


@in_directory
async def test_a_url_names_the_directory(path: Path) -> None:
    for url in (f"file://{path}/a%20b%23", f"file://localhost{path}/a%20b%23", f"FILE://{path}/a%20b%23/"):
        async with create_storage(url, fsync=True, timeout=1.0) as storage:
            await storage.set_item("key", url)
    assert found(path) == {"a b#/key.json": f'"{url}"'.encode()}


@pytest.mark.parametrize(
    "url", ["file:", "file://", "file:///", "file://host/a", "file://a", "file:///a?fsync=true", "file:///a#b", "file:///%00"]
)
def test_a_url_that_names_no_directory_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        create_storage(url)


@in_directory
async def test_no_call_leaves_a_file_open(path: Path) -> None:
    fill(path, {"file": b"1", "folder/file": b"2"})
    os.mkfifo(path / "pipe")
    (path / "out").symlink_to("/")
    opened = len(os.listdir("/proc/self/fd"))
    keys = ["file", "folder:file", "missing:key", "folder", "file:below", "pipe", "out:etc:hostname", "x" * 300, "new:key"]
    async with plain(path) as storage:
        for turn in range(4):
            for key in keys:
                calls = (storage.get_item(key), storage.get_meta(key), storage.set_item(key, 1), storage.add_item(key, 1))
                await asyncio.gather(*calls, storage.remove_item(key), storage.get_keys(key), return_exceptions=True)
            working = len(os.listdir("/proc/self/fd"))
            # The base, and each directory that was read from, by the event loop and by the thread.
            assert working <= opened + 1 + 2 * 3, turn
    assert len(os.listdir("/proc/self/fd")) == opened


@in_directory
async def test_no_more_than_some_directories_are_kept_open(path: Path) -> None:
    fill(path, {f"folder{number}/file": b"1" for number in range(200)})
    opened = len(os.listdir("/proc/self/fd"))
    async with plain(path) as storage:
        for number in range(200):
            assert await storage.get_item(f"folder{number}:file") == 1
        assert len(os.listdir("/proc/self/fd")) < opened + 140
    assert len(os.listdir("/proc/self/fd")) == opened


@in_directory
async def test_a_directory_that_another_takes_the_place_of_is_read_anew(path: Path) -> None:
    fill(path, {"folder/file": b"1", "other/file": b"2"})
    async with plain(path) as storage:
        assert await storage.get_item("folder:file") == 1
        os.rename(path / "folder", path / "old")
        assert await storage.get_item("folder:file") is None
        os.rename(path / "other", path / "folder")
        assert await storage.get_item("folder:file") == 2


@in_directory
async def test_a_directory_that_becomes_a_link_out_of_the_base_is_not_followed_by_who_has_read_it(path: Path) -> None:
    fill(path, {"base/folder/file": b"1", "outside/file": b'"secret"'})
    async with plain(path / "base") as storage:
        assert await storage.get_item("folder:file") == 1
        os.rename(path / "base/folder", path / "base/old")
        (path / "base/folder").symlink_to(path / "outside")
        for _ in range(2):
            with pytest.raises(BackendError, match="link out of"):
                await storage.get_item("folder:file")
        (path / "base/folder").unlink()
        os.rename(path / "base/old", path / "base/folder")
        (path / "base/folder/link").symlink_to(path / "outside/file")
        with pytest.raises(BackendError, match="link out of"):
            await storage.get_item("folder:link")
        assert await storage.get_item("folder:file") == 1


@in_directory
async def test_L2_a_slow_disk_holds_the_event_loop_for_one_read_and_then_the_thread_waits_for_it(path: Path) -> None:
    read, reads = Folders.read, {"loop": 0, "thread": 0}

    def slow(self: Folders, folder: str, name: str) -> bytes | NotNow | None:
        reads["loop" if threading.current_thread() is threading.main_thread() else "thread"] += 1
        time.sleep(0.025)
        return read(self, folder, name)

    async with tree(path) as storage:
        await storage.set_items({f"key{number}": number for number in range(10)})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Folders, "read", slow)
            for number in range(5):
                assert await storage.get_item(f"key{number}") == number
        assert reads == {"loop": 1, "thread": 4}


def test_a_driver_says_what_it_is(tmp_path: Path) -> None:
    assert repr(FsDriver(tmp_path)) == f"FsDriver({str(tmp_path)!r})"
    assert FsDriver(b"relative").name == "fs"  # type: ignore[arg-type]


@in_directory
async def test_R2_W1_where_one_of_a_crowd_fails_the_others_are_told_what_they_did(path: Path) -> None:
    async with tree(path) as storage, storage.watch() as events:
        await storage.set_item("gone", 1)
        (path / "broken.json").mkdir()
        outcomes = await asyncio.gather(
            *(storage.set_item("first", 1), storage.remove_item("gone"), storage.set_item("broken", 1)),
            return_exceptions=True,
        )
        assert outcomes[:2] == [None, True]
        assert isinstance(outcomes[2], BackendError)
        told = [await anext(events) for _ in range(3)]
        assert [(event.kind, event.key) for event in told] == [("update", "gone"), ("update", "first"), ("remove", "gone")]


@in_directory
async def test_V4_an_expiry_that_is_no_time_is_corrupt(path: Path) -> None:
    footer = b'\n{"expires_at":100000000000000000000}'
    fill(path, {"key.json": b"1%b%08x#kvstore" % (footer, len(footer))})
    async with tree(path) as storage:
        assert await storage.get_item("key") == 1
        with pytest.raises(CorruptValueError) as caught:
            await storage.get_meta("key")
        assert (caught.value.key, caught.value.driver) == ("key", "fs")


@in_directory
async def test_a_crowd_that_writes_one_key_writes_its_file_twice(path: Path) -> None:
    with mock.patch.object(Files, "replace", autospec=True, side_effect=Files.replace) as replace:
        async with tree(path) as storage:
            await storage.set_item("key", 0)
            replace.reset_mock()
            await asyncio.gather(*(storage.set_item("key", number) for number in range(200)))
            assert replace.call_count <= 2, "the first goes ahead"
            assert await storage.get_item("key") == 199
