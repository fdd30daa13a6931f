"""What is the SQLite driver's own: other processes, the disk, damage, the schema. The kit has the rest."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from outside import HERE, in_directory, process, rounds, said, small_disk, tell
from running import in_loop, in_threads

from kvstore import (
    MISSING,
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ConfigError,
    CorruptValueError,
    KVStoreError,
    Storage,
    create_storage,
)
from kvstore.drivers._sqlite.schema import SCHEMA_VERSION
from kvstore.drivers.sqlite import SqliteDriver
from kvstore.testing import FakeClock
from kvstore.testing.pauses import leaves_the_loop_free, longest_pause

MODES = pytest.mark.parametrize("synchronous", ["full", "normal"])


def opened(path: Path, **options: Any) -> Storage:
    path.mkdir(exist_ok=True)
    return create_storage("sqlite", path=path / "app.db", **options)


def rows(path: Path, sql: str = "SELECT key, value FROM kvstore ORDER BY key") -> list[Any]:
    """What any SQLite tool sees."""
    with closing(sqlite3.connect(path / "app.db")) as connection:
        return connection.execute(sql).fetchall()


@contextmanager
def locked(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the file locked until it is told to release it."""
    with process("sqlite_process.py", "lock", path / "app.db") as holder:
        assert said(holder) == "locked"
        yield holder


def _made(path: Path) -> Path:
    path.mkdir()
    return path


# Locked by another process


@MODES
@in_loop
async def test_L2_a_file_locked_for_a_while_delays_and_neither_fails_nor_holds_the_event_loop(
    tmp_path: Path, synchronous: str
) -> None:
    async with opened(tmp_path, synchronous=synchronous) as storage:
        await storage.set_items({f"key:{number}": 0 for number in range(1000)})
        round_number = 0

        async def crowd() -> None:
            nonlocal round_number
            round_number += 1
            with ExitStack() as stack:
                holder = await asyncio.to_thread(stack.enter_context, locked(tmp_path))
                asyncio.get_running_loop().call_later(0.5, tell, holder, "release")

                async def one(number: int) -> None:
                    await storage.set_item(f"key:{number}", round_number)
                    assert await storage.get_item(f"key:{number}") == round_number

                await asyncio.gather(*map(one, range(1000)))

        await leaves_the_loop_free(crowd)


@MODES
@in_loop
async def test_E1_a_file_locked_for_longer_is_a_timeout_and_nothing_is_written_then_or_later(
    tmp_path: Path, synchronous: str
) -> None:
    async with opened(tmp_path, timeout=0.2, synchronous=synchronous) as storage:
        await storage.set_item("key", "old")
        with locked(tmp_path) as holder:
            with pytest.raises(BackendTimeout, match=r"locked by another program for 0.2 seconds") as caught:
                await storage.set_item("key", "new")
            assert (caught.value.operation, caught.value.key, caught.value.driver) == ("set_item", "key", "sqlite")
            tell(holder, "release")
            assert said(holder) == "released"
        assert await storage.get_item("key") == "old"
        await storage.set_item("key", "newer")
        assert await storage.get_item("key") == "newer"


@in_directory
async def test_E1_a_crowd_waits_for_a_lock_together_and_not_one_after_another(path: Path) -> None:
    async with opened(path, timeout=0.2) as storage:
        await storage.set_items({f"key:{number}": 1 for number in range(20)})
        with locked(path):
            began = time.monotonic()
            outcomes = await asyncio.gather(
                *(storage.touch(f"key:{number}", 60) for number in range(20)), return_exceptions=True
            )
            assert {type(outcome) for outcome in outcomes} == {BackendTimeout}
            assert time.monotonic() - began < 2  # and not 4
        assert await storage.touch("key:0", 60)


@in_directory
async def test_a_timeout_may_be_endless(path: Path) -> None:
    async with opened(path, timeout=math.inf) as storage:
        await storage.set_item("key", 1)
        with locked(path) as holder:
            writing = asyncio.create_task(storage.set_item("key", 2))
            await asyncio.sleep(0.05)
            assert not writing.done()
            tell(holder, "release")
            await writing


