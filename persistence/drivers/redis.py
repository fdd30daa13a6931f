"""Persistence in Redis or Valkey."""

from __future__ import annotations

from typing import TypedDict, Unpack

from kvstore.drivers.redis import RedisDriver
from persistence.places import placed


class RedisOptions(TypedDict, total=False):
    """Those of `RedisDriver` that go with a URL."""

    index: bool
    cluster: bool
    connect_timeout: float
    timeout: float


def redis_driver(url: str, *, base: str | None = None, **options: Unpack[RedisOptions]) -> RedisDriver:
    """The driver for `create_persistence`. The options are `RedisDriver`'s, and may stand in the URL's query as well.

    `base` stands before every key; it is `agentx` where neither it nor the URL says another.
    """
    return RedisDriver.from_url(url, **placed(url, {"base": base, **options}))
