"""The fsspec driver: the kit on S3 and on file systems without conditions, and what is its own."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from botocore.exceptions import ClientError
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from outside import rounds
from running import in_loop
from servers import own_name, sftp
from servers import s3 as servers
from servers.process import certificate

from kvstore import (
    MISSING,
    BackendTimeout,
    BackendUnavailable,
    ConfigError,
    CorruptValueError,
    MissingDependencyError,
    Storage,
    UnsupportedOperation,
    copy,
    create_storage,
)
from kvstore.drivers._footer import Footer, tail
from kvstore.drivers._fsspec.s3 import S3Store
from kvstore.drivers._fsspec.store import Found, Telling
from kvstore.drivers.fsspec import FsspecDriver
from kvstore.errors import install
from kvstore.testing import DriverSuite, FakeClock
from kvstore.testing.pauses import leaves_the_loop_free

# In the environment, so that the processes that a test starts find the same objects.
MINE = "kvstore-test-" + os.environ.setdefault("KVSTORE_TEST_S3_RUN", token_hex(4))
SLOW = rounds(1) == 1
server = pytest.mark.server


def below(path: Path, url: str | None = None) -> str:
    """The URL of a test's own prefix."""
    address, _, query = (url or servers.url()).partition("?")
    return f"{address}/{MINE}/{own_name(path)}?{query}"


def opened(path: Path, url: str | None = None, **options: Any) -> Storage:
    return create_storage(FsspecDriver(below(path, url), **options))


def bucket(url: str | None = None, **options: Any) -> tuple[Any, str]:
    """The bucket as another program has it, and the prefix that the URL names."""
    from s3fs import S3FileSystem

    address, _, query = (url or servers.url()).partition("?")
    settings = dict(part.split("=", 1) for part in query.split("&") if part)
    fs = S3FileSystem(skip_instance_cache=True, use_listings_cache=False, **(settings | options))
    return fs, address.removeprefix("s3://")


@pytest.fixture(autouse=True, scope="module")
def _leave_nothing() -> Iterator[None]:
    """A server that was given is left as it was."""
    yield
    if servers.url.cache_info().currsize and "127.0.0.1" not in servers.url():
        fs, prefix = bucket()
        if fs.exists(f"{prefix}/{MINE}"):
            fs.rm(f"{prefix}/{MINE}", recursive=True)


@server
class TestS3(DriverSuite):
    """A call takes moto and botocore 5 ms."""

    slow = SLOW

    def make_driver(self, path: Path) -> FsspecDriver:
        return FsspecDriver(below(path), timeout=60.0)


class TestMemory(DriverSuite):
    """Objects that are replaced as a whole, of this process alone."""

    slow = SLOW  # a call takes a thread, and a listing looks at everything

    def make_driver(self, path: Path) -> FsspecDriver:
        return FsspecDriver(f"memory://{path}")


class TestFiles(DriverSuite):
    """Files and directories."""

    slow = SLOW

    def make_driver(self, path: Path) -> FsspecDriver:
        return FsspecDriver(fs=DirFileSystem(str(path), LocalFileSystem()), path="store")


class TestSftp(DriverSuite):
    """Files by one connection, which answers one call at a time."""

    slow = SLOW

    def make_driver(self, path: Path) -> FsspecDriver:
        url, options = sftp.shared()
        return FsspecDriver(f"{url}/{own_name(path)}", storage_options=options, timeout=60.0)


# What lies in S3


@server
@in_loop
async def test_values_are_objects_that_other_programs_read_and_write(tmp_path: Path) -> None:
    fs, root = bucket(below(tmp_path))
    async with opened(tmp_path) as storage:
        await storage.set_items({"a:b": {"x": 1}, "ü *": 2})
        await storage.set_item("expires", {"x": 2}, ttl=100)
        assert fs.cat_file(f"{root}/a:b") == b'{"x":1}'
        assert fs.cat_file(f"{root}/ü *") == b"2"
        assert fs.cat_file(f"{root}/expires").startswith(b'{"x":2}\n{"expires_at":')
        fs.pipe_file(f"{root}/theirs", b' {"by": "another"} ')
        fs.pipe_file(f"{root}/empty", b"")
        assert await storage.get_item("theirs") == {"by": "another"}
        assert await storage.get_item_raw("empty") == b""
        assert await storage.get_keys() == ["a:b", "empty", "expires", "theirs", "ü *"]
        meta = await storage.get_meta("empty")
        assert meta is not None
        assert meta.size == 0
        assert await storage.set_meta("theirs", {"x": "y" * 5000})
        meta = await storage.get_meta("theirs")
        assert meta is not None
        assert (meta.custom, meta.size) == ({"x": "y" * 5000}, 19)
        assert await storage.compare_and_set("theirs", {"by": "another"}, 1)


