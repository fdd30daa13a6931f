"""Reader: message logs as they are read, by computed keys, so that a read costs what it returns.

The keys of a log are known from its head and its length. Both are remembered, for a bounded number of logs, and every read
takes the head along: where it has moved, what was remembered is forgotten and the read begun anew. So it is where an entry is
gone that was remembered, for a server that restarts or is replaced may have lost its last moments.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable

from kvstore.errors import CorruptValueError
from kvstore.storage import Storage
from kvstore.values import NOT_JSON
from persistence.head import (
    MISPLACED,
    Entry,
    Head,
    Tail,
    damaged,
    decode_entry,
    entry_key,
    entry_number,
    generation_base,
    head_key,
    parse_entry,
    parse_head,
)
from persistence.table import one_commit, readable

CHUNK = 500
"""Entries that are read or written at a time."""

PROBES = 32
"""Entries that are looked at, at a time, where one is sought."""

_AHEAD = 8  # entries that are looked for behind the last one known, in the same read
_FIRST = 64  # entries that are read at first where the length is not known
_REMEMBERED = 1024


class Moved(Exception):
    """The head has changed since it was read."""


class Hole(CorruptValueError):
    """An entry is gone, and others after it are there, or were."""


class Reader:
    """Sessions are named by their segment of a key here."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._tails: OrderedDict[str, Tail] = OrderedDict()

    def remember(self, session: str, tail: Tail) -> None:
        """Keeps in mind where a log ends. It may grow behind that."""
        if tail.last is None and (known := self._tails.get(session)) is not None and known[:3] == tail[:3]:
            tail = known
        self._tails[session] = tail
        self._tails.move_to_end(session)
        if len(self._tails) > _REMEMBERED:
            self._tails.popitem(last=False)

    def remembered(self, session: str) -> Tail | None:
        return self._tails.get(session)

    async def head(self, session: str) -> Head:
        key = head_key(session)
        data = await self._storage.get_item_raw(key)
        try:
            return parse_head(key, data)
        except CorruptValueError as error:
            raise self.told(error) from error.__cause__

    async def stored(self, keys: Iterable[str]) -> dict[str, bytes | None]:
        """What stands at these keys, as it is stored."""
        return await self._storage.keyspace.read("get_items", keys)

    async def end(self, session: str, want: int = 1) -> tuple[Tail, list[Entry]]:
        """Where the log ends now, and at least its last `want` entries. One read where nearly all is remembered."""
        tail, find = self.remembered(session), self.length
        while True:
            head = await self.head(session) if tail is None else tail.head
            if head == Head():
                return Tail(head, 0, 0), []
            count = await find(session, head) if tail is None else tail.entries
            start = max(0, count - want)
            entries: list[Entry] = []
            try:
                await self._read_on(session, head, start, entries, count + _AHEAD, CHUNK, known=count)
                if start + len(entries) > count:
                    await self._check(session, head)
            except (Moved, Hole) as error:
                if tail is None and isinstance(error, Hole):
                    if find == self.count:
                        raise
                    find = self.count
                tail = None
                continue
            if len(entries) < count + _AHEAD - start:
                tail = Tail(head, start + len(entries), entries[-1].end if entries else 0)
                self.remember(session, tail)
                return tail, entries
            tail = None  # far behind: others wrote in the meantime

    async def forward(self, session: str, start: int = 0, limit: int | None = None) -> list[Entry]:
        """The entries from the one with position `start` on, at most `limit`."""
        tail = self.remembered(session)
        while True:
            head = await self.head(session) if tail is None else tail.head
            if head == Head():
                return []
            if tail is not None:
                known = tail.entries
            else:  # a part is found without the length, and mostly lies before the end
                known = await self.length(session, head) if limit is None and self._is_ordered(session) else 0
            entries: list[Entry] = []
            try:
                first = await self._place(session, head, start) if start else 0
                stop = None if limit is None else first + limit
                await self._read_on(session, head, first, entries, stop, min(known + _AHEAD, CHUNK) if known else _FIRST, known)
                there = first + len(entries)
                ended = stop is None or there < stop
                if (ended and not known) or (entries and entries[0].end <= start):  # that is the end, or a gap
                    known = known or await self.count(session, head)
                    if there < known:
                        await self._read_on(session, head, there, entries, there + 1, 1, known)
                        continue  # neither: others wrote in the meantime
                if ended:
                    await self._check(session, head)
            except (Moved, Hole) as error:
                if tail is None and isinstance(error, Hole):
                    raise
                tail = None
                self._tails.pop(session, None)
                continue
            if entries and ended:
                self.remember(session, Tail(head, first + len(entries), entries[-1].end))
            return entries

    async def readable(self, keys: Collection[str]) -> dict[str, bytes | None]:
        """As `stored`, and nothing for what the driver can't read."""
        found = await readable(self._storage, keys)
        return {key: found.get(key, b"") for key in keys}

    def told(self, error: CorruptValueError) -> CorruptValueError:
        """It says where it happened, too."""
        mount = self._storage.get_mount(str(error.key))
        return error.at("get_items", None, mount.base, mount.driver.name)

    async def page(
        self, session: str, head: Head, start: int, stop: int, *, known: int = 0, before: Entry | None = None
    ) -> list[Entry]:
        """The entries from `start` to before `stop`, or as many of them as there are; `known` are there for certain, and
        `before` is the one before the first.

        Raises `Moved` where `head` is not the head any more, and `Hole` for one under the same head.
        """
        cuts = cuts_of(session, head, start, stop)
        its_key, its_data = head_key(session), head.data
        found = await self.stored([*cuts, its_key])
        if found[its_key] != its_data:
            raise Moved
        entries: list[Entry] = []
        position = before.end if before is not None else None if start else 0
        wrong: CorruptValueError | None = None
        try:  # no call that can be spared, for most of a read is spent here
            for key, cut in cuts.items():
                data = found[key]
                if data is None:
                    there = sum(found[key] is not None for key in cuts)
                    if start + len(entries) < max(head.settled, known) or len(entries) < there:
                        wrong = Hole(
                            "this entry of a message log is gone, and others after it are there;"
                            " truncate_after a message before it mends the log",
                            key=key,
                        )
                    break
                entry = decode_entry(data)
                if entry.at != position:
                    if position is not None or not entry.follows(None, start) or (cut is not None and entry.at >= cut):
                        wrong = damaged(key, MISPLACED)
                        break
                    position = entry.at
                if cut is not None:
                    entry = entry.up_to(cut)
                entries.append(entry)
                position += len(entry.messages)
        except NOT_JSON as error:
            raise self.told(damaged(key, error)) from error
        if wrong is not None:
            # Reads of several keys need not be of one moment: look once more.
            again = await self.stored([key, its_key])
            if again != {key: found[key], its_key: its_data}:
                raise Moved
            raise self.told(wrong)
        return entries

    async def _check(self, session: str, head: Head) -> None:
        """Raises `Moved` where the end that was found may be that of entries which were removed after the head was read."""
        if not one_commit(self._storage, [head_key(session), entry_key(session, "", 0)]) and await self.head(session) != head:
            raise Moved

    def _is_ordered(self, session: str) -> bool:
        return self._storage.get_mount(entry_key(session, "", 0)).capabilities.ordered

    async def _read_on(
        self, session: str, head: Head, start: int, entries: list[Entry], stop: int | None, size: int, known: int
    ) -> None:
        """Adds the entries from `start` on, `size` at a time at first, to before `stop` or to the end."""
        while stop is None or start < stop:
            ask = size if stop is None else min(size, stop - start)
            before = entries[-1] if entries else None
            page = await self.page(session, head, start, start + ask, known=known, before=before)
            entries += page
            if len(page) < ask:
                return
            start, size = start + ask, min(2 * size, CHUNK)

    async def length(self, session: str, head: Head) -> int:
        """How many entries there are, found without what is remembered, at one cost for any number.

        Without ordered listing by looking at some, so that one that is gone may be taken for the end.
        """
        if self._is_ordered(session):
            return await self.count(session, head)
        settled = head.settled
        if head.generation is None:
            return settled

        def missing(key: str, data: bytes | None) -> bool:
            return data is None

        steps = [settled + 2**power - 1 for power in range(40)]
        there = [data is not None for _, data in await self.values(session, head, steps)]
        power = len(there) - there[::-1].index(True) if any(there) else 0
        return steps[0] if not power else await self._search(session, head, steps[power - 1] + 1, steps[power], missing)

    async def count(self, session: str, head: Head) -> int:
        """The same by listing, which finds what lies behind entries that are gone."""
        if head.generation is None:
            return head.settled
        return head.settled + await self.last(session, head.generation) + 1

    async def last(self, session: str, generation: str, before: str | None = None) -> int:
        """The number of the last entry of a generation, before a key; -1: there is none. What is no entry is passed over."""
        base = generation_base(session, generation)
        while keys := await self._storage.get_keys(base, limit=1, after=before, reverse=True):
            if (number := entry_number(keys[0])) is not None:
                return number
            before = keys[0]
        return -1

    async def holds(self, session: str) -> bool:
        """Whether there are messages, or there were and some are gone."""
        head = await self.head(session)
        ((_, first),) = await self.values(session, head, [0])
        return first is not None or await self.count(session, head) > 0

    async def _place(self, session: str, head: Head, position: int) -> int:
        """The number of the entry that holds a position, or of the one behind the last."""

        def reached(key: str, data: bytes | None) -> bool:
            return data is None or parse_entry(key, data).at > position

        try:
            # Every entry holds a message or more, so this is the highest that it can be, and mostly what it is.
            ((key, data),) = await self.values(session, head, [position])
            if data is not None and parse_entry(key, data).at == position:
                return position
            return max(0, await self._search(session, head, 0, position + 1, reached) - 1)
        except CorruptValueError as error:
            raise self.told(error) from error.__cause__

    async def _search(self, session: str, head: Head, low: int, high: int, passed: Callable[[str, bytes | None], bool]) -> int:
        """The first number from `low` on whose entry has `passed`, `high` if none has; of all later ones each has too."""
        while low < high:
            probes = range(low, high, -(-(high - low) // PROBES))
            values = await self.values(session, head, probes)
            first = next((index for index, (key, data) in enumerate(values) if passed(key, data)), len(probes))
            low, high = probes[first - 1] + 1 if first else low, probes[first] if first < len(probes) else high
        return low

    async def values(self, session: str, head: Head, places: Iterable[int]) -> list[tuple[str, bytes | None]]:
        """What stands at these numbers, with its key: nothing where the driver can't read it.

        `head` need not be the head any more.
        """
        there = [next(head.places(place, place + 1), None) for place in places]
        keys = ["" if place is None else entry_key(session, place[0], place[1]) for place in there]
        found = await self.readable([key for key in keys if key])
        return [(key, found[key] if key else None) for key in keys]


def cuts_of(session: str, head: Head, start: int, stop: int) -> dict[str, int | None]:
    """The keys of the entries from `start` to before `stop`, each with its cut."""
    return {entry_key(session, name, sequence): cut for name, sequence, cut in head.places(start, stop)}
