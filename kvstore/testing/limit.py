"""How long a test may take, and what to say of one that takes longer."""

from __future__ import annotations

import asyncio
import gc
import inspect
import linecache
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from kvstore.driver import Driver

_AGAIN = 5.0
"""Seconds until a test that goes on all the same is stopped again."""


class _Over(KeyboardInterrupt):
    """The time is over. An event loop lets nothing else through, from wherever it is raised."""


@contextmanager
def limited(seconds: float) -> Iterator[Callable[[], None]]:
    """Fails a test that takes longer, and says which call of its driver did not return. What it gives begins the time anew.

    By the alarm of the operating system, which also stops what holds the event loop. There is no limit where there is no
    alarm (Windows), in another thread than the first, and where somebody else has set it.
    """
    is_first = threading.current_thread() is threading.main_thread()
    if not (is_first and hasattr(signal, "setitimer")) or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield lambda: None
        return
    said = ""

    def stop(_: int, frame: FrameType | None) -> None:
        nonlocal said
        said = said or f"stopped after {seconds:g} seconds: {_where(frame)}"
        raise _Over(said)

    def begin() -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)

    before = signal.signal(signal.SIGALRM, stop)
    begin()
    try:
        yield begin
    except BaseException:
        if not said:
            raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if said:
        pytest.fail(said, pytrace=False)


def _where(frame: FrameType | None) -> str:
    """What is under way in `frame`, and in the tasks that wait."""
    stacks = [_running(frame)]
    with suppress(RuntimeError):  # no event loop is running
        stacks += [[*_waiting(task.get_coro())] for task in asyncio.all_tasks()]
    under_way: dict[str, None] = {}  # each once
    for stack in stacks:
        calls = [frame for frame in stack if isinstance(frame.f_locals.get("self"), Driver)]
        if calls:
            name = f"{type(calls[0].f_locals['self']).__name__}.{calls[0].f_code.co_name}"
            under_way[f"{name} did not return, at {_line(calls[-1])}"] = None
    if under_way:
        return "; ".join(under_way)
    for stack in stacks:
        tests = [frame for frame in stack if frame.f_code.co_name.startswith("test_")]
        if tests:
            return f"no call of a driver is under way, and the test waits at {_line(tests[-1])}"
    return "no call of a driver is under way"


def _running(frame: FrameType | None) -> list[FrameType]:
    """From the outermost to the innermost."""
    stack = []
    while frame is not None:
        stack.append(frame)
        frame = frame.f_back
    return stack[::-1]


def _waiting(waits: Any) -> Iterator[FrameType]:
    """The frames of a coroutine and of those that it waits for."""
    while waits is not None:
        for kind, inner in (("cr", "cr_await"), ("ag", "ag_await"), ("gi", "gi_yieldfrom")):
            if hasattr(waits, inner):
                if (frame := getattr(waits, f"{kind}_frame")) is not None:
                    yield frame
                waits = getattr(waits, inner)
                break
        else:  # a step of an asynchronous generator, which only the garbage collector sees through
            waits = next((held for held in gc.get_referents(waits) if inspect.isasyncgen(held)), None)


def _line(frame: FrameType) -> str:
    file, line = frame.f_code.co_filename, frame.f_lineno
    return f"{Path(file).name}:{line}: {linecache.getline(file, line).strip()}"
