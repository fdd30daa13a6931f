"""The stores of a group, each in a process of its own for all its work."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.catalogue import Group
from benchmarks.plan import stores
from benchmarks.stage import Stage


async def run_stores(stage: Stage, group: Group) -> dict[str, Any]:
    contestants = await stage.open(group.name, group.peers, group.server)
    work = [await stage.work(contestants, work) for work in stores(group, stage.settings)]
    await contestants.close()
    stage.forget(group.name)
    return {"work": work, "failed": contestants.failed}
