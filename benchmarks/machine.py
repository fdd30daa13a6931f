"""On what a run was made."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import time
from typing import Any

from benchmarks.environments import HERE, NODE, ROOT

PEERS = (
    "aiocache", "aiosqlite", "agno", "asyncmy", "asyncpg", "cashews", "fsspec", "google-adk", "langgraph-checkpoint-sqlite",
    "obstore", "openai-agents", "opendal", "orjson", "py-key-value-aio", "redis", "SQLAlchemy", "strands-agents",
)  # fmt: skip
WHAT = ("kvstore", "persistence", "benchmarks", ":!benchmarks/results")
"""What a run depends on. Its own results are written as it goes on."""


def describe() -> dict[str, Any]:
    pinned: dict[str, str] = {}
    for path in sorted((HERE / "requirements").glob("*.txt")):
        pinned |= dict(re.findall(r"^(\S+)==(\S+)$", path.read_text(), re.MULTILINE))
    versions = {name: pinned[name] for name in PEERS if name in pinned}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _said("git", "rev-parse", "--short", "HEAD"),
        "changed": bool(_said("git", "status", "--porcelain", "--untracked-files=no", "--", *WHAT)),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "disk": _said("stat", "-f", "-c", "%T", str(ROOT)),
        "python": platform.python_version(),
        "node": _said("node", "--version"),
        "versions": versions | _node_versions(),
    }


def _node_versions() -> dict[str, str]:
    package = json.loads((NODE / "package.json").read_text())
    return {**package["dependencies"], **package["optionalDependencies"]}


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _said(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
