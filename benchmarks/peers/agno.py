"""Agno's AsyncSqliteDb: a run a message, with its position. A user stands for an owner, the user's sessions for records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from agno.db.base import SessionType
from agno.db.sqlite import AsyncSqliteDb
from agno.models.message import Message as AgnoMessage
from agno.run.agent import RunOutput
from agno.session import AgentSession

from benchmarks.peers.contract import Message, Place, SessionStore


class Agno(SessionStore):
    def __init__(self, database: Any) -> None:
        self._database = database
        self._next: dict[str, int] = {}

    @classmethod
    async def open(cls, place: Place) -> Self:
        return cls(AsyncSqliteDb(db_file=str(place.folder / "agno.db")))

    async def create(self, session: str) -> None:
        found = await self._runs(session)
        self._next[session] = len(found)
        if not found:
            await self._database.upsert_session(AgentSession(session_id=session, agent_id="agent", user_id="user"))

    async def _runs(self, session: str, limit: int | None = None) -> list[Any]:
        found = await self._database.get_session(session, SessionType.AGENT, runs_limit=limit)
        return (found.runs or []) if found else []

    async def append(self, session: str, message: Message) -> None:
        if session not in self._next:
            await self.create(session)
        number = self._next[session]
        self._next[session] = number + 1
        messages = [AgnoMessage(role=message["role"], content=message["content"])]
        run = RunOutput(run_id=f"{session}/{message['id']}", agent_id="agent", session_id=session, messages=messages)
        await self._database.upsert_run(run, session, user_id="user", run_index=number)

    async def last(self, session: str, count: int) -> Sequence[Any]:
        return await self._runs(session, count)

    async def all(self, session: str) -> Sequence[Any]:
        return await self._runs(session)

    def content(self, message: Any) -> str:
        return str(message.messages[0].content)

    async def truncate(self, session: str, *, through: str, drop: int) -> None:
        runs = await self._runs(session, drop)
        await self._database.delete_runs([run.run_id for run in runs])
        self._next[session] -= drop

    async def fork(self, session: str, new: str, *, through: str, count: int) -> None:
        await self._database.upsert_session(AgentSession(session_id=new, agent_id="agent", user_id="user"))
        for at, run in enumerate((await self._runs(session))[:count]):
            copy = replace(run, run_id=f"{new}/{run.run_id}", session_id=new)
            await self._database.upsert_run(copy, new, user_id="user", run_index=at)

    async def add_record(self, owner: str, number: int) -> None:
        data = {"name": f"Helper {number}"}
        await self._database.upsert_session(
            AgentSession(session_id=f"s{number}", agent_id="agent", user_id=owner, session_data=data)
        )

    async def list_records(self, owner: str) -> Sequence[object]:
        return await self._database.get_sessions(SessionType.AGENT, user_id=owner, include_runs=False)  # type: ignore[no-any-return]

    async def close(self) -> None:
        await self._database.close()
