"""Repair: what crashes leave behind, swept up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec

from kvstore.errors import CorruptValueError
from kvstore.storage import Storage
from kvstore.values import MISSING
from persistence.repository import Repository
from persistence.sessions import Sessions
from persistence.shape import INDEX
from persistence.table import Table

_PAGE = 500


class RepairReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `repair` mended. With nothing in it, there was nothing to mend."""

    added_entries: int
    """Index entries that records lacked."""
    removed_entries: int
    """Index entries that no record calls for."""
    mended_heads: int
    """Forks, deletions, imports and truncations that were under way. One that crashed has to be done again where it
    did nothing."""
    removed_messages: int
    """Keys with messages that were cleared, cut off or deleted, or never came to be part of a log."""
    unreadable: tuple[str, ...]
    """Keys of records, of messages and of index entries that can't be read, or are gone before others. They are left as they
    are."""
    orphaned: tuple[str, ...]
    """Ids of sessions that have messages and no record, which is legal: such as one that was deleted while a turn was under
    way. They are left; `sessions.delete(id)` removes the messages."""


async def repair(storage: Storage, repositories: Iterable[Repository[Any]], sessions: Sessions) -> RepairReport:
    """See `Persistence.repair`."""
    added = removed = 0
    unreadable: dict[str, None] = {}
    mended = await sessions.mend_heads()
    for repository in repositories:
        table = repository.table
        async for keys in _pages(storage, table.shape.name):
            documents = await _documents(table, keys, unreadable)
            wanted = {entry: key for key, document in documents.items() for entry in table.shape.entries(key, document)}
            marks = await table.marks(wanted)
            for key in {wanted[entry]: None for entry, mark in marks.items() if mark is MISSING}:
                added += await table.mend(key, documents[key])
            for key in await table.unsettled(keys):
                mended += await table.settle(key)
        async for entries in _pages(storage, f"{INDEX}:{table.shape.name}"):
            marks = await table.marks(entries)
            unreadable |= dict.fromkeys(entry for entry in entries if entry not in marks)
            documents = await _documents(table, {table.shape.entered(entry): None for entry in entries}, {})
            for entry, mark in marks.items():
                key = table.shape.entered(entry)
                if key in documents and entry not in table.shape.entries(key, documents[key]):
                    removed += await table.drop(key, {entry: mark})
    swept = await sessions.sweep()
    unreadable |= dict.fromkeys(await sessions.faults())
    return RepairReport(
        added_entries=added,
        removed_entries=removed,
        mended_heads=mended,
        removed_messages=swept,
        unreadable=tuple(unreadable),
        orphaned=tuple([session_id for session_id in await sessions.logs() if not await sessions.exists(session_id)]),
    )


async def _pages(storage: Storage, base: str) -> AsyncIterator[list[str]]:
    after = None
    while keys := await storage.get_keys(base, limit=_PAGE, after=after):
        yield keys
        after = keys[-1]


async def _documents(table: Table[Any], keys: Iterable[str], unreadable: dict[str, None]) -> dict[str, Any]:
    """What is stored, `MISSING` where nothing is, without what can't be read."""
    keys = list(keys)
    documents = await table.readable(keys)
    unreadable |= dict.fromkeys(key for key in keys if key not in documents)
    for key, document in list(documents.items()):
        try:
            if document is not MISSING:
                table.shape.record(key, document)
        except CorruptValueError:
            unreadable[key] = None
            del documents[key]
    return documents
