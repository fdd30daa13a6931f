"""The documents of one mount, a key each.

    {_id: key, value: binary, size, kvstore_expires_at: date, mtime: date, revision: text, custom: binary}

What has no date in `kvstore_expires_at` is another program's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import count
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from kvstore.driver import Stat
from kvstore.errors import CorruptValueError
from kvstore.expiry import LAST_EXPIRY
from kvstore.keys import MAX_KEY_BYTES, prefix_end

if TYPE_CHECKING:
    from pymongo.asynchronous.client_session import AsyncClientSession

    from kvstore.drivers._mongodb.client import Collection

Document = dict[str, Any]

EXPIRY = "kvstore_expires_at"
"""A name that no other program uses, for whose date is past, MongoDB removes."""
REVISION = re.compile("[0-9a-f]{16}-[0-9a-f]+")
"""Of a write: who it was by, and which one of his."""
BY_ID = [("_id", 1)]
"""The index to go by, said outright: the one on `EXPIRY` fits most conditions too, and would be a walk through everything."""
_SHARE = 2**20
"""Bytes of names in one command: it has at most 16 MiB, and PyMongo encodes it, and decodes its answer, in the event loop."""


class Documents:
    """In `collection`, with `prefix` before every key."""

    def __init__(self, collection: Collection, prefix: str, clock: Callable[[], int], *, replica_set: bool) -> None:
        self.collection = collection
        self.prefix = prefix
        self.clock = clock
        self.replica_set = replica_set
        self.writer = token_hex(8)
        self._revisions = count()

    def name(self, key: str) -> str:
        return self.prefix + key

    def key(self, document: Document) -> str:
        name: str = document["_id"]
        return name[len(self.prefix) :]

    # Conditions

    def one(self, key: str) -> Document:
        return {"_id": self.name(key), EXPIRY: self.live()}

    def some(self, keys: Sequence[str]) -> Document:
        """No more than one of the `shares`."""
        return {"_id": {"$in": [self.name(key) for key in keys]}}

    def shares(self, keys: Sequence[str]) -> Iterator[Sequence[str]]:
        """Parts of `keys` that one command carries each."""
        most = max(1, _SHARE // (MAX_KEY_BYTES + len(self.prefix.encode())))
        return (keys[at : at + most] for at in range(0, len(keys), most))

    def below(self, prefix: str) -> Document:
        """Texts are compared by their bytes, so by code point."""
        return {"_id": {"$gte": self.name(prefix), "$lt": prefix_end(self.name(prefix))}}

    def live(self) -> Document:
        return {"$gt": date(self.clock())}

    def expired(self) -> Document:
        return {"$lte": date(self.clock())}

    # What is written

    def fields(self, data: bytes, expires_at: int | None) -> Document:
        at, revision = date(expires_at), self._revision()
        return {"value": data, "size": len(data), EXPIRY: at, "mtime": date(self.clock()), "revision": revision}

    def gone(self) -> Document:
        """What a removed document is made first, for of a deletion those who watch learn no more than the key."""
        return {EXPIRY: date(0), "revision": self._revision()}

    def _revision(self) -> str:
        """Of one write: no other one has the same, and it says whose it is."""
        return f"{self.writer}-{next(self._revisions):x}"

    def foreign(self, key: str) -> CorruptValueError:
        return CorruptValueError(f"another program keeps a document here in collection {self.collection.name!r}", key=key)

    # Reading

    async def find(self, keys: Sequence[str], fields: Document, *, foreign: bool = False) -> dict[str, Document]:
        """Those of `keys` that are there. With `foreign` what another program keeps in the place of one is an error."""
        client = self.collection.database.client
        whole = self.replica_set and len(keys) > 1  # no half of a batch
        async with client.start_session(snapshot=True) if whole else nullcontext() as session:
            documents = await self.found(keys, fields, session)
        now = self.clock()
        for key, document in [*documents.items()]:
            if foreign and not is_ours(document):
                raise self.foreign(key)
            if not is_ours(document) or int(document[EXPIRY]) <= now:
                del documents[key]
        return documents

    async def found(self, keys: Sequence[str], fields: Document, session: AsyncClientSession | None) -> dict[str, Document]:
        """What stands in the place of `keys`, whoever put it there."""
        documents: dict[str, Document] = {}
        for some in self.shares(keys):
            # By `_id` alone, which no other index fits, and which is the server's fastest way.
            asked = {"_id": self.name(some[0])} if len(some) == 1 else self.some(some)
            found = self.collection.find(asked, fields, limit=len(some), batch_size=len(some), session=session)
            documents |= {self.key(document): document for document in await found.to_list()}
        return documents

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        asked = self.below(prefix) | {EXPIRY: self.live()}
        if after is not None:
            asked = {"$and": [asked, {"_id": {"$lt" if reverse else "$gt": self.name(after)}}]}
        order = [("_id", -1 if reverse else 1)]
        found = self.collection.find(asked, {"_id": 1}, sort=order, limit=limit, batch_size=limit, hint=BY_ID)
        return [self.key(document) for document in await found.to_list()]

    async def count(self, prefix: str) -> int:
        return await self.collection.count_documents(self.below(prefix) | {EXPIRY: self.live()}, hint=BY_ID)


def date(milliseconds: int | None) -> Any:
    from bson.datetime_ms import DatetimeMS

    # For ever is a date too, so that one range tells who is alive.
    return DatetimeMS(LAST_EXPIRY if milliseconds is None else min(milliseconds, LAST_EXPIRY))


def is_ours(document: Document) -> bool:
    from bson.datetime_ms import DatetimeMS

    return isinstance(document.get(EXPIRY), DatetimeMS)


def value_of(document: Document, key: str) -> bytes:
    data = document.get("value")
    if not isinstance(data, bytes):
        raise CorruptValueError("the document has no binary value", key=key)
    return bytes(data)


def stat_of(document: Document) -> Stat:
    at = int(document[EXPIRY])
    return Stat(
        document["size"], document["revision"], int(document["mtime"]), at if at < LAST_EXPIRY else None, document.get("custom")
    )
