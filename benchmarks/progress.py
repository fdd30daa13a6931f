"""What a run says of itself while it runs."""

from __future__ import annotations

import time
from statistics import median
from typing import Any


class Progress:
    def __init__(self, parts: list[str]) -> None:
        self._parts = parts
        self._at = 0
        self._started = self._last = time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def start(self, part: str) -> None:
        self._at = self._parts.index(part) + 1
        minutes, seconds = divmod(int(self.elapsed()), 60)
        print(f"\n[{self._at}/{len(self._parts)} at {minutes}:{seconds:02}] {part}", flush=True)

    def said(self, text: str) -> None:
        print(f"  {text} ({self._took():.1f} s)", flush=True)

    def failed(self, peer: str, reason: str) -> None:
        print(f"  {peer} failed: {reason}", flush=True)

    def done(self, title: str, cells: dict[str, Any]) -> None:
        found = " · ".join(filter(None, map(_short, cells, cells.values())))
        print(f"  {title:36} ({self._took():.1f} s) {found}", flush=True)

    def _took(self) -> float:
        """Seconds since the last line."""
        before, self._last = self._last, time.monotonic()
        return self._last - before


def _short(name: str, cell: dict[str, Any]) -> str:
    if "error" in cell:
        return f"{name} failed: {cell['error'][:120]}"
    if cell.get("each"):
        return f"{name} {median(cell['each']):,.4g}"
    return ""
