"""LangGraph's AsyncSqliteStore: an item a message, in a namespace a session.

Its search sorts by seconds and not by key, so the keys of a session are kept beside it, as an app would have to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

from langgraph.store.base import GetOp, PutOp
from langgraph.store.sqlite.aio import AsyncSqliteStore

from benchmarks.peers.contract import Message, Place, SessionStore

EVERYTHING = 1_000_000


class Langgraph(SessionStore):
    def __init__(self, store: Any, stack: Any) -> None:
        self._store = store
        self._stack = stack
        self._keys: dict[str, list[str]] = {}

    @classmethod
    async def open(cls, place: Place) -> Self:
        stack = AsyncExitStack()
        opened = AsyncSqliteStore.from_conn_string(str(place.folder / "langgraph.db"))
        store = await stack.enter_async_context(opened)
        await store.setup()
        return cls(store, stack)

    async def _items(self, session: str) -> list[Any]:
        """All, in order: the only way to find the keys anew."""
        items = await self._store.asearch(("sessions", session), limit=EVERYTHING)
        return sorted(items, key=lambda item: item.key)

    async def _known(self, session: str) -> list[str]:
        if session not in self._keys:
            self._keys[session] = [item.key for item in await self._items(session)]
        return self._keys[session]

    async def create(self, session: str) -> None:
        await self._known(session)

    def _fresh(self, session: str) -> str:
        key = f"{time.time_ns():020d}-{os.getpid()}"
        self._keys.setdefault(session, []).append(key)
        return key

    async def append(self, session: str, message: Message) -> None:
        await self._store.aput(("sessions", session), self._fresh(session), message)

    async def append_many(self, session: str, messages: Sequence[Message]) -> None:
        await self._store.abatch([PutOp(("sessions", session), self._fresh(session), message) for message in messages])

    async def last(self, session: str, count: int) -> Sequence[Any]:
        keys = (await self._known(session))[-count:]
        return await self._store.abatch([GetOp(("sessions", session), key) for key in keys])  # type: ignore[no-any-return]

    async def all(self, session: str) -> Sequence[Any]:
        return await self._items(session)

    def content(self, message: Any) -> str:
        return str(message.value["content"])

    async def truncate(self, session: str, *, through: str, drop: int) -> None:
        keys = await self._known(session)
        await self._store.abatch([PutOp(("sessions", session), key, None) for key in keys[-drop:]])
        del keys[-drop:]

    async def fork(self, session: str, new: str, *, through: str, count: int) -> None:
        keys = (await self._known(session))[:count]
        items = await self._store.abatch([GetOp(("sessions", session), key) for key in keys])
        await self._store.abatch([PutOp(("sessions", new), self._fresh(new), item.value) for item in items])

    async def add_record(self, owner: str, number: int) -> None:
        record = {"id": f"img_{number}", "container": owner, "session": f"s{number}", "name": f"Helper {number}"}
        await self._store.aput(("images", owner), f"img_{number}", record)

    async def list_records(self, owner: str) -> Sequence[object]:
        return await self._store.asearch(("images", owner), limit=EVERYTHING)  # type: ignore[no-any-return]

    async def close(self) -> None:
        await self._stack.aclose()
