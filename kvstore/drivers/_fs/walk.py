"""The keys of a file driver in order, read from its directories: those alone that the keys asked for lie in."""

from __future__ import annotations

import errno
import heapq
import os
import time
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from kvstore.drivers._fs.base import Base
from kvstore.drivers._fs.files import ABSENT
from kvstore.drivers._fs.paths import PRIVATE, as_it_is, segment_path, tree_folders, tree_text
from kvstore.keys import is_key

_CACHED = 200_000
"""Names that are remembered at the most, some 30 MB."""
_RACY = 50_000_000
"""Nanoseconds: a directory that changed less than this before it was listed may change again without its time showing it."""
_SECOND = 1_000_000_000
_RUN = 5_000

_Entry = tuple[str, str]
"""The text that the keys of a directory's entry begin with, a directory's ends with `:`; and its path from there."""


class _Listing(NamedTuple):
    """A directory's entries, sorted by text, which is the order of the keys."""

    texts: list[str]
    names: list[str]


class Walk:
    """Lists what lies below `base`. Used by one thread at a time."""

    def __init__(self, base: Base, *, plain: bool) -> None:
        self._base = base
        self.at_root = True
        self._plain = plain
        self._listings: OrderedDict[str, tuple[tuple[int, int], _Listing]] = OrderedDict()
        self._names = 0  # remembered
        self._settled = True  # whether a directory's own time tells of every change to its listing

    def keys(self, prefix: str, after: str | None = None, reverse: bool = False) -> Iterator[str]:
        """The keys below `prefix` behind `after`, in order."""
        folders = prefix[:-1].split(":") if self._plain and prefix else tree_folders(prefix[:-1])
        if not prefix or self._base.has_no_links(folders):
            yield from self._keys(os.path.join(self._base.path, *folders), prefix, after, reverse)

    def _keys(self, folder: str, prefix: str, after: str | None, reverse: bool) -> Iterator[str]:
        texts, names = self._listing(folder)
        # `texts` are relative. What starts with a directory's text may lie on both sides of `after`, so one more is looked at.
        place = after[len(prefix) :] if after is not None and after.startswith(prefix) else None
        if after is not None and place is None and (after < prefix) == reverse:
            return
        if reverse:
            order = range((len(texts) if place is None else bisect_left(texts, place)) - 1, -1, -1)
        else:
            order = range(0 if place is None else max(0, bisect_right(texts, place) - 1), len(texts))
        for index in order:
            key = prefix + texts[index]
            if key.endswith(":"):
                yield from self._keys(os.path.join(folder, names[index]), key, after, reverse)
            elif (after is None or (key < after if reverse else key > after)) and is_key(key, at_root=self.at_root):
                yield key

    def _listing(self, folder: str) -> _Listing:
        try:
            about = os.stat(folder)
            # The time of a change, which no program can set back.
            version = (about.st_ctime_ns, about.st_ino)
            cached = self._listings.get(folder)
            if cached is not None and cached[0] == version:
                self._listings.move_to_end(folder)
                return cached[1]
            if cached is not None:
                self._forget(folder)
            began, self._settled = time.time_ns(), True
            entries = _sorted(self._entries(folder))
        except OSError as error:
            if error.errno in (*ABSENT, errno.ENAMETOOLONG):
                return _Listing([], [])
            raise
        listing = _Listing([text for text, _ in entries], [name for _, name in entries])
        # As git does with its index: what changed a moment ago may change again at the same time.
        racy = _RACY if about.st_ctime_ns % _SECOND else 2 * _SECOND  # some file systems tell seconds only
        if self._settled and began - about.st_ctime_ns > racy:
            self._listings[folder] = (version, listing)
            self._names += len(listing.names) + 1
            while self._names > _CACHED and len(self._listings) > 1:
                self._forget(next(iter(self._listings)))
        return listing

    def _forget(self, folder: str) -> None:
        _, listing = self._listings.pop(folder)
        self._names -= len(listing.names) + 1

    def _entries(self, folder: str) -> Iterator[_Entry]:
        with os.scandir(folder) as found:
            for entry in found:
                if entry.name == PRIVATE and folder == self._base.path:
                    continue
                if self._plain:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    if ":" not in entry.name and (is_folder or self._is_file(entry)):
                        yield entry.name + ":" * is_folder, entry.name
                    continue
                is_folder = entry.is_dir(follow_symlinks=False)
                same = as_it_is(entry.name, folder=is_folder)
                if same is not None and (is_folder or entry.is_file(follow_symlinks=False)):
                    yield same + ":" * is_folder, entry.name
                    continue
                for text, path, is_folder in self._segments(entry):
                    if segment_path(text, folder=is_folder) == path:
                        yield text + ":" * is_folder, os.path.join(*path)

    def _segments(self, entry: os.DirEntry[str]) -> Iterator[tuple[str, list[str], bool]]:
        """What an entry of the tree says: (a segment, its names, whether they are a directory's)."""
        is_folder = entry.is_dir(follow_symlinks=False)
        said = tree_text(entry.name, folder=is_folder)
        if said is None or not (is_folder or entry.is_file(follow_symlinks=False)):
            return
        text, goes_on = said
        if not goes_on:
            yield text, [entry.name], is_folder
            return
        self._settled = False
        with suppress(FileNotFoundError), os.scandir(entry.path) as found:
            for inner in found:
                for rest, names, is_folder in self._segments(inner):
                    yield text + rest, [entry.name, *names], is_folder

    def _is_file(self, entry: os.DirEntry[str]) -> bool:
        if not entry.is_symlink():
            return entry.is_file()
        self._settled = False
        return os.path.isfile(entry.path) and self._base.holds(os.path.realpath(entry.path))


def _sorted(entries: Iterator[_Entry]) -> list[_Entry]:
    """Sorted run by run: one sort of 100,000 entries would hold the event loop, which waits for the interpreter, too long."""
    runs = []
    while run := sorted(islice(entries, _RUN)):
        runs.append(run)
    return runs[0] if len(runs) == 1 else list(heapq.merge(*runs))
