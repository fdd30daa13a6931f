"""Persistence in MySQL or MariaDB."""

from __future__ import annotations

from typing import Unpack

from kvstore.drivers.mysql import MysqlDriver
from persistence.drivers._sql import SqlOptions
from persistence.places import placed


def mysql_driver(url: str, *, table: str | None = None, **options: Unpack[SqlOptions]) -> MysqlDriver:
    """The driver for `create_persistence`. The options are `MysqlDriver`'s, and may stand in the URL's query as well.

    `table` is made where it is missing; it is `agentx` where neither it nor the URL says another.
    """
    return MysqlDriver.from_url(url, **placed(url, {"table": table, **options}))
