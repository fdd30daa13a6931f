"""The memory driver keeps every promise."""

from __future__ import annotations

from pathlib import Path

from kvstore.drivers.memory import MemoryDriver
from kvstore.testing import DriverSuite


class TestMemory(DriverSuite):
    def make_driver(self, path: Path) -> MemoryDriver:
        return MemoryDriver()
