"""A3: whatever is gathered takes effect in the order in which it was gathered, however slow the driver."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from fakes import Queued
from running import in_loop

from kvstore import MISSING, Storage, create_storage

KEYS = [f"key{number}" for number in range(6)]


class LateDriver(Queued):
    """Answers late, before and after it acts, so that calls on several connections would overtake each other."""

    def __init__(self, chance: random.Random, lanes: int = 1) -> None:
        self.lanes = lanes
        super().__init__()
        self._chance = chance

    async def before(self, call: str, keys: Sequence[str]) -> None:
        await self.after()

    async def after(self) -> None:
        for _ in range(self._chance.randrange(4)):
            await asyncio.sleep(0)


def some_call(storage: Storage, model: dict[str, int], chance: random.Random) -> tuple[Awaitable[Any], Any]:
    """A call of the storage, and what it has to give. The model is changed at once, the storage when it is awaited."""
    key, number = chance.choice(KEYS), chance.randrange(100)

    def set_item() -> tuple[Awaitable[Any], Any]:
        model[key] = number
        return storage.set_item(key, number), None

    def set_item_raw() -> tuple[Awaitable[Any], Any]:
        model[key] = number
        return storage.set_item_raw(key, b" %d" % number), None  # which is the same JSON in other bytes

    def compare_and_set() -> tuple[Awaitable[Any], Any]:
        old: object = model.get(key, MISSING)
        model[key] = number
        return storage.compare_and_set(key, old, number), True

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
        *[remove_item, add_item, update_item, set_items, get_items, set_item_raw, compare_and_set] * 2,
        lambda: (storage.has_item(key), key in model),
        lambda: (storage.touch(key), key in model),
        clear,
    ]
    return chance.choice(calls)()


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("seed", range(20))
@in_loop
async def test_A3_gathered_calls_take_effect_in_their_order(seed: int, lanes: int) -> None:
    chance = random.Random(seed)

    model: dict[str, int] = {}
    async with create_storage(LateDriver(chance, lanes)) as storage:
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
