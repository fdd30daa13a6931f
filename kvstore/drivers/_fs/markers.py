"""When which key of the file driver expires, so that neither a sweep nor a listing opens every file.

A marker is a small file that holds the key, `.kvstore/expiry/<minute>/<milliseconds>-<hash of the key>`. It is made before the
value and removed after it, so that each value that expires has one; one without a value says nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b

from kvstore.drivers._fs.base import Base

_MINUTE = 60_000
_NAME = re.compile(r"(-?[0-9]+)-[0-9a-f]{32}")
_NUMBER = re.compile(r"-?[0-9]+")


class Markers:
    """The markers below `base`. Times are in milliseconds since 1970. Who writes holds the lock of the base."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._folder = os.path.join(base.private, "expiry")

    def add(self, key: str, expires_at: int) -> None:
        path = self._path(key, expires_at)
        with self._base.created(path, os.O_TRUNC | os.O_NOFOLLOW) as descriptor:
            os.write(descriptor, key.encode())
        self._base.sync(os.path.dirname(path))

    def discard(self, key: str, expires_at: int) -> None:
        self.remove(self._path(key, expires_at))

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(path)
        with suppress(OSError):  # where the minute has others; each listing looks into all that are there
            os.rmdir(os.path.dirname(path))

    def due(self, now: int) -> Iterator[str]:
        """The markers whose time has come."""
        for minute in self._minutes():
            if minute * _MINUTE > now:
                return
            for name, expires_at in self._names(minute):
                if expires_at <= now:
                    yield os.path.join(self._folder, str(minute), name)

    def key(self, path: str) -> str:
        """What a marker says; empty where it is not there or was never finished."""
        try:
            with open(path, encoding="utf-8", errors="replace") as marker:
                return marker.read()
        except FileNotFoundError:
            return ""

    def upcoming(self, now: int) -> int | None:
        """When to look again, None where nothing expires. Minutes that are over are removed."""
        for minute in self._minutes():
            if minute * _MINUTE > now:
                return minute * _MINUTE
            with suppress(OSError), self._base.locked():
                os.rmdir(os.path.join(self._folder, str(minute)))
            times = [expires_at for _, expires_at in self._names(minute)]
            if times:
                return min(times)
        return None

    def _path(self, key: str, expires_at: int) -> str:
        name = f"{expires_at}-{blake2b(key.encode(), digest_size=16).hexdigest()}"
        return os.path.join(self._folder, str(expires_at // _MINUTE), name)

    def _minutes(self) -> list[int]:
        try:
            return sorted(int(name) for name in os.listdir(self._folder) if _NUMBER.fullmatch(name))
        except FileNotFoundError:
            return []

    def _names(self, minute: int) -> list[tuple[str, int]]:
        try:
            names = os.listdir(os.path.join(self._folder, str(minute)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [(name, int(said[1])) for name in names if (said := _NAME.fullmatch(name))]
