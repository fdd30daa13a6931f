"""What belongs to one event loop, such as connections, is closed with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress


class Lifetime:
    """Calls `close` once: by `aclose`, or else at the end of the event loop that `begin` was called in.

    An event loop closes the asynchronous generators that are left in it (`loop.shutdown_asyncgens`, as `asyncio.run` does),
    which is the only word that it gives of its end, and the last moment in which its transports can be closed.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: AsyncGenerator[None, None] | None = None

    async def begin(self, close: Callable[[], Awaitable[None]]) -> None:
        """Ends what was begun before. `close` holds no reference to the owner, which would never be collected otherwise."""
        await self.aclose()
        self._loop = asyncio.get_running_loop()
        self._open = _until_closed(close)
        await anext(self._open)

    async def aclose(self) -> None:
        """What belongs to another event loop can't be closed here. It was in that loop, unless it ended without a word."""
        left, self._open = self._open, None
        if left is not None and self._loop is asyncio.get_running_loop():
            await left.aclose()


async def _until_closed(close: Callable[[], Awaitable[None]]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        with suppress(Exception):  # it may be broken
            await close()
