"""Directories that are kept open, each known to lie below the base, so that a small file is read by the fewest calls."""

from __future__ import annotations

import os
import stat
from collections import OrderedDict

from kvstore.driver import NOT_NOW, NotNow
from kvstore.drivers._fs.base import FOLDER, Base
from kvstore.errors import KVStoreError

SMALL = 65_536
"""Bytes of a file that is read at once."""

_KEPT = 64
# Not blocking: a pipe that somebody put here would wait for its other end.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW


class Folders:
    """Used by one thread at a time."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._open: OrderedDict[str, tuple[int, int, int]] = OrderedDict()

    def read(self, folder: str, name: str) -> bytes | NotNow | None:
        """The whole of a small file, None where there is none. `NOT_NOW`: it is something else, for others to look into."""
        try:
            descriptor = os.open(name, _READ, dir_fd=self._descriptor(folder))
        except FileNotFoundError:
            return None
        except (OSError, KVStoreError):
            return NOT_NOW
        try:
            about = os.fstat(descriptor)
            is_small = stat.S_ISREG(about.st_mode) and about.st_size <= SMALL
            return os.read(descriptor, about.st_size) if is_small else NOT_NOW
        except OSError:
            return NOT_NOW
        finally:
            os.close(descriptor)

    def _descriptor(self, folder: str) -> int:
        # Once it is open, what lies in it is read without following a link. That its path still leads there is asked each
        # time: 1 µs, where looking up the path of what was opened takes 4.
        about = os.stat(folder)
        known = self._open.get(folder)
        if known is not None and known[1] == about.st_ino and known[2] == about.st_dev:
            return known[0]
        if known is not None:
            os.close(self._open.pop(folder)[0])
        descriptor = os.open(folder, FOLDER)
        try:
            self._base.check_inside(descriptor, folder)
            about = os.fstat(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._open[folder] = (descriptor, about.st_ino, about.st_dev)
        if len(self._open) > _KEPT:
            os.close(self._open.popitem(last=False)[1][0])
        return descriptor

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1][0])
