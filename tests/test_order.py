"""A3: whatever is gathered takes effect in the order in which it was gathered, however slow the driver."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import closing
from typing import Any, TypeVar

import pytest
from running import in_loop

from kvstore import Storage, create_storage
from kvstore.driver import Capabilities, Expect, Stat
from kvstore.drivers.memory import MemoryDriver

T = TypeVar("T")
KEYS = [f"key{number}" for number in range(6)]


class LateDriver(MemoryDriver):
    """Answers late, before and after it acts, so that calls on several connections would overtake each other."""

    capabilities = Capabilities(atomic=True, conditional=True, ordered=True, metadata=True, persistent=False)

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance

    async def _late(self, call: Coroutine[Any, Any, T]) -> T:
        with closing(call):
            for _ in range(self._chance.randrange(4)):
                await asyncio.sleep(0)
            result = await call
        for _ in range(self._chance.randrange(4)):
            await asyncio.sleep(0)
        return result

    async def read(self, keys: Any) -> list[bytes | None]:
        return await self._late(super().read(keys))

    async def write(self, writes: Any, expect: Expect | None = None) -> list[bool] | None:
        assert len({write[0] for write in writes}) == len(writes), "a key is named twice"
        return await self._late(super().write(writes, expect))

    async def has(self, keys: Any) -> list[bool]:
        return await self._late(super().has(keys))

    async def stat(self, keys: Any) -> list[Stat | None]:
        return await self._late(super().stat(keys))

    async def touch(self, key: str, expires_at: int | None) -> bool:
        return await self._late(super().touch(key, expires_at))

    async def clear(self, prefix: str) -> int:
        return await self._late(super().clear(prefix))


def some_call(storage: Storage, model: dict[str, int], chance: random.Random) -> tuple[Awaitable[Any], Any]:
    """A call of the storage, and what it has to give. The model is changed at once, the storage when it is awaited."""
    key, number = chance.choice(KEYS), chance.randrange(100)

    def set_item() -> tuple[Awaitable[Any], Any]:
        model[key] = number
        return storage.set_item(key, number), None

    def remove_item() -> tuple[Awaitable[Any], Any]:
        return storage.remove_item(key), model.pop(key, None) is not None

    def add_item() -> tuple[Awaitable[Any], Any]:
        absent = key not in model
        model.setdefault(key, number)
        return storage.add_item(key, number), absent

    def update_item() -> tuple[Awaitable[Any], Any]:
        model[key] = model.get(key, 0) + 1
        return storage.update_item(key, lambda value: value + 1, default=0), model[key]

    def set_items() -> tuple[Awaitable[Any], Any]:
        several = dict.fromkeys(chance.sample(KEYS, 3), number)
        model.update(several)
        return storage.set_items(several), None

    def get_items() -> tuple[Awaitable[Any], Any]:
        several = chance.sample(KEYS, 3)
        return storage.get_items(several), {one: model.get(one) for one in several}

    def clear() -> tuple[Awaitable[Any], Any]:
        count = len(model)
        model.clear()
        return storage.clear(), count

    calls: list[Callable[[], tuple[Awaitable[Any], Any]]] = [
        *[set_item, lambda: (storage.get_item(key), model.get(key))] * 3,
        *[remove_item, add_item, update_item, set_items, get_items] * 2,
        lambda: (storage.has_item(key), key in model),
        lambda: (storage.touch(key), key in model),
        clear,
    ]
    return chance.choice(calls)()


@pytest.mark.parametrize("seed", range(20))
@in_loop
async def test_A3_gathered_calls_take_effect_in_their_order(seed: int) -> None:
    chance = random.Random(seed)

    model: dict[str, int] = {}
    async with create_storage(LateDriver(chance)) as storage:
        for _ in range(10):
            calls, expected = zip(*(some_call(storage, model, chance) for _ in range(40)), strict=True)
            assert await asyncio.gather(*calls) == list(expected)
            assert await storage.get_items(model) == model


async def _cancelled_in_the_middle(storage: Storage, chance: random.Random) -> None:
    tasks = [asyncio.create_task(storage.set_item("key", number)) for number in range(20)]
    for _ in range(chance.randrange(4)):
        await asyncio.sleep(0)
    for task in chance.sample(tasks[:-1], 10):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("seed", range(10))
@in_loop
async def test_A3_a_cancelled_call_is_its_callers_own(seed: int) -> None:
    """The others are answered, and the last that was made is what stands."""
    chance = random.Random(seed)

    async with create_storage(LateDriver(chance)) as storage:
        for _ in range(10):
            await _cancelled_in_the_middle(storage, chance)
            assert await storage.get_item("key") == 19
