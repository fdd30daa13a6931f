"""`asyncio.timeout` for many calls that all have as long: one timer for all of them, where one for each takes 4 µs."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Limits:
    """Gives calls `seconds` each, in one event loop."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.under_way: dict[Limit, None] = {}
        """In the order in which they began, and so will be late."""
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Sees to it that whoever is late is ended."""
        if self._timer is None:
            self._timer = loop.call_later(self.seconds, self._end_late, loop)

    def _end_late(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for limit in self.under_way:
            if limit.ends_at > loop.time():
                self._timer = loop.call_at(limit.ends_at, self._end_late, loop)
                break
            limit.end()


class Limit:
    """What is done inside is cancelled when its time is over, and a `TimeoutError` then, unless others cancelled it too."""

    __slots__ = ("_cancelling", "_is_late", "_limits", "_task", "ends_at")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        loop = task.get_loop()
        self._task, self._cancelling, self._is_late = task, task.cancelling(), False
        self.ends_at = loop.time() + self._limits.seconds
        self._limits.under_way[self] = None
        self._limits.watch(loop)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        del self._limits.under_way[self]
        if self._is_late and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def end(self) -> None:
        if not self._is_late:
            self._is_late = True
            self._task.cancel()
