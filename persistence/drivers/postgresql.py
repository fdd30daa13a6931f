"""Persistence in PostgreSQL."""

from __future__ import annotations

from typing import Unpack

from kvstore.drivers.postgresql import PostgresqlDriver
from persistence.drivers._sql import SqlOptions
from persistence.places import placed


def postgresql_driver(url: str, *, table: str | None = None, **options: Unpack[SqlOptions]) -> PostgresqlDriver:
    """The driver for `create_persistence`. The options are `PostgresqlDriver`'s, and may stand in the URL's query as well.

    `table` is made where it is missing; it is `agentx` where neither it nor the URL says another.
    """
    return PostgresqlDriver.from_url(url, **placed(url, {"table": table, **options}))
