"""Memory: nothing outlives the process."""

from __future__ import annotations

from kvstore.drivers.memory import MemoryDriver


def memory_driver() -> MemoryDriver:
    """A driver for `create_persistence`; see `kvstore.drivers.memory.MemoryDriver`."""
    return MemoryDriver()
