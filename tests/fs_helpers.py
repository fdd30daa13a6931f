"""Directories of the file driver: made, filled by other programs, looked at, and locked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from outside import files, process, said, tell

from kvstore import Storage, create_storage
from kvstore.drivers.fs import FsDriver


def tree(path: Path, **options: Any) -> Storage:
    return create_storage(FsDriver(path, **options))


def plain(path: Path, **options: Any) -> Storage:
    return create_storage(FsDriver(path, layout="plain", **options))


def fill(path: Path, contents: dict[str, bytes]) -> None:
    """Puts files there as any other program would."""
    for name, data in contents.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def found(path: Path) -> dict[str, bytes]:
    """The files below `path` that are not the driver's own."""
    inside = {file.relative_to(path): file for file in files(path) if file.is_file()}
    return {str(name): file.read_bytes() for name, file in inside.items() if ".kvstore" not in name.parts}


def private(path: Path, folder: str) -> list[Path]:
    """The files in one of the driver's own directories."""
    return files(path / ".kvstore" / folder)


@contextmanager
def locked(path: Path) -> Iterator[Callable[[], None]]:
    """Another process holds the directory locked until it is called what is given here."""
    with process("fs_process.py", "lock", path) as holder:
        assert said(holder) == "locked"
        yield lambda: tell(holder, "release")
