"""The timer that lets a driver take back the space of what has expired."""

from __future__ import annotations

import asyncio
import logging

from kvstore.driver import Driver

INTERVAL = 1.0
"""Seconds between two sweeps at the least."""

_log = logging.getLogger("kvstore")


class Sweeper:
    """Calls `Driver.sweep` soon after something expires, in the event loop that is running."""

    __slots__ = ("_driver", "_due", "_loop", "_needed", "_task", "_timer")

    def __init__(self, driver: Driver, *, needed: bool = True) -> None:
        self._driver = driver
        self._needed = needed and type(driver).sweep is not Driver.sweep
        self._due: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def expect(self, expires_at: int) -> None:
        """Something expires at `expires_at`, in milliseconds since 1970."""
        if not self._needed:
            return
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # a timer of a loop that is over never fires
            self._loop, self._due, self._task = loop, None, None
        if self._due is not None and self._due <= expires_at:
            return
        self._due = expires_at
        if self._timer is not None:
            self._timer.cancel()
        delay = max(INTERVAL, (expires_at - self._driver.clock()) / 1000)
        self._timer = loop.call_later(min(delay, 86_400), self._start)

    def _start(self) -> None:
        self._timer = self._due = None
        if self._loop is not None and (self._task is None or self._task.done()):
            self._task = self._loop.create_task(self._sweep())

    async def _sweep(self) -> None:
        try:
            due = await self._driver.sweep()
        except Exception as error:
            # Nobody waits for this; what could not be swept is hidden all the same, and is tried again.
            _log.warning("%s: expired keys could not be swept: %s", self._driver.name, error)
            due = self._driver.clock()
        if due is not None:
            self.expect(due)

    async def aclose(self) -> None:
        """Stops for ever."""
        self._needed = False
        if self._loop is not asyncio.get_running_loop():
            return
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
