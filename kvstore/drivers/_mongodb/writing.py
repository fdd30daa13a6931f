"""Writes of one document each, which need no transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from kvstore.driver import Write
from kvstore.drivers._mongodb.documents import BY_ID, EXPIRY, Document, Documents, date, value_of

_AT_ONCE = 16
"""How many single removals are under way together."""
_LARGE = 4 * 2**20
"""From this size on a condition goes by the revision, for both values together might be too much for one command."""
_STEP = 4 * 2**20
"""Bytes of values that are sent at once, for PyMongo encodes them in the event loop."""
_BYTES_PER_WRITE = _STEP // 1000
"""Of values, take as long as one write besides its own."""
_DUPLICATE = 11000


async def write_each(documents: Documents, writes: Sequence[Write]) -> list[bool]:
    """A `Driver.write`, each key by itself."""
    found: dict[str, bool] = {}
    for some in steps([write for write in writes if write[1] is not None]):
        found |= await _put(documents, some)
    removed = [key for key, data, _ in writes if data is None]
    for start in range(0, len(removed), _AT_ONCE):  # a bulk of them would not say which were there
        keys = removed[start : start + _AT_ONCE]
        # To the end of all, for what is left under way when one fails would happen after a later call.
        taken = await asyncio.gather(*(_take(documents, documents.one(key)) for key in keys), return_exceptions=True)
        for key, there in zip(keys, taken, strict=True):
            if isinstance(there, BaseException):
                raise there
            found[key] = there
    return [found[key] for key, _, _ in writes]


def steps(writes: Sequence[Write]) -> Iterator[Sequence[Write]]:
    """Parts of `writes` that hold the event loop no longer than one large value."""
    begin, size = 0, 0
    for at, (_, data, _) in enumerate(writes):
        own = _BYTES_PER_WRITE + len(data or b"")
        size += own
        if size > _STEP and at > begin:
            yield writes[begin:at]
            begin, size = at, own
    if begin < len(writes):
        yield writes[begin:]


async def _put(documents: Documents, writes: Sequence[Write]) -> dict[str, bool]:
    """Sets. Where an expired document, or at the same moment another writer, is in the way: once more."""
    from pymongo import UpdateOne
    from pymongo.errors import BulkWriteError

    found: dict[str, bool] = {}
    while writes:
        changes = [
            UpdateOne(documents.one(key), {"$set": documents.fields(data or b"", at)}, upsert=True, hint=BY_ID)
            for key, data, at in writes
        ]
        try:
            result: Any = (await documents.collection.bulk_write(changes, ordered=False)).bulk_api_result
        except BulkWriteError as error:
            result = error.details
            if result["writeConcernErrors"] or any(one["code"] != _DUPLICATE for one in result["writeErrors"]):
                raise
        failed = {one["index"] for one in result["writeErrors"]}
        inserted = {one["index"] for one in result["upserted"]}
        found.update((write[0], i not in inserted) for i, write in enumerate(writes) if i not in failed)
        writes = [write for i, write in enumerate(writes) if i in failed]
        for keys in documents.shares([key for key, _, _ in writes]):
            await _refuse_foreign(documents, keys)
            await documents.collection.delete_many(documents.some(keys) | {EXPIRY: documents.expired()}, hint=BY_ID)
    return found


async def swap(documents: Documents, write: Write, wanted: bytes | None) -> list[bool] | None:
    """A `Driver.write` of one key, if it holds `wanted`."""
    from pymongo.errors import DuplicateKeyError

    key, data, expires_at = write
    asked = documents.one(key)
    if wanted is None:
        if data is None:
            return None if await documents.collection.find_one(asked, {"_id": 1}, hint=BY_ID) else [False]
        expired, fields = asked | {EXPIRY: documents.expired()}, documents.fields(data, expires_at)
        try:
            await documents.collection.replace_one(expired, fields, upsert=True, hint=BY_ID)
        except DuplicateKeyError:
            await _refuse_foreign(documents, [key])
            return None
        return [False]
    if len(wanted) + len(data or b"") > _LARGE:
        document = await documents.collection.find_one(asked, hint=BY_ID)
        if document is None or value_of(document, key) != wanted:
            return None
        asked["revision"] = document["revision"]
    else:
        asked["value"] = wanted
    if data is None:
        there = await _take(documents, asked)
    else:
        there = await update(documents, asked, {"$set": documents.fields(data, expires_at)})
    return [True] if there else None


async def update(documents: Documents, asked: Document, change: Document) -> bool:
    return (await documents.collection.update_one(asked, change, hint=BY_ID)).matched_count > 0


async def _take(documents: Documents, asked: Document) -> bool:
    """Removes one."""
    if not documents.replica_set:
        return (await documents.collection.delete_one(asked, hint=BY_ID)).deleted_count > 0
    taken = await update(documents, asked, {"$set": documents.gone()})
    if taken:
        await documents.collection.delete_one({"_id": asked["_id"], EXPIRY: date(0)}, hint=BY_ID)
    return taken


async def clear(documents: Documents, prefix: str, *, last: str) -> int:
    """Removes the keys that start with `prefix`, up to `last`. Returns how many were there."""
    below = {"_id": {"$gte": documents.name(prefix), "$lte": documents.name(last)}}
    live, gone = below | {EXPIRY: documents.live()}, below | {EXPIRY: date(0)}
    if not documents.replica_set:
        return (await documents.collection.delete_many(live, hint=BY_ID)).deleted_count
    taken = (await documents.collection.update_many(live, {"$set": documents.gone()}, hint=BY_ID)).matched_count
    await documents.collection.delete_many(gone, hint=BY_ID)
    return taken


async def sweep(documents: Documents) -> int | None:
    """A `Driver.sweep`."""
    everything = documents.below("")
    await documents.collection.delete_many(everything | {EXPIRY: documents.expired()})
    coming = everything | {EXPIRY: documents.live() | {"$lt": date(None)}}
    due = await documents.collection.find_one(coming, {EXPIRY: 1}, sort=[(EXPIRY, 1)])
    return None if due is None else int(due[EXPIRY])


async def _refuse_foreign(documents: Documents, keys: Sequence[str]) -> None:
    asked = documents.some(keys) | {EXPIRY: {"$not": {"$type": "date"}}}
    if (document := await documents.collection.find_one(asked, {"_id": 1}, hint=BY_ID)) is not None:
        raise documents.foreign(documents.key(document))
