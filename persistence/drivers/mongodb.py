"""Persistence in MongoDB."""

from __future__ import annotations

from typing import Any

from kvstore.drivers.mongodb import MongodbDriver


def mongodb_driver(url: str, *, collection: str = "agentx", **options: Any) -> MongodbDriver:
    """The driver for `create_persistence`. `collection` holds all of it; the options are `MongodbDriver`'s."""
    return MongodbDriver(url, collection=collection, **options)
