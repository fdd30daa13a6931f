"""Whether a call leaves the event loop to others."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable

_ATTEMPTS = 5


async def leaves_the_loop_free(work: Callable[[], Awaitable[object]], at_most: float = 0.03) -> None:
    """L2: `work` never holds the event loop for `at_most` seconds. Again if it does: a machine may, but not every time."""
    pauses: list[float] = []
    while len(pauses) < _ATTEMPTS:
        pauses.append(await longest_pause(work()))
        if pauses[-1] < at_most:
            return
    raise AssertionError(f"the event loop was held for {', '.join(f'{pause:.3f}' for pause in pauses)} seconds")


async def longest_pause(work: Awaitable[object]) -> float:
    """Seconds for which the event loop stood still at the most while `work` was done.

    Without what the garbage collector takes for a walk through all that was there before: with what tests load, 0.1 s.
    """
    longest, over = 0.0, False

    async def tick() -> None:
        nonlocal longest
        while not over:
            before = _now()
            await asyncio.sleep(0.001)
            longest = max(longest, _now() - before - 0.001)

    gc.freeze()
    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0)
    try:
        await work
    finally:
        over = True
        await ticker
        gc.unfreeze()
    return longest


def _now() -> float:
    """Seconds on a watch that stands while this thread could run and got no processor, where the system tells (Linux)."""
    try:
        with open("/proc/thread-self/schedstat", "rb", buffering=0) as file:
            waited = int(file.read().split()[1])  # nanoseconds, as the kernel's documentation of the scheduler says
    except OSError:
        waited = 0
    return time.perf_counter() - waited / 1e9
