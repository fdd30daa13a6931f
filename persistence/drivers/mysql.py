"""Persistence in MySQL or MariaDB."""

from __future__ import annotations

from typing import Any

from kvstore.drivers.mysql import MysqlDriver


def mysql_driver(url: str, *, table: str = "agentx", **options: Any) -> MysqlDriver:
    """The driver for `create_persistence`. `table` is made where it is missing; the options are `MysqlDriver`'s."""
    return MysqlDriver(url, table=table, **options)
