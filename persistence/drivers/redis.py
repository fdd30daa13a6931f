"""Persistence in Redis or Valkey."""

from __future__ import annotations

from typing import Any

from kvstore.drivers.redis import RedisDriver


def redis_driver(url: str, *, base: str = "agentx", **options: Any) -> RedisDriver:
    """The driver for `create_persistence`. `base` stands before every key; the options are `RedisDriver`'s."""
    return RedisDriver(url, base=base, **options)
