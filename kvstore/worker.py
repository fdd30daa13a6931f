"""A thread for backends that block: calls run on it one after another, in the order in which they were made."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
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
        return await self.submit(call)

    def submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Begins `call`, for those who wait later or not at all."""
        if self._thread is None or not self._thread.is_alive():  # in the child of a fork: its calls are the parent's
            self._jobs = SimpleQueue()
            thread = threading.Thread(target=self._work, args=(self._jobs,), name=self._name, daemon=True)
            thread.start()
            self._thread = thread
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put((call, loop, future))
        return future

    async def settle(self) -> None:
        """Returns when the calls that were made so far are over, also those that nobody waits for."""
        await self.submit(lambda: None)

    async def aclose(self) -> None:
        """Lets the thread end after what was asked of it so far. `run` would begin another one."""
        if self._thread is not None:
            self._thread = None
            self._jobs.put(None)

    def _work(self, jobs: SimpleQueue[_Job | None]) -> None:
        while (job := jobs.get()) is not None:
            call, loop, future = job
            outcome, error = None, None
            try:
                outcome = call()
            except BaseException as raised:  # it is the caller's, whatever it is
                error = raised
            with suppress(RuntimeError):  # the event loop was closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, future, outcome, error)
            del job, call, future, outcome, error  # hold on to nothing while idle


def _settle(future: asyncio.Future[Any], outcome: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(outcome)
    else:
        future.set_exception(error)
