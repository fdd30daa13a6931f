"""What the drivers for SQL servers have in common."""

from __future__ import annotations

from typing import TypedDict


class SqlOptions(TypedDict, total=False):
    """The options of a driver for a SQL server that go with a URL."""

    schema: str | None
    connections: int
    connect_timeout: float
    timeout: float
