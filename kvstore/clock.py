"""The time that expiry goes by."""

from __future__ import annotations

import time

# Goes on while the machine sleeps, unlike the monotonic clock of Linux.
_BOOT: int | None = getattr(time, "CLOCK_BOOTTIME", None)


class Clock:
    """Tells whole milliseconds since 1970, rounded down: this machine's time, or a server's once it is set by one."""

    def __init__(self) -> None:
        self._boot_ms: int | None = None

    def __call__(self) -> int:
        if self._boot_ms is None:
            return time.time_ns() // 1_000_000
        return self._boot_ms + _ticks() // 1_000_000

    def set(self, now: int, within: int = 0) -> None:
        """From now on the time of a server, which says that it is `now`. A step of this machine's clock does not move it.

        It may be up to `within` milliseconds later there. Then the clock is moved no further than that, so that what it tells
        gets better with each answer.
        """
        told = self()
        if self._boot_ms is None or not now <= told <= now + within:
            self._boot_ms = min(max(told, now), now + within) - _ticks() // 1_000_000


def _ticks() -> int:
    return time.monotonic_ns() if _BOOT is None else time.clock_gettime_ns(_BOOT)


now_ms = Clock()
"""This machine's time."""
