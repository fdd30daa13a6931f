"""Appender: messages added to a log, at the same cost at any length.

An entry of the log is claimed: stored if its key is not there yet, and if the head is still the one that it was numbered
by. On an atomic driver that is one commit. On others the head is looked at afterwards: an entry that it does not reach is
taken back and claimed anew, and until then no reader has seen it. The first entry of a log is staged, as a whole log is.

So it is with the entry before: it has to be the one that it was numbered by, for a server that restarts or is replaced may
have lost its last moments, and what is stored behind a hole can't be read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import orjson

from kvstore.errors import BackendTimeout, BackendUnavailable, CorruptValueError, InvalidValueError, after_write
from kvstore.storage import Storage
from kvstore.values import MISSING, NEVER, encode
from persistence.errors import ConflictError
from persistence.head import Head, Tail, entry_key, head_key, parse_entry, parse_head
from persistence.reader import Reader
from persistence.table import one_commit

_BATCH = 256  # appends in one commit
_KEPT = 16_384  # bytes of an entry that is kept to be compared; behind a larger one the end is looked at instead


class _Append(NamedTuple):
    messages: list[orjson.Fragment]
    expected: int | None
    done: asyncio.Future[int]


class Appender:
    """Sessions are named by their segment of a key here."""

    def __init__(self, storage: Storage, reader: Reader, withdraw: Callable[[str, str], Awaitable[None]]) -> None:
        """`withdraw` takes back what is staged in a generation of a session."""
        self._storage = storage
        self._reader = reader
        self._withdraw = withdraw
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[str, deque[_Append]] = {}  # of the logs that are being appended to
        self._tasks: set[asyncio.Task[None]] = set()

    async def append(self, session: str, messages: Sequence[bytes], expected: int | None = None) -> int:
        """Adds messages, as JSON, as one entry, if there are `expected` so far. Returns the position of the first.

        While an append is under way, later ones of this process wait, and are stored together.
        """
        if not messages:
            (tail, _) = await self._reader.end(session)
            _check_count(session, tail, expected)
            return tail.messages
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # another one in turn: who appended in the last is gone
            self._loop, self._waiting = loop, {}
        append = _Append([*map(orjson.Fragment, messages)], expected, loop.create_future())
        waiting = self._waiting.get(session)
        if waiting is not None:
            waiting.append(append)
            return await append.done
        self._waiting[session] = waiting = deque()
        try:  # in the caller's own task: one of ours would cost as much as the append
            (position,) = await self._store(session, [append])
            return position
        finally:
            if waiting:
                task = loop.create_task(self._drain(session, waiting))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                self._waiting.pop(session, None)

    async def _drain(self, session: str, waiting: deque[_Append]) -> None:
        """Stores what waits, in order, until nothing does."""
        try:
            while waiting:
                if batch := _batch(waiting):
                    await self._store_waiting(session, batch)
        finally:
            self._waiting.pop(session, None)

    async def _store_waiting(self, session: str, batch: list[_Append]) -> None:
        """Stores appends and tells their callers, each of its own failure."""
        try:
            if len(batch) == 1 or one_commit(self._storage, [head_key(session), entry_key(session, "", 0)]):
                for append, position in zip(batch, await self._store(session, batch), strict=True):
                    if not append.done.done():
                        append.done.set_result(position)
                return
        except Exception as error:
            # After one of the first two nobody knows whether the batch was stored: once more could be once too often.
            if len(batch) == 1 or isinstance(error, BackendUnavailable | BackendTimeout):
                for append in batch:
                    if not append.done.done():
                        append.done.set_exception(error)
                return
        for append in batch:
            await self._store_waiting(session, [append])

    async def _store(self, session: str, batch: Sequence[_Append]) -> list[int]:
        """Stores appends in order, each as an entry. Returns their positions."""
        tail = self._reader.remembered(session)
        if tail is None or tail.last is None:
            tail, _ = await self._reader.end(session)
        while True:
            if batch[0].expected not in (None, tail.messages):
                tail, _ = await self._reader.end(session)
                _check_count(session, tail, batch[0].expected)
            claimed = await self._claim(session, tail, batch)
            if claimed is not None:
                self._reader.remember(session, claimed)
                positions = [tail.messages]
                for append in batch[:-1]:
                    positions.append(positions[-1] + len(append.messages))
                return positions
            tail, _ = await self._reader.end(session)

    async def _claim(self, session: str, tail: Tail, batch: Sequence[_Append]) -> Tail | None:
        """Stores entries behind `tail`. None: that is not the end any more, and nothing is stored."""
        storage, head, key = self._storage, tail.head.opened(), head_key(session)
        assert head.generation is not None
        first, position = tail.entries - head.settled, tail.messages
        entries: dict[str, object] = {}
        for sequence, append in enumerate(batch, first):
            data = encode({"at": position, "messages": append.messages})
            entries[entry_key(session, head.generation, sequence)] = orjson.Fragment(data)
            position += len(append.messages)
        then = Tail(head, tail.entries + len(batch), position, data if len(data) <= _KEPT else None)
        before = entry_key(session, head.generation, first - 1) if first else None
        if one_commit(storage, [key, *entries]):
            expect = dict.fromkeys(entries, MISSING) | {key: tail.head.value}
            if before is not None and tail.last is not None:
                expect[before] = orjson.Fragment(tail.last)
            if head is not tail.head:
                entries[key] = head.value
            return then if await storage.commit(entries, expect=expect, ttl=NEVER) else None
        ((entry, value),) = entries.items()
        if head is not tail.head:
            begun = await self._begin(session, tail.head, head.generation, entry, value)
            return None if begun is None else then._replace(head=begun)
        if not await storage.add_item(entry, value, NEVER):
            return None
        with after_write():
            try:
                found = await self._reader.stored([key] if before is None else [key, before])
                if parse_head(key, found[key]).reaches(head.generation, first) and (
                    before is None or parse_entry(before, found[before] or b"").end == tail.messages
                ):
                    return then
            except CorruptValueError:  # who looks for the end is told
                pass
            await storage.remove_item(entry)
        return None

    async def _begin(self, session: str, head: Head, generation: str, entry: str, value: object) -> Head | None:
        """Stores the first entry of a generation, and opens that. None: others were faster, and nothing is stored.

        It is staged until then: were it open first, a crash would leave a log that is begun and has no message.
        """
        key, closed, cas = head_key(session), head.closed, self._storage.compare_and_set
        staged = head.but(staged=(*head.staged, generation))
        if not await cas(key, head.value, staged.value, NEVER):
            return None
        try:
            await self._storage.set_item(entry, value, NEVER)
            while generation in staged.staged and staged.generation is None and staged.closed == closed:
                begun = staged.unstaged(generation).but(generation=generation)
                if await cas(key, staged.value, begun.value, NEVER):
                    return begun
                staged = await self._reader.head(session)
        except InvalidValueError:  # such as of a value that is too large for the backend
            await self._withdraw(session, generation)
            raise
        await self._withdraw(session, generation)
        return None


def _batch(waiting: deque[_Append]) -> list[_Append]:
    """Takes what can be stored together: up to one that expects a certain count, which goes alone."""
    batch: list[_Append] = []
    while waiting and len(batch) < _BATCH and (not batch or waiting[0].expected is None is batch[0].expected):
        append = waiting.popleft()
        if not append.done.done():  # else it was cancelled before it began
            batch.append(append)
    return batch


def _check_count(session: str, tail: Tail, expected: int | None) -> None:
    if expected is not None and expected != tail.messages:
        raise ConflictError(
            f"the session has {tail.messages:,} messages, not {expected:,} as was expected; nothing was stored",
            operation="add_messages",
            key=f"messages:{session}",
        )
