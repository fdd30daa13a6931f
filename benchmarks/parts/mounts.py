"""One, ten and two hundred mounts."""

from __future__ import annotations

from typing import Any

from benchmarks.contest import Contest, Contestants
from benchmarks.peers.catalogue import MOUNTS, described
from benchmarks.plan import SIZES, Work, one_by_one
from benchmarks.stage import Stage


async def run_mounts(stage: Stage) -> dict[str, Any]:
    """Each number of mounts is a contestant of its own, so that they take turns."""
    contestants = await stage.open("mounts", MOUNTS)
    rows = []
    for row in one_by_one(*SIZES[0], stage.settings, mounts=1):
        cells: dict[str, Any] = {}
        contests = []
        for count in (1, 10, 200):
            given = {**row.given, "mounts": count}
            some = Contestants(tuple(peer for peer in MOUNTS if peer.options["mounts"] == count))
            some.workers = {
                name: worker for name, worker in contestants.workers.items() if name in {p.name for p in some.peers}
            }
            work = Work(row.name, row.title, row.do, given, step=row.step, most=row.most, before=(("fill", given),))
            contests.append(Contest(some, work, stage.settings))
        for contest in contests:
            cells |= await contest.run()
        stage.progress.done(row.title, cells)
        rows.append({"name": row.name, "title": row.title, "unit": "µs", "cells": cells})
    await contestants.close()
    return {"title": "Mounts", "durability": "", "peers": described(MOUNTS), "work": rows, "failed": contestants.failed}
