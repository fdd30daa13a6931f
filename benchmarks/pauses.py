"""How long the event loop stands still at most, with 1,000 tasks on each driver and with a locked SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Figure, loop_gaps, record
from kvstore import Storage, create_storage

TASKS = 1_000
LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(1.5)
connection.execute("COMMIT")
"""


async def figures(*, quick: bool) -> list[Figure]:
    rounds = 3 if quick else 9
    found = []
    with TemporaryDirectory(dir=".") as folder:
        drivers: dict[str, dict[str, Any]] = {
            "memory": {},
            "fs": {"path": Path(folder, "files")},
            "sqlite": {"path": Path(folder, "full.db")},
            "sqlite normal": {"path": Path(folder, "normal.db"), "synchronous": "normal"},
        }
        for name, options in drivers.items():
            async with create_storage(name.split()[0], **options) as storage:
                await storage.set_item("first", 1)
                pause, idle = await longest(rounds, lambda storage=storage: crowd(storage))  # type: ignore[misc]
                found.append(
                    Figure(f"{name}: longest pause with 1,000 tasks", pause, 30, "ms", detail=f"bare loop {idle:.1f} ms")
                )
                if "sqlite" in name:
                    pause, idle = await longest(
                        max(1, rounds // 3),
                        lambda storage=storage, options=options: locked(storage, options["path"]),  # type: ignore[misc]
                    )
                    what = f"{name}: longest pause with the file locked for 1.5 s"
                    found.append(Figure(what, pause, 30, "ms", detail=f"bare loop {idle:.1f} ms"))
    return found


async def longest(rounds: int, work: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """The longest pause while `work` runs, and in a crowd of tasks that does no work: medians of rounds."""
    pauses, idle = [], []
    for _ in range(rounds):
        with loop_gaps() as gaps:
            await asyncio.gather(*(asyncio.sleep(0.001) for _ in range(TASKS)))
        idle.append(max(gaps))
        with loop_gaps() as gaps:
            await work()
        pauses.append(max(gaps))
    return median(pauses), median(idle)


async def crowd(storage: Storage) -> None:
    async def one(task: int) -> None:
        for call in range(5):
            await storage.set_item(f"t{task}:{call}", record(task * 5 + call))
            await storage.get_item(f"t{task}:{call}")

    await asyncio.gather(*map(one, range(TASKS)))


async def locked(storage: Storage, path: Path) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", LOCK, path, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()
    await crowd(storage)
    if await process.wait():
        raise sqlite3.OperationalError("the file was not locked")
