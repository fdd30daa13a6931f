"""PyMongo's asyncio client: made, looked over before it is used, and its errors as those of kvstore."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from kvstore.clock import Clock
from kvstore.drivers._mongodb.documents import EXPIRY
from kvstore.drivers._options import unclear_url
from kvstore.errors import BackendError, BackendTimeout, BackendUnavailable, ConfigError

if TYPE_CHECKING:
    from pymongo import AsyncMongoClient
    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.errors import PyMongoError

    Client = AsyncMongoClient[dict[str, Any]]
    Collection = AsyncCollection[dict[str, Any]]

_GRACE = 300
"""Seconds after which the server itself removes what expired, if no program does. The clock of a new primary may be ahead."""
_UNAUTHORIZED = 13
_REFUSED = (_UNAUTHORIZED, 18, 8000)  # AuthenticationFailed, and Atlas's own


def made(url: str, connect_timeout: float) -> Client:
    from pymongo import AsyncMongoClient
    from pymongo.errors import PyMongoError

    milliseconds = int(connect_timeout * 1000)
    _check_options(url.partition("?")[2])
    try:
        return AsyncMongoClient(url, serverSelectionTimeoutMS=milliseconds, connectTimeoutMS=milliseconds)
    except (PyMongoError, ValueError, TypeError) as error:
        # Without the cause: it may hold what was wrongly taken for a part of the URL, a password among it.
        message = re.sub(r"//.*@", "//***@", str(error))
        raise ConfigError(f"this is no URL that PyMongo takes: {message}", driver="mongodb") from None


async def close(client: Client, seconds: float) -> None:
    """A farewell to a server that does not answer takes no longer than `seconds`."""
    import pymongo

    with pymongo.timeout(seconds):
        await client.close()


def _check_options(query: str) -> None:
    """Refuses what the client itself would only warn of."""
    from pymongo.errors import PyMongoError
    from pymongo.uri_parser import split_options

    for option in filter(None, re.split("[&;]", query)):
        try:
            split_options(option, validate=True, warn=False)
        except (PyMongoError, ValueError, TypeError) as error:
            if "@" in query:
                raise unclear_url("mongodb") from None
            name = option.partition("=")[0]
            raise ConfigError(f"PyMongo does not take the option {name!r} of the URL: {error}", driver="mongodb") from None


async def prepared(client: Client, database: str | None, name: str, clock: Clock, *, replica_set: bool) -> Collection:
    """The collection, with what must hold of it; and `clock` set."""
    from bson.codec_options import CodecOptions, DatetimeConversion
    from pymongo import ReadPreference, WriteConcern
    from pymongo.errors import InvalidName, OperationFailure

    if not client.write_concern.acknowledged:
        raise ConfigError("with w=0 a write is never known to have happened; leave it out", driver="mongodb")
    try:
        holder = client.get_default_database("kvstore") if database is None else client[database]
        collection: Collection = holder.get_collection(
            name,
            codec_options=CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS),
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern("majority") if replica_set else None,
        )
    except InvalidName as error:
        raise ConfigError(f"this is no name of a database or collection: {error}", driver="mongodb") from error
    if (await collection.options()).get("collation", {}).get("locale", "simple") != "simple":
        raise ConfigError(f"collection {name!r} has a collation, by which keys that differ are one", driver="mongodb")
    hello = await set_by_server(clock, collection)
    if replica_set and "setName" not in hello and hello.get("msg") != "isdbgrid":
        raise ConfigError("the server is no replica set; leave out replica_set", driver="mongodb")
    try:
        await collection.create_index(EXPIRY, expireAfterSeconds=_GRACE)
    except OperationFailure as error:
        if error.code != _UNAUTHORIZED:  # a login that may only read gets along without
            raise
    return collection


async def set_by_server(clock: Clock, collection: Collection) -> dict[str, Any]:
    """Sets `clock` by the server's. Returns what else the server says of itself."""
    began = time.monotonic()
    hello: dict[str, Any] = await collection.database.command("hello", codec_options=collection.codec_options)
    clock.set(int(hello["localTime"]), within=int((time.monotonic() - began) * 1000) + 1)
    return hello


def was_not_sent(error: PyMongoError) -> bool:
    """Whether the command that raised it never left. PyMongo raises another error if it was sent before, and lost."""
    from pymongo.errors import ServerSelectionTimeoutError

    return isinstance(error, ServerSelectionTimeoutError) and not error.has_error_label("UnknownTransactionCommitResult")


def as_kvstore_error(error: PyMongoError, seconds: float, *, maybe_written: bool | None = None) -> BackendError:
    """`error`, which came after `seconds`, as one of kvstore's."""
    from pymongo import errors

    code = error.code if isinstance(error, errors.OperationFailure) else None
    if code in _REFUSED:
        return BackendUnavailable(f"MongoDB refuses the login or the command: {_told(error)}", maybe_written=maybe_written)
    if isinstance(error, errors.ServerSelectionTimeoutError):
        return BackendUnavailable(f"no MongoDB server answers: {_told(error)}", maybe_written=maybe_written)
    if error.timeout:
        return BackendTimeout(f"MongoDB did not answer in {seconds:.1f} seconds", maybe_written=maybe_written)
    if isinstance(error, errors.ConnectionFailure | errors.InvalidOperation):
        return BackendUnavailable(f"the connection to MongoDB failed: {_told(error)}", maybe_written=maybe_written)
    return BackendError(f"MongoDB: {_told(error)}")


def _told(error: PyMongoError) -> str:
    """What it says, without the documents that it concerns."""
    from pymongo.errors import BulkWriteError

    if isinstance(error, BulkWriteError):
        details: Any = error.details
        return str(next(one["errmsg"] for one in details["writeErrors"] + details["writeConcernErrors"]))[:500]
    return str(error).partition(", full error:")[0].partition(", Topology Description:")[0][:500]
