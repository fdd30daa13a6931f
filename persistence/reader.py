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
from persistence.head import Entry, Head, Tail, entry_key, generation_base, head_key, parse_entry, parse_head
from persistence.table import one_commit

CHUNK = 500
"""Entries that are read or written at a time."""

_AHEAD = 8  # entries that are looked for behind the last one known, in the same read
_FIRST = 64  # entries that are read at first where the length is not known
_PROBES = 32
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
        return parse_head(key, await self._storage.get_item_raw(key))

    async def stored(self, keys: Iterable[str]) -> dict[str, bytes | None]:
        """What stands at these keys, as it is stored."""
        return await self._storage.keyspace.read("get_items", keys)

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
                if start + len(entries) > count:
                    await self._check(session, head)
            except (Moved, Hole) as error:
                if tail is None and isinstance(error, Hole):
                    raise
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
            else:  # without ordered listing to count costs several reads, and a hole is found where a later entry is read
                known = await self._count(session, head) if self._is_ordered(session) else 0
            entries: list[Entry] = []
            try:
                first = await self._place(session, head, start) if start else 0
                stop = None if limit is None else first + limit
                await self._read_on(session, head, first, entries, stop, min(known + _AHEAD, CHUNK) if known else _FIRST, known)
                ended = stop is None or first + len(entries) < stop
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

    async def find_last(self, session: str, message_id: str) -> tuple[Tail, int, int] | None:
        """The last message with this id: where its log ends, the number of its entry, its position. None: there is none.

        Entries that are gone or can't be read are passed over, so that a log can be cut before them.
        """
        while True:
            tail, _ = await self.end(session)
            stop, size = tail.entries, _PROBES
            while stop > 0:
                start = max(0, stop - size)
                stored = await self._stored(session, tail.head, start, stop)
                for place, (key, cut, data) in zip(range(stop - 1, start - 1, -1), reversed(stored), strict=True):
                    try:
                        position = parse_entry(key, data or b"", cut).find(message_id)
                    except CorruptValueError:
                        continue
                    if position is not None:
                        return tail, place, position
                stop, size = start, min(2 * size, CHUNK)
            if await self.head(session) == tail.head:
                return None

    async def faults(self, session: str, head: Head) -> list[str]:
        """The keys of entries that can't be read, or are gone before others; of those in a row the first."""
        keys: list[str] = []
        count, gone = await self._count(session, head), False
        for start in range(0, count, CHUNK):
            for key, cut, data in await self._stored(session, head, start, min(start + CHUNK, count)):
                try:
                    parse_entry(key, data or b"", cut)
                except CorruptValueError:
                    if data is not None or not gone:
                        keys.append(key)
                gone = data is None
        return keys

    async def _stored(self, session: str, head: Head, start: int, stop: int) -> list[tuple[str, int | None, bytes | None]]:
        """Key, cut and data of these entries: None where it is gone, nothing where the driver can't read it."""
        cuts = _cuts(session, head, start, stop)
        found = await self._readable(cuts)
        return [(key, cut, found[key]) for key, cut in cuts.items()]

    async def _readable(self, keys: Collection[str]) -> dict[str, bytes | None]:
        try:
            return await self.stored(keys)
        except CorruptValueError:
            found: dict[str, bytes | None] = {}
            for key in keys:
                try:
                    found[key] = await self._storage.get_item_raw(key)
                except CorruptValueError:
                    found[key] = b""
            return found

    async def page(self, session: str, head: Head, start: int, stop: int, *, known: int = 0) -> list[Entry]:
        """The entries from `start` to before `stop`, or as many of them as there are; `known` are there for certain.

        Raises `Moved` where `head` is not the head any more, and `Hole` for one under the same head.
        """
        cuts = _cuts(session, head, start, stop)
        its_key = head_key(session)
        found = await self.stored([*cuts, its_key])
        if parse_head(its_key, found[its_key]) != head:
            raise Moved
        entries: list[Entry] = []
        for key, cut in cuts.items():
            data = found[key]
            if data is not None:
                entries.append(parse_entry(key, data, cut))
                continue
            there = sum(found[key] is not None for key in cuts)
            if start + len(entries) < max(head.settled, known) or len(entries) < there:
                # Reads of several keys need not be of one moment: look once more.
                found = await self.stored([key, its_key])
                if parse_head(its_key, found[its_key]) != head or found[key] is not None:
                    raise Moved
                raise Hole(
                    "this entry of a message log is gone, and others after it are there;"
                    " truncate_after a message before it mends the log",
                    key=key,
                )
            break
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
        if self._is_ordered(session):
            last = await self._storage.get_keys(generation_base(session, generation), limit=1, reverse=True)
            return settled + (int(last[0].rpartition(":")[2], 16) + 1 if last else 0)

        def missing(data: bytes | None) -> bool:
            return data is None

        steps = [settled + 2**power - 1 for power in range(40)]
        there = [not missing(data) for data in await self.values(session, head, steps)]
        power = len(there) - there[::-1].index(True) if any(there) else 0
        return steps[0] if not power else await self._search(session, head, steps[power - 1] + 1, steps[power], missing)

    async def _place(self, session: str, head: Head, position: int) -> int:
        """The number of the entry that holds a position, or of the one behind the last."""
        its_key = generation_base(session, head.generation or "")

        def reached(data: bytes | None) -> bool:
            return data is None or parse_entry(its_key, data, None).at > position

        # Every entry holds a message or more, so this is the highest that it can be, and mostly what it is.
        (data,) = await self.values(session, head, [position])
        if data is not None and parse_entry(its_key, data, None).at == position:
            return position
        return max(0, await self._search(session, head, 0, position + 1, reached) - 1)

    async def _search(self, session: str, head: Head, low: int, high: int, passed: Callable[[bytes | None], bool]) -> int:
        """The first number from `low` on whose entry has `passed`, `high` if none has; of all later ones each has too."""
        while low < high:
            probes = range(low, high, -(-(high - low) // _PROBES))
            values = await self.values(session, head, probes)
            first = next((index for index, data in enumerate(values) if passed(data)), len(probes))
            low, high = probes[first - 1] + 1 if first else low, probes[first] if first < len(probes) else high
        return low

    async def values(self, session: str, head: Head, places: Iterable[int]) -> list[bytes | None]:
        """What stands at these numbers, as for `stored`, nothing where the driver can't read it.

        `head` need not be the head any more.
        """
        at = [next(head.places(place, place + 1), None) for place in places]
        keys = [None if place is None else entry_key(session, place[0], place[1]) for place in at]
        found = await self._readable([key for key in keys if key is not None])
        return [None if key is None else found[key] for key in keys]


def _cuts(session: str, head: Head, start: int, stop: int) -> dict[str, int | None]:
    """The keys of the entries from `start` to before `stop`, each with its cut."""
    return {entry_key(session, name, sequence): cut for name, sequence, cut in head.places(start, stop)}
