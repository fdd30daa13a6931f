"""What tests need of the world outside: a directory, other processes, small and broken disks, pauses of the event loop."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import IO, Any

import pytest

DEADLINE = 120.0
"""Seconds that no process of a test takes."""
HERE = Path(__file__).parent


def in_directory(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """Runs `test` in an event loop of its own, on a directory that is not there yet."""

    @wraps(test)
    def run(tmp_path: Path) -> None:
        asyncio.run(test(tmp_path / "store"))

    del run.__wrapped__  # pytest would look for its arguments there
    return run


def files(path: Path) -> list[Path]:
    """All files below `path`, while others write there too."""
    return sorted(Path(folder, name) for folder, _, names in os.walk(path) for name in names)


@contextmanager
def process(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs a script of this directory. It is killed in the end, or where it says nothing any more."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        deadline = threading.Timer(DEADLINE, started.kill)
        deadline.start()
        try:
            yield started
        finally:
            deadline.cancel()
            started.kill()


def said(started: subprocess.Popen[str]) -> str:
    """The next line that a process says, empty where it has ended."""
    output: IO[str] | None = started.stdout
    assert output is not None
    return output.readline().strip()


def tell(started: subprocess.Popen[str], line: str) -> None:
    """Says a line to a process."""
    assert started.stdin is not None
    started.stdin.write(line + "\n")
    started.stdin.flush()


async def longest_pause(work: Awaitable[object]) -> float:
    """How long the event loop stood still while `work` was done, in seconds.

    Without what the machine's other programs took, and the garbage collector's walk through all that tests have loaded:
    0.1 s of a processor, when a crowd of tasks happens to start it.
    """
    longest, over = 0.0, False

    async def tick() -> None:
        nonlocal longest
        while not over:
            before, waited = time.perf_counter(), _waited()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before - 0.001 - (_waited() - waited))

    gc.collect()
    gc.freeze()
    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0)
    try:
        await work
    finally:
        over = True
        await ticker
        gc.unfreeze()
    return longest


def _waited() -> float:
    """How many seconds this thread has waited for a processor, which Linux tells."""
    with suppress(OSError):
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return 0.0


async def leaves_the_loop_free(work: Callable[[], Awaitable[object]]) -> None:
    """`work` never holds the event loop for 30 ms (L2). Again if it does: the machine may, but not every time."""
    pauses = []
    for _ in range(5):
        pauses.append(await longest_pause(work()))
        if pauses[-1] < 0.03:
            return
    raise AssertionError(f"the event loop was held for {pauses} seconds")


@contextmanager
def small_disk(path: Path, size: str = "256k") -> Iterator[Callable[[str], None]]:
    """A file system of `size` at `path`. Called with options, it is mounted anew with them, such as `"ro"`."""
    path.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"mounting a tmpfs needs root: {made.stderr.strip()}")
    try:
        yield lambda options: void(subprocess.run(["mount", "-o", f"remount,{options}", path], check=True))
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def void(_: object) -> None:
    """Nothing."""


def rounds(few: int) -> int:
    """How often to repeat what only fails now and then. `KVSTORE_TEST_ROUNDS` raises it."""
    return max(few, int(os.environ.get("KVSTORE_TEST_ROUNDS", "0")))
