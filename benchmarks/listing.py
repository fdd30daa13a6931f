"""A page of 100 keys out of ten thousand, and out of a million."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import Figure, medians, ratio
from kvstore import Storage, create_storage

SMALL = 10_000
CALLS = 100


async def figures(*, quick: bool) -> list[Figure]:
    large = 100_000 if quick else 1_000_000
    found = []
    with TemporaryDirectory(dir=".") as folder:
        for driver in ("memory", "sqlite"):
            options = [{"path": Path(folder, f"{size}.db")} if driver == "sqlite" else {} for size in (SMALL, large)]
            async with create_storage(driver, **options[0]) as small, create_storage(driver, **options[1]) as big:
                await fill(small, SMALL)
                await fill(big, large)
                times = await medians(
                    5 if quick else 15, CALLS, small=lambda: pages(small, SMALL), large=lambda: pages(big, large)
                )
            found.append(ratio(f"{driver}: 100 keys of {large:,}, against of {SMALL:,}", times, "large", "small", 2))
    return found


async def fill(storage: Storage, count: int) -> None:
    for start in range(0, count, 5_000):
        await storage.set_items({f"group{number // 100:05d}:{number:07d}": number for number in range(start, start + 5_000)})


async def pages(storage: Storage, count: int) -> None:
    for step in range(CALLS):
        group = step * 7919 % (count // 100)
        keys = await storage.get_keys(f"group{group:05d}")
        assert len(keys) == 100
