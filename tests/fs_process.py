"""A process of its own for the tests of the file driver: `fs_process.py JOB PATH`."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys

from kvstore import create_storage
from kvstore.drivers.fs import FsDriver


def lock(path: str) -> None:
    """Holds the directory locked until it is told a line."""
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.readline()


def writers(path: str) -> None:
    """Told `start NAME`, forks a process that writes; told `kill NAME`, kills it, and says `dead NAME` when it is."""
    processes = {}
    for line in sys.stdin:
        order, name = line.split()
        if order == "start":
            processes[name] = os.fork()
            if not processes[name]:
                try:
                    asyncio.run(write(path, name))
                except BrokenPipeError:  # the test is over
                    os._exit(1)
        else:
            os.kill(processes[name], signal.SIGKILL)
            os.waitpid(processes[name], 0)
            os.write(1, f"dead {name}\n".encode())


def fork(path: str) -> None:
    """Four children and their parent count with the storage that was used before the fork."""
    storage = create_storage(FsDriver(path))

    async def count() -> None:
        for _ in range(100):
            await storage.update_item("counter", lambda count: count + 1)

    asyncio.run(storage.set_item("counter", 0))
    parent = os.getpid()
    children = [os.fork() for _ in range(4) if os.getpid() == parent]
    asyncio.run(count())
    if 0 in children:
        os._exit(0)
    ends = [os.waitpid(child, 0)[1] for child in children]
    assert not any(ends)


async def write(path: str, name: str) -> None:
    """Writes for ever, and says which numbers are written."""
    storage = create_storage(FsDriver(path))
    number = 0
    while True:
        await asyncio.gather(
            storage.set_item(f"{name}:{number:06}", [number] * 200),
            storage.set_item(f"{name}:newest", [number] * 3000, ttl=3600),
            storage.update_item("counter", lambda count: count + 1, 0),
        )
        os.write(1, f"{name} {number}\n".encode())  # in one piece, beside the others
        number += 1


async def serve(path: str) -> None:
    """Sets or removes the key of each line that it is told: `+key` or `-key`."""
    async with create_storage(FsDriver(path)) as storage:
        print("ready", flush=True)
        for line in sys.stdin:
            key = line[1:].strip()
            await (storage.set_item(key, 1) if line[0] == "+" else storage.remove_item(key))
            print("done", flush=True)


if __name__ == "__main__":
    job, path = sys.argv[1:]
    if job == "serve":
        asyncio.run(serve(path))
    else:
        {"lock": lock, "writers": writers, "fork": fork}[job](path)
