"""Salvage: what is found of a log of which not all can be read, so that it can be told and cut before the damage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from kvstore.errors import CorruptValueError
from persistence.head import MISPLACED, Entry, Head, Tail, damaged, entry_key, read_entry
from persistence.reader import CHUNK, PROBES, Reader, cuts_of


class Place(NamedTuple):
    """What stands at a number of a log."""

    number: int
    key: str
    data: bytes | None
    """None: it is gone. Nothing: the driver can't read it."""
    entry: Entry | None
    """None: it is gone, or can't be read."""


class Salvage:
    """Sessions are named by their segment of a key here."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def end(self, session: str) -> Tail:
        """Where a log ends. Where its last entries can't be read, each of them counts as one message."""
        try:
            tail, _ = await self._reader.end(session)
            return tail
        except CorruptValueError:
            head = await self._reader.head(session)
            count = await self._reader.count(session, head)
            return await anext(
                Tail(head, count, place.entry.end + count - 1 - place.number)
                async for place in self._back(session, head, count)
                if place.entry is not None and place.entry.follows(None, place.number)
            )

    async def find_last(self, session: str, message_id: str) -> tuple[Tail, int, int] | None:
        """The last message with this id: where its log ends, the number of its entry, its position. None: there is none.

        Entries that are gone or can't be read are passed over, so that a log can be cut before them.
        """
        while True:
            tail = await self.end(session)
            found: tuple[Place, Entry, int] | None = None
            async for place in self._back(session, tail.head, tail.entries):
                if found is not None:
                    there, entry, position = found
                    if entry.follows(place.entry, there.number):
                        return tail, there.number, position
                    raise self._reader.told(damaged(there.key, MISPLACED))
                if place.entry is not None and (at := place.entry.find(message_id)) is not None:
                    found = place, place.entry, at
            if await self._reader.head(session) == tail.head:
                return None

    async def faults(self, session: str) -> list[str]:
        """The keys of entries that can't be read, or are gone before others; of those in a row the first."""
        while True:
            head = await self._reader.head(session)
            found = await self._faults(session, head)
            if not found or await self._reader.head(session) == head:
                return found

    async def _faults(self, session: str, head: Head) -> list[str]:
        keys: list[str] = []
        behind: Place | None = None
        async for place in self._back(session, head, await self._reader.count(session, head)):
            if behind is not None and behind.data is not None:
                if behind.entry is None or not behind.entry.follows(place.entry, behind.number):
                    keys.append(behind.key)
            elif behind is not None and place.data is not None:
                keys += cuts_of(session, head, place.number + 1, place.number + 2)
            behind = place
        return keys[::-1]

    async def _back(self, session: str, head: Head, stop: int) -> AsyncIterator[Place]:
        """What stands before the number `stop`, the last first, and at the end an entry of nothing that the first one follows.

        Where a lot is gone in a row, not all of it is told: a key that is not ours may name any number.
        """
        size = PROBES
        while stop > 0:
            start = max(0, stop - size)
            cuts = cuts_of(session, head, start, stop)
            found = await self._reader.readable(cuts)
            for number, (key, cut) in zip(range(stop - 1, start - 1, -1), reversed(cuts.items()), strict=True):
                yield Place(number, key, found[key], read_entry(found[key], cut))
            stop, size = start, min(2 * size, CHUNK)
            if start and not any(data is not None for data in found.values()):
                generation, sequence, _ = next(head.places(start, start + 1))
                before = await self._reader.last(session, generation, entry_key(session, generation, sequence))
                stop = start - sequence + before + 1
        yield Place(-1, "", b"", Entry(0, []))
