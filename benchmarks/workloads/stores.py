"""What is asked of a store. `node/worker.mjs` does the same in JavaScript."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from benchmarks.peers.contract import Store
from benchmarks.workloads.clock import Taken, timed
from benchmarks.workloads.values import Pool

PER_GROUP = 100


def key_of(number: int, keys: int, mounts: int) -> str:
    number %= keys
    return f"m{number % mounts}:items:{number}" if mounts else f"items:{number}"


async def fill(store: Store, pool: Pool, *, keys: int, size: int, mounts: int = 0) -> None:
    """Every key that `get` asks for."""
    step = 4 if size > 100_000 else 500
    for start in range(0, keys, step):
        numbers = range(start, min(start + step, keys))
        await store.set_many({key_of(number, keys, mounts): pool.record(number, size) for number in numbers})


async def set_(
    store: Store, pool: Pool, *, calls: int, tasks: int = 1, batch: int = 1, size: int, seed: int, keys: int, mounts: int = 0,
    watch: bool = False,
) -> Taken:  # fmt: skip
    """Writes `calls` values, from so many tasks at once or in so large batches."""
    names = [key_of(number, keys, mounts) for number in range(seed, seed + calls)]
    values = [pool.record(number, size) for number in range(seed, seed + calls)]

    if batch > 1:
        chunks = [dict(zip(names[at : at + batch], values[at : at + batch], strict=True)) for at in range(0, calls, batch)]

        async def in_batches() -> None:
            for chunk in chunks:
                await store.set_many(chunk)

        work: Callable[[], Awaitable[object]] = in_batches
    else:

        async def some(first: int) -> None:
            for at in range(first, calls, tasks):
                await store.set(names[at], values[at])

        work = spread(some, tasks)
    return await timed(work, calls, watch=watch)


async def get(
    store: Store, pool: Pool, *, calls: int, tasks: int = 1, batch: int = 1, size: int, seed: int, keys: int, mounts: int = 0,
    watch: bool = False,
) -> Taken:  # fmt: skip
    """Reads as many. The last values, one of each task, are compared with what was written."""
    names = [key_of(number, keys, mounts) for number in range(seed, seed + calls)]
    found: Sequence[object] = ()

    async def in_batches() -> None:
        nonlocal found
        for at in range(0, calls, batch):
            found = await store.get_many(names[at : at + batch])

    async def some(first: int) -> object:
        value: object = None
        for at in range(first, calls, tasks):
            value = await store.get(names[at])
        return value

    async def one_by_one() -> None:
        nonlocal found
        found = [await some(0)] if tasks == 1 else await asyncio.gather(*map(some, range(tasks)))

    taken = await timed(in_batches if batch > 1 else one_by_one, calls, watch=watch)
    for number, value in zip(range(seed + calls - len(found), seed + calls), found, strict=True):
        if not isinstance(value, dict) or (value["id"] - number) % keys or value != pool.record(value["id"], size):
            raise AssertionError(f"a get of {key_of(number, keys, mounts)} returned {str(value)[:200]}")
    return taken


def spread(some: Callable[[int], Awaitable[None]], tasks: int) -> Callable[[], Awaitable[object]]:
    """`some(0)` as it is, or `some` of each task's number at once."""
    if tasks == 1:
        return lambda: some(0)
    return lambda: asyncio.gather(*map(some, range(tasks)))


def group_key(number: int) -> str:
    return f"group{number // PER_GROUP:05d}:{number:07d}"


async def grow(store: Store, pool: Pool, *, start: int, count: int) -> None:
    """Small values under keys in groups of 100, for listing."""
    for first in range(start, count, 1_000):
        await store.set_many({group_key(number): {"n": number} for number in range(first, min(first + 1_000, count))})


async def list_(store: Store, pool: Pool, *, calls: int, count: int, seed: int, watch: bool = False) -> Taken:
    """One group of 100 keys out of `count`, in each call another."""
    groups = [f"group{(seed + call) * 7919 % (count // PER_GROUP):05d}" for call in range(calls)]
    found = 0

    async def work() -> None:
        nonlocal found
        for group in groups:
            found += len(await store.list_prefix(group))

    taken = await timed(work, calls, watch=watch)
    if found != calls * PER_GROUP:
        raise AssertionError(f"{calls} listings gave {found} keys, not {calls * PER_GROUP}")
    return taken


async def list_all(store: Store, pool: Pool, *, count: int, watch: bool = False) -> Taken:
    found = 0

    async def work() -> None:
        nonlocal found
        found = len(await store.list_prefix(""))

    taken = await timed(work, count, watch=watch)
    if found < count:
        raise AssertionError(f"a listing gave {found:,} of {count:,} keys")
    return taken


async def clear(store: Store, pool: Pool, *, count: int, watch: bool = False) -> Taken:
    """Removes all: `count` keys, put there first."""
    await grow(store, pool, start=0, count=count)
    return await timed(store.clear, count, watch=watch)


async def footprint(store: Store, pool: Pool, *, count: int) -> dict[str, Any]:
    """What the process grows by with `count` small values, in a process that has done nothing else."""
    await store.set_many({"warm:up": {"n": 0}})
    gc.collect()
    before = resident()
    await grow(store, pool, start=0, count=count)
    gc.collect()
    return {"bytes": resident() - before, "count": count}


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
