"""What belongs to an event loop is closed with it."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest
from running import in_loop

from kvstore.lifetime import Lifetime


class Closing:
    """Counts how often it is closed, and notes in which event loop."""

    def __init__(self) -> None:
        self.loops: list[asyncio.AbstractEventLoop] = []

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.loops.append(asyncio.get_running_loop())


def test_what_is_left_open_is_closed_in_its_event_loop_when_that_ends() -> None:
    thing, lifetime = Closing(), Lifetime()

    async def use() -> asyncio.AbstractEventLoop:
        await lifetime.begin(thing.close)
        await asyncio.sleep(0.001)
        assert asyncio.get_running_loop() not in thing.loops
        return asyncio.get_running_loop()

    loops = [asyncio.run(use()) for _ in range(3)]
    asyncio.run(lifetime.aclose())
    assert thing.loops == loops


def test_what_is_closed_or_begun_anew_is_closed_once() -> None:
    first, second, lifetime = Closing(), Closing(), Lifetime()

    async def use() -> None:
        await lifetime.begin(first.close)
        await lifetime.begin(second.close)
        assert (len(first.loops), len(second.loops)) == (1, 0)
        await lifetime.aclose()
        await lifetime.aclose()

    asyncio.run(use())
    assert (len(first.loops), len(second.loops)) == (1, 1)


@pytest.mark.parametrize("again", [False, True])
def test_what_belongs_to_an_event_loop_that_ended_without_a_word_is_left(again: bool) -> None:
    thing, other, lifetime = Closing(), Closing(), Lifetime()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(lifetime.begin(thing.close))
    loop.close()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(lifetime.begin(other.close) if again else lifetime.aclose())
        gc.collect()
    assert (len(thing.loops), len(other.loops)) == (0, int(again))


@in_loop
async def test_what_can_not_be_closed_raises_nothing() -> None:
    async def fail() -> None:
        raise OSError("broken")

    lifetime = Lifetime()

    await lifetime.begin(fail)
    await lifetime.aclose()
    await lifetime.begin(fail)
