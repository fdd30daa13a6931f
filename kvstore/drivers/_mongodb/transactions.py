"""Several keys as one, with conditions on any of them. It needs a replica set."""

from __future__ import annotations

from collections.abc import Sequence
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from kvstore.driver import Expect, Write
from kvstore.drivers._mongodb.documents import EXPIRY, Document, Documents, date, is_ours, value_of
from kvstore.drivers._mongodb.writing import steps

if TYPE_CHECKING:
    from pymongo.asynchronous.client_session import AsyncClientSession


async def commit(documents: Documents, writes: Sequence[Write], expect: Expect) -> list[bool] | None:
    """A `Driver.write`. Another writer on one of the keys meanwhile makes it start again."""
    from pymongo.read_concern import ReadConcern

    async with documents.collection.database.client.start_session() as session:
        return await session.with_transaction(
            lambda session: _carried_out(documents, session, writes, expect),
            read_concern=ReadConcern("snapshot"),
            write_concern=documents.collection.write_concern,
        )


async def _carried_out(
    documents: Documents, session: AsyncClientSession, writes: Sequence[Write], expect: Expect
) -> list[bool] | None:
    from pymongo import DeleteMany, UpdateOne

    collection, now = documents.collection, documents.clock()
    keys = list(dict.fromkeys([*expect, *(key for key, _, _ in writes)]))
    removed = {key for key, data, _ in writes if data is None} - expect.keys()
    fields = {EXPIRY: 1, "value": 1} if expect else {EXPIRY: 1}
    live: dict[str, Document] = {}
    for key, document in (await documents.found(keys, fields, session)).items():
        if not is_ours(document):
            if key not in removed:
                raise documents.foreign(key)
        elif int(document[EXPIRY]) > now:
            live[key] = document
    for key, wanted in expect.items():
        if wanted != (value_of(live[key], key) if key in live else None):
            return None

    def change(key: str, fields: Document) -> UpdateOne:
        # What expired leaves its custom metadata behind.
        unset = {} if key in live else {"$unset": {"custom": ""}}
        return UpdateOne({"_id": documents.name(key)}, {"$set": fields} | unset, upsert=True)

    changes: list[Any] = []
    for key in expect.keys() - {key for key, _, _ in writes}:
        # What is only looked at has to be written too, or two transactions could each change what the other one reads.
        changes.append(change(key, {"lock": token_hex(8)} | ({} if key in live else {EXPIRY: date(0)})))
    for some in steps(writes):
        for key, data, expires_at in some:
            if data is not None:
                changes.append(change(key, documents.fields(data, expires_at)))
            elif key in live:
                changes.append(change(key, documents.gone()))
        if some[-1] is not writes[-1]:
            await collection.bulk_write(changes, ordered=True, session=session)
            changes.clear()
    changes += [DeleteMany(documents.some(some) | {EXPIRY: date(0)}) for some in documents.shares(keys)]
    await collection.bulk_write(changes, ordered=True, session=session)
    return [key in live for key, _, _ in writes]
