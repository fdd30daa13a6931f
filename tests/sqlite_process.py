"""A process of its own for the tests of the SQLite driver: `sqlite_process.py JOB PATH [ARGUMENT]`."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import closing

from kvstore import KVStoreError, create_storage

PARENT = os.getpid()


def lock(path: str) -> None:
    """Holds the file locked until it is told a line."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    print("locked", flush=True)
    sys.stdin.readline()
    connection.execute("COMMIT")
    connection.close()
    print("released", flush=True)


async def write(path: str, name: str) -> None:
    """Writes for ever, and says which numbers are written."""
    storage = create_storage("sqlite", path=path)
    number = 0
    while True:
        await asyncio.gather(
            storage.set_item(f"{name}:{number:06}", [number] * 100),
            storage.commit({f"{name}:left": number, f"{name}:right": number}),
            storage.update_item("counter", lambda count: count + 1, 0),
        )
        os.write(1, f"{number}\n".encode())
        number += 1


def forget(path: str, synchronous: str) -> None:
    """Writes, never closes, and ends."""

    async def main() -> None:
        storage = create_storage("sqlite", path=path, synchronous=synchronous)
        await asyncio.gather(*(storage.set_item(f"key:{number}", number) for number in range(200)))
        globals()["kept"] = storage

    asyncio.run(main())


def kill_creators(path: str, rounds: str) -> None:
    """Four processes create a file at once, and none to three of them are killed meanwhile."""
    for number in range(int(rounds)):
        file = f"{path}{number}"
        creators = [os.fork() for _ in range(4) if os.getpid() == PARENT]
        if 0 in creators:
            asyncio.run(create(file, f"p{len(creators)}"))
            os._exit(0)
        killed = number % 4
        time.sleep(0.001 * (number % 32))
        for creator in creators[:killed]:
            os.kill(creator, signal.SIGKILL)
        assert not any([os.waitpid(creator, 0)[1] for creator in creators][killed:])
        with closing(sqlite3.connect(file)) as connection:
            created = {key for (key,) in connection.execute("SELECT key FROM kvstore")}
            assert created >= {f"p{place}" for place in range(killed + 1, 5)}
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def create(path: str, name: str) -> None:
    async with create_storage("sqlite", path=path) as storage:
        await storage.set_item(name, 1)


def fork(path: str) -> None:
    """Goes on in the parent and in the child, with what was opened before."""
    storage = create_storage("sqlite", path=path)
    asyncio.run(storage.set_item("before", 1))

    async def use_and_close() -> None:
        try:
            await storage.set_item("child", 1)
        except KVStoreError as error:
            print(f"child: {type(error).__name__}")
        await storage.aclose()
        print("child: closed", flush=True)

    child = os.fork()
    if child == 0:
        asyncio.run(use_and_close())
        os._exit(0)
    os.waitpid(child, 0)

    async def go_on() -> None:
        async with storage:
            await storage.set_item("after", 2)
            print(f"parent: {await storage.get_item('before')}")

    asyncio.run(go_on())


async def only_read(path: str) -> None:
    """Says what each call gives to a process that may not write to the file."""
    # No capabilities (capset(2), version 3), for root may write to every file.
    assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
    async with create_storage("sqlite", path=path) as storage:
        print(await storage.get_item("key"))
        print(await storage.get_keys())
        for call in (storage.set_item("key", 2), storage.remove_item("key"), storage.clear(), storage.touch("key", 1)):
            try:
                print("written", await call)
            except KVStoreError as error:
                print(error)
        print(await storage.get_mount("key").driver.sweep())


if __name__ == "__main__":
    job, path, *rest = sys.argv[1:]
    jobs: dict[str, Callable[..., Coroutine[None, None, None] | None]] = {
        call.__name__: call for call in (lock, write, forget, kill_creators, fork, only_read)
    }
    begun = jobs[job](path, *rest)
    if begun is not None:
        asyncio.run(begun)
