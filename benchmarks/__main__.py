"""`python -m benchmarks [--quick] [PART ...]`: the comparison, with the results as JSON and the page of them.

The page of a whole run is `docs/benchmarks.md`; that of a quick run, or of some parts, lies with its results.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks import machine, report
from benchmarks.environments import HERE, ROOT
from benchmarks.parts.footprint import run_footprint
from benchmarks.parts.imports import run_imports
from benchmarks.parts.mounts import run_mounts
from benchmarks.parts.sessions import run_sessions
from benchmarks.parts.stores import run_stores
from benchmarks.peers.catalogue import GROUPS, Group, described
from benchmarks.plan import FULL, QUICK
from benchmarks.progress import Progress
from benchmarks.stage import Stage

RESULTS = HERE / "results"


async def main() -> int:
    parts: dict[str, Callable[[Stage], Awaitable[dict[str, Any]]]] = {}
    for group in GROUPS:
        runner = run_sessions if group.kind == "sessions" else run_stores
        parts[group.name] = lambda stage, group=group, runner=runner: _group(stage, group, runner)  # type: ignore[misc]
    parts |= {"mounts": run_mounts, "footprint": run_footprint, "imports": run_imports}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, small stores")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"only some of them: {', '.join(parts)}")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(parts):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    results, page = RESULTS, ROOT / "docs" / "benchmarks.md"
    if options.quick or options.parts:
        results = RESULTS / ("quick" if options.quick else "parts")
        page = results / "benchmarks.md"
    results.mkdir(parents=True, exist_ok=True)
    for path in results.glob("*.json"):  # of an earlier run, maybe of other code
        path.unlink()
    place = machine.describe()
    settings = QUICK if options.quick else FULL
    names = options.parts or list(parts)
    progress = Progress(names)
    folder = Path(tempfile.mkdtemp(prefix=".bench-", dir=ROOT))  # on the disk of the checkout, not in memory
    stage = Stage(folder, settings, progress)
    try:
        for name in names:
            progress.start(name)
            try:
                result = await parts[name](stage)
            except Exception as error:  # a fault of a part is named in the page, and the others run on
                progress.failed(name, repr(error))
                result = {"title": name, "durability": "", "peers": [], "work": [], "failed": {name: repr(error)}}
            text = json.dumps({"part": name, **result}, indent=1, ensure_ascii=False)
            (results / f"{name}.json").write_text(text + "\n")
        about = {"quick": options.quick, "seconds": round(progress.elapsed()), **place}
        (results / "machine.json").write_text(json.dumps(about, indent=1) + "\n")
    finally:
        stage.servers.stop()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{report.write(results, page)}")
    print(f"\nThe page is {page.relative_to(ROOT)}; it took {progress.elapsed() / 60:.1f} minutes.")
    return 0


async def _group(stage: Stage, group: Group, runner: Callable[[Stage, Group], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    head = {"title": group.title, "durability": group.durability, "peers": described(group.peers)}
    return head | await runner(stage, group)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(main()))
    sys.exit(130)
