"""Pending: the record of a session that comes or goes with its log, on a driver where they can't change in one commit.

One that is being forked is stored as `[generation, record]` before that generation is published, and belongs to nobody until
the head says that it was, in `forked`. So a fork with all its messages appears at one exchange of the head; whoever changes
the head before that has stopped it; and a crash leaves a record that can be seen to be dead or alive. Generations never come
back, so no other log brings a dead one to life.

One that goes with a record above it, if it still belongs there, is stored as `[":" + generation, record]`, with the first
generation of its log, and is there until that is gone. So it goes with all its messages at one exchange of the head. Who
wants to write it before that changes the head, which stops the removal; a crash leaves it there, or gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from kvstore.errors import CorruptValueError
from kvstore.storage import Storage
from kvstore.values import MISSING, NEVER
from persistence.head import Head, head_key
from persistence.log import MessageLog
from persistence.records import Session
from persistence.shape import Shape
from persistence.table import Also, Table, as_read, one_commit, readable

_GOES = ":"  # in no generation


class Pending(NamedTuple):
    """What is stored in place of a record."""

    generation: str
    document: dict[str, Any]

    @property
    def goes(self) -> bool:
        return self.generation.startswith(_GOES)

    def is_alive(self, head: Head) -> bool:
        return self.generation[1:] in head.generations if self.goes else self.generation == head.forked


def parse_pending(stored: Any) -> Pending | None:
    """None for what is none: a record, nothing, or what can't be read."""
    match stored:
        case [str() as generation, dict() as document]:
            return Pending(generation, document)
    return None


class SessionTable(Table[Session]):
    """Sessions: who reads sees a pending record where it is alive, who writes settles it first."""

    def __init__(self, storage: Storage, log: MessageLog) -> None:
        super().__init__(storage, Shape(Session))
        self._log = log

    async def get(self, key: str) -> Any:
        while True:
            stored = await super().get(key)
            pending = parse_pending(stored)
            if pending is None:
                return stored
            if pending.is_alive(await self._head(key)):
                return pending.document
            if await super().get(key) == stored:  # else it was settled before the head was read
                return MISSING

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        found = await super().get_many(keys)
        return {key: stored if parse_pending(stored) is None else await self.get(key) for key, stored in found.items()}

    async def has(self, key: str) -> bool:
        try:
            return await self.get(key) is not MISSING
        except CorruptValueError:
            return True

    async def swap(
        self, key: str, old: object, new: object, also: Also | None = None, entered: dict[str, object] | None = None
    ) -> bool:
        if await super().swap(key, old, new, also, entered):
            return True
        await self.settle(key)
        return False

    async def publish(self, key: str, document: dict[str, Any], staged: Head) -> bool:
        """Stores a record with the generation staged last as its log, at one moment. False: others were faster."""
        session, generation = _session(key), staged.staged[-1]
        published = staged.published(generation)
        entries = self.shape.entries(document)
        if one_commit(self.storage, [key, head_key(session), *entries]):
            return await self.swap(key, MISSING, document, {head_key(session): (staged.value, published.value)})
        mark = await self._enter(entries)
        done = await self.storage.compare_and_set(key, MISSING, [generation, document], NEVER)
        done = done and await self._log.exchange(session, staged, published.but(forked=generation))
        await self.settle(key)
        if not done:
            await self.drop(key, dict.fromkeys(entries, mark))
        return done

    async def leave(self, key: str, old: dict[str, Any]) -> bool:
        """Removes a record that is `old`, with its log, at one moment. False: others were faster, and nothing is removed."""
        head = await self._head(key)
        generation = next((name for name in (*(part.generation for part in head.closed), head.generation) if name), "")
        if await self.storage.compare_and_set(key, as_read(old), [_GOES + generation, as_read(old)], NEVER):
            done = await self._log.exchange(_session(key), head, Head()) or not generation
            await self.settle(key)
            return done
        await self.settle(key)
        return False

    async def unsettled(self, keys: Collection[str]) -> list[str]:
        return [key for key, data in (await readable(self.storage, keys)).items() if data and data.lstrip().startswith(b"[")]

    async def settle(self, key: str) -> bool:
        session, cas = _session(key), self.storage.compare_and_set
        while pending := parse_pending(stored := await super().get(key)):
            head = await self._head(key)
            if pending.goes and pending.is_alive(head):
                stays = await self._log.exchange(session, head, head.but(stayed=head.stayed + 1))
                if stays and await cas(key, as_read(stored), as_read(pending.document), NEVER):
                    return True
            elif head.forked == pending.generation:
                if await cas(key, stored, pending.document, NEVER):
                    await self.mend(key, pending.document)  # a repair may have come before the head did
                    await self._forget(key, pending.generation)
                    return True
            elif pending.generation in head.staged:  # it may come to life yet, but not after this
                await self._log.exchange(session, head, head.unstaged(pending.generation))
            else:
                marks = await self.marks(self.shape.entries(pending.document))
                if await cas(key, as_read(stored), MISSING):
                    await self.drop(key, marks)
                    return True
        return False

    async def _forget(self, key: str, generation: str) -> None:
        """Takes the mark off the head that a fork was published, once its record is no longer pending."""
        while (head := await self._head(key)).forked == generation:
            if await self._log.exchange(_session(key), head, head.but(forked=None)):
                return

    async def _head(self, key: str) -> Head:
        return await self._log.reader.head(_session(key))


def _session(key: str) -> str:
    return key.partition(":")[2]
