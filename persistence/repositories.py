"""The repositories of containers and images. That of sessions has a module of its own."""

from __future__ import annotations

from typing import Any

from kvstore.errors import InvalidValueError
from kvstore.keyspace import during
from kvstore.storage import Storage
from kvstore.values import MISSING
from persistence.records import Container, Image
from persistence.repository import Page, Repository
from persistence.sessions import Sessions
from persistence.shape import encode_members


class Images(Repository[Image]):
    """Images. `delete(..., cascade=True)` takes their sessions, with the messages."""

    def __init__(self, storage: Storage, sessions: Sessions) -> None:
        super().__init__(storage, Image)
        self._sessions = sessions

    async def list(
        self,
        *,
        container_id: str | None = None,
        name: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[Image]:
        """Images newest first: all, a container's, those of a name, or both. `limit` None: the whole list.

        Raises `InvalidValueError` for a bad limit or cursor.
        """
        return await self._page(limit, cursor, container_id=container_id, name=name)

    async def update_metadata(self, image_id: str, metadata: dict[str, Any]) -> Image:
        """Sets members of the image's metadata, and `updated_at`; a member that is `MISSING` is removed, the others stay.

        Raises `RecordNotFoundError` where there is no image, and `InvalidValueError` for what is not JSON.
        """
        if not isinstance(metadata, dict):
            raise InvalidValueError(f"metadata is a dict, not {type(metadata).__name__}", operation="update_metadata")
        with during("update_metadata", self.table.shape.key(image_id, "update_metadata")):
            encode_members({member: value for member, value in metadata.items() if value is not MISSING})

        def merged(image: Image) -> Image:
            members = (image.metadata or {}) | metadata
            image.metadata = {member: value for member, value in members.items() if value is not MISSING}
            return image

        return await self._update("update_metadata", image_id, merged)

    async def _delete_below(self, record_id: str) -> None:
        await self._sessions._delete_all(image_id=record_id)


class Containers(Repository[Container]):
    """Containers. `delete(..., cascade=True)` takes their images and sessions, with the messages."""

    def __init__(self, storage: Storage, images: Images, sessions: Sessions) -> None:
        super().__init__(storage, Container)
        self._images = images
        self._sessions = sessions

    async def list(self, *, limit: int | None = None, cursor: str | None = None) -> Page[Container]:
        """Containers newest first. `limit` None: the whole list. Raises `InvalidValueError` for a bad limit or cursor."""
        return await self._page(limit, cursor)

    async def _delete_below(self, record_id: str) -> None:
        # Sessions first: a crash leaves an image without its sessions rather than the other way round.
        await self._sessions._delete_all(container_id=record_id)
        await self._images._delete_all(container_id=record_id)
