"""Listing: the keys below a base in order, over all mounts that it touches, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

from kvstore.answers import check_page
from kvstore.driver import PAGE
from kvstore.errors import KVStoreError
from kvstore.keys import RESERVED, after_all, below, prefix_end
from kvstore.mount import Mount
from kvstore.mounts import MountTable

_RESERVED_END = prefix_end(below(RESERVED))
_FEW = 16
"""Keys that a scan asks for where most of them are hidden."""


class _Stream:
    """One mount's share of a listing: its keys as whole keys, less those that another mount masks or that lie too deep."""

    def __init__(
        self, table: MountTable, mount: Mount, prefix: str, after: str | None, reverse: bool, depth: int | None
    ) -> None:
        self.mount = mount
        self._table = table
        self._masked = bool(table.inside(mount))
        self._scanned = prefix if len(prefix) > len(mount.prefix) else mount.prefix
        self._after = after
        self._reverse = reverse
        self._depth = depth
        self._base = prefix
        self._page: list[str] = []  # in the opposite order, so that keys are taken from its end
        self._ended = False
        self._step = PAGE  # how many keys the next scan asks for at the most
        # Where the next key may lie. Until the first page is read, and then it is the next key itself.
        self.head = after_all(self._scanned) if reverse else self._scanned

    async def fill(self, limit: int) -> bool:
        """Reads until there is a page. False: there is nothing left."""
        while not self._page:
            if self._ended:
                return False
            cut = len(self.mount.prefix)
            after = self._after
            if after is not None:
                if not after.startswith(self.mount.prefix):  # before all of ours, or behind them
                    if (after < self.mount.prefix) == self._reverse:
                        return False
                    after = None
                else:
                    after = after[cut:]
            prefix = self._scanned[cut:]
            step = min(limit, self._step)
            call = partial(self.mount.driver.scan, prefix, after=after, limit=step, reverse=self._reverse)
            try:
                found = await self.mount.run(call, None)
                check_page(found, after, reverse=self._reverse)
            except KVStoreError as error:
                raise error.at(None, None, self.mount.base, self.mount.driver.name) from error.__cause__
            self._ended = len(found) < step
            if not found:
                return False
            keys = [self.mount.prefix + key for key in found] if self.mount.prefix else found
            last, hidden = keys[-1], self._hidden(keys[-1])
            if hidden is not None:  # the next page starts behind all that is hidden with the last key
                last = hidden if self._reverse else max(last, after_all(hidden))
                # Much of the page may lie below the one folder that it ends in, which the next scan jumps over.
                is_wasted = keys[len(keys) // 2].startswith(hidden)
                self._step = max(_FEW, step // 4) if is_wasted else min(2 * step, PAGE)
            self._after = last
            if self._masked or self._depth is not None:
                keys = [key for key in keys if self._hidden(key) is None]
            # Below a mount `$meta` is a segment like any other. Here such a key is another program's, or none of ours to see.
            if not self.mount.prefix and min(found[0], found[-1]) < _RESERVED_END and max(found[0], found[-1]) >= RESERVED:
                keys = [key for key in keys if key != RESERVED and not key.startswith(below(RESERVED))]
            self._page = keys[::-1]
        self.head = self._page[-1]
        return True

    def take(self, bound: str | None) -> list[str]:
        """The keys of the page that come before `bound`."""
        if bound is None:
            taken, self._page = self._page[::-1], []
            return taken
        taken = []
        while self._page and (self._page[-1] > bound if self._reverse else self._page[-1] < bound):
            taken.append(self._page.pop())
        if self._page:
            self.head = self._page[-1]
        return taken

    @property
    def ready(self) -> bool:
        return bool(self._page)

    def _hidden(self, key: str) -> str | None:
        """The prefix of what is hidden together with `key`, None where it is to be seen."""
        if self._masked:
            mount = self._table.find(key)
            if mount is not self.mount:
                return mount.prefix
        if self._depth is not None:
            segments = key[len(self._base) :].split(":")
            if len(segments) > self._depth + 1:
                return self._base + below(":".join(segments[: self._depth + 1]))
        return None


async def pages(
    table: MountTable, prefix: str, *, after: str | None, limit: int, reverse: bool, depth: int | None
) -> AsyncIterator[list[str]]:
    """Whole keys that start with `prefix`, in order, in pages that cost what they hold. `limit`: of a page."""
    streams = [_Stream(table, mount, prefix, after, reverse, depth) for mount in table.touched(prefix)]
    while streams:
        streams.sort(key=lambda stream: stream.head, reverse=reverse)
        first = streams[0]
        if not first.ready:
            if not await first.fill(limit):
                streams.remove(first)
            continue
        yield first.take(streams[1].head if len(streams) > 1 else None)
