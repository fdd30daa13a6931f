"""ADK's SqliteSessionService: an event a message. A user stands for an owner, the user's sessions for records."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Self

from google.adk.events.event import Event
from google.adk.sessions.base_session_service import GetSessionConfig
from google.adk.sessions.sqlite_session_service import SqliteSessionService
from google.genai import types

from benchmarks.peers.contract import Message, Place, SessionStore

WHO = {"app_name": "bench", "user_id": "user"}


class Adk(SessionStore):
    def __init__(self, service: Any) -> None:
        self._service = service
        self._sessions: dict[str, Any] = {}
        self._adding = asyncio.Semaphore(8)

    @classmethod
    async def open(cls, place: Place) -> Self:
        return cls(SqliteSessionService(str(place.folder / "adk.db")))

    async def _read(self, session: str, *, recent: int | None = None) -> Any:
        config = None if recent is None else GetSessionConfig(num_recent_events=recent)
        return await self._service.get_session(**WHO, session_id=session, config=config)

    async def create(self, session: str) -> None:
        found = await self._read(session, recent=0)
        self._sessions[session] = found or await self._service.create_session(**WHO, session_id=session)

    async def append(self, session: str, message: Message) -> None:
        """Refused where another has changed the session; what comes next is appended to the session as it is by then."""
        if session not in self._sessions:
            self._sessions[session] = await self._read(session, recent=0)
        content = types.Content(role="user", parts=[types.Part(text=message["content"])])
        event = Event(id=f"{session}/{message['id']}", author="user", invocation_id="i1", content=content)
        try:
            await self._service.append_event(self._sessions[session], event)
        except BaseException:
            del self._sessions[session]
            raise

    async def last(self, session: str, count: int) -> Sequence[Any]:
        return (await self._read(session, recent=count)).events  # type: ignore[no-any-return]

    async def all(self, session: str) -> Sequence[Any]:
        return (await self._read(session)).events  # type: ignore[no-any-return]

    def content(self, message: Any) -> str:
        return str(message.content.parts[0].text)

    async def fork(self, session: str, new: str, *, through: str, count: int) -> None:
        events = (await self._read(session)).events[:count]
        target = await self._service.create_session(**WHO, session_id=new)
        for event in events:
            await self._service.append_event(target, event.model_copy(update={"id": f"{new}/{event.id}"}))

    async def add_record(self, owner: str, number: int) -> None:
        async with self._adding:
            await self._service.create_session(
                app_name="bench", user_id=owner, session_id=f"s{number}", state={"name": f"Helper {number}"}
            )

    async def list_records(self, owner: str) -> Sequence[object]:
        return (await self._service.list_sessions(app_name="bench", user_id=owner)).sessions  # type: ignore[no-any-return]

    async def close(self) -> None:
        await self._service.close()
