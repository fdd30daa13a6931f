"""How a piece of work is timed, and how long the event loop stood still meanwhile."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from typing import Any

Taken = dict[str, Any]
"""`seconds` for `calls`; or with `watch` the longest `pause` in milliseconds, and that of an `idle` loop."""


async def timed(work: Callable[[], Awaitable[object]], calls: int, *, watch: bool) -> Taken:
    """Times it; with `watch` lets a task look at the event loop instead, which costs time itself."""
    gc.collect()
    if watch:
        before = time.perf_counter()
        pause = await longest_pause(work)
        taken = time.perf_counter() - before
        return {"pause": pause, "idle": await longest_pause(lambda: asyncio.sleep(min(taken, 0.3)))}
    before = time.perf_counter()
    await work()
    return {"seconds": time.perf_counter() - before, "calls": calls}


async def longest_pause(work: Callable[[], Awaitable[object]]) -> float:
    """The longest time in milliseconds between two passes of the event loop, as one task sees them."""
    longest, before = 0.0, time.perf_counter()

    async def tick() -> None:
        nonlocal longest, before
        before = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, before = max(longest, now - before), now

    task = asyncio.create_task(tick())
    await asyncio.sleep(0)
    await work()
    longest = max(longest, time.perf_counter() - before)  # what work did since the task last ran
    task.cancel()
    return longest * 1000
