"""Sessions and their messages."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import msgspec

from kvstore.clock import now_ms
from kvstore.errors import CorruptValueError, InvalidValueError
from kvstore.keys import unescape_segment
from kvstore.keyspace import check_count
from kvstore.storage import Storage
from kvstore.values import MISSING
from persistence.errors import ConflictError
from persistence.head import Entry, head_key
from persistence.log import MessageLog
from persistence.messages import KnownMessage, Message, encode_messages
from persistence.pending import SessionTable
from persistence.records import AT_SAVE, Session
from persistence.repository import Page, Repository
from persistence.shape import id_segment
from persistence.table import has_members


class Sessions(Repository[Session]):
    """Sessions with their messages. A log of messages needs no session record; deleting the session takes it.

    Messages are numbered by their position from 0. What an append returned for is stored, once, in the order in which each
    task made its calls; calls that are made together without waiting keep their order too.
    """

    table: SessionTable

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage, Session)
        self._log = MessageLog(storage)
        self.table = SessionTable(storage, self._log)

    # Messages

    async def add_message(self, session_id: str, message: Message) -> int:
        """Appends a message: any JSON object whose `id` is text. Returns its position.

        Raises `InvalidValueError`, before anything is touched, for what is no such object.
        """
        session = id_segment(session_id, "add_message")
        return await self._log.appender.append(session, encode_messages("add_message", session, (message,)))

    async def add_messages(self, session_id: str, messages: Sequence[Message], *, expected_count: int | None = None) -> int:
        """Appends messages, such as a tool call and its result, together or not at all. Returns the position of the first.

        With `expected_count` only if the session has so many messages, else `ConflictError`. No messages: nothing is stored
        and the count returned. They are read together too, whichever is asked for: for many there is `write_messages`.
        """
        check_count("add_messages", "expected_count", expected_count)
        session = id_segment(session_id, "add_messages")
        return await self._log.appender.append(session, encode_messages("add_messages", session, messages), expected_count)

    async def get_messages(
        self, session_id: str, *, last: int | None = None, start: int = 0, limit: int | None = None
    ) -> builtins.list[KnownMessage]:
        """The messages as they came, in order: all, the `last` ones, or those from position `start` on, at most `limit`.

        What it costs goes by what is returned, not by the length of the log. No session: no messages. They are typed as
        those that a runtime writes, so that a type checker tells them apart by `subtype`; others come as they came too.
        """
        check_count("get_messages", "start", start, or_none=False)
        for name, count in (("last", last), ("limit", limit)):
            check_count("get_messages", name, count)
        if last is not None and (start, limit) != (0, None):
            raise InvalidValueError("messages are asked for either by last, or by start and limit", operation="get_messages")
        return await self._log.read(id_segment(session_id, "get_messages"), start, last, limit)

    async def count_messages(self, session_id: str) -> int:
        """How many messages there are."""
        tail, _ = await self._log.reader.end(id_segment(session_id, "count_messages"))
        return tail.messages

    async def clear_messages(self, session_id: str) -> int:
        """Removes all messages at one moment. Returns how many there were, about: one that another instance appends at that
        moment may be counted too, or not.
        """
        return await self._log.clear(id_segment(session_id, "clear_messages"))

    async def truncate_after(self, session_id: str, message_id: str) -> int:
        """Removes what follows a message (the last one with this id) at one moment. Returns how many went, about: one that
        another instance appends at that moment may be counted too, or not.

        Raises `RecordNotFoundError` where there is no such message; nothing is changed then.
        """
        return await self._log.truncate(id_segment(session_id, "truncate_after"), message_id)

    async def write_messages(self, session_id: str, messages: Sequence[Message]) -> None:
        """Stores a whole log, for imports: readers see all of it or nothing, however long it is.

        Raises `ConflictError` where there are messages already, and `InvalidValueError` before anything is touched.
        """
        session = id_segment(session_id, "write_messages")
        data = encode_messages("write_messages", session, messages)
        await self._log.write(
            session, [Entry(at, [cast("dict[str, Any]", msgspec.Raw(message))]) for at, message in enumerate(data)]
        )

    async def logs(self) -> builtins.list[str]:
        """The ids of all sessions that have messages, with a record or without."""
        found = []
        async for session in self._log.sessions():
            if await self._has_messages(session):
                found.append(unescape_segment(session))
        return found

    async def _has_messages(self, session: str) -> bool:
        try:
            return await self._log.reader.holds(session)
        except CorruptValueError:
            return True

    # Sessions

    async def list(
        self,
        *,
        container_id: str | None = None,
        image_id: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[Session]:
        """Sessions newest first: all, a container's, an image's, or both. `limit` None: the whole list.

        Raises `InvalidValueError` for a bad limit or cursor.
        """
        return await self._page(limit, cursor, container_id=container_id, image_id=image_id)

    async def delete(self, record_id: str, *, cascade: bool = False) -> bool:
        """Removes a session and, `cascade` or not, its messages, at one moment. False: there was neither."""
        return await self._delete(self.table.shape.key(record_id, "delete"), {})

    async def _delete(self, key: str, members: Mapping[str, str]) -> bool:
        session, removed = key.partition(":")[2], False
        while True:
            try:
                old = await self.table.get(key)
            except CorruptValueError:  # not even JSON
                if members:
                    return False
                old, removed = MISSING, await self.table.storage.remove_item(key)
            if not has_members(old, members):
                return False
            found = removed or old is not MISSING or await self._has_messages(session)
            if await self.table.remove(key, old):
                await self._log.sweep(session)
                return found

    async def fork(
        self,
        source_id: str,
        new_id: str,
        *,
        image_id: str | None = None,
        container_id: str | None = None,
        through: str | None = None,
    ) -> Session:
        """Copies a session with its messages, up to and with the message `through` (None: all). Returns the new session.

        It belongs to the source's image and container unless others are given. Raises `RecordNotFoundError` where there is
        no such session or message, and `ConflictError` where there is a session or a log `new_id` already.
        """
        session, key = id_segment(new_id, "fork"), self.table.shape.key(new_id)
        source, entries = await self._whole(source_id, through)
        record = msgspec.structs.replace(
            source,
            session_id=new_id,
            image_id=source.image_id if image_id is None else image_id,
            container_id=source.container_id if container_id is None else container_id,
            created_at=AT_SAVE,
            updated_at=AT_SAVE,
        )
        now = now_ms()
        document = self.table.shape.document(record, "fork", createdAt=now, updatedAt=now)
        while True:
            if await self.exists(new_id):
                raise ConflictError(f"there is a session {new_id!r} already", operation="fork", key=key)
            if await self._fork(session, key, document, entries):
                return self.table.shape.record(key, document)

    async def _whole(self, source_id: str, through: str | None) -> tuple[Session, builtins.list[Entry]]:
        """A session with its messages, as they were at one moment."""
        session = id_segment(source_id, "fork")
        source = await self.get(source_id)
        while source is not None:
            entries = await self._log.through(session, through)
            before, source = source, await self.get(source_id)
            if source == before:
                return before, entries
        raise self._not_found("fork", source_id)

    async def _fork(self, session: str, key: str, document: dict[str, Any], entries: Sequence[Entry]) -> bool:
        """Publishes log and record. False: others were faster."""
        log = self._log
        head = await log.new_head(session, "fork")
        if not entries:
            return await self.table.add(key, document, head)
        staged = await log.stage(session, head, entries)
        return staged is not None and await self.table.publish(key, document, staged)

    async def sweep(self) -> int:
        """Removes what is part of no log any more. Returns how many keys."""
        return await self._log.sweep()

    async def faults(self) -> builtins.list[str]:
        """The keys of logs that can't be read: of heads, of entries, of the first of some that are gone before others."""
        found = []
        async for session in self._log.sessions():
            try:
                found += await self._log.salvage.faults(session)
            except CorruptValueError:
                found.append(head_key(session))
        return found

    async def mend_heads(self) -> int:
        """Takes the marks of those who were writing logs whole off them. Returns how many logs had some."""
        marked = 0
        async for session in self._log.sessions():
            with suppress(CorruptValueError):  # `faults` tells of it
                marked += await self._mend_head(session)
        return marked

    async def _mend_head(self, session: str) -> bool:
        """Takes the marks of those who were writing a log whole off it. They begin anew, unless they crashed.

        False: there are none.
        """
        log, marked = self._log, False
        while (head := await log.reader.head(session)).staged or head.done is not None:
            marked = True
            await self.table.settle(f"{self.table.shape.name}:{session}")
            # Only if it is the head that was there before the record was settled, else the mark may be that of a later one.
            if await log.exchange(session, head, head.but(staged=(), done=None)):
                break
        return marked
