"""What importing each peer costs over a bare interpreter, from start to end of a process."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks.environments import NODE, failure, python
from benchmarks.peers.catalogue import IMPORTS
from benchmarks.processes import PeerGone
from benchmarks.stage import Stage


async def run_imports(stage: Stage) -> dict[str, Any]:
    cells: dict[str, Any] = {name: {"each": []} for name, _, _ in IMPORTS}
    for turn in range(stage.settings.imports):
        bare: dict[str, float] = {}
        for name, environment, statement in IMPORTS:
            if "error" in cells[name]:
                continue
            try:
                if environment not in bare:
                    bare[environment] = await _seconds(environment, "")
                taken = await _seconds(environment, statement) - bare[environment]
            except PeerGone as error:
                cells[name] = {"error": str(error)}
            else:
                if turn or not stage.settings.thorough:  # the first may compile
                    cells[name]["each"].append(max(0.0, taken * 1000))
    stage.progress.done("import, over a bare interpreter", cells)
    roles = {"kvstore": "ours", "persistence": "ours", "asyncio": "raw"}
    peers = [
        {"name": name, "role": "raw" if ", nothing" in name else roles.get(name, "peer"), "note": statement}
        for name, _, statement in IMPORTS
    ]
    work = [{"name": "import", "title": "import, over a bare interpreter", "unit": "ms", "cells": cells}]
    timed = "Timed is what a program imports, of kvstore `from kvstore import create_storage`. asyncio is in most others."
    return {"title": "Import", "durability": timed, "peers": peers, "work": work, "failed": {}}


async def _seconds(environment: str, statement: str) -> float:
    if reason := failure(environment):
        raise PeerGone(reason)
    command = ["node", "-e"] if environment == "node" else [str(python(environment)), "-c"]
    before = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *command, statement, cwd=NODE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    if process.returncode:
        raise PeerGone(" ".join(said.decode(errors="replace").strip().splitlines()[-1:])[:300])
    return time.perf_counter() - before
