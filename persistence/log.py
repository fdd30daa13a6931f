"""Log: the messages of sessions, read, cut and written as a whole, each at one exchange of the head."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import Any

import msgspec
import orjson

from kvstore.errors import CorruptValueError, InvalidKeyError, InvalidValueError
from kvstore.keys import unescape_segment
from kvstore.storage import Storage
from kvstore.values import MISSING, NEVER
from persistence.appender import Appender
from persistence.errors import ConflictError, RecordNotFoundError
from persistence.head import Entry, Head, Tail, entry_key, generation_base, head_key, read_entry
from persistence.reader import CHUNK, Moved, Reader
from persistence.salvage import Salvage
from persistence.shape import id_segment
from persistence.table import as_stored

_MAX_CLOSED = 32  # closed generations, before what they hold is moved together


class MessageLog:
    """Sessions are named by their segment of a key here."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.reader = Reader(storage)
        self.appender = Appender(storage, self.reader, self.withdraw)
        self.salvage = Salvage(self.reader)

    # Reading

    async def read(self, session: str, start: int, last: int | None, limit: int | None) -> list[Any]:
        """Messages from a position on, at most `limit`, or the `last` ones."""
        if last == 0 or limit == 0:
            return []
        if last is not None:
            _, entries = await self.reader.end(session, last)
            return _messages(entries)[-last:]
        entries = await self.reader.forward(session, start, limit)
        behind = start - entries[0].at if entries else 0
        return _messages(entries)[behind : None if limit is None else behind + limit]

    async def through(self, session: str, message_id: str | None) -> list[Entry]:
        """All entries, up to the last message with this id. Raises `RecordNotFoundError`."""
        if message_id is None:
            return await self.reader.forward(session)
        while (found := await self.salvage.find_last(session, message_id)) is not None:
            tail, place, position = found
            with suppress(Moved):
                return await self._first(session, tail.head, place + 1, position + 1)
        raise _no_message(session, message_id, "fork")

    async def _first(self, session: str, head: Head, count: int, end: int) -> list[Entry]:
        """The first `count` entries, up to the position `end`. Raises `Moved` where `head` is not the head any more."""
        entries: list[Entry] = []
        while len(entries) < count:
            stop, before = min(len(entries) + CHUNK, count), entries[-1] if entries else None
            entries += await self.reader.page(session, head, len(entries), stop, known=count, before=before)
        entries[-1] = entries[-1].up_to(end)
        return entries

    # Cutting

    async def clear(self, session: str) -> int:
        """Removes all messages. Returns how many there were."""
        while True:
            try:
                tail = await self.salvage.end(session)
            except CorruptValueError:  # not even the head can be read
                if await self.discard(session):
                    return await self.sweep(session)
                continue
            if await self.exchange(session, tail.head, Head(done=tail.head.done)):
                gone = await self._length(session, tail)
                await self.sweep(session)
                return gone

    async def truncate(self, session: str, message_id: str) -> int:
        """Removes what follows the last message with this id. Returns how many. Raises `RecordNotFoundError`."""
        while True:
            found = await self.salvage.find_last(session, message_id)
            if found is None:
                raise _no_message(session, message_id, "truncate_after")
            tail, place, position = found
            end = position + 1
            if (place + 1, end) == (tail.entries, tail.messages):
                return 0
            head: Head | None = tail.head.cut(place + 1, end)
            assert head is not None
            if len(head.closed) > _MAX_CLOSED:
                head = await self._moved_together(session, tail.head, head)
            elif not await self.exchange(session, tail.head, head):
                head = None
            if head is not None:
                gone = max(0, await self._length(session, tail) - end)
                kept = head.generations
                for generation, entries in tail.head.generations.items():
                    if kept.get(generation, 0) != entries:
                        await self._sweep_generation(session, generation, kept.get(generation, 0) or 0)
                return gone

    async def _moved_together(self, session: str, old: Head, cut: Head) -> Head | None:
        """Copies what `cut` keeps of `old` into one generation, so that heads stay small. None: `old` is not the head."""
        try:
            entries = await self._first(session, old, cut.settled, cut.closed[-1].end)
        except Moved:
            return None
        staged = await self.stage(session, old, entries)
        if staged is None:
            return None
        head = staged.published(staged.staged[-1])
        return head if await self._publish(session, staged, head) else None

    async def _length(self, session: str, tail: Tail) -> int:
        """How many messages there were in the end under a head that has been exchanged, since when none can come."""
        place, messages = tail.entries, tail.messages
        while True:
            for _, data in await self.reader.values(session, tail.head, range(place, place + 8)):
                if data is None:
                    return messages
                entry = read_entry(data)
                messages += 1 if entry is None else len(entry.messages)
            place += 8

    # Writing as a whole

    async def write(self, session: str, entries: Sequence[Entry]) -> None:
        """Stores a whole log; every reader sees all of it or nothing. Raises `ConflictError` where there is one."""
        while True:
            head = await self.new_head(session, "write_messages")
            if not entries:
                return
            staged = await self.stage(session, head, entries)
            if staged is not None and await self._publish(session, staged, staged.published(staged.staged[-1])):
                return

    async def new_head(self, session: str, operation: str) -> Head:
        """The head of a log that is not begun yet. Raises `ConflictError` for one that is."""
        head = await self.reader.head(session)
        if head.generation is not None:
            text = "the session has a log of messages already; clear it first"
            raise ConflictError(text, operation=operation, key=f"messages:{session}")
        return head

    async def stage(self, session: str, old: Head, entries: Sequence[Entry]) -> Head | None:
        """Writes entries into a generation that is no part of the log yet, the last one staged in the head that is returned.

        None: `old` is not the head. The head knows of the generation first, for what it does not know is garbage.
        """
        generation = token_hex(8)
        staged = old.but(staged=(*old.staged, generation))
        if not await self.exchange(session, old, staged):
            return None
        for start in range(0, len(entries), CHUNK):
            items = {  # what was read may hold integers of any size, which orjson can't write
                entry_key(session, generation, sequence): orjson.Fragment(msgspec.json.encode(entry))
                for sequence, entry in enumerate(entries[start : start + CHUNK], start)
            }
            try:
                await self._storage.set_items(items, NEVER)
            except InvalidValueError:  # such as of a value that is too large for the backend
                await self.withdraw(session, generation)
                raise
        return staged

    async def _publish(self, session: str, staged: Head, head: Head) -> bool:
        if await self.exchange(session, staged, head):
            return True
        await self.withdraw(session, staged.staged[-1])
        return False

    async def withdraw(self, session: str, generation: str) -> None:
        """Takes back what `stage` wrote."""
        while True:
            head = await self.reader.head(session)
            then = head.unstaged(generation)
            if await self.exchange(session, head, then):
                if not then.reaches(generation, 0):
                    await self._sweep_generation(session, generation, 0)
                return

    async def exchange(self, session: str, old: Head, new: Head) -> bool:
        if old == new:
            return True
        return await self._storage.compare_and_set(head_key(session), old.value, new.value, NEVER)

    async def discard(self, session: str) -> bool:
        """Removes a head, readable or not. False: others were faster."""
        return await self._storage.compare_and_set(head_key(session), await self.any_head(session), MISSING)

    async def any_head(self, session: str) -> object:
        """The head as it is stored, readable or not, to be exchanged. One that not even the driver can read is removed."""
        key = head_key(session)
        try:
            return as_stored(await self._storage.get_item_raw(key))
        except CorruptValueError:
            await self._storage.remove_item(key)
            return MISSING

    # Looking after

    async def sessions(self) -> AsyncIterator[str]:
        """The sessions that have a log. What has another kind of name is passed over."""
        after = None
        while keys := await self._storage.get_keys("heads", limit=CHUNK, after=after):
            for session in (key.partition(":")[2] for key in keys):
                with suppress(InvalidKeyError):
                    if id_segment(unescape_segment(session)) == session:
                        yield session
            after = keys[-1]

    async def sweep(self, session: str | None = None) -> int:
        """Removes the entries that no head reaches, of one session or of all. Returns how many.

        What has another kind of name, or a head that can't be read, is left.
        """
        removed, after = 0, None
        base = "messages" if session is None else f"messages:{session}"
        while keys := await self._storage.get_keys(base, limit=CHUNK, after=after):
            # Heads are read after the keys: a generation stands in its head before it has entries, and never comes back.
            sessions = list(dict.fromkeys(key.split(":")[1] for key in keys))
            found = await asyncio.gather(*map(self.reader.head, sessions), return_exceptions=True)
            heads = dict(zip(sessions, found, strict=True))
            garbage = []
            for key in keys:
                name = re.fullmatch("messages:([^:]+):([0-9a-f]{16}):([0-9a-f]{12})", key)
                head = heads[name[1]] if name else None
                if isinstance(head, BaseException) and not isinstance(head, CorruptValueError):
                    raise head
                if name and isinstance(head, Head) and not head.reaches(name[2], int(name[3], 16)):
                    garbage.append(key)
            removed += await self._storage.remove_items(garbage)
            after = keys[-1]
        return removed

    async def _sweep_generation(self, session: str, generation: str, first: int) -> None:
        """Removes what a generation holds from `first` on, in order: who still reads finds an end, and no hole."""
        after = entry_key(session, generation, first - 1) if first else None
        while keys := await self._storage.get_keys(generation_base(session, generation), limit=CHUNK, after=after):
            await self._storage.remove_items(keys)
            after = keys[-1]


def _messages(entries: Sequence[Entry]) -> list[Any]:
    return [message for entry in entries for message in entry.messages]


def _no_message(session: str, message_id: str, operation: str) -> RecordNotFoundError:
    text = f"the session has no message {message_id!r}; nothing was changed"
    return RecordNotFoundError(text, operation=operation, key=f"messages:{session}")
