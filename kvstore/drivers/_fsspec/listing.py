"""Listing objects, and what is due: markers tell which of them may have expired, so that no listing reads every object."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from kvstore.driver import PAGE
from kvstore.drivers._footer import footer_size, parse_footer
from kvstore.drivers._fsspec.names import HASHED, MAX_NAME_BYTES, PRIVATE, TIMES, digest, marked
from kvstore.drivers._fsspec.objects import Objects
from kvstore.drivers._fsspec.store import gathered
from kvstore.errors import CorruptValueError, UnsupportedOperation

_GRACE = 60_000
"""Milliseconds that a marker outlives its time, for the sake of writers whose clocks are behind."""
_FIRST = 100
"""Names of the private room to ask for at first. Most often nothing is due, and one would do."""


class Listing:
    """The keys of `objects` in order."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._store = objects.store
        self._names = objects.names
        self._keys: dict[str, str] = {}
        self._swept: set[str] = set()
        self._stuck: set[str] = set()

    async def has(self, keys: Sequence[str]) -> list[bool]:
        present, absent = await self.objects.listed(keys)
        due = (await self._private())[1] if present else set()
        sure = {key for key in present if not self._among(due, key)}
        unsure = [key for key in keys if key not in sure and key not in absent]
        kept = await gathered(map(self.objects.live, unsure))
        sure.update(key for key, found in zip(unsure, kept, strict=True) if found)
        return [key in sure for key in keys]

    async def scan(self, prefix: str, after: str | None, limit: int, *, reverse: bool) -> list[str]:
        live: list[str] = []
        if not reverse:
            behind = after
            while len(live) < limit:
                behind, due, keys = await self._page(prefix, behind, limit - len(live))
                live += await self._live([key for key in keys if after is None or key > after], due)
                if behind is None:
                    break
            return live[:limit]
        _, due, keys = await self._page(prefix, None, None)
        keys = [key for key in reversed(keys) if after is None or key < after]
        for start in range(0, len(keys), limit):
            live += await self._live(keys[start : start + limit], due)
            if len(live) >= limit:
                break
        return live[:limit]

    async def clear(self, prefix: str) -> int:
        """Removes the objects of the keys below `prefix`. Returns how many of them had not expired."""
        total, behind = 0, None
        while True:
            behind, due, keys = await self._page(prefix, behind, PAGE)
            total += len(await self._live(keys, due))
            await self._store.delete([self._names.name(key) for key in keys])
            if behind is None:
                return total

    async def _page(self, prefix: str, after: str | None, limit: int | None) -> tuple[str | None, set[str], list[str]]:
        """Behind what the keys go on, what is due, and the keys in order, some of them expired."""
        (hashed, due), (found, more) = await asyncio.gather(self._private(), self._found(prefix, after, limit))
        keys = [key for name in found if (key := self._names.key(name)) is not None]
        keys += [key for key in hashed if more is None or key <= more]
        return more, due, sorted(key for key in keys if key.startswith(prefix) and (after is None or key > after))

    async def _found(self, prefix: str, after: str | None, limit: int | None) -> tuple[list[str], str | None]:
        start = self._names.start(prefix)
        if not self._names.flat:
            return await self._store.list(start, "", PAGE)
        names: list[str] = []
        behind: str | None = self._names.cut(after or "")
        while behind is not None and (limit is None or len(names) < limit):
            page, behind = await self._store.list(start, behind, PAGE if limit is None else limit - len(names) + 1)
            names += page
        return names, behind

    async def _private(self) -> tuple[list[str], set[str]]:
        """The keys that are no names, and whose names have something due, by their hash."""
        hashed: list[str] = []
        due: set[str] = set()
        now = self.objects.clock()
        behind: str | None = HASHED
        limit = _FIRST
        while behind is not None:
            page, behind = await self._store.list(PRIVATE, behind, limit)
            limit = PAGE
            for name in page:
                said = marked(name)
                if name.startswith(HASHED):
                    hashed.append(name)
                elif said is not None and said[0] > now:
                    behind = None
                    break
                elif said is not None:
                    due.add(said[1])
        return [key for key in await gathered(map(self._hashed_key, hashed)) if key is not None], due

    async def _hashed_key(self, name: str) -> str | None:
        """The key of an object that is named by its hash. It never changes."""
        if name not in self._keys:
            end = 2 * MAX_NAME_BYTES
            try:
                while (found := await self._store.get(name, end)) and (size := footer_size(found.data)) > end < found.size:
                    end = size
                key = None if found is None else parse_footer(found.data)[1].key
            except CorruptValueError:
                key = None
            if key is None or HASHED + digest(key) != name:
                return None
            self._keys[name] = key
        return self._keys[name]

    async def _live(self, keys: list[str], due: set[str]) -> list[str]:
        """Those that have not expired."""
        unsure = [key for key in keys if self._among(due, key)]
        kept = await gathered(map(self._alive, unsure))
        gone = {key for key, alive in zip(unsure, kept, strict=True) if not alive}
        return [key for key in keys if key not in gone]

    async def _alive(self, key: str) -> bool:
        try:
            return await self.objects.live(key) is not None
        except CorruptValueError:
            return True  # it is there, and says so when it is read

    def _among(self, due: set[str], key: str) -> bool:
        return bool(due) and digest(self._names.name(key)) in due

    # Sweeping

    async def sweep(self) -> int | None:
        """Removes what expired. Returns when there is more to do, in milliseconds since 1970; None: nothing is left."""
        now = self.objects.clock()
        coming: list[int] = []
        behind: str | None = TIMES
        while behind is not None:
            page, behind = await self._store.list(TIMES, behind, PAGE)
            due: list[str] = []
            over: set[str] = set()
            for name in page:
                said = marked(name)
                if said is None or name in self._stuck:
                    continue
                if said[0] > now:
                    coming.append(said[0])
                    behind = None
                    break
                if said[0] + _GRACE <= now:
                    over.add(name)
                else:
                    coming.append(said[0] + _GRACE)
                if name in over or name not in self._swept:
                    due.append(name)
            gone = await gathered(map(self._sweep, due))
            self._stuck.update(name for name, away in zip(due, gone, strict=True) if not away)
            self._swept.update(due)
            self._swept -= over
            await self._store.delete(sorted(over - self._stuck))
        return min(coming, default=None)

    async def _sweep(self, name: str) -> bool:
        """Removes what a marker is about, if that has expired. False: it can't be removed, and the marker has to stay."""
        objects = self.objects
        told, said = await self._store.get(name), marked(name)
        about = "" if told is None else told.data.decode(errors="replace")
        if said is None or digest(about) != said[1]:
            return True
        key = await self._hashed_key(about) if about.startswith(HASHED) else self._names.key(about)
        if key is None:
            return True
        async with objects.lock(about):
            try:
                kept = await objects.kept(key)
            except CorruptValueError:
                return True
            if kept is None or not objects.expired(kept):
                return True
            taken = await self._store.delete_if(about, kept.found.etag)
            if taken is None and kept.size:  # its space, if not its name
                with suppress(UnsupportedOperation):
                    await objects.bury(key, kept.found.etag)
            return taken is not None
