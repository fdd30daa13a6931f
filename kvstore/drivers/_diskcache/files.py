"""The files of large values. Of what another program put there, only bytes and text are read, never a pickle."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kvstore.drivers._diskcache.table import BINARY, RAW, TEXT
from kvstore.errors import BackendError, CorruptValueError

_NAME = re.compile(r"[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{28}\.val")
"""What diskcache names its files. What is named otherwise somebody else put there."""
_PIECE = 2**20


def load(folder: str, key: str, mode: int, filename: str | None, value: object, size: int | None) -> bytes:
    """The bytes of a value; text as UTF-8. Raises `CorruptValueError` for all else, `FileNotFoundError` if the file is gone."""
    if mode == RAW and isinstance(value, bytes | str):
        return value.encode() if isinstance(value, str) else value
    if mode not in (BINARY, TEXT):
        raise CorruptValueError("another program keeps a pickle or a number under this key; it is not loaded", key=key)
    if not isinstance(filename, str) or not _NAME.fullmatch(filename):
        raise CorruptValueError("the file of this value is not one that diskcache made; it is not read", key=key)
    with _of_one(key, folder), open(os.path.join(folder, filename), "rb") as file:
        data = file.read()
    if size is not None and len(data) != size:
        raise CorruptValueError(f"the file of this value has {len(data):,} bytes of {size:,}", key=key)
    return data


def store(disk: Any, folder: str, key: str, data: bytes, stored: list[str]) -> str:
    """The name of a new file with `data`."""
    name, path = disk.filename()
    stored.append(name)  # first, for a part of it may be there if it fails
    view = memoryview(data)
    with _of_one(key, folder):
        disk._write(path, (view[start : start + _PIECE] for start in range(0, len(data), _PIECE)), "xb")
    return str(name)


def remove(disk: Any, names: Sequence[str]) -> None:
    for name in names:
        if _NAME.fullmatch(name):
            disk.remove(name)


@contextmanager
def _of_one(key: str, folder: str) -> Iterator[None]:
    """What goes wrong inside with the file of a value is this value's alone."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = f"the disk of {folder} is full" if full else f"{error.filename or folder}: {error.strerror}"
        raise BackendError(what, key=key, maybe_written=False if full else None) from error
