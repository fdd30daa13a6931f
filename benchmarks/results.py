"""The results of a run as they lie in JSON, asked by part, work and peer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any


@dataclass(frozen=True, eq=False)
class Row:
    """One kind of work of one part."""

    name: str
    title: str
    unit: str
    cells: dict[str, dict[str, Any]]

    def median(self, peer: str) -> float | None:
        each: list[float] = self.cells.get(peer, {}).get("each", [])
        return float(median(each)) if each else None

    def spread(self, peer: str) -> float | None:
        """Half of the interquartile range, as a share of the median."""
        each: list[float] = self.cells[peer]["each"]
        if len(each) < 3 or not median(each):
            return None
        low, _, high = quantiles(each, n=4, method="inclusive")
        return (high - low) / 2 / median(each)

    def pause(self, peer: str) -> float | None:
        pauses: list[float] = self.cells.get(peer, {}).get("pauses", [])
        return float(median(pauses)) if pauses else None

    def idle(self, peer: str) -> float:
        """The longest pause of a loop that did nothing, just after: what the machine itself costs."""
        return float(median(self.cells[peer].get("idle") or [0.0]))


@dataclass(frozen=True)
class Part:
    """What one JSON file holds."""

    name: str
    title: str
    durability: str
    peers: list[dict[str, str]]
    rows: dict[str, Row]
    failed: dict[str, str]
    contended: dict[str, dict[str, Any]]

    def row(self, name: str) -> Row:
        """The row of that name, or one without cells. With `*` at the end the largest of those that were measured."""
        if name.endswith("*"):
            found = [row for row in self.rows if row.startswith(name[:-1])]
            name = max(found, key=lambda row: int(row.rpartition("-")[2]), default=name)
        return self.rows.get(name) or Row(name, name, "µs", {})

    def named(self, role: str) -> list[str]:
        return [peer["name"] for peer in self.peers if peer["role"] == role]

    @property
    def ours(self) -> str:
        return next(iter(self.named("ours")), "kvstore")

    @property
    def raw(self) -> str | None:
        return next(iter(self.named("raw")), None)


class Results:
    def __init__(self, folder: Path) -> None:
        self.parts = {part.name: part for part in _parts(folder)}
        machine = folder / "machine.json"
        self.machine: dict[str, Any] = json.loads(machine.read_text()) if machine.exists() else {}


def _parts(folder: Path) -> Iterator[Part]:
    for path in sorted(folder.glob("*.json")):
        given = json.loads(path.read_text())
        if "part" not in given:
            continue
        rows = {row["name"]: Row(row["name"], row["title"], row["unit"], row["cells"]) for row in given["work"]}
        yield Part(
            given["part"],
            given["title"],
            given["durability"],
            given["peers"],
            rows,
            given["failed"],
            given.get("contended", {}),
        )
