"""Strands' FileSessionManager: a file a message, numbered by its caller. Its calls do not await anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from strands.session.file_session_manager import FileSessionManager
from strands.types.session import SessionAgent, SessionMessage

from benchmarks.peers.contract import Message, Place, SessionStore

AGENT = "agent"


class Strands(SessionStore):
    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._managers: dict[str, Any] = {}
        self._next: dict[str, int] = {}

    @classmethod
    async def open(cls, place: Place) -> Self:
        return cls(place.folder / "strands")

    def _manager(self, session: str) -> Any:
        """Of one session, with its agent; both are made unless they are there."""
        if session not in self._managers:
            manager = FileSessionManager(session, storage_dir=self._folder)
            if manager.read_agent(session, AGENT) is None:
                manager.create_agent(session, SessionAgent(AGENT, {}, {}))
            self._next[session] = len(manager.list_messages(session, AGENT))
            self._managers[session] = manager
        return self._managers[session]

    async def create(self, session: str) -> None:
        self._manager(session)

    def _append(self, session: str, message: Any) -> None:
        manager, number = self._manager(session), self._next[session]
        manager.create_message(session, AGENT, SessionMessage.from_message(message, number))
        self._next[session] = number + 1

    async def append(self, session: str, message: Message) -> None:
        self._append(session, {"role": message["role"], "content": [{"text": message["content"]}]})

    async def last(self, session: str, count: int) -> Sequence[Any]:
        manager = self._manager(session)
        offset = max(0, self._next[session] - count)
        return manager.list_messages(session, AGENT, limit=count, offset=offset)  # type: ignore[no-any-return]

    async def all(self, session: str) -> Sequence[Any]:
        return self._manager(session).list_messages(session, AGENT)  # type: ignore[no-any-return]

    def content(self, message: Any) -> str:
        return str(message.message["content"][0]["text"])

    async def fork(self, session: str, new: str, *, through: str, count: int) -> None:
        for message in self._manager(session).list_messages(session, AGENT, limit=count):
            self._append(new, message.message)
