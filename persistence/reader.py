"""Reader: message logs as they are read, by computed keys, so that a read costs what it returns.

The keys of a log are known from its head and its length. Both are remembered, for a bounded number of logs, and every read
takes the head along: where it has moved, what was remembered is forgotten and the read begun anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from kvstore.errors import CorruptValueError
from kvstore.storage import Storage
from kvstore.values import MISSING
from persistence.head import Entry, Head, Tail, entry_key, generation_base, head_key, parse_entry, parse_head

CHUNK = 500
"""Entries that are read or written at a time."""

_AHEAD = 8  # entries that are looked for behind the last one known, in the same read
_FIRST = 64  # entries that are read at first where the length is not known
_PROBES = 32
_REMEMBERED = 1024


class Moved(Exception):
    """The head has changed since it was read."""


class Reader:
    """Sessions are named by their segment of a key here."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._tails: OrderedDict[str, Tail] = OrderedDict()

    def remember(self, session: str, tail: Tail) -> None:
        """Keeps in mind where a log ends. It may grow behind that, but not be found shorter under the same head."""
        self._tails[session] = tail
        self._tails.move_to_end(session)
        if len(self._tails) > _REMEMBERED:
            self._tails.popitem(last=False)

    def remembered(self, session: str) -> Tail | None:
        return self._tails.get(session)

    async def head(self, session: str) -> Head:
        key = head_key(session)
        return parse_head(key, await self._storage.get_item(key, MISSING))

    async def end(self, session: str, want: int = 1) -> tuple[Tail, list[Entry]]:
        """Where the log ends now, and at least its last `want` entries. One read where nearly all is remembered."""
        tail = self.remembered(session)
        while True:
            head = await self.head(session) if tail is None else tail.head
            if head == Head():
                return Tail(head, 0, 0), []
            count = await self._count(session, head) if tail is None else tail.entries
            start = max(0, count - want)
            entries: list[Entry] = []
            try:
                await self._read_on(session, head, start, entries, count + _AHEAD, CHUNK, known=count)
            except Moved:
                tail = None
                continue
            if len(entries) < count + _AHEAD - start:
                tail = Tail(head, start + len(entries), entries[-1].end if entries else 0)
                self.remember(session, tail)
                return tail, entries
            tail = None  # far behind: others wrote in the meantime

    async def forward(self, session: str, start: int = 0, limit: int | None = None) -> list[Entry]:
        """The entries from the one with position `start` on, at most `limit`."""
        while True:
            tail = self.remembered(session)
            head = await self.head(session) if tail is None else tail.head
            if head == Head():
                return []
            known = 0 if tail is None else tail.entries
            entries: list[Entry] = []
            try:
                first = await self._place(session, head, start) if start else 0
                stop = None if limit is None else first + limit
                await self._read_on(session, head, first, entries, stop, min(known + _AHEAD, CHUNK) if known else _FIRST, known)
            except Moved:
                self._tails.pop(session, None)
                continue
            if entries and (stop is None or first + len(entries) < stop):
                self.remember(session, Tail(head, first + len(entries), entries[-1].end))
            return entries

    async def find_last(self, session: str, message_id: str) -> tuple[Tail, int, int] | None:
        """The last message with this id: where its log ends, the number of its entry, its position. None: there is none."""
        while True:
            tail, _ = await self.end(session)
            stop, size = tail.entries, _PROBES
            try:
                while stop > 0:
                    start = max(0, stop - size)
                    entries = await self.page(session, tail.head, start, stop, known=tail.entries)
                    for place in range(len(entries) - 1, -1, -1):
                        position = entries[place].find(message_id)
                        if position is not None:
                            return tail, start + place, position
                    stop, size = start, min(2 * size, CHUNK)
                return None
            except Moved:
                self._tails.pop(session, None)

    async def page(self, session: str, head: Head, start: int, stop: int, *, known: int = 0) -> list[Entry]:
        """The entries from `start` to before `stop`, or as many of them as there are; `known` are there for certain.

        Raises `Moved` where `head` is not the head any more, and `CorruptValueError` for a hole under the same head.
        """
        keys = {entry_key(session, name, sequence): cut for name, sequence, cut in head.places(start, stop)}
        its_key = head_key(session)
        found = await self._storage.get_items([*keys, its_key], MISSING)
        if parse_head(its_key, found[its_key]) != head:
            raise Moved
        entries: list[Entry] = []
        for key, cut in keys.items():
            if found[key] is not MISSING:
                entries.append(parse_entry(key, found[key], cut))
                continue
            if start + len(entries) < max(head.settled, known):
                # Reads of several keys need not be of one moment: the head may have moved while they were made.
                if await self.head(session) != head:
                    raise Moved
                raise CorruptValueError("this entry of a message log is gone, and others after it are there", key=key)
            break
        return entries

    async def _read_on(
        self, session: str, head: Head, start: int, entries: list[Entry], stop: int | None, size: int, known: int
    ) -> None:
        """Adds the entries from `start` on, `size` at a time at first, to before `stop` or to the end."""
        while stop is None or start < stop:
            ask = size if stop is None else min(size, stop - start)
            page = await self.page(session, head, start, start + ask, known=known)
            entries += page
            if len(page) < ask:
                return
            start, size = start + ask, min(2 * size, CHUNK)

    async def _count(self, session: str, head: Head) -> int:
        """How many entries there are, found without what is remembered."""
        settled, generation = head.settled, head.generation
        if generation is None:
            return settled
        if self._storage.get_mount(entry_key(session, generation, 0)).capabilities.ordered:
            last = await self._storage.get_keys(generation_base(session, generation), limit=1, reverse=True)
            return settled + (int(last[0].rpartition(":")[2], 16) + 1 if last else 0)

        def missing(value: Any) -> bool:
            return value is MISSING

        steps = [settled + 2**power - 1 for power in range(40)]
        there = [not missing(value) for value in await self.values(session, head, steps)]
        power = there.index(False)
        return steps[0] if not power else await self._search(session, head, steps[power - 1] + 1, steps[power], missing)

    async def _place(self, session: str, head: Head, position: int) -> int:
        """The number of the entry that holds a position, or of the one behind the last."""
        its_key = generation_base(session, head.generation or "")

        def reached(value: Any) -> bool:
            return value is MISSING or parse_entry(its_key, value, None).at > position

        # Every entry holds a message or more, so this is the highest that it can be, and mostly what it is.
        (value,) = await self.values(session, head, [position])
        if value is not MISSING and parse_entry(its_key, value, None).at == position:
            return position
        return max(0, await self._search(session, head, 0, position + 1, reached) - 1)

    async def _search(self, session: str, head: Head, low: int, high: int, passed: Callable[[Any], bool]) -> int:
        """The first number from `low` on whose entry has `passed`, `high` if none has; of all later ones each has too."""
        while low < high:
            probes = range(low, high, -(-(high - low) // _PROBES))
            values = await self.values(session, head, probes)
            first = next((index for index, value in enumerate(values) if passed(value)), len(probes))
            low, high = probes[first - 1] + 1 if first else low, probes[first] if first < len(probes) else high
        return low

    async def values(self, session: str, head: Head, places: Iterable[int]) -> list[Any]:
        """What stands at these numbers, as it is stored; `head` need not be the head any more."""
        found = [next(head.places(place, place + 1), None) for place in places]
        keys = [None if at is None else entry_key(session, at[0], at[1]) for at in found]
        values = await self._storage.get_items([key for key in keys if key is not None], MISSING)
        return [MISSING if key is None else values[key] for key in keys]
