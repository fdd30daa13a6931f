"""A budget of inline work, for drivers that answer some calls in the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class TickBudget:
    """How much work may still be done inline, so that no crowd of tasks holds the event loop.

    What is spent comes back in the pass of the event loop after the one in which it ran out.
    """

    __slots__ = ("_full", "_held", "_kept", "_loop", "_queue", "_refilling", "left")

    def __init__(self, units: int) -> None:
        self.left = units
        """What may be taken without asking, if there is any: none while others wait for theirs."""
        self._full = units
        self._kept = 0  # what is left while all are held up
        self._held = False
        self._refilling = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: deque[tuple[int, Callable[[], Any], asyncio.Future[Any]]] = deque()

    async def refilled(self) -> None:
        """Waits for a pass of the event loop where nothing is left: a tenth of what a hop to a thread takes."""
        if self.left <= 0:
            self._ran_out()
            await asyncio.sleep(0)

    def spend(self, units: int = 1) -> bool:
        """Takes `units`; False when there are none left in this pass, or others wait for theirs."""
        if self.left > 0 or self._ran_out():
            self.left -= units
            return True
        return False

    async def run(self, call: Callable[[], T], units: int = 1) -> T:
        """What `call` returns: at once if there are units left, else in a later pass. First come, first served.

        It is called by the one who hands out the units, so that who comes next need not wait for its caller to go on.
        """
        if self.spend(units):
            return call()
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append((units, call, done))
        if not self._held:  # any more: another thread may have released it just now
            self._refill_soon()
        return await done

    def hold(self) -> None:
        """Holds up whoever comes, for a call of several steps that the others must not pass, until `release`."""
        self._ran_out()
        self._held, self._kept, self.left = True, self.left, 0

    def release(self) -> None:
        self._held = False
        if self._queue:
            self._refill_soon()
        else:
            self.left = max(self.left, self._kept)

    def _ran_out(self) -> bool:
        """Arranges for more. True: there is more already."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None and self._loop.is_running():  # of another thread, whose calls are not held up by ours
                return True
            # Another one in turn: what was scheduled in the last never ran.
            fresh, self._loop = self._loop is None, loop
            self._refilling = False
            if not fresh:
                self._held = False
                while self._queue:
                    self._next()
                self.left = self._full
                return True
        if not self._held:
            self._refill_soon()
        return False

    def _refill_soon(self) -> None:
        if not self._refilling and self._loop is not None and not self._loop.is_closed():
            self._refilling = True
            self._loop.call_soon_threadsafe(self._refill)  # another thread's clear may have held this one's calls up

    def _refill(self) -> None:
        self._refilling = False
        left = self._full
        while self._queue and left > 0 and not self._held:
            left -= self._next()
        if self._held:
            self._kept = left
        elif self._queue:
            self._refill_soon()
        else:
            self.left = left

    def _next(self) -> int:
        """Makes the first call that waits. Returns what it costs."""
        units, call, done = self._queue.popleft()
        if done.done():  # its caller was cancelled
            return 0
        with suppress(RuntimeError):  # its event loop was closed: nobody waits any more
            try:
                done.set_result(call())
            except Exception as error:
                done.set_exception(error)
        return units
