"""What other processes do with the store under test. They find it by the suite's class and the path, both pickled."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kvstore.storage import Storage, create_storage
from kvstore.testing.store import Contract

# Forks of a server without threads or event loops, so that each process need not import the kit anew.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])
_DEADLINE = 60.0


@dataclass(frozen=True)
class Job:
    """What one process has to know."""

    suite: type[Contract]
    path: Path
    name: str
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    """Of the tests: the server that forks has that of its own start."""

    def open(self) -> Storage:
        os.environ.update(self.environment)
        return create_storage(self.suite().make_driver(self.path))


def run_processes(jobs: Sequence[Job]) -> list[list[str]]:
    """Each counts `counter` up 30 times and claims keys, all at the same time. Returns the keys that each got."""
    ends = []
    processes = []
    for job in jobs:
        here, there = _PROCESSES.Pipe()
        processes.append(_PROCESSES.Process(target=_count_and_claim, args=(job, there)))
        processes[-1].start()
        there.close()
        ends.append(here)
    try:
        for end in ends:
            _receive(end)
        for end in ends:
            end.send("go")
        return [_receive(end) for end in ends]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _receive(end: Connection[Any, Any]) -> Any:
    assert end.poll(_DEADLINE), "the process does not answer"
    return end.recv()


def _count_and_claim(job: Job, end: Connection[Any, Any]) -> None:
    async def run() -> None:
        async with job.open() as storage:
            await storage.has_item("connect")
            end.send("ready")
            end.recv()  # the others are ready too
            end.send(await _counted_and_claimed(storage, job.name))

    asyncio.run(run())


async def _counted_and_claimed(storage: Storage, name: str) -> list[str]:
    won = []
    for number in range(20):
        if await storage.add_item(f"claim:{number:02}", name):
            won.append(f"claim:{number:02}")
        await storage.update_item("counter", lambda value: value + 1, 0)
    await asyncio.gather(*(storage.update_item("counter", lambda value: value + 1, 0) for _ in range(10)))
    return won


@contextmanager
def killed_after(job: Job, acknowledged: int) -> Iterator[list[int]]:
    """A process that writes batch after batch is killed in the midst of it. The numbers of those that were acknowledged."""
    here, there = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_write_batches, args=(job, there))
    process.start()
    there.close()
    numbers: list[int] = []
    try:
        while len(numbers) < acknowledged and here.poll(_DEADLINE):
            numbers.append(here.recv())
        process.kill()
        try:
            while True:
                numbers.append(here.recv())
        except EOFError:
            pass
        process.join()
        yield numbers
    finally:
        process.kill()
        process.join()
        here.close()


def _write_batches(job: Job, acknowledge: Connection[Any, Any]) -> None:
    async def write() -> None:
        storage = job.open()
        number = 0
        while True:
            await storage.set_items({f"{part}:{number:06}": [number] * 500 for part in "abc"})
            await storage.set_item("newest", ["x" * 50_000, number])
            acknowledge.send(number)
            number += 1

    asyncio.run(write())