@server
@in_loop
async def test_R4_what_is_not_below_the_prefix_or_no_key_is_neither_seen_nor_touched(tmp_path: Path) -> None:
    fs, root = bucket(below(tmp_path))
    others = [f"{root}x/a", f"{root}/sub/a.json", f"{root}/sub/b", f"{root}/a::b", f"{root}/:a", f"{root}/$meta"]
    others += [f"{root}/line\tend", f"{root}/.kvstore/times/junk", f"{root}/.kvstore/keys/junk", f"{root}/.kvstore/times/~"]
    others += [f"{root}/.kvstore/times/{0:015d}-{'0' * 32}"]
    for other in others[:-1]:
        fs.pipe_file(other, b"1")
    fs.pipe_file(others[-1], b"kept")
    async with opened(tmp_path) as storage:
        await storage.set_items({"a": 1, "b:c": 2, "sub": 3, "kept": 4, "k" * 1024: 5, "short": 6})
        await storage.set_item("short", 6, ttl=0.001)
        await asyncio.sleep(0.01)
        driver = storage.get_mount("a").driver
        await driver.sweep()
        assert await storage.get_keys() == ["a", "b:c", "kept", "k" * 1024, "sub"]
        assert await storage.get_keys(reverse=True, limit=1) == ["sub"]
        assert await storage.clear() == 5
        assert await storage.get_keys() == []
    left = {path: fs.cat_file(path) for path in others[:-1]}
    assert left == dict.fromkeys(others[:-1], b"1")
    assert not fs.exists(f"{root}/short")


@server
@in_loop
async def test_a_page_costs_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    call = S3Store._call

    async def counted(self: S3Store, name: str, **options: Any) -> Any:
        asked.append((name, options.get("MaxKeys", 0)))
        return await call(self, name, **options)

    monkeypatch.setattr(S3Store, "_call", counted)

    async with opened(tmp_path) as storage:
        await storage.set_items({f"key:{number:02}": number for number in range(60)})
        assert [name for name, _ in asked].count("get_object") == 0  # one listing told that all were new
        asked.clear()
        found = await storage.get_keys(limit=3, after="key:30")
        assert found == ["key:31", "key:32", "key:33"]
        assert sorted(asked) == [("list_objects_v2", 4), ("list_objects_v2", 100)]
        asked.clear()
        assert await storage.clear() == 60
        assert [name for name, _ in asked].count("delete_objects") == 1
        assert len(asked) == 3


@server
@in_loop
async def test_expired_objects_are_gone_for_listings_and_from_the_bucket_with_their_markers(tmp_path: Path) -> None:
    fs, root = bucket(below(tmp_path))
    driver = FsspecDriver(below(tmp_path))
    driver.clock = clock = FakeClock()
    async with create_storage(driver) as storage:
        await storage.set_items({"a": 1, "b": 1, "line\nend": 1}, ttl=1)
        await storage.set_item("b", 2)
        clock.advance(1)
        assert await storage.get_keys() == ["b"]
        assert await driver.sweep() == clock() + 60_000
        assert not fs.exists(f"{root}/a")
        clock.advance(60)
        assert await driver.sweep() is None
        assert fs.find(root) == [f"{root}/b"]


def test_L1_a_crowd_in_each_of_two_event_loops_is_served(tmp_path: Path) -> None:
    storage = create_storage("fsspec", url=f"memory://{tmp_path.name}")

    async def use() -> None:
        await storage.set_item("key", 1)
        assert None not in await asyncio.gather(*(storage.get_meta("key") for _ in range(200)))

    for _ in range(2):
        asyncio.run(use())
    asyncio.run(storage.aclose())


@in_loop
async def test_T2_a_file_system_without_metadata_tells_when_a_key_expires_and_is_copied(tmp_path: Path) -> None:
    source, target = create_storage("fsspec", url=f"memory://{tmp_path.name}"), create_storage()
    async with source, target:
        await source.set_item("plain", 1)
        await source.set_item("short", [2], ttl=60)
        await copy(source, target)
        for storage in (source, target):
            plain, short = await storage.get_meta("plain"), await storage.get_meta("short")
            assert plain is not None
            assert short is not None
            assert plain.expires_at is None
            assert short.expires_at is not None
            assert 59 < (short.expires_at - datetime.now(UTC)).total_seconds() <= 60
            assert short.size == 3
        assert await source.touch("short")
        assert (await source.get_meta("short")).expires_at is None  # type: ignore[union-attr]


