"""Persistence in Redis or Valkey."""

from __future__ import annotations

from typing import Any

from kvstore.drivers.redis import RedisDriver
from persistence.places import placed


def redis_driver(url: str, *, base: str | None = None, **options: Any) -> RedisDriver:
    """The driver for `create_persistence`. The options are `RedisDriver`'s, and may stand in the URL's query as well.

    `base` stands before every key; it is `agentx` where neither it nor the URL says another.
    """
    return RedisDriver.from_url(url, **placed(url, {"base": base} | options))
