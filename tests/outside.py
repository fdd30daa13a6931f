"""What tests need of the world outside: a directory, other processes, small and broken disks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
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
