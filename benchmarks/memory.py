"""Memory against an async function around a dict and orjson; one mount against 200."""

from __future__ import annotations

from typing import Any

import orjson

from benchmarks.measure import Figure, medians, ratio, record
from kvstore import create_storage

CALLS = 5_000


class Floor:
    """The least that keeps JSON in memory for asyncio."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    async def set_item(self, key: str, value: object) -> None:
        self._values[key] = orjson.dumps(value)

    async def get_item(self, key: str) -> Any:
        return orjson.loads(self._values[key])


async def figures(*, quick: bool) -> list[Figure]:
    rounds = 7 if quick else 41
    items = [(f"users:{number}", record(number)) for number in range(CALLS)]
    spread = [(f"m{number % 200}:{key}", value) for number, (key, value) in enumerate(items)]

    async def sets(store: Any, items: list[tuple[str, Any]]) -> None:
        for key, value in items:
            await store.set_item(key, value)

    async def gets(store: Any, items: list[tuple[str, Any]]) -> None:
        for key, _ in items:
            await store.get_item(key)

    floor = Floor()
    async with create_storage() as one, create_storage() as many:
        for number in range(200):
            many.mount(f"m{number}", "memory")
        wrote = await medians(rounds, CALLS, floor=lambda: sets(floor, items), storage=lambda: sets(one, items))
        read = await medians(rounds, CALLS, floor=lambda: gets(floor, items), storage=lambda: gets(one, items))
        # The same keys on both, so that it is the mounts that differ.
        wrote_spread = await medians(rounds, CALLS, one=lambda: sets(one, spread), many=lambda: sets(many, spread))
        read_spread = await medians(rounds, CALLS, one=lambda: gets(one, spread), many=lambda: gets(many, spread))
    return [
        ratio("memory set, against an async dict and orjson", wrote, "storage", "floor", 1.6),
        ratio("memory get, against an async dict and orjson", read, "storage", "floor", 1.6),
        Figure("set with 200 mounts, more than with one", wrote_spread["many"] - wrote_spread["one"], 0.3, "µs"),
        Figure("get with 200 mounts, more than with one", read_spread["many"] - read_spread["one"], 0.3, "µs"),
    ]
