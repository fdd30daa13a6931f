"""Persistence in MongoDB."""

from __future__ import annotations

from typing import Any

from kvstore.drivers.mongodb import MongodbDriver
from persistence.places import placed


def mongodb_driver(url: str, *, collection: str | None = None, **options: Any) -> MongodbDriver:
    """The driver for `create_persistence`. The options are `MongodbDriver`'s, and may stand in the URL's query as well.

    `collection` holds all of it; it is `agentx` where neither it nor the URL says another.
    """
    return MongodbDriver.from_url(url, **placed(url, {"collection": collection} | options))
