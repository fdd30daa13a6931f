"""Values of a given size, each another: cut from one pool of random text, so that no server can compress them away."""

from __future__ import annotations

import base64
import random
from pathlib import Path
from typing import Any

POOL_BYTES = 3 << 20


def make_pool(path: Path) -> None:
    path.write_bytes(base64.b64encode(random.Random(1).randbytes(POOL_BYTES * 3 // 4)))


class Pool:
    def __init__(self, path: Path) -> None:
        self._text = path.read_text("ascii")

    def text(self, number: int, length: int) -> str:
        start = number * 7919 % (len(self._text) - length)
        return self._text[start : start + length]

    def record(self, number: int, size: int) -> dict[str, Any]:
        """About `size` bytes of JSON."""
        value = {"id": number, "name": f"user {number}", "tags": ["a", "b", "c"], "score": number / 8, "note": ""}
        return {**value, "note": self.text(number, max(8, size - 80))}

    def message(self, name: str, number: int, size: int = 1_000) -> dict[str, Any]:
        """A message of about `size` bytes of JSON, whose text begins with its id."""
        content = f"{name} {self.text(number, size - 100)}"
        return {"id": name, "role": "user", "content": content, "timestamp": 1_770_000_000_000 + number}
