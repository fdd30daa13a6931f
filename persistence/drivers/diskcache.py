"""diskcache: a directory."""

from __future__ import annotations

import os

from kvstore.drivers.diskcache import DiskcacheDriver
from persistence.places import PLACES


def diskcache_driver(
    *, path: str | os.PathLike[str] = PLACES["diskcache"].value, timeout: float = 30.0, size_limit: int | None = None
) -> DiskcacheDriver:
    """A driver for `create_persistence`; the options are those of `kvstore.drivers.diskcache.DiskcacheDriver`."""
    return DiskcacheDriver(path, timeout=timeout, size_limit=size_limit)
