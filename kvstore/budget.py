"""A budget of inline work, for drivers that answer some calls in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class TickBudget:
    """How much work may still be done inline, so that no crowd of tasks holds the event loop.

    What is spent comes back in the pass of the event loop after the one in which it ran out.
    """

    __slots__ = ("_full", "_held", "_kept", "_loop", "_refilling", "_waiting", "left")

    def __init__(self, units: int) -> None:
        self.left = units
        """What may be taken without asking, if there is any: none while others wait for theirs."""
        self._full = units
        self._kept = 0  # what is left while others wait
        self._waiting = 0
        self._held = 0
        self._refilling = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def spend(self, units: int = 1) -> bool:
        """Takes `units`; False when there are none left in this pass, or others wait for theirs."""
        if self.left > 0 or self._ran_out():
            self.left -= units
            return True
        return False

    async def wait(self, units: int = 1) -> None:
        """Takes `units`, in the next pass if there are none left in this one. First come, first served."""
        if not self.spend(units):
            self._enter()
            try:
                await asyncio.sleep(0)
                while self._held:
                    await asyncio.sleep(0)
            finally:
                self._leave(units)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Inside, whoever comes waits, for a call of several steps that the others must not pass."""
        self._ran_out()
        self._enter()
        self._held += 1
        try:
            yield
        finally:
            self._held = max(0, self._held - 1)
            self._leave(0)

    def _enter(self) -> None:
        if not self._waiting:
            self._kept, self.left = self.left, 0
        self._waiting += 1

    def _leave(self, units: int) -> None:
        self._waiting = max(0, self._waiting - 1)
        self._kept -= units
        if not self._waiting:
            self.left = self._kept

    def _ran_out(self) -> bool:
        """Arranges for more. True: there is more already."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # another one in turn: what was scheduled in the last never ran
            fresh, self._loop = self._loop is None, loop
            self._refilling = False
            if not fresh:
                self._waiting = self._held = 0
                self.left = self._full
                return True
        if not self._refilling:
            self._refilling = True
            loop.call_soon(self._refill)
        return False

    def _refill(self) -> None:
        self._refilling = False
        if self._waiting:
            self._kept = self._full
        else:
            self.left = self._full
