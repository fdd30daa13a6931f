"""Writes that depend on what is there."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Sequence
from random import random
from typing import Any

from kvstore.answers import TRIES, never_holds
from kvstore.batches import Read, WriteCall
from kvstore.driver import Expect, Write
from kvstore.errors import BackendError, CorruptValueError
from kvstore.mount import Mount
from kvstore.values import MISSING, Missing, decode, encode, same_json

MAX_BACK_OFF = 1.0
"""Seconds that an update waits at the most before it tries again."""


async def write_if(mount: Mount, writes: list[Write], expect: Expect) -> bool:
    """Writes if the values are as expected, compared as JSON. False: they are not."""
    if all(data is None for data in expect.values()):
        return await mount.write(writes, expect) is not None

    async def again(read: Read, write: WriteCall, writes: Sequence[Write]) -> list[bool] | None:
        """The same value may be stored in other bytes, with its members in another order."""
        for _ in range(TRIES):
            found = dict(zip(expect, await read(list(expect)), strict=True))
            for key, wanted in expect.items():
                data = found[key]
                if data is None or wanted is None:
                    if data is not wanted:
                        return None
                elif not _same(key, data, wanted):
                    return None
            if (written := await write(writes, found)) is not None:
                return written
        raise never_holds()

    return await mount.write_if(writes, expect, again) is not None


def _same(key: str, data: bytes, wanted: bytes) -> bool:
    try:
        return same_json(data, wanted)
    except CorruptValueError as error:  # of this one of several keys
        raise error.at(None, key) from error.__cause__


async def update(
    mount: Mount,
    key: str,
    fn: Callable[[Any], Any | Awaitable[Any]],
    absent: bytes | Missing,
    expiry: Callable[[], int | None],
) -> Any:
    """Stores what `fn` makes of the value, or of `absent`, and returns it. See `Storage.update_item`."""
    mount.check_update(key)

    def made(data: bytes | None) -> Any:
        old = absent if data is None else data
        return fn(MISSING if old is MISSING else decode(old))

    def write(new: object) -> Write:
        return (key, None, None) if new is MISSING else (key, encode(new), expiry())

    async with mount.alone(key) as (read_alone, write_alone):
        for _ in range(TRIES):
            data = await _read(read_alone, key)
            new = made(data)
            if inspect.isawaitable(new):
                break
            if await write_alone([write(new)], {key: data}) is not None:
                return new
        else:
            raise never_holds()
    # It may wait, for other updates even: the others go on.
    with mount.updating(key):
        lost, began = 0, time.monotonic()
        while True:
            new = await new if inspect.isawaitable(new) else new
            if await mount.write([write(new)], {key: data}) is not None:
                return new
            # One of a crowd gets through each time, so the others come back at times of their own.
            await asyncio.sleep(random() * min(MAX_BACK_OFF, (time.monotonic() - began) * 2**lost))
            lost, began = min(lost + 1, 16), time.monotonic()
            data = await _read(mount.read, key)
            new = made(data)


async def _read(read: Read, key: str) -> bytes | None:
    try:
        (data,) = await read((key,))
    except BackendError as error:  # all that was written before is nothing, for it did not hold
        raise error.at().tell(maybe_written=False) from error.__cause__
    return data
