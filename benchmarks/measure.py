"""How it is measured: contestants take turns, round by round, and the medians are compared."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

Contestant = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Figure:
    """One line of the report."""

    what: str
    value: float
    limit: float
    """What it may be at most; with `at_least`, must be at least."""
    unit: str = "x"
    at_least: bool = False
    detail: str = ""

    @property
    def holds(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "ok  " if self.holds else "OVER"
        return f"{verdict} {self.what:58} {self.value:8.2f} {self.unit:3} ({sign} {self.limit:g})  {self.detail}"


async def medians(rounds: int, calls: int, **contestants: Contestant) -> dict[str, float]:
    """Microseconds a call of each: the median of `rounds`, in which all take their turn at `calls` calls each."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(rounds + 1):  # the first is for warming up
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect()
            before = time.perf_counter()
            await contestants[name]()
            times[name].append((time.perf_counter() - before) * 1e6 / calls)
    return {name: median(taken[1:]) for name, taken in times.items()}


def ratio(what: str, of: dict[str, float], ours: str, theirs: str, limit: float, *, at_least: bool = False) -> Figure:
    """How many times as long `ours` takes; with `at_least`, how many times as long `theirs` takes."""
    value = of[theirs] / of[ours] if at_least else of[ours] / of[theirs]
    detail = ", ".join(f"{name.replace('_', ' ')} {taken:,.1f} µs" for name, taken in of.items())
    return Figure(what, value, limit, at_least=at_least, detail=detail)


def record(number: int) -> dict[str, Any]:
    """A value of about 200 bytes of JSON, each another."""
    return {"id": number, "name": f"user {number}", "tags": ["a", "b", "c"], "score": number / 7, "note": f"{number:0110d}"}


@contextmanager
def loop_gaps() -> Iterator[list[float]]:
    """The list gets the milliseconds between two passes of the event loop as one task sees them."""
    gaps: list[float] = []

    async def tick() -> None:
        before = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            gaps.append((now - before) * 1000)
            before = now

    task = asyncio.get_running_loop().create_task(tick())
    try:
        yield gaps
    finally:
        task.cancel()
