"""MongoDB by PyMongo's asyncio client: one document a key, batches as bulk writes, conditions as filters."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Self, TypeVar

from kvstore.clock import Clock
from kvstore.driver import PAGE, Capabilities, Driver, Event, Expect, Stat, Write
from kvstore.drivers._mongodb.client import as_kvstore_error, close, made, prepared, set_by_server, was_not_sent
from kvstore.drivers._mongodb.documents import EXPIRY, REVISION, Document, Documents, date, stat_of, value_of
from kvstore.drivers._mongodb.transactions import commit
from kvstore.drivers._mongodb.writing import clear, swap, sweep, update, write_each
from kvstore.drivers._options import check_client, check_seconds, own_query, parted
from kvstore.errors import (
    BackendTimeout,
    BackendUnavailable,
    ConfigError,
    InvalidValueError,
    MissingDependencyError,
    UnsupportedOperation,
    install,
)
from kvstore.lifetime import Lifetime

if TYPE_CHECKING:
    from kvstore.drivers._mongodb.client import Client

MAX_VALUE_BYTES = 16 * 2**20 - 2**14
"""A document of MongoDB has at most 16 MiB; the rest of it is for the key and the custom metadata."""

_LOGIN = re.compile(r"(?:[^/?@:%]|%[0-9a-fA-F]{2})*(?::(?:[^/?@:%]|%[0-9a-fA-F]{2})*)?@")
"""What PyMongo takes."""
_OWN_QUERY = {"collection": str, "base": str, "replica_set": bool, "connect_timeout": float, "timeout": float}

T = TypeVar("T")


class MongodbDriver(Driver):
    """Keeps each value in a document of a MongoDB collection (server 5.0 or newer), with the key as its `_id`.

    Args:
        url: `mongodb://[user:password@]host:port/database` or `mongodb+srv://…`, with PyMongo's own options as a query.
        client: In place of `url`, an `AsyncMongoClient` of yours, which stays open. It works in one event loop.
        database: Its name, where the URL has none; else `kvstore`.
        collection: Its name. Documents of other programs in it are not seen, and not touched.
        base: What stands before every key in `_id`, literally, followed by `:`.
        replica_set: The server is a replica set or a sharded cluster, as Atlas is: then writes of several keys are
            transactions (`atomic`), every write waits for most members, and changes by others are told (`watch`). All
            programs on the collection have to say so.
        connect_timeout: Seconds to wait for a server, then `BackendUnavailable`.
        timeout: Seconds to wait for an answer, or for a new primary after the old one was lost; then `BackendTimeout`, or
            `BackendUnavailable` where there is none.
    """

    lanes = 2

    def __init__(
        self,
        url: str | None = None,
        *,
        client: Any = None,
        database: str | None = None,
        collection: str = "kvstore",
        base: str = "",
        replica_set: bool = False,
        connect_timeout: float = 5.0,
        timeout: float = 10.0,
    ) -> None:
        if (url is None) == (client is None):
            raise ConfigError("give either a url, such as mongodb://localhost:27017/database, or a client", driver="mongodb")
        if url is not None and not re.match(r"mongodb(\+srv)?://", url):
            raise ConfigError("a MongoDB URL starts with mongodb:// or mongodb+srv://", driver="mongodb")
        is_one = iscoroutinefunction(getattr(client, "close", None))
        check_client("mongodb", "client", client, "an AsyncMongoClient", is_one=is_one)
        check_seconds("mongodb", connect_timeout=connect_timeout, timeout=timeout)
        if not collection:
            raise ConfigError("a collection has a name", driver="mongodb")
        self._address = "" if url is None else parted(url, _LOGIN, "mongodb").address
        self._url = url
        self._given = client
        self._open = Lifetime()
        self._time = self.clock = Clock()
        self._database = database
        self._name = collection
        self._prefix = f"{base}:" if base else ""
        self._replica_set = replica_set
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._documents: Documents | None = None
        self.capabilities = Capabilities(
            atomic=replica_set, conditional=True, ordered=True, metadata=True, watch=replica_set, shared=True
        )

    def __repr__(self) -> str:
        return f"MongodbDriver({self._address!r}, collection={self._name!r}, base={self._prefix!r})"

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """The URL of MongoDB; `collection`, `base`, `replica_set`, `connect_timeout` and `timeout` may stand in its query."""
        address, own = own_query(url, _OWN_QUERY, "mongodb")
        return cls(address, **(own | options))

    # Connecting

    async def connect(self) -> None:
        try:
            pymongo = await asyncio.to_thread(_imported)
        except ModuleNotFoundError as error:
            raise MissingDependencyError(f"the mongodb driver needs PyMongo: {install('mongodb')}") from error
        client: Client = self._given
        if self._url is not None:
            client = made(self._url, self._connect_timeout)
            await self._open.begin(partial(close, client, self._timeout))
        try:
            with pymongo.timeout(self._connect_timeout):
                collection = await prepared(client, self._database, self._name, self._time, replica_set=self._replica_set)
        except pymongo.errors.PyMongoError as error:
            reason = as_kvstore_error(error, self._connect_timeout, maybe_written=False)
            if isinstance(reason, BackendTimeout):
                reason = BackendUnavailable(f"no answer from MongoDB in {self._connect_timeout:g} seconds", maybe_written=False)
            raise reason from error
        except RuntimeError as error:
            if self._given is None:
                raise
            raise UnsupportedOperation(
                "the client belongs to another event loop; for several in turn, give the driver a url"
            ) from error
        self._documents = Documents(collection, self._prefix, lambda: self.clock(), replica_set=self._replica_set)

    async def aclose(self) -> None:
        self._documents = None
        await self._open.aclose()

    # Calls

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        found = await self._call(lambda documents: documents.find(keys, {"value": 1, EXPIRY: 1}, foreign=True))
        return [value_of(found[key], key) if key in found else None for key in keys]

    async def has(self, keys: Sequence[str]) -> list[bool]:
        found = await self._call(lambda documents: documents.find(keys, {EXPIRY: 1}))
        return [key in found for key in keys]

    async def stat(self, keys: Sequence[str]) -> list[Stat | None]:
        found = await self._call(lambda documents: documents.find(keys, {"value": 0}))
        return [stat_of(found[key]) if key in found else None for key in keys]

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        return await self._call(lambda documents: documents.scan(prefix, after=after, limit=limit, reverse=reverse))

    async def count(self, prefix: str) -> int:
        return await self._call(lambda documents: documents.count(prefix))

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        for key, data, _ in writes:
            if data is not None and len(data) > MAX_VALUE_BYTES:
                raise InvalidValueError(
                    f"the value has {len(data):,} bytes, and MongoDB keeps at most {MAX_VALUE_BYTES:,}", key=key
                )
        alone = len(writes) == 1 and (not expect or [*expect] == [writes[0][0]])
        if self._replica_set and not alone:
            return await self._call(lambda documents: commit(documents, writes, expect or {}), writes=True)
        if not expect:
            return await self._call(lambda documents: write_each(documents, writes), writes=True, whole=len(writes) == 1)
        if not alone:
            raise UnsupportedOperation("conditions on other keys than the one written need a replica set (replica_set=True)")
        return await self._call(lambda documents: swap(documents, writes[0], expect[writes[0][0]]), writes=True)

    async def touch(self, key: str, expires_at: int | None) -> bool:
        return await self._update(key, {"$set": {EXPIRY: date(expires_at)}})

    async def set_meta(self, key: str, custom: bytes | None) -> bool:
        return await self._update(key, {"$unset": {"custom": ""}} if custom is None else {"$set": {"custom": custom}})

    async def _update(self, key: str, change: Document) -> bool:
        return await self._call(lambda documents: update(documents, documents.one(key), change), writes=True)

    async def clear(self, prefix: str) -> int:
        total, last = 0, None
        while page := await self.scan(prefix, after=last, limit=5 * PAGE, reverse=False):
            last = page[-1]
            total += await self._call(partial(clear, prefix=prefix, last=last), writes=True, whole=False)
        return total

    async def sweep(self) -> int | None:
        await self._call(lambda documents: set_by_server(self._time, documents.collection))
        return await self._call(sweep, writes=True)

    @asynccontextmanager
    async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[Event]]:
        if not self._replica_set:
            raise UnsupportedOperation("only a replica set tells of changes (replica_set=True)")
        told: list[Document] = [
            {"$match": {"operationType": {"$in": ["insert", "update", "replace"]}}},
            {"$project": {"fullDocument.value": 0, "updateDescription.updatedFields.value": 0}},
        ]
        stream = await self._call(lambda documents: documents.collection.watch(told))
        try:
            yield self._events(stream, prefix)
        finally:
            with suppress(Exception):  # it may be what failed
                await stream.close()

    async def _events(self, stream: Any, prefix: str) -> AsyncIterator[Event]:
        from pymongo.errors import PyMongoError

        assert self._documents is not None
        mine, below = self._documents.writer, self._prefix + prefix
        try:
            async for change in stream:
                name = change["documentKey"]["_id"]
                fields = change.get("fullDocument") or change["updateDescription"]["updatedFields"]
                # No write of a value is without a new one. What stays the same is not told, so it is all there is to go by.
                revision = str(fields.get("revision"))
                ours = REVISION.fullmatch(revision) and isinstance(name, str) and name.startswith(below)
                if ours and not revision.startswith(mine):
                    yield Event("remove" if fields.get(EXPIRY) == date(0) else "update", name[len(self._prefix) :])
        except PyMongoError as error:
            raise as_kvstore_error(error, self._timeout) from error

    async def _call(self, call: Callable[[Documents], Awaitable[T]], *, writes: bool = False, whole: bool = True) -> T:
        """Not `whole`: it writes by several commands, of which one may fail when others are done."""
        import pymongo
        from pymongo.errors import PyMongoError

        if self._documents is None:
            raise BackendUnavailable("the connection was closed", maybe_written=False)
        began = time.monotonic()
        try:
            with pymongo.timeout(self._timeout):
                return await call(self._documents)
        except PyMongoError as error:
            maybe_written = not (whole and was_not_sent(error)) if writes else None
            raise as_kvstore_error(error, time.monotonic() - began, maybe_written=maybe_written) from error


def _imported() -> Any:
    """In a thread, for it takes a tenth of a second."""
    import pymongo
    import pymongo.errors

    return pymongo
