"""What many small keys take in memory."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.peers.catalogue import GROUPS, described
from benchmarks.processes import PeerError, Worker
from benchmarks.stage import Stage


async def run_footprint(stage: Stage) -> dict[str, Any]:
    """A fresh process each, of which only the growth counts."""
    group = next(group for group in GROUPS if group.name == "memory")
    count = stage.settings.footprint
    cells: dict[str, Any] = {}
    failed = {}
    for peer in group.peers:
        try:
            worker = await Worker.start(peer, stage.place("footprint", peer), "", stage.pool)
            try:
                before = time.perf_counter()
                grown = await worker.ask("footprint", count=count)
                cells[peer.name] = {"each": [grown["bytes"] / count], "seconds": time.perf_counter() - before}
            finally:
                await worker.kill()
        except PeerError as error:
            failed[peer.name] = str(error)
    title = f"memory a key, of {count:,} small values"
    stage.progress.done(title, cells)
    work = [{"name": "footprint", "title": title, "unit": "bytes", "cells": cells}]
    return {"title": "Memory of small keys", "durability": "", "peers": described(group.peers), "work": work, "failed": failed}
