"""Persistence in MongoDB."""

from __future__ import annotations

from typing import TypedDict, Unpack

from kvstore.drivers.mongodb import MongodbDriver
from persistence.places import placed


class MongodbOptions(TypedDict, total=False):
    """Those of `MongodbDriver` that go with a URL."""

    database: str | None
    base: str
    replica_set: bool
    connect_timeout: float
    timeout: float


def mongodb_driver(url: str, *, collection: str | None = None, **options: Unpack[MongodbOptions]) -> MongodbDriver:
    """The driver for `create_persistence`. The options are `MongodbDriver`'s, and may stand in the URL's query as well.

    `collection` holds all of it; it is `agentx` where neither it nor the URL says another.
    """
    return MongodbDriver.from_url(url, **placed(url, {"collection": collection, **options}))
