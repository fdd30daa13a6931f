"""Pending: the record of a session that comes or goes with its log, on a driver where they can't change in one commit.

It is stored as `[token, record]` if it is to come, and as `[":" + token, record]` if it is to go. The head knows of the token
first, as of a generation that is being written; the exchange of the head with which the log comes or goes says so in `done`,
and from then on the record is there, or is not. So it appears or vanishes with all its messages at one moment. Whoever
changes the head before that has stopped it; and a crash leaves a record that can be seen to be there or not. Tokens never
come back, so nothing else that becomes of the log brings a record that is pending to life, or ends it.
"""

from __future__ import annotations

import re
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

_GOES = ":"  # in no token


class Pending(NamedTuple):
    """What is stored in place of a record."""

    token: str
    document: Any
    goes: bool

    def is_there(self, head: Head) -> bool:
        return self.goes is not (head.done == self.token)


def parse_pending(stored: Any) -> Pending | None:
    """None for what is none: a record, nothing, or what can't be read."""
    match stored:
        case [str() as token, document] if re.fullmatch(f"{_GOES}?[0-9a-f]{{16}}", token):
            return Pending(token.removeprefix(_GOES), document, token.startswith(_GOES))
    return None


class SessionTable(Table[Session]):
    """Sessions: who reads sees a pending record as it is by the head, who writes settles it first."""

    def __init__(self, storage: Storage, log: MessageLog) -> None:
        super().__init__(storage, Shape(Session))
        self._log = log

    async def get(self, key: str) -> Any:
        while True:
            stored = await super().get(key)
            pending = parse_pending(stored)
            if pending is None:
                return stored
            head = await self._head(key)
            if head.done == pending.token or await super().get(key) == stored:  # else it was settled before the head was read
                return pending.document if pending.is_there(head) else MISSING

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

    async def add(self, key: str, document: dict[str, Any], head: Head) -> bool:
        """Stores a record that has no messages. False: others were faster."""
        also = {head_key(_session(key)): (head.value, head.value)}
        return await self.swap(key, MISSING, document, also if self._is_one_commit(key, document) else None)

    async def publish(self, key: str, document: dict[str, Any], staged: Head) -> bool:
        """Stores a record with the generation staged last as its log, at one moment. False: others were faster."""
        session, generation = _session(key), staged.staged[-1]
        published = staged.published(generation)
        if self._is_one_commit(key, document):
            done = await self.swap(key, MISSING, document, {head_key(session): (staged.value, published.value)})
            if not done:
                await self._log.withdraw(session, generation)
            return done
        entries = self.shape.entries(key, document)
        mark = await self._enter(entries)
        done = await self._pend(key, MISSING, [generation, document], staged, published)
        if not done:
            await self.drop(key, dict.fromkeys(entries, mark))
        return done

    async def remove(self, key: str, old: object) -> bool:
        """Removes a record that is `old`, with its log, at one moment. False: others were faster, and the record stays."""
        session = _session(key)
        if self._is_one_commit(key, old):
            also = {head_key(session): (await self._log.any_head(session), MISSING)}
            return await self.swap(key, old, MISSING, also)
        try:
            head = await self._head(key)
        except CorruptValueError:  # its messages can't be read anyway
            await self._log.discard(session)
            return False
        if head == Head():
            return await self.swap(key, old, MISSING)
        if old is MISSING:
            await self.settle(key)  # once the head was read, for it may say that a record has gone
            return await self._log.exchange(session, head, Head())
        staged = await self._log.stage(session, head, ())
        if staged is None:
            return False
        return await self._pend(key, old, [_GOES + staged.staged[-1], as_read(old)], staged, Head())

    async def _pend(self, key: str, old: object, pending: object, staged: Head, head: Head) -> bool:
        """Exchanges a record that is `old`, with the head: by the token staged last it is pending meanwhile."""
        session, token = _session(key), staged.staged[-1]
        done = await self.storage.compare_and_set(key, as_read(old), pending, NEVER)
        done = done and await self._log.exchange(session, staged, head.but(done=token))
        await self.settle(key)
        if not done:
            await self._log.withdraw(session, token)
        return done

    async def unsettled(self, keys: Collection[str]) -> list[str]:
        return [key for key, data in (await readable(self.storage, keys)).items() if data and data.lstrip().startswith(b"[")]

    async def settle(self, key: str) -> bool:
        session, cas = _session(key), self.storage.compare_and_set
        while pending := parse_pending(stored := await super().get(key)):
            head = await self._head(key)
            if pending.token in head.staged:  # it may come or go yet, but not after this
                await self._log.exchange(session, head, head.unstaged(pending.token))
                continue
            if pending.is_there(head):
                settled = await cas(key, as_read(stored), as_read(pending.document), NEVER)
                if settled:
                    await self.mend(key, pending.document)  # a repair may have come before the head did
            else:
                marks = await self.marks(self.shape.entries(key, pending.document))
                settled = await cas(key, as_read(stored), MISSING)
                if settled:
                    await self._remove(marks)
            if settled:
                while head.done == pending.token and not await self._log.exchange(session, head, head.but(done=None)):
                    head = await self._head(key)
                return True
        return False

    def _is_one_commit(self, key: str, document: object) -> bool:
        return one_commit(self.storage, [key, head_key(_session(key)), *self.shape.entries(key, document)])

    async def _head(self, key: str) -> Head:
        return await self._log.reader.head(_session(key))


def _session(key: str) -> str:
    return key.partition(":")[2]
