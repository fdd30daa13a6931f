"""A process of its own for the tests of the SQLite driver: `sqlite_process.py JOB PATH [ARGUMENT]`."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys

from kvstore import create_storage


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


async def create(path: str, name: str) -> None:
    """Waits for a line, and is one of those who create the file."""
    sys.stdin.readline()
    async with create_storage("sqlite", path=path) as storage:
        await storage.set_item(name, 1)
    print("done", flush=True)


def forget(path: str, synchronous: str) -> None:
    """Writes, never closes, and ends."""

    async def main() -> None:
        storage = create_storage("sqlite", path=path, synchronous=synchronous)
        await asyncio.gather(*(storage.set_item(f"key:{number}", number) for number in range(200)))
        globals()["kept"] = storage

    asyncio.run(main())


if __name__ == "__main__":
    job, path, *rest = sys.argv[1:]
    if job in ("write", "create"):
        asyncio.run({"write": write, "create": create}[job](path, *rest))
    else:
        {"lock": lock, "forget": forget}[job](path, *rest)
