"""kvstore and persistence, from this checkout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from benchmarks.peers.contract import Message, Place, SessionStore, Store
from kvstore import Storage, create_storage
from persistence import Image, Persistence, Session, create_persistence


def _options(place: Place, driver: str, path: str, options: dict[str, Any]) -> dict[str, Any]:
    """With the path of an embedded driver, or the URL of a server."""
    where = {"path": place.folder / path} if path else {"url": place.url} if place.url else {}
    return {**where, **options}


class Kvstore(Store):
    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        # No function in between, as there is none in an app.
        self.get = storage.get_item  # type: ignore[method-assign]
        self.set = storage.set_item  # type: ignore[method-assign]
        self.set_many = storage.set_items  # type: ignore[method-assign]

    @classmethod
    async def open(cls, place: Place, *, driver: str, path: str = "", mounts: int = 0, **options: Any) -> Self:
        storage = create_storage(driver, **_options(place, driver, path, options))
        for number in range(mounts):
            storage.mount(f"m{number}", "memory")
        return cls(storage)

    async def get_many(self, keys: Sequence[str]) -> Sequence[object]:
        return list((await self._storage.get_items(keys)).values())

    async def list_prefix(self, prefix: str) -> Sequence[object]:
        return await self._storage.get_keys(prefix)

    async def clear(self) -> None:
        await self._storage.clear()

    async def close(self) -> None:
        await self._storage.aclose()


class Sessions(SessionStore):
    def __init__(self, persistence: Persistence) -> None:
        self._persistence = persistence
        self._sessions = persistence.sessions

    @classmethod
    async def open(cls, place: Place, *, driver: str, path: str = "", **options: Any) -> Self:
        return cls(create_persistence(driver, **_options(place, driver, path, options)))

    async def create(self, session: str) -> None:
        await self._sessions.save(Session(session_id=session, image_id="img_1", container_id="c1"))

    async def append(self, session: str, message: Message) -> None:
        await self._sessions.add_message(session, {**message, "subtype": "user"})

    async def append_many(self, session: str, messages: Sequence[Message]) -> None:
        await self._sessions.add_messages(session, [{**message, "subtype": "user"} for message in messages])

    async def last(self, session: str, count: int) -> Sequence[Mapping[str, Any]]:
        return await self._sessions.get_messages(session, last=count)

    async def all(self, session: str) -> Sequence[Mapping[str, Any]]:
        return await self._sessions.get_messages(session)

    async def truncate(self, session: str, *, through: str, drop: int) -> None:
        await self._sessions.truncate_after(session, through)

    async def fork(self, session: str, new: str, *, through: str, count: int) -> None:
        await self._sessions.fork(session, new, through=through)

    async def add_record(self, owner: str, number: int) -> None:
        image = Image(image_id=f"img_{number}", container_id=owner, session_id=f"s{number}", name=f"Helper {number}")
        await self._persistence.images.save(image)

    async def list_records(self, owner: str) -> Sequence[object]:
        return (await self._persistence.images.list(container_id=owner)).items

    async def close(self) -> None:
        await self._persistence.aclose()
