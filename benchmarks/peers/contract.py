"""What every peer is asked to do. The standard library is all that is needed here, for each family has its own environment."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Message = dict[str, Any]
"""`id`, `role`, `content` (text that begins with the id), `timestamp` in milliseconds."""


class NotOffered(Exception):
    """The peer has no such call, and none of its documented calls amounts to it."""


@dataclass(frozen=True)
class Place:
    """Where a peer keeps its data: a folder of its own, and a server's URL where it needs one."""

    folder: Path
    url: str = ""


class Store:
    """Keys with JSON values. `many` calls go one by one together where a peer has no batch of its own.

    Each has a class method `open(place, **options)`, with the options that the catalogue gives.
    """

    async def get(self, key: str) -> object:
        raise NotImplementedError

    async def set(self, key: str, value: object) -> None:
        raise NotImplementedError

    async def get_many(self, keys: Sequence[str]) -> Sequence[object]:
        return await asyncio.gather(*map(self.get, keys))

    async def set_many(self, items: Mapping[str, object]) -> None:
        await asyncio.gather(*(self.set(key, value) for key, value in items.items()))

    async def list_prefix(self, prefix: str) -> Sequence[object]:
        """The keys whose segments before a `:` begin with those of `prefix`; with `""` all keys."""
        raise NotOffered

    async def clear(self) -> None:
        """Removes every key."""
        raise NotOffered

    async def close(self) -> None:
        pass


class SessionStore:
    """Sessions of messages, and the records of an owner (its images, or what comes nearest). Opened as a `Store` is."""

    async def create(self, session: str) -> None:
        """Makes the session unless it is there, for a peer that wants that done before the first message."""

    async def append(self, session: str, message: Message) -> None:
        raise NotImplementedError

    async def append_many(self, session: str, messages: Sequence[Message]) -> None:
        for message in messages:
            await self.append(session, message)

    async def last(self, session: str, count: int) -> Sequence[Any]:
        """The last messages, oldest first, in the peer's own form."""
        raise NotImplementedError

    async def all(self, session: str) -> Sequence[Any]:
        raise NotImplementedError

    def content(self, message: Any) -> str:
        """The text of a message that `last` or `all` returned."""
        return str(message["content"])

    async def truncate(self, session: str, *, through: str, drop: int) -> None:
        """Removes the `drop` messages that follow the message `through`, the last ones."""
        raise NotOffered

    async def fork(self, session: str, new: str, *, through: str, count: int) -> None:
        """Makes `new` with the first `count` messages, of which `through` is the last."""
        raise NotOffered

    async def add_record(self, owner: str, number: int) -> None:
        raise NotOffered

    async def list_records(self, owner: str) -> Sequence[object]:
        raise NotOffered

    async def close(self) -> None:
        pass
