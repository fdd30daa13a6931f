"""Persistence in PostgreSQL."""

from __future__ import annotations

from typing import Any

from kvstore.drivers.postgresql import PostgresqlDriver


def postgresql_driver(url: str, *, table: str = "agentx", **options: Any) -> PostgresqlDriver:
    """The driver for `create_persistence`. `table` is made where it is missing; the options are `PostgresqlDriver`'s."""
    return PostgresqlDriver(url, table=table, **options)