@MODES
@in_loop
async def test_A3_a_write_after_a_cancelled_one_wins(tmp_path: Path, synchronous: str) -> None:
    async with opened(tmp_path, synchronous=synchronous) as storage:
        await storage.set_item("key", 0)
        with locked(tmp_path) as holder:
            cancelled = asyncio.create_task(storage.set_item("key", "cancelled"))
            await asyncio.sleep(0.01)
            cancelled.cancel()
            later = asyncio.create_task(storage.set_item("key", "later"))
            await asyncio.sleep(0.01)
            tell(holder, "release")
            await later
        assert await storage.get_item("key") == "later"
        await storage.set_item("other", 1)
        assert await storage.get_item("key") == "later"


# The end of a process


def test_A1_killed_writers_lose_nothing_acknowledged_and_leave_nothing_half_written(tmp_path: Path) -> None:
    """Four processes write, one of them is killed, round after round."""
    path = tmp_path / "app.db"
    written: dict[str, int] = {}
    with ExitStack() as stack:
        running: list[tuple[str, subprocess.Popen[str]]] = []
        for number in range(rounds(2) + 3):
            name = f"w{number}"
            running.append((name, stack.enter_context(process("sqlite_process.py", "write", path, name))))
            if len(running) < 4:
                continue
            for other, writer in running:
                written[other] = int(said(writer))
            name, victim = running.pop(0)
            victim.send_signal(signal.SIGKILL)
            assert victim.stdout is not None
            for line in victim.stdout.read().splitlines():
                written[name] = int(line)
            victim.wait()
        for name, writer in running:
            writer.kill()
            assert writer.stdout is not None
            written[name] = max([written.get(name, -1), *map(int, writer.stdout.read().split())])

    async def look() -> None:
        async with create_storage("sqlite", path=path) as storage:
            acknowledged = 0
            for name, last in written.items():
                keys = await storage.get_items([f"{name}:{number:06}" for number in range(last + 1)])
                assert [value and value[0] for value in keys.values()] == list(range(last + 1))
                pair = await storage.get_items([f"{name}:left", f"{name}:right"])
                assert pair[f"{name}:left"] == pair[f"{name}:right"], "a commit is all or nothing"
                acknowledged += last + 1
            assert await storage.get_item("counter") >= acknowledged

    asyncio.run(look())
    assert rows(tmp_path, "PRAGMA integrity_check") == [("ok",)]


@MODES
def test_L1_a_storage_that_is_never_closed_loses_nothing_and_holds_up_no_exit(tmp_path: Path, synchronous: str) -> None:
    command = [sys.executable, str(HERE / "sqlite_process.py"), "forget", str(tmp_path / "app.db"), synchronous]
    subprocess.run(command, check=True, timeout=30)
    assert len(rows(tmp_path)) == 200


def test_several_processes_create_one_file_at_once_though_some_are_killed(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "sqlite_process.py"), "kill_creators", str(tmp_path / "app.db"), str(rounds(8))]
    subprocess.run(command, check=True, timeout=120)


def test_L1_a_fork_is_told_to_open_its_own_and_leaves_the_parents_alone(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "sqlite_process.py"), "fork", str(tmp_path / "app.db")]
    done = subprocess.run(command, check=True, timeout=30, stdout=subprocess.PIPE, text=True)
    assert done.stdout.splitlines() == ["child: UnsupportedOperation", "child: closed", "parent: 1"]
    assert dict(rows(tmp_path)) == {"before": b"1", "after": b"2"}


@in_directory
async def test_two_storages_of_one_process_see_each_others_writes_at_once(path: Path) -> None:
    async with opened(path) as one, opened(path, synchronous="normal") as other:
        for number in range(50):
            await one.set_item("key", number)
            assert await other.get_item("key") == number
            await other.set_item("key", -number)
            assert await one.get_item("key") == -number


# The disk


