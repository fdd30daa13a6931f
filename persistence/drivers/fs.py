"""Files: one a key, in a readable tree."""

from __future__ import annotations

import os

from kvstore.drivers.fs import FsDriver
from persistence.places import PLACES


def fs_driver(*, path: str | os.PathLike[str] = PLACES["fs"].value, fsync: bool = False, timeout: float = 30.0) -> FsDriver:
    """A driver for `create_persistence`; the options are those of `kvstore.drivers.fs.FsDriver`."""
    return FsDriver(path, fsync=fsync, timeout=timeout)
