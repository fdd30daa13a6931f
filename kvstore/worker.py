"""A thread for backends that block: calls run on it one after another, in the order in which they were made."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, asyncio.Future[Any]]


class Worker:
    """Runs blocking calls on one thread of its own, which ends with the process.

    A caller that is cancelled stops waiting; its call runs all the same, before those that are made later.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises. One wake-up of the event loop per call."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put((call, loop, future))
        return await future

    async def aclose(self) -> None:
        """Lets the thread end after what was asked of it so far. `run` would begin another one."""
        if self._thread is not None:
            self._thread = None
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            call, loop, future = job
            try:
                outcome, error = call(), None
            except BaseException as raised:  # it is the caller's, whatever it is
                outcome, error = None, raised
            try:
                loop.call_soon_threadsafe(_settle, future, outcome, error)
            except RuntimeError:
                pass  # the event loop was closed; nobody waits any more
            del job, call, future, outcome, error  # hold on to nothing while idle


def _settle(future: asyncio.Future[Any], outcome: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(outcome)
    else:
        future.set_exception(error)