@server
@in_loop
async def test_exactly_one_of_many_tasks_and_drivers_adds_a_key(tmp_path: Path) -> None:
    storages = [opened(tmp_path) for _ in range(3)]
    for key in ("a", "line\nend", "k" * 1024):
        added = await asyncio.gather(*(storages[task % 3].add_item(key, task) for task in range(30)))
        assert sum(added) == 1
        assert await storages[0].get_item(key) == added.index(True)
    for storage in storages:
        await storage.aclose()


@server
@in_loop
async def test_T1_expiry_goes_by_the_servers_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither seen as gone nor swept, early or late, by a program on a machine whose clock is wrong."""
    ahead, right = 0, time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: right() + ahead * 10**9)

    for wrong in (3600, -3600):
        ahead = 0
        async with opened(tmp_path) as storage, opened(tmp_path) as other:
            await storage.set_item("theirs", 1, ttl=600)
            ahead = wrong
            await other.get_item("connect")
            await other.set_item("mine", 1, ttl=600)
            assert await other.get_keys() == ["mine", "theirs"]
            await other.get_mount("x").driver.sweep()
            ahead = 0
            assert await storage.get_items(["theirs", "mine"]) == {"theirs": 1, "mine": 1}
            meta = await storage.get_meta("mine")
            assert meta is not None
            assert meta.expires_at is not None
            assert abs((meta.expires_at - datetime.now(UTC)).total_seconds() - 600) < 10


@server
@in_loop
async def test_R2_one_alone_of_those_who_remove_a_key_did_so(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as two:
        added = removed = 0
        for number in range(10):
            calls = [one.add_item("key", number), two.remove_item("key"), two.add_item("key", 1), one.remove_item("key")]
            said = await asyncio.gather(*calls)
            added, removed = added + said[0] + said[2], removed + said[1] + said[3]
        assert added == removed + await one.has_item("key")
        await one.set_items({"a": 1, "b": 1, "c": 1})
        assert sum(await asyncio.gather(one.remove_items([*"abc"]), two.remove_items([*"abc"]))) == 3


@server
@in_loop
async def test_T2_no_metadata_is_lost_that_is_set_while_another_overwrites_the_value(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as two:
        for number in range(8):
            await one.set_item("key", 0)
            await asyncio.gather(one.set_meta("key", {"n": number}), two.set_item("key", 1))
            meta = await one.get_meta("key")
            assert meta is not None
            assert (meta.custom, await one.get_item("key")) == ({"n": number}, 1)
            await one.remove_item("key")


@server
@in_loop
async def test_A1_a_footer_that_grows_while_it_is_read_is_read_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get = S3Store.get

    async with opened(tmp_path) as storage, opened(tmp_path) as other:
        await storage.set_item("key", 1)
        await storage.set_meta("key", {"x": "y" * 600})
        driver = other.get_mount("key").driver
        await other.has_item("connect")
        grown = False

        async def slow(self: S3Store, name: str, end: int | None = None) -> Found | None:
            nonlocal grown
            found = await get(self, name, end)
            if name == "key" and not grown:
                grown = True
                footer = Footer(custom='{"x":"' + "y" * 5000 + '"}')
                await self.put(name, b"22" + tail(b"22", footer))
            return found

        monkeypatch.setattr(S3Store, "get", slow)
        [stat] = await driver.stat(["key"])
        assert stat is not None
        assert (stat.size, len(stat.custom or b"")) == (2, 5008)


@server
@in_loop
async def test_A2_a_client_that_sends_again_what_got_no_answer_does_not_fail_against_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = S3Store._call

    async def twice(self: S3Store, name: str, **options: Any) -> Any:
        if name == "put_object" and options["Key"].endswith("/key"):
            await call(self, name, **options)
        return await call(self, name, **options)

    async with opened(tmp_path) as storage:
        monkeypatch.setattr(S3Store, "_call", twice)
        assert await storage.add_item("key", 1) is True
        assert await storage.update_item("key", lambda value: value + 1) == 2
        await storage.set_item("key", 3)
        assert await storage.get_item("key") == 3


@server
@in_loop
async def test_a_server_that_refuses_conditions_is_written_to_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = S3Store._call

    async def refusing(self: S3Store, name: str, **options: Any) -> Any:
        if "IfMatch" in options or "IfNoneMatch" in options:
            raise ClientError({"Error": {"Code": "NotImplemented"}}, name)
        return await call(self, name, **options)

    monkeypatch.setattr(S3Store, "_call", refusing)
    async with opened(tmp_path) as storage:
        for value in (1, 2):
            await storage.set_item("key", value)
            assert await storage.get_item("key") == value
        with pytest.raises(UnsupportedOperation, match="takes no conditions"):
            await storage.add_item("new", 1)
        await storage.set_item("key", 3)
        assert await storage.remove_item("key") is True
        assert await storage.get_keys() == []


@server
@in_loop
async def test_a_server_whose_etags_fit_no_condition_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = S3Store.get

    async def wrong(self: S3Store, name: str, end: int | None = None) -> Found | None:
        found = await get(self, name, end)
        return found and found._replace(etag='"00000000000000000000000000000000"')

    monkeypatch.setattr(S3Store, "get", wrong)
    async with asyncio.timeout(30), opened(tmp_path) as storage:
        for value in (1, 2):
            await storage.set_item("key", value)
            assert await storage.get_item("key") == value
        assert await storage.remove_item("key") is True
        assert await storage.get_keys() == []


@server
@in_loop
async def test_conditions_are_refused_where_the_server_does_not_keep_them(tmp_path: Path) -> None:
    started, url = servers.start(WITHOUT_CONDITIONS="PUT DELETE")
    async with opened(tmp_path, url) as storage:
        await storage.set_item("key", 1)
        with pytest.raises(UnsupportedOperation, match="takes no conditions"):
            await storage.add_item("new", 2)
        assert not storage.get_mount("key").capabilities.conditional  # now it is known
        with pytest.raises(UnsupportedOperation):
            await storage.compare_and_set("key", 1, 2)
        assert await storage.get_item("key") == 1
        await storage.set_item("short", 1, ttl=0.001)
        await asyncio.sleep(0.01)
        await storage.get_mount("key").driver.sweep()
        assert await storage.get_keys() == ["key"]
        assert await storage.remove_item("key") is True
    started.stop()


@server
@in_loop
async def test_without_conditional_deletes_what_is_removed_on_a_condition_expired_long_ago(tmp_path: Path) -> None:
    started, url = servers.start(WITHOUT_CONDITIONS="DELETE")
    fs, root = bucket(below(tmp_path, url))
    async with opened(tmp_path, url) as storage:
        await storage.set_items({"key": "x" * 1000, "other": 1})
        assert await storage.set_meta("key", {"a": 1})
        assert await storage.compare_and_set("key", "x" * 1000, None) is True
        await storage.set_item("short", "x" * 1000, ttl=0.001)
        assert await storage.update_item("key", lambda value: value or "y", None) == "y"
        assert await storage.compare_and_set("key", "y", MISSING) is True
        driver = storage.get_mount("key").driver
        for _ in range(2):
            assert await storage.get_keys() == ["other"]
            assert await storage.has_item("key") is False
            assert await storage.count() == 1
            await driver.sweep()
        assert fs.size(f"{root}/short") < 100  # its space, if not its name
        assert await storage.add_item("key", 2) is True
        assert await storage.get_keys() == ["key", "other"]
        meta = await storage.get_meta("key")
        assert meta is not None
        assert meta.custom == {}
    started.stop()


@server
@in_loop
async def test_a_damaged_footer_is_corrupt_by_its_key_left_and_can_be_overwritten(tmp_path: Path) -> None:
    fs, root = bucket(below(tmp_path))
    damaged = [b"1#kvstore", b"1\n{}ffffffff#kvstore", b"1x{}00000002#kvstore", b"1\n[00000002#kvstore"]
    async with opened(tmp_path) as storage:
        for data in damaged:
            fs.pipe_file(f"{root}/bad", data)
            for call in (storage.get_item("bad"), storage.get_meta("bad"), storage.add_item("bad", 1)):
                with pytest.raises(CorruptValueError) as caught:
                    await call
                assert (caught.value.key, caught.value.driver) == ("bad", "fsspec")
            assert await storage.get_keys() == ["bad"]
            assert fs.cat_file(f"{root}/bad") == data
        await storage.set_item("bad", 1)
        assert await storage.get_item("bad") == 1
        await storage.set_item_raw("raw", damaged[0])
        assert await storage.get_item_raw("raw") == damaged[0]


@server
@in_loop
async def test_L1_a_file_system_that_was_handed_in_stays_open_asynchronous_or_not(tmp_path: Path) -> None:
    for asynchronous in (False, True):
        fs, root = bucket(below(tmp_path), asynchronous=asynchronous)
        async with create_storage("fsspec", fs=fs, path=root) as storage:
            await storage.set_items({"key": 1, "b": 2})
            assert await storage.add_item("key", 2) is False
            assert await storage.get_keys() == ["b", "key"]
        if asynchronous:
            assert await fs._cat_file(f"{root}/key") == b"1"
            await fs._s3.close()
        else:
            assert fs.cat_file(f"{root}/key") == b"1"
    async with create_storage("fsspec", fs=DirFileSystem(root, bucket()[0]), path="inner") as storage:
        await storage.add_item("key", 3)
    assert bucket()[0].cat_file(f"{root}/inner/key") == b"3"


# Faults


@server
@in_loop
async def test_L2_a_long_listing_leaves_the_event_loop_free(tmp_path: Path) -> None:
    async with opened(tmp_path, timeout=60.0) as storage:
        await storage.set_items({f"key:{number}": number for number in range(300)})

        async def work() -> None:
            assert len(await storage.get_keys()) == 300

        await leaves_the_loop_free(work)


@server
@in_loop
async def test_a_server_that_is_not_there_is_unavailable_and_used_once_it_comes_up(tmp_path: Path) -> None:
    started, url = servers.start()
    started.kill()
    secrets = {"key": "hunter-key", "secret": "hunter-secret"}
    async with opened(tmp_path, url, storage_options=secrets) as storage:
        async with asyncio.timeout(5):
            with pytest.raises(BackendUnavailable, match="no connection to S3") as caught:
                await storage.get_item("key")
        shown = f"{caught.value}{caught.value.__cause__}{storage.get_mount('key').driver!r}"
        assert "hunter" not in shown
        started.start()
        with pytest.raises(BackendUnavailable, match="there is no bucket 'bucket'"):
            await storage.get_item("key")
        servers.make_bucket(url)
        await storage.set_item("key", 1)
        started.kill()
        for call in (storage.get_item("key"), storage.set_item("key", 2), storage.get_keys()):
            with pytest.raises(BackendUnavailable):
                await call
        started.start()
        with pytest.raises(BackendUnavailable, match="there is no bucket 'bucket'"):
            await storage.get_item("key")
        servers.make_bucket(url)
        await storage.set_item("key", 2)
        assert await storage.get_item("key") == 2
    started.stop()


@server
@in_loop
async def test_a_server_killed_amid_writes_leaves_nobody_waiting(tmp_path: Path) -> None:
    started, url = servers.start()
    outcomes: list[str] = []

    async def one(storage: Storage, task: int) -> None:
        for number in range(20):
            try:
                if task % 2:
                    await storage.set_item(f"{task}:{number}", number)
                else:
                    await storage.add_item(f"{task}:{number}", number)
                outcomes.append("done")
            except (BackendUnavailable, BackendTimeout) as error:
                assert re.search("not known|nothing was written", str(error)), error  # noqa: PT017
                outcomes.append("failed")

    async def kill() -> None:
        while len(outcomes) < 60:
            await asyncio.sleep(0.005)
        started.kill()

    async with opened(tmp_path, url, timeout=5.0) as storage:
        async with asyncio.timeout(60):
            await asyncio.gather(kill(), *(one(storage, task) for task in range(16)))
    assert len(outcomes) == 320
    assert "failed" in outcomes
    started.stop()


@server
@in_loop
async def test_a_server_that_stands_still_is_a_timeout_and_the_event_loop_goes_on(tmp_path: Path) -> None:
    started, url = servers.start()
    async with opened(tmp_path, url, timeout=1.0) as storage:
        await storage.set_items({f"key:{number}": 1 for number in range(10)})
        started.pause()

        async def wait() -> None:
            async with asyncio.timeout(20):
                with pytest.raises(BackendTimeout, match="whether anything was written is not known") as caught:
                    await storage.set_item("key", 2)
                assert (caught.value.key, caught.value.operation) == ("key", "set_item")

        await leaves_the_loop_free(wait)
        async with asyncio.timeout(20):  # all of a batch does not take all of their timeouts
            with pytest.raises(BackendTimeout):
                await storage.get_items([f"key:{number}" for number in range(500)])
            with pytest.raises(BackendUnavailable, match=r"no answer from S3 in 0\.3 seconds"):
                await opened(tmp_path, url, connect_timeout=0.3).get_item("key")
        started.resume()
        await storage.set_item("key", 3)
        assert await storage.get_item("key") == 3
    started.stop()


@server
@in_loop
async def test_E1_a_refused_connection_says_that_nothing_was_written(tmp_path: Path) -> None:
    started, url = servers.start()
    async with opened(tmp_path, url) as used, opened(tmp_path, url) as new:
        await used.set_item("key", 1)
        started.stop()
        for storage in (used, new):
            for call in (storage.add_item("a", 1), storage.remove_item("key"), storage.set_item("key", 2, ttl=9)):
                with pytest.raises(BackendUnavailable, match="nothing was written") as caught:
                    await call
                assert not caught.value.maybe_written
            with pytest.raises(BackendUnavailable) as caught:
                await storage.get_item("key")
            assert not caught.value.maybe_written
        with pytest.raises(BackendUnavailable, match="not known"):  # one of them may have been when another one failed
            await used.set_items({"a": 1, "b": 2})


@server
@in_loop
async def test_E2_an_option_that_the_client_does_not_have_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path, storage_options={"kee": "x"}) as storage:
        with pytest.raises(ConfigError, match="kee"):
            await storage.get_item("key")


@server
@in_loop
async def test_a_login_that_is_refused_is_unavailable_and_never_shown(tmp_path: Path) -> None:
    started, url = servers.start(INITIAL_NO_AUTH_ACTION_COUNT="1")
    options: dict[str, Any] = {"storage_options": {"key": "hunter-key", "secret": "hunter-secret"}}
    async with opened(tmp_path, url, **options) as storage:
        with pytest.raises(BackendUnavailable, match="refuses the login") as caught:
            await storage.get_item("key")
        assert "hunter" not in f"{caught.value}{caught.value.__cause__!r}"
    started.stop()


@server
@in_loop
async def test_TLS_is_checked(tmp_path: Path) -> None:
    made, key = await asyncio.to_thread(certificate)
    started, url = servers.start(tls=(made, key))
    async with opened(tmp_path, url, storage_options={"client_kwargs": {"verify": str(made)}}) as storage:
        await storage.set_item("key", 1)
        assert await storage.get_item("key") == 1
    async with opened(tmp_path, url) as storage:
        with pytest.raises(BackendUnavailable, match=r"(?i)certificate"):
            await storage.get_item("key")
    started.stop()


@server
@in_loop
async def test_a_bucket_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    query = servers.url().partition("?")[2]
    async with create_storage(f"s3://no-such-bucket-{token_hex(8)}/prefix?{query}&connect_timeout=20") as storage:
        with pytest.raises(BackendUnavailable):
            await storage.set_item("key", 1)


# Other file systems


@in_loop
async def test_files_are_those_of_the_file_driver_and_half_written_ones_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".kvstore" / "parts").mkdir(parents=True)
    (tmp_path / ".kvstore" / "parts" / "left").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("another program's")
    (tmp_path / "UPPER.json").write_text("no name of ours")
    async with create_storage("fsspec", fs=LocalFileSystem(), path=str(tmp_path)) as storage:
        await storage.set_items({"images:img_1": 1, "A": 2, "k" * 1024: 3})
        assert (tmp_path / "images" / "img_1.json").read_text() == "1"
        assert (tmp_path / "%41.json").read_text() == "2"
        assert await storage.get_keys() == ["A", "images:img_1", "k" * 1024]
        assert await storage.touch("A", ttl=100)
        with pytest.raises(UnsupportedOperation):
            await storage.add_item("B", 1)
        assert await storage.clear() == 3
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file() and "times" not in path.parts)
    assert left == ["UPPER.json", "notes.txt"]


@in_loop
async def test_A3_when_one_removal_of_a_clear_fails_none_is_left_under_way(tmp_path: Path) -> None:
    over = []

    class Broken(LocalFileSystem):
        def rm_file(self, path: str) -> None:
            if path.endswith("a.json"):
                raise PermissionError(path)
            time.sleep(0.1)
            super().rm_file(path)
            over.append(path)

    async with create_storage("fsspec", fs=Broken(skip_instance_cache=True), path=str(tmp_path)) as storage:
        await storage.set_items({"a": 1, "b": 1})
        with pytest.raises(BackendUnavailable):
            await storage.clear()
        assert over == [f"{tmp_path}/b.json"]


@in_loop
async def test_a_file_system_with_asynchronous_methods_is_used_by_them(tmp_path: Path) -> None:
    fs = AsyncFileSystemWrapper(LocalFileSystem(), asynchronous=False)
    async with create_storage("fsspec", fs=fs, path=str(tmp_path)) as storage:
        await storage.set_items({"a": 1, "a:b": "x" * 1000, "k" * 1024: 3})
        await storage.set_item("short", 1, ttl=0.001)
        await asyncio.sleep(0.01)
        assert await storage.get_items(["a:b", "a", "none"]) == {"a:b": "x" * 1000, "a": 1, "none": None}
        assert await storage.get_keys() == ["a", "a:b", "k" * 1024]
        assert await storage.remove_item("a:b") is True
        assert await storage.clear() == 2


@in_loop
async def test_a_read_that_is_given_up_is_no_error_that_nobody_retrieved() -> None:
    class Slow(MemoryFileSystem):  # type: ignore[misc]
        cachable = False
        store: dict[str, Any] = {}  # noqa: RUF012

        def cat_file(self, path: str, *arguments: Any, **options: Any) -> Any:
            time.sleep(0.05)
            return super().cat_file(path, *arguments, **options)

    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with create_storage("fsspec", fs=Slow(), path="root") as storage:
        await storage.set_item("key", 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await storage.get_item("missing")
        await asyncio.sleep(0.1)
    gc.collect()
    assert told == []


@in_loop
async def test_a_file_system_that_hangs_is_a_timeout_and_its_late_write_passes_no_later_one(tmp_path: Path) -> None:
    goes_on = threading.Event()

    class Slow(MemoryFileSystem):  # type: ignore[misc]
        cachable = False
        store: dict[str, Any] = {}  # noqa: RUF012

        def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
            if value == b'"slow"':
                goes_on.wait(20)
            super().pipe_file(path, value, **options)

    async with create_storage("fsspec", fs=Slow(), path="root", timeout=0.3) as storage:

        async def wait() -> None:
            with pytest.raises(BackendTimeout):
                await storage.set_item("key", "slow")

        await leaves_the_loop_free(wait)
        with pytest.raises(BackendTimeout, match="still under way"):
            await storage.set_item("key", "new")
        goes_on.set()
        await storage.set_item("key", "new")
        await asyncio.sleep(0.05)
        assert await storage.get_item("key") == "new"


@in_loop
async def test_errors_of_a_file_system_say_what_they_are_and_no_secret(tmp_path: Path) -> None:
    class Failing(MemoryFileSystem):  # type: ignore[misc]
        cachable = False
        protocol = "failing"
        error: Exception = OSError()

        def info(self, path: str, **options: Any) -> Any:
            raise self.error

        cat_file = find = info

    fs = Failing()
    fs.error = FileNotFoundError()
    async with create_storage("fsspec", fs=fs, path="root") as storage:
        assert await storage.get_item("key") is None
        for error, kind in (
            (PermissionError("denied"), BackendUnavailable),
            (ConnectionResetError("reset"), BackendUnavailable),
            (TimeoutError("late"), BackendTimeout),
        ):
            fs.error = error
            with pytest.raises(kind) as caught:
                await storage.get_item("key")
            assert str(error) in str(caught.value)


# Options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "either a url, such as"),
        ({"url": "bucket/prefix"}, "a URL is a scheme"),
        ({"url": "s3://"}, "a URL is a scheme"),
        ({"url": "file:///tmp/x"}, "the fs driver's"),
        ({"url": "s3://key:hunter2@bucket"}, "storage_options"),
        ({"url": "s3://bucket?endpint_url=x"}, "no option 'endpint_url'"),
        ({"url": "gs://bucket?anon=true"}, "no option 'anon'"),
        ({"url": "s3://bucket", "timeout": 0}, "positive"),
        ({"url": "s3://bucket", "storage_option": {}}, "did you mean 'storage_options'"),
        ({"fs": "s3"}, "not str"),
        ({"fs": LocalFileSystem()}, "path is a directory"),
        ({"fs": LocalFileSystem(), "path": "/tmp/x", "storage_options": {"key": "x"}}, "yours has its own"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        create_storage("fsspec", **options)
    assert "hunter2" not in str(caught.value)


def test_a_url_names_the_driver_and_its_options() -> None:
    driver = create_storage("s3://bucket/a/b?endpoint_url=http://localhost:1&timeout=3").get_mount("a").driver
    assert isinstance(driver, FsspecDriver)
    assert repr(driver) == "FsspecDriver('s3://bucket/a/b')"
    assert driver.capabilities.conditional
    for url in ("gs://bucket", "az://container/x", "abfs://container/x", "sftp://user:hunter2@host/x"):
        driver = create_storage(url).get_mount("a").driver
        assert isinstance(driver, FsspecDriver)
        assert not driver.capabilities.conditional
        assert "hunter2" not in repr(driver)
    with pytest.raises(ConfigError, match="a number of seconds"):
        create_storage("s3://bucket?timeout=soon")


@in_loop
async def test_what_is_missing_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for url, module, line in (
        ("s3://bucket", "s3fs", re.escape(install("s3"))),
        ("sftp://host/x", "paramiko", "paramiko"),
        ("gs://bucket", "gcsfs", "gcsfs"),
        ("s3://bucket", "fsspec", re.escape(install("s3"))),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(_registry, url.partition(":")[0], raising=False)
        for name in [name for name in sys.modules if name.startswith("fsspec.implementations.sftp")]:
            monkeypatch.delitem(sys.modules, name)
        async with create_storage(url) as storage:
            with pytest.raises(MissingDependencyError, match=line):
                await storage.get_item("key")
    async with create_storage("fsspec", url="nothing://x") as storage:
        with pytest.raises((ConfigError, MissingDependencyError)):
            await storage.get_item("key")


@server
@in_loop
async def test_a_connection_that_SFTP_lost_is_opened_anew() -> None:
    own, url, options = await asyncio.to_thread(sftp.start)
    async with create_storage(url, storage_options=options) as storage:
        await storage.set_item("key", 1)
        for call in (lambda: storage.get_item("key"), lambda: storage.set_item("key", 1), lambda: storage.get_keys()):
            own.kill()
            with pytest.raises(BackendUnavailable) as caught:
                await call()
            assert not caught.value.maybe_written
            await asyncio.to_thread(own.start)
            await call()
        own.kill()
        await asyncio.to_thread(own.start)
        assert await storage.get_item("key") == 1  # lost while nobody asked: nobody is told


class Cut(LocalFileSystem):
    """Cut off from some directories."""

    protocol = "cut"
    below = ""

    def ls(self, path: str, **options: Any) -> Any:
        if self.below and path.rstrip("/").endswith(self.below):
            raise OSError("cut off")
        return super().ls(path, **options)


@in_loop
async def test_a_directory_that_cannot_be_listed_is_not_taken_for_empty(tmp_path: Path) -> None:
    fs = Cut(skip_instance_cache=True)
    async with create_storage("fsspec", fs=fs, path=str(tmp_path)) as storage:
        await storage.set_items({"a:b": 1, "c": 2})
        for fs.below in ("a", tmp_path.name):
            for call in (storage.get_keys, storage.clear):
                with pytest.raises(BackendUnavailable, match="cut off"):
                    await call()
        fs.below = ""
        assert await storage.get_keys() == ["a:b", "c"]


@server
@in_loop
async def test_a_login_that_SFTP_refuses_is_unavailable_and_shows_no_password() -> None:
    url, options = await asyncio.to_thread(sftp.shared)
    del (options := dict(options))["key_filename"]
    async with create_storage(url, storage_options=options | {"password": "hunter2"}) as storage:
        with pytest.raises(BackendUnavailable, match="Authentication failed") as caught:
            await storage.set_item("key", 1)
        assert not caught.value.maybe_written
        assert "hunter2" not in f"{caught.value!r}{storage.get_mount('key').driver!r}"


@server
@in_loop
async def test_an_SFTP_server_that_does_not_answer_is_unavailable_within_the_connect_timeout() -> None:
    own, url, options = await asyncio.to_thread(sftp.start)
    own.pause()
    async with create_storage(url, storage_options=options, connect_timeout=0.5) as storage:
        begun = time.monotonic()
        with pytest.raises(BackendUnavailable):
            await storage.set_item("key", 1)
        assert time.monotonic() - begun < 2
        own.resume()
        await storage.set_item("key", 1)
        assert await storage.get_item("key") == 1


def test_a_secret_of_several_lines_is_in_no_message() -> None:
    told = Telling({"key": "first-part\nsecond-part"}).clean("refused: first-part\nsecond-part, see\n<xml/>")
    assert told == "refused: ***, see"
