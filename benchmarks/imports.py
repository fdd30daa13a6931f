"""What importing costs over a bare interpreter."""

from __future__ import annotations

import asyncio
import sys

from benchmarks.measure import Figure, medians


async def figures(*, quick: bool) -> list[Figure]:
    async def run(code: str) -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
        if await process.wait():
            raise RuntimeError(f"{code} failed")

    found = await medians(
        5 if quick else 21,
        1000,  # so that the microseconds are milliseconds
        bare=lambda: run("pass"),
        kvstore=lambda: run("import kvstore"),
        persistence=lambda: run("import persistence"),
        both=lambda: run("import kvstore, persistence"),
    )
    return [
        Figure(f"import {name}, over a bare interpreter", found[name] - found["bare"], 40, "ms")
        for name in ("kvstore", "persistence", "both")
    ]
