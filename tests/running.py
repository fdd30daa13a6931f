"""Async tests as plain ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
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
