"""The sessions of the OpenAI Agents SDK, an object a session. It has no fork: its items are read and added to the new one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

from agents import SQLiteSession
from agents.extensions.memory import AsyncSQLiteSession, SQLAlchemySession
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.peers.contract import Message, Place, SessionStore


class _Sessions(SessionStore):
    def __init__(self, place: Place) -> None:
        self._path = place.folder / "openai.db"
        self._sessions: dict[str, Any] = {}

    @classmethod
    async def open(cls, place: Place) -> Self:
        return cls(place)

    @abstractmethod
    def _make(self, session: str) -> Any: ...

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            self._sessions[name] = self._make(name)
        return self._sessions[name]

    async def append(self, session: str, message: Message) -> None:
        await self._session(session).add_items([message])

    async def append_many(self, session: str, messages: Sequence[Message]) -> None:
        await self._session(session).add_items(list(messages))

    async def last(self, session: str, count: int) -> Sequence[Any]:
        return await self._session(session).get_items(limit=count)  # type: ignore[no-any-return]

    async def all(self, session: str) -> Sequence[Any]:
        return await self._session(session).get_items()  # type: ignore[no-any-return]

    async def truncate(self, session: str, *, through: str, drop: int) -> None:
        for _ in range(drop):
            await self._session(session).pop_item()

    async def fork(self, session: str, new: str, *, through: str, count: int) -> None:
        items = await self._session(session).get_items()
        await self._session(new).add_items(items[:count])


class Sqlite(_Sessions):
    def _make(self, session: str) -> Any:
        return SQLiteSession(session, self._path)

    async def close(self) -> None:
        for session in self._sessions.values():
            session.close()


class AsyncSqlite(_Sessions):
    def _make(self, session: str) -> Any:
        return AsyncSQLiteSession(session, self._path)

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()


class SqlAlchemy(_Sessions):
    """All sessions share an engine."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._engine = create_async_engine(f"sqlite+aiosqlite:///{self._path}", pool_timeout=120)

    def _make(self, session: str) -> Any:
        return SQLAlchemySession(session, engine=self._engine, create_tables=True)

    async def close(self) -> None:
        await self._engine.dispose()
