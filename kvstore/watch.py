"""Watching: every change of a storage, told to whoever listens, at no cost where nobody does."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

from kvstore.driver import Event, Write
from kvstore.errors import BackendError

BUFFER = 100_000
"""How many events a listener may be behind before it is told that it missed some."""


class Listener:
    """One listener's events, in the order of the changes. An async iterator; it ends when the storage is closed.

    Several tasks may share it: each event goes to one of them.
    """

    def __init__(self, prefix: str, strip: int) -> None:
        self.prefix = prefix
        self._strip = strip
        self._events: deque[Event] = deque()
        self._end: Exception | None = None
        self._told = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None  # of those who wait

    def tell(self, kind: Literal["update", "remove"], key: str) -> None:
        """Queues the change of a whole key, unless it lies elsewhere. Never waits and never fails."""
        if self._end is not None or not key.startswith(self.prefix):
            return
        if len(self._events) >= BUFFER:
            self.end(BackendError(f"this watch fell {BUFFER:,} events behind and missed what came after them"))
            return
        self._events.append(Event(kind, key[self._strip :]))
        self._wake()

    def end(self, reason: Exception) -> None:
        """After the events that are queued, iteration raises `reason`."""
        if self._end is None:
            self._end = reason
            self._wake()

    def _wake(self) -> None:
        if self._loop is None or self._told.is_set():
            return
        if self._loop is asyncio.get_running_loop():
            self._told.set()
        else:  # the change was made in another thread
            with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._told.set)

    def check(self) -> None:
        """Raises the reason for which it ended, if it did."""
        if self._end is not None:
            raise self._end

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> Event:
        self._loop = asyncio.get_running_loop()
        while True:
            self._told.clear()  # before it looks, for another thread may tell right after
            if self._events:
                return self._events.popleft()
            self.check()
            await self._told.wait()


class Watchers:
    """The listeners of one storage."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []

    def tell(self, prefix: str, writes: Sequence[Write], found: Sequence[bool]) -> None:
        """`writes` below `prefix` took effect; `found` says which keys were there before."""
        for (key, data, _), was_there in zip(writes, found, strict=True):
            if data is not None or was_there:
                for listener in tuple(self.listeners):  # another thread may end its watch meanwhile
                    listener.tell("update" if data is not None else "remove", prefix + key)

    def end(self) -> None:
        """The storage is closed."""
        for listener in self.listeners:
            listener.end(StopAsyncIteration())
