"""The head of a message log: where its entries are.

The entries of a log are numbered densely from 0 in each of its generations, `messages:<session>:<generation>:<sequence>`;
a generation is a random name that never comes back. The log is what its closed generations hold, one after another,
each up to a certain entry, and then all of the open one. So to append is to add the next key, which leaves the head as it
is, and to truncate or clear is one exchange of the head, after which whatever it does not reach is garbage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from secrets import token_hex
from typing import Annotated, Any, NamedTuple

import msgspec
import orjson

from kvstore.errors import CorruptValueError
from kvstore.values import MISSING, NOT_JSON

_POSITIONS = 2**53
_Generation = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Za-z_-]{1,64}\Z")]  # a segment of a key


class Segment(msgspec.Struct, frozen=True):
    """The share of a closed generation."""

    generation: _Generation
    entries: int
    end: int
    """The position behind its last message. The last entry may hold more than that."""


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """What `heads:<session>` says. One that says nothing is not stored."""

    generation: _Generation | None = None
    """The open one; None: there is none yet. It is opened with an entry in it, or behind closed ones."""
    closed: tuple[Segment, ...] = ()
    staged: tuple[_Generation, ...] = ()
    """Generations that are being written, to be published as a whole."""
    done: str | None = None
    """The token of the pending record that has come or gone with its log; see `pending.py`."""
    otherwise: bytes = b""
    """What is stored, where that is not what would be written: it has members of another version, or is in another order."""

    @property
    def settled(self) -> int:
        """How many entries lie in closed generations."""
        return sum(segment.entries for segment in self.closed)

    @property
    def generations(self) -> dict[str, int | None]:
        """How many entries of each generation may be there: None, any number."""
        closed = {segment.generation: segment.entries for segment in self.closed}
        return dict.fromkeys(self.staged) | closed | ({} if self.generation is None else {self.generation: None})

    def reaches(self, generation: str, sequence: int) -> bool:
        """Whether an entry is in the log or may come to be."""
        there = self.generations
        entries = there.get(generation, 0)
        return entries is None or sequence < entries

    def places(self, start: int, stop: int) -> Iterator[tuple[str, int, int | None]]:
        """Generation, sequence and cut of the entries from `start` to before `stop`, counted through the log.

        The cut is the position where an entry ends, whatever it holds; None: it is all there.
        """
        first = 0
        for segment in self.closed:
            for place in range(max(start, first), min(stop, first + segment.entries)):
                sequence = place - first
                yield segment.generation, sequence, segment.end if sequence == segment.entries - 1 else None
            first += segment.entries
        if self.generation is not None:
            for place in range(max(start, first), stop):
                yield self.generation, place - first, None

    def opened(self) -> Head:
        """With an open generation."""
        return self if self.generation is not None else self.but(generation=token_hex(8))

    def cut(self, entries: int, end: int) -> Head:
        """With no more than so many entries, up to the position `end`, which lies in the last of them."""
        closed: list[Segment] = []
        generation = self.generation
        for segment in self.closed:
            if entries <= segment.entries:
                generation = segment.generation
                break
            closed.append(segment)
            entries -= segment.entries
        assert generation is not None, "a log without generations has no entries"
        closed.append(Segment(generation, entries, end))
        return self.but(generation=token_hex(8), closed=tuple(closed))

    def unstaged(self, generation: str) -> Head:
        """Without the mark that `generation` is being written."""
        return self.but(staged=tuple(staged for staged in self.staged if staged != generation))

    def published(self, generation: str) -> Head:
        """With a staged generation as the whole log."""
        return self.unstaged(generation).but(generation=generation, closed=())

    def but(self, **members: object) -> Head:
        """With other members, to be stored."""
        return msgspec.structs.replace(self, otherwise=b"", **members)

    @property
    def data(self) -> bytes | None:
        """What is stored; None: nothing is."""
        return self.otherwise or (None if self == _NOTHING else msgspec.json.encode(self))

    @property
    def value(self) -> object:
        """The same for a condition or a write: its JSON, or `MISSING`."""
        return MISSING if (data := self.data) is None else orjson.Fragment(data)


class Tail(NamedTuple):
    """Where a log ends."""

    head: Head
    entries: int
    messages: int
    last: bytes | None = None
    """What its last key holds, where that is known."""


class Entry(msgspec.Struct, gc=False):
    """One key of a log: messages that were given together."""

    at: int
    """The position of the first."""
    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]

    @property
    def end(self) -> int:
        """The position behind the last."""
        return self.at + len(self.messages)

    def find(self, message_id: str) -> int | None:
        """The position of the last message with this id."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].get("id") == message_id:
                return self.at + index
        return None

    def follows(self, before: Entry | None, place: int) -> bool:
        """Whether it says that it stands where it does, at this number; `before` is the one before, None: that is not known."""
        if before is not None:
            return self.at == before.end
        return place <= self.at < _POSITIONS if place else self.at == 0

    def up_to(self, end: int) -> Entry:
        """Without what stands at the position `end` or behind it."""
        return self if end >= self.end else Entry(self.at, self.messages[: end - self.at])


_NOTHING = Head()
_decode_head = msgspec.json.Decoder(Head).decode
decode_entry = msgspec.json.Decoder(Entry).decode


def parse_head(key: str, data: bytes | None) -> Head:
    """What is stored, None where nothing is. Raises `CorruptValueError`."""
    if data is None:
        return _NOTHING
    try:
        head, end = _decode_head(data), 0
        if len({head.generation, *(segment.generation for segment in head.closed)}) <= len(head.closed):
            raise msgspec.ValidationError("a generation is there twice")
        for segment in head.closed:
            if not 0 < segment.entries <= segment.end - end:  # every entry holds a message
                raise msgspec.ValidationError(f"{segment.entries:,} entries up to message {segment.end:,}")
            end = segment.end
    except NOT_JSON as error:
        raise CorruptValueError(
            f"what says where the session's messages are can't be read: {error}; clear_messages or delete removes it and them",
            key=key,
        ) from error
    return head if not head.otherwise and head.data == data else msgspec.structs.replace(head, otherwise=data)


def parse_entry(key: str, data: bytes, cut: int | None = None) -> Entry:
    """An entry up to the position `cut`. Raises `CorruptValueError`."""
    try:
        entry = decode_entry(data)
    except NOT_JSON as error:
        raise damaged(key, error) from error
    return entry if cut is None else entry.up_to(cut)


def read_entry(data: bytes | None, cut: int | None = None) -> Entry | None:
    """The same; None for what is gone or can't be read."""
    try:
        return None if data is None else parse_entry("", data, cut)
    except CorruptValueError:
        return None


MISPLACED = "they say that they stand at another position"


def damaged(key: str, said: object) -> CorruptValueError:
    """The error of an entry that can't be read, or not where it stands."""
    return CorruptValueError(
        f"these messages of the session can't be read: {said}; truncate_after a message before them, or clear_messages,"
        " mends the log",
        key=key,
    )


def head_key(session: str) -> str:
    return f"heads:{session}"


def generation_base(session: str, generation: str) -> str:
    return f"messages:{session}:{generation}"


def entry_key(session: str, generation: str, sequence: int) -> str:
    return f"messages:{session}:{generation}:{sequence:012x}"


def entry_number(key: str) -> int | None:
    """The number of an entry within its generation; None for a key that is not that of an entry."""
    match = re.search(":([0-9a-f]{12})$", key)
    return None if match is None else int(match[1], 16)