@pytest.mark.parametrize("size", [500_000, 20_000])
@MODES
def test_a_full_disk_is_told_keeps_what_was_there_and_works_again_when_there_is_room(
    tmp_path: Path, synchronous: str, size: int
) -> None:
    async def main() -> None:
        async with opened(tmp_path, synchronous=synchronous) as storage:
            await storage.set_item("key", "old")
            room = os.statvfs(tmp_path)
            (tmp_path / "ballast").write_bytes(bytes(room.f_bavail * room.f_frsize - size // 2))
            with pytest.raises(BackendError, match=r"disk of .* is full; nothing was written") as caught:
                await storage.set_item_raw("key", os.urandom(size))
            assert (caught.value.key, caught.value.driver) == ("key", "sqlite")
            assert await storage.get_item("key") == "old"
            (tmp_path / "ballast").unlink()
            await storage.set_item_raw("key", bytes(size))
            assert await storage.get_item_raw("key") == bytes(size)

    with small_disk(tmp_path, "1m"):
        asyncio.run(main())


def test_a_file_that_can_only_be_read_is_read_and_every_write_says_so(tmp_path: Path) -> None:
    asyncio.run(_with_one_key(tmp_path))
    (tmp_path / "app.db").chmod(0o444)
    command = [sys.executable, str(HERE / "sqlite_process.py"), "only_read", str(tmp_path / "app.db")]
    done = subprocess.run(command, check=True, timeout=30, stdout=subprocess.PIPE, text=True)
    get, keys, *writes, sweep = done.stdout.splitlines()
    assert (get, keys, sweep) == ("1", "['key']", "None")
    assert len(writes) == 4
    assert all("app.db can only be read; nothing was written" in write for write in writes)
    assert rows(tmp_path) == [("key", b"1")]


async def _with_one_key(path: Path, **options: Any) -> None:
    async with opened(path, **options) as storage:
        await storage.set_item("key", 1)


@in_directory
async def test_a_directory_that_can_only_be_read_gives_a_clear_error_for_every_write(path: Path) -> None:
    with small_disk(path, "1m") as remount:
        async with opened(path) as storage:
            await storage.set_item("key", 1)
        remount("ro")
        try:
            async with opened(path) as storage:
                for call in (storage.set_item("key", 2), storage.remove_item("key"), storage.clear()):
                    with pytest.raises(BackendError, match=r"only be read|can't be opened|[Rr]ead-?only"):
                        await call
        finally:
            remount("rw")
        async with opened(path) as storage:
            assert await storage.get_item("key") == 1


@pytest.mark.parametrize("name", ["missing/app.db", "", "folder"])
@in_loop
async def test_a_path_that_cannot_be_a_file_is_unavailable_and_says_so(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    path = tmp_path / name

    async with create_storage("sqlite", path=path) as storage:
        for _ in range(2):
            with pytest.raises(BackendUnavailable, match="can't be opened") as caught:
                await storage.get_item("key")
            assert str(path) in str(caught.value)


@in_directory
async def test_a_directory_that_comes_later_is_used_then(path: Path) -> None:
    async with create_storage("sqlite", path=path / "app.db") as storage:
        with pytest.raises(BackendUnavailable):
            await storage.set_item("key", 1)
        path.mkdir()
        await storage.set_item("key", 1)
        assert await storage.get_item("key") == 1


# Damage


@pytest.mark.parametrize(
    ("damage", "kind"), [("garbage", BackendError), ("half", CorruptValueError), ("beginning", CorruptValueError)]
)
@in_loop
async def test_a_file_that_is_no_database_or_damaged_is_said_and_left_as_it_was(
    tmp_path: Path, damage: str, kind: type[KVStoreError]
) -> None:
    """Another program's file is no value that is corrupt, which a program may mend by overwriting it."""
    async with opened(tmp_path) as storage:
        await storage.set_items({f"key:{number:04}": "x" * 500 for number in range(100)})
    whole = (tmp_path / "app.db").read_bytes()
    kept = {"garbage": b"anything but a database " * 400, "half": whole[: len(whole) // 2], "beginning": whole[:300]}
    (tmp_path / "app.db").write_bytes(kept[damage])
    async with opened(tmp_path) as storage:
        for call in (storage.get_item("key:0099"), storage.set_item("key:0099", 1), storage.get_keys()):
            with pytest.raises(kind, match=r"no SQLite database|damaged") as caught:
                await call
            assert caught.value.driver == "sqlite"
    assert (tmp_path / "app.db").read_bytes() == kept[damage]


@in_loop
async def test_E1_a_file_that_cannot_be_opened_is_said_with_what_is_in_the_way(tmp_path: Path) -> None:
    for path, read_only, obstacle in (
        (tmp_path, False, "it is a directory"),
        (tmp_path / "none" / "app.db", False, f"there is no directory {tmp_path / 'none'}"),
        (tmp_path / "app.db", True, "it is not there, and a read-only mount makes none"),
    ):
        async with create_storage("sqlite", path=path, read_only=read_only) as storage:
            with pytest.raises(BackendUnavailable, match=obstacle) as caught:
                await storage.get_item("key")
            assert not caught.value.maybe_written


@in_directory
async def test_pages_that_were_overwritten_raise_and_are_never_taken_for_nothing(path: Path) -> None:
    async with opened(path) as storage:
        await storage.set_items({f"key:{number:04}": "x" * 500 for number in range(2000)})
    data = bytearray((path / "app.db").read_bytes())
    data[8192:] = b"\xaa" * (len(data) - 8192)
    (path / "app.db").write_bytes(data)
    async with opened(path) as storage:
        for call in (storage.get_item("key:1000"), storage.get_keys(), storage.get_items(["key:1000", "key:1001"])):
            with pytest.raises(CorruptValueError, match="damaged") as caught:
                await call
            assert caught.value.driver == "sqlite"
    assert (path / "app.db").read_bytes()[8192:] == data[8192:]


@in_directory
async def test_a_row_that_somebody_broke_raises_by_its_key_and_is_left(path: Path) -> None:
    async with opened(path) as storage:
        await storage.set_items({"json": 1, "text": 2, "number": 3, "good": 4})
        with closing(sqlite3.connect(path / "app.db")) as connection:
            connection.execute("UPDATE kvstore SET value = x'7b' WHERE key = 'json'")
            connection.execute("UPDATE kvstore SET value = 'ä' WHERE key = 'text'")
            connection.execute("UPDATE kvstore SET value = 17 WHERE key = 'number'")
            connection.execute("UPDATE kvstore SET expires_at = 'soon' WHERE key = 'good'")
            connection.commit()
        for key in ("json", "text"):
            with pytest.raises(CorruptValueError) as caught:
                await storage.get_item(key)
            assert (caught.value.key, caught.value.driver) == (key, "sqlite")
        assert await storage.get_item_raw("text") == "ä".encode()
        assert await storage.get_item_raw("number") == b"17"  # as it reads in the shell
        assert await storage.get_item("good") == 4
        with pytest.raises(CorruptValueError) as caught:
            await storage.get_meta("good")
        assert (caught.value.key, caught.value.driver) == ("good", "sqlite")
        assert await storage.get_mount("good").driver.sweep() is None
    assert dict(rows(path))["json"] == b"{"


# The schema


@in_directory
async def test_the_file_reads_well_in_any_sqlite_tool(path: Path) -> None:
    async with opened(path) as storage:
        await storage.set_items({"a:b": {"x": 1}, "a": "text"})
    assert rows(path) == [("a", b'"text"'), ("a:b", b'{"x":1}')]
    assert rows(path, "SELECT * FROM kvstore_schema") == [("kvstore", SCHEMA_VERSION)]
    assert rows(path, "SELECT json_extract(CAST(value AS TEXT), '$.x') FROM kvstore WHERE key = 'a:b'") == [(1,)]


@in_directory
async def test_a_newer_schema_is_refused_and_left(path: Path) -> None:
    async with opened(path) as storage:
        await storage.set_item("key", 1)
    with closing(sqlite3.connect(path / "app.db")) as connection:
        connection.execute("UPDATE kvstore_schema SET version = 99")
        connection.commit()
    async with opened(path) as storage:
        for call in (storage.get_item("key"), storage.set_item("key", 2)):
            with pytest.raises(BackendError, match="schema version 99, written by a newer kvstore"):
                await call
    assert rows(path) == [("key", b"1")]


@in_directory
async def test_another_programs_table_of_that_name_is_refused_and_its_others_are_left(path: Path) -> None:
    with closing(sqlite3.connect(_made(path) / "app.db")) as connection:
        connection.execute("CREATE TABLE KVStore (expires_at)")
        connection.execute("INSERT INTO kvstore VALUES ('kept')")
        connection.commit()
    before = (path / "app.db").read_bytes()
    async with opened(path) as storage:
        with pytest.raises(BackendError, match="another program's; choose another `table`"):
            await storage.set_item("key", 1)
    assert (path / "app.db").read_bytes() == before
    async with opened(path, table="ours") as storage:
        await storage.set_item("key", 1)
        assert await storage.clear() == 1
    assert rows(path, "SELECT * FROM kvstore") == [("kept",)]


@in_directory
async def test_a_file_whose_texts_have_another_order_is_refused_and_left(path: Path) -> None:
    with closing(sqlite3.connect(_made(path) / "app.db")) as connection:
        connection.execute("PRAGMA encoding = 'UTF-16'")
        connection.execute("CREATE TABLE other (theirs)")
    before = (path / "app.db").read_bytes()
    async with opened(path) as storage:
        with pytest.raises(BackendError, match="another encoding than UTF-8"):
            await storage.set_item("key", 1)
    assert (path / "app.db").read_bytes() == before


@in_directory
async def test_a_table_that_somebody_dropped_is_made_anew(path: Path) -> None:
    await _with_one_key(path)
    with closing(sqlite3.connect(path / "app.db")) as connection:
        connection.execute("DROP TABLE kvstore")
    await _with_one_key(path)
    assert rows(path) == [("key", b"1")]


@in_directory
async def test_a_table_may_have_a_name_that_sql_has_too(path: Path) -> None:
    async with opened(path, table="Order", synchronous="normal") as storage:
        await storage.set_item_raw("key", bytes(3 * 2**20))
        await storage.set_item("other", 1, ttl=60)
        assert await storage.get_item_raw("key") == bytes(3 * 2**20)
        assert await storage.get_keys() == ["key", "other"]
        assert await storage.touch("other", 1)
        assert await storage.clear() == 2


@in_directory
async def test_tables_in_one_file_are_stores_of_their_own(path: Path) -> None:
    async with opened(path) as storage:
        storage.mount("other", "sqlite", path=path / "app.db", table="other")
        await storage.set_items({"key": 1, "other:key": 2})
        assert await storage.clear("other") == 1
        assert await storage.get_keys() == ["key"]


# Options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"path": ""}, "path"),
        ({"path": "a\0b"}, "path"),
        ({"path": "x.db", "synchronous": "off"}, "'full', 'normal'"),
        ({"path": "x.db", "timeout": 0}, "positive"),
        ({"path": "x.db", "timeout": float("nan")}, "positive"),
        ({"path": "x.db", "table": 'x"; DROP TABLE y; --'}, "plain name"),
        ({"path": "x.db", "table": "sqlite_master"}, "plain name"),
        ({"path": "x.db", "table": "SQLite_x"}, "plain name"),
        ({"path": "x.db", "table": "KVStore_Schema"}, "plain name"),
        ({"path": "x.db", "table": "x\n"}, "plain name"),
        ({"path": "x.db", "table": "ä"}, "plain name"),
        ({"path": "x.db", "tabel": "x"}, "did you mean 'table'"),
        ({}, "path"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        create_storage("sqlite", **options)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite://host/x.db", "sqlite:///relative.db"),
        ("sqlite://", "sqlite:///relative.db"),
        ("sqlite:///x.db#y", "sqlite:///relative.db"),
        ("sqlite:///x.db?synchronous=never", "synchronous"),
        ("sqlite:///x.db?table=a%22b", "table"),
        ("sqlite:///x.db?tmeout=1", "'tmeout'.* did you mean 'timeout'"),
        ("sqlite:///x.db?timeout=y", "timeout"),
        ("sqlite:///x%00.db", "path"),
    ],
)
def test_a_wrong_url_is_refused_by_what_is_wrong(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        create_storage(url)


def test_a_relative_path_is_below_the_directory_in_which_it_was_named_and_no_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(_made(tmp_path / "here"))
    storage = create_storage("sqlite", path="file:x.db?mode=memory")
    monkeypatch.chdir(tmp_path)

    async def main() -> None:
        async with storage:
            await storage.set_item("key", 1)

    asyncio.run(main())
    assert [file.name for file in (tmp_path / "here").iterdir()] == ["file:x.db?mode=memory"]


@in_directory
async def test_a_url_names_file_and_options(path: Path) -> None:
    path.mkdir()
    async with create_storage(f"sqlite:///{path}/with%20space.db?synchronous=normal&timeout=1.5&table=t") as storage:
        await storage.set_item("key", 1)
    assert (path / "with space.db").is_file()
    async with create_storage("sqlite:///:memory:") as storage:
        await storage.set_item("key", 1)
        assert await storage.get_keys() == ["key"]
        assert not storage.get_mount("key").capabilities.persistent


# Space and speed


@in_directory
async def test_T2_expired_rows_leave_the_file_without_the_users_doing(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvstore.sweeper.INTERVAL", 0.05)
        async with opened(path) as storage:
            await storage.set_items({f"gone:{number}": 1 for number in range(1500)}, ttl=0.01)
            await storage.set_item("kept", 1, ttl=3600)
            async with asyncio.timeout(10):
                while len(rows(path)) > 1:
                    await asyncio.sleep(0.05)
            assert await storage.get_keys() == ["kept"]


@in_directory
async def test_T2_what_expired_while_nobody_was_there_leaves_soon_after_the_file_is_opened(path: Path) -> None:
    driver = SqliteDriver(_made(path) / "app.db")
    driver.clock = FakeClock(1_000_000)
    async with create_storage(driver) as storage:
        await storage.set_items({f"gone:{number}": 1 for number in range(10)}, ttl=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvstore.sweeper.INTERVAL", 0.05)
        async with opened(path) as storage:
            assert await storage.get_keys() == []
            async with asyncio.timeout(10):
                while rows(path):
                    await asyncio.sleep(0.05)


@in_directory
async def test_a_thousand_writes_at_once_share_a_few_commits(path: Path) -> None:
    async with opened(path) as storage:
        await storage.set_item("first", 1)
        driver = storage.get_mount("first").driver
        assert isinstance(driver, SqliteDriver)
        commits: list[str] = []
        assert driver._file._writer is not None
        driver._file._writer.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
        await asyncio.gather(*(storage.set_item(f"key:{number}", number) for number in range(1000)))
        assert len(commits) <= 4
        driver._file._writer.set_trace_callback(None)


@MODES
@in_loop
async def test_the_log_does_not_grow_without_end(tmp_path: Path, synchronous: str) -> None:
    async with opened(tmp_path, synchronous=synchronous) as storage, opened(tmp_path) as other:
        largest = 0

        async def read(storage: Storage) -> None:
            while True:
                await storage.get_items([f"key:{key}" for key in range(20)])
                await asyncio.sleep(0)

        reading = [asyncio.create_task(read(storage)), asyncio.create_task(read(other))]
        for _ in range(60):
            await asyncio.gather(*(storage.set_item_raw(f"key:{key}", os.urandom(20_000)) for key in range(20)))
            for key in range(5):
                await storage.set_item_raw(f"one:{key}", os.urandom(20_000))
            largest = max(largest, (tmp_path / "app.db-wal").stat().st_size)
        for task in reading:
            task.cancel()
        assert largest < 16 * 2**20, f"30 MB were written, and the log has {largest:,} bytes"


@in_loop
async def test_the_log_does_not_grow_where_all_is_written_in_the_event_loop(tmp_path: Path) -> None:
    async with opened(tmp_path, synchronous="normal") as storage:
        for number in range(2_000):
            await storage.set_item_raw(f"key:{number % 20}", os.urandom(10_000))
        assert (tmp_path / "app.db-wal").stat().st_size < 16 * 2**20


@in_directory
async def test_a_large_value_is_written_and_read_whole(path: Path) -> None:
    data = os.urandom(30 * 2**20)
    async with opened(path) as storage:

        async def there_and_back() -> None:
            await storage.set_item_raw("large", data)
            assert await storage.get_item_raw("large") == data

        await leaves_the_loop_free(there_and_back)


@in_directory
async def test_L2_conditions_on_large_values_leave_the_event_loop_free(path: Path) -> None:
    async with opened(path, synchronous="normal") as storage:
        data = os.urandom(30 * 2**20)
        another = data[:-1] + bytes([data[-1] ^ 1])
        await storage.set_item_raw("large", data)
        driver = storage.get_mount("large").driver

        async def fail_and_hold() -> None:
            assert await driver.write([("key", b"1", None)], {"large": b"small"}) is None
            assert await driver.write([("key", b"1", None)], {"large": None}) is None
            assert await driver.write([("key", b"1", None)], {"large": another}) is None
            assert await driver.write([("key", b"1", None)], {"large": data}) is not None

        await leaves_the_loop_free(fail_and_hold)


@in_directory
async def test_L2_a_listing_does_not_pass_a_crowd_of_expired_rows_in_the_event_loop(path: Path) -> None:
    async with opened(path) as storage:
        await storage.set_item("a:last", 1)
        with closing(sqlite3.connect(path / "app.db")) as connection:
            connection.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
                " INSERT INTO kvstore (key, expires_at, mtime, value) SELECT 'a:' || i, 1, 1, '1' FROM n"
            )
            connection.commit()
        driver = storage.get_mount("a").driver
        assert isinstance(driver, SqliteDriver)
        assert driver._inline is not None
        steps: list[int] = []
        driver._inline.set_progress_handler(lambda: steps.append(1000), 1000)
        assert await storage.get_keys("a") == ["a:last"]
        assert await storage.get_keys("a", limit=1) == ["a:last"]
        assert await storage.get_keys("a", limit=1, reverse=True) == ["a:last"]
        assert sum(steps) < 20_000


@in_directory
async def test_L2_the_first_commit_of_a_log_which_waits_for_the_disk_is_not_the_event_loops(path: Path) -> None:
    await _with_one_key(path)
    async with opened(path, synchronous="normal") as storage:
        assert await storage.get_item("key") == 1
        assert (path / "app.db-wal").stat().st_size > 0


@in_directory
async def test_the_etag_differs_when_a_key_is_removed_and_written_within_a_millisecond(path: Path) -> None:
    async with opened(path) as storage:
        etags = set()
        with mock.patch("time.time_ns", return_value=10**18):
            for _ in range(5):
                await storage.remove_item("key")
                await storage.set_item("key", 1)
                meta = await storage.get_meta("key")
                assert meta is not None
                etags.add(meta.etag)
        assert len(etags) == 5


# Event loops and threads


def test_L1_an_event_loop_that_was_abandoned_is_followed_by_another(tmp_path: Path) -> None:
    storage = opened(tmp_path)
    for number in range(3):
        loop = asyncio.new_event_loop()
        task = loop.create_task(storage.set_item(f"key:{number}", number))
        while not task.done():
            loop.run_until_complete(asyncio.sleep(0.001))
        left = loop.create_task(storage.set_item("left", number))
        loop.run_until_complete(asyncio.sleep(0))  # begun, and never waited for
        left.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    async def look() -> None:
        async with storage:
            assert await storage.get_keys("key") == ["key:0", "key:1", "key:2"]

    asyncio.run(look())


def test_A2_threads_with_storages_of_their_own_count_exactly(tmp_path: Path) -> None:
    async def count() -> None:
        async with opened(tmp_path) as storage:
            for _ in range(50):
                await storage.update_item("count", lambda value: value + 1, default=0)

    in_threads(*(count() for _ in range(4)))
    assert rows(tmp_path) == [("count", b"200")]


@in_directory
async def test_a_closed_storage_leaves_one_file_and_no_thread(path: Path) -> None:
    before = threading.active_count()
    async with opened(path) as storage:
        await storage.set_item("key", 1)
        await storage.get_items(["key", "other"])
    assert sorted(file.name for file in path.iterdir()) == ["app.db"]
    async with asyncio.timeout(5):
        while threading.active_count() > before:
            await asyncio.sleep(0.01)


@in_directory
async def test_E1_no_error_is_swallowed_where_the_file_is_taken_away_while_it_is_open(path: Path) -> None:
    async with opened(path) as storage:
        await storage.set_item("key", 1)
        for file in path.iterdir():
            file.unlink()
        try:
            await storage.set_item("key", 2)
        except KVStoreError:
            pass
        else:
            assert await storage.get_item("key") == 2


@in_directory
async def test_L2_to_remove_or_overwrite_large_values_leaves_the_event_loop_free(path: Path) -> None:
    async with opened(path, synchronous="normal") as storage:

        async def free() -> None:
            await storage.remove_item("a")
            await storage.set_item("b", 1)
            await storage.remove_items(["c", "d"])
            assert await storage.compare_and_set("e", MISSING, 1) is False

        async def fill_and_free() -> None:
            for key in "abcde":
                await storage.set_item_raw(key, bytes(30_000_000))
            await storage.set_item("small", 1)
            pauses.append(await longest_pause(free()))

        pauses: list[float] = []
        for _ in range(3):  # the machine may hold it up too, but not every time
            await fill_and_free()
            if pauses[-1] < 0.03:
                break
        assert min(pauses) < 0.03, pauses
        assert await storage.get_keys() == ["b", "e", "small"]
        assert await storage.get_item("b") == 1


@in_directory
async def test_R3_R4_what_lies_under_the_reserved_segment_at_the_root_is_neither_listed_counted_nor_cleared(path: Path) -> None:
    path.mkdir()
    async with create_storage().mount("c", "sqlite", path=path / "app.db") as storage:
        await storage.set_items({f"c:{key}": 1 for key in ("$", "$meta", "$meta!", "$meta:a", "$meta:b:c", "$metal", "a")})
    async with opened(path) as storage:
        assert await storage.get_keys() == ["$", "$meta!", "$metal", "a"]
        assert await storage.count() == await storage.clear() == 4
    async with create_storage().mount("c", "sqlite", path=path / "app.db") as storage:
        assert await storage.get_keys() == ["c:$meta", "c:$meta:a", "c:$meta:b:c"]
        assert await storage.clear("c") == 3


@in_directory
async def test_R4_a_row_that_is_no_key_is_neither_listed_counted_nor_cleared(path: Path) -> None:
    async with opened(path) as storage:
        await storage.set_items({"a": 1, "b": 2})
        with closing(sqlite3.connect(path / "app.db", isolation_level=None)) as other:
            other.execute("INSERT INTO kvstore (key, value, mtime) VALUES (x'61', x'31', 0)")
            assert await storage.get_keys() == ["a", "b"]
            assert await storage.count() == await storage.clear() == 2
            assert other.execute("SELECT key FROM kvstore").fetchall() == [(b"a",)]


@in_directory
async def test_T2_what_has_expired_is_neither_listed_nor_counted_before_it_is_swept(path: Path) -> None:
    path.mkdir()
    driver = SqliteDriver(path=path / "app.db")
    driver.clock = clock = FakeClock()
    keys = [f"{number:03}" for number in range(400)]
    async with create_storage(driver) as storage:
        for some, ttl in ((keys[::3], 1), (keys[1::3], 2), (keys[2::3], None)):
            await storage.set_items(dict.fromkeys(some, 1), ttl)
        for left in (keys, sorted(keys[1::3] + keys[2::3]), keys[2::3]):
            with mock.patch.object(driver, "sweep", return_value=None):
                assert await storage.get_keys() == left
                assert await storage.get_keys(limit=5, reverse=True) == left[:-6:-1]
                assert await storage.get_keys(after=left[7], limit=3) == left[8:11]
                assert await storage.count() == len(left)
            clock.advance(1)
        assert await storage.clear() == len(keys[2::3])
