"""Async tests as plain ones, and what runs in several threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any, ParamSpec

P = ParamSpec("P")

LIMIT = 300.0
"""Seconds after which a test that waits for ever has failed."""


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs `test` in an event loop of its own. Its arguments are pytest's as they are for any test."""

    @wraps(test)  # pytest looks there for the names of the arguments
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), LIMIT))

    return run


def in_threads(*mains: Coroutine[Any, Any, None]) -> None:
    """Runs each in a thread and an event loop of its own, and raises what one of them does, or that it takes too long."""

    async def limited(main: Coroutine[Any, Any, None]) -> None:
        await asyncio.wait_for(main, 30)

    with ThreadPoolExecutor(len(mains)) as threads:
        for done in [threads.submit(asyncio.run, limited(main)) for main in mains]:
            done.result()
