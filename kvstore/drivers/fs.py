"""Files: one a key, in a readable tree, or any existing directory as it is."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, Literal, NamedTuple, Self, TypeVar
from urllib.parse import unquote

from kvstore.budget import TickBudget
from kvstore.driver import NOT_NOW, PAGE, Batch, Capabilities, Driver, Expect, NotNow, Stat, Write
from kvstore.drivers._footer import MARK, Footer, parse_footer, tail
from kvstore.drivers._fs.base import Base
from kvstore.drivers._fs.files import Files, kvstore_errors, read, read_footer
from kvstore.drivers._fs.folders import Folders
from kvstore.drivers._fs.markers import Markers
from kvstore.drivers._fs.paths import plain_path, tree_path
from kvstore.drivers._fs.walk import Walk
from kvstore.drivers._options import split_url
from kvstore.errors import BackendError, ConfigError, CorruptValueError, KVStoreError, UnsupportedOperation
from kvstore.worker import Worker

_SWEPT = 200
"""How many expired keys are removed at a time, with other writes in between."""

_INLINE_READS = 64
_PATHS = 10_000
_SLOW = 0.02
_SLOW_FOR = 0.25
"""Seconds that all reads are left to the thread for after one that took longer than `_SLOW`: the disk is slow."""

T = TypeVar("T")


class _File(NamedTuple):
    """What is known of a key's file."""

    about: os.stat_result
    size: int
    footer: Footer
    data: bytes


class FsDriver(Driver):
    """Keeps each value in a file of its own below a directory. Several processes may use one directory at once.

    Linux and macOS, on a local file system. Every write replaces its file in one step, so no reader sees half of one.
    Symbolic links are not followed out of the directory, and a listing does not descend into linked directories.

    Args:
        path: The directory; it is created.
        layout: `"tree"`: any key, `images:img_1` in `images/img_1.json`, with expiry and metadata behind the value.
            `"plain"`: an existing directory of any files, `a/b.txt` as the key `a:b.txt` with its bytes as they are, without
            expiry and metadata. Files whose names can't be keys (a `:` inside, no UTF-8) are not seen, and where a file and a
            directory would need the same name a write raises `UnsupportedOperation`.
        fsync: Wait for the disk at every write. Without, a value survives the end of the process when the call returns, and
            a power cut may take the last moments.
        timeout: Seconds to wait while another process holds the directory locked, then `BackendTimeout`.
    """

    merges = False
    cancellable = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        layout: Literal["tree", "plain"] = "tree",
        fsync: bool = False,
        timeout: float = 30.0,
    ) -> None:
        if layout not in ("tree", "plain"):
            raise ConfigError(f"layout is 'tree' or 'plain', not {layout!r}", driver="fs")
        if not timeout > 0:
            raise ConfigError(f"timeout is a positive number of seconds, not {timeout!r}", driver="fs")
        given = os.fsdecode(path)
        if not given or "\0" in given:
            raise ConfigError(f"path is that of a directory, not {path!r}", driver="fs")
        self._plain = layout == "plain"
        whole = not self._plain
        self.capabilities = Capabilities(conditional=True, expiry=whole, metadata=whole, every_key=whole, shared=True)
        self._base = Base(os.path.abspath(os.path.expanduser(given)), fsync=fsync, timeout=timeout)
        self._files = Files(self._base)
        self._markers = Markers(self._base)
        self._walk = Walk(self._base, plain=self._plain)
        self._path = lru_cache(_PATHS)(lambda key: os.path.split(self._files.path(self._names(key))))
        self._reads = TickBudget(_INLINE_READS)
        self._slow_until = 0.0  # as time.monotonic() has it
        self._inline = Folders(self._base)  # of the event loop
        self._folders = Folders(self._base)  # of the reading thread
        self._reading = Worker("kvstore fs reads")
        self._writing = Worker("kvstore fs writes")

    def __repr__(self) -> str:
        return f"FsDriver({self._base.path!r})"

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """`file:///absolute/directory`."""
        parts = split_url(url, "fs")
        if parts.netloc not in ("", "localhost") or not parts.path.strip("/") or parts.query or parts.fragment:
            raise ConfigError("a file URL is file:///absolute/directory; give options as keywords", driver="fs")
        return cls(unquote(parts.path), **options)

    # The calls

    async def connect(self) -> None:
        self._walk.at_root = self.at_root
        if not self._base.is_open:
            await self._on(self._writing, lambda: self._base.open(make=not self.read_only))

    def read_now(self, key: str) -> bytes | NotNow | None:
        # A hop to the thread takes five times as long as opening and reading a small file that the system has in memory.
        began = time.monotonic()
        if not self._base.is_open or began < self._slow_until or not self._reads.spend():
            return NOT_NOW
        data = self._read_small(key, self._inline)
        if time.monotonic() - began > _SLOW:
            self._slow_until = time.monotonic() + _SLOW_FOR
        return data

    def _read_small(self, key: str, folders: Folders) -> bytes | NotNow | None:
        data = folders.read(*self._path(key))
        if self._plain or not isinstance(data, bytes) or not data.endswith(MARK):
            return data
        size, footer = parse_footer(data)
        return None if footer.expires_at is not None and footer.expires_at <= self.clock() else data[:-size]

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        if len(keys) == 1 and self._reads.left <= 0:  # else `read_now` was asked already
            await self._reads.refilled()
            with kvstore_errors(self._base.path, keys[0]):
                data = self.read_now(keys[0])
            if data is not NOT_NOW:
                return [data]
        return await self._on(self._reading, lambda: [self._read(key, self._folders) for key in keys])

    async def has(self, keys: Sequence[str]) -> list[bool]:
        return await self._on(self._reading, lambda: [self._look(key) is not None for key in keys])

    async def stat(self, keys: Sequence[str]) -> list[Stat | None]:
        return await self._on(self._reading, lambda: [self._stat(key) for key in keys])

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        [result] = await self.write_many([(writes, expect)])
        if isinstance(result, KVStoreError):
            raise result
        return result

    async def write_many(self, batches: Sequence[Batch]) -> list[list[bool] | KVStoreError | None]:
        def locked() -> list[list[bool] | KVStoreError | None]:
            with self._base.locked():
                self._files.sweep()
                return [self._write(writes, expect) for writes, expect in batches]

        return await self._on(self._writing, locked)

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        return await self._on(self._reading, lambda: list(islice(self._keys(prefix, after, reverse), limit)))

    async def count(self, prefix: str) -> int:
        return await self._on(self._reading, lambda: sum(1 for _ in self._keys(prefix)))

    async def clear(self, prefix: str) -> int:
        # Listed once: each removal changes directories, which would be listed anew for every page.
        keys = await self._on(self._reading, lambda: list(self._keys(prefix)))
        total = 0
        for start in range(0, len(keys), PAGE):
            total += sum(await self.write([(key, None, None) for key in keys[start : start + PAGE]]) or ())
        return total

    async def touch(self, key: str, expires_at: int | None) -> bool:
        if self._plain:
            return await super().touch(key, expires_at)
        return await self._rewrite(key, lambda footer: Footer(expires_at, footer.custom))

    async def set_meta(self, key: str, custom: bytes | None) -> bool:
        return await self._rewrite(key, lambda footer: Footer(footer.expires_at, None if custom is None else custom.decode()))

    async def sweep(self) -> int | None:
        if self._plain:
            return None
        try:
            while await self._on(self._writing, self._sweep):
                pass
            return await self._on(self._writing, lambda: self._markers.upcoming(self.clock()))
        except BackendError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EROFS:
                return None  # what has expired is hidden all the same
            raise

    async def settle(self) -> None:
        await self._writing.settle()

    async def aclose(self) -> None:
        self._inline.close()
        await self._on(self._reading, self._folders.close)
        await self._on(self._writing, self._base.close)
        await self._reading.aclose()
        await self._writing.aclose()

    async def _on(self, worker: Worker, call: Callable[[], T]) -> T:
        with kvstore_errors(self._base.path):
            return await worker.run(call)

    # Reading

    def _names(self, key: str) -> list[str]:
        return plain_path(key) if self._plain else tree_path(key)

    def _read(self, key: str, folders: Folders | None = None) -> bytes | None:
        with kvstore_errors(self._base.path, key):
            data = NOT_NOW if folders is None else self._read_small(key, folders)
        if not isinstance(data, NotNow):
            return data
        file = self._look(key, data=True)
        return None if file is None else file.data

    def _look(self, key: str, *, data: bool = False) -> _File | None:
        """What is known of a key's file, None where there is none or it has expired. With `data` its value too."""
        with kvstore_errors(self._base.path, key), self._files.opened(self._names(key)) as descriptor:
            if descriptor is None:
                return None
            about = os.fstat(descriptor)
            size, footer = (about.st_size, Footer()) if self._plain else read_footer(descriptor)
            if footer.expires_at is not None and footer.expires_at <= self.clock():
                return None
            return _File(about, size, footer, read(descriptor, size) if data else b"")

    def _stat(self, key: str) -> Stat | None:
        file = self._look(key)
        if file is None:
            return None
        about, size, footer, _ = file
        etag = f"{about.st_mtime_ns:x}-{about.st_ino:x}-{about.st_size:x}"
        custom = None if footer.custom is None else footer.custom.encode()
        return Stat(size, etag, about.st_mtime_ns // 1_000_000, footer.expires_at, custom)

    def _keys(self, prefix: str, after: str | None = None, reverse: bool = False) -> Iterator[str]:
        due = () if self._plain else self._markers.due(self.clock())
        hidden = {key for key in map(self._markers.key, due) if self._is_gone(key)}
        return (key for key in self._walk.keys(prefix, after, reverse) if key not in hidden)

    def _is_gone(self, key: str) -> bool:
        """Whether a key that a marker names is absent, though its file may be there."""
        try:
            return bool(key) and self._look(key) is None
        except KVStoreError as error:
            if isinstance(error.__cause__, OSError):  # it can't be told
                raise
            return False

    # Writing, with the base locked

    def _write(self, writes: Sequence[Write], expect: Expect | None) -> list[bool] | KVStoreError | None:
        try:
            if expect and any(self._read(key) != data for key, data in expect.items()):
                return None
            # Whatever can be refused is refused before anything is touched.
            old = [self._old(key) for key, _, _ in writes]
            if self._plain:
                self._files.check_room({key: self._names(key) for key, data, _ in writes if data is not None})
            absent = {key for key, data in (expect or {}).items() if data is None}
            for (key, data, expires_at), footer in zip(writes, old, strict=True):
                with kvstore_errors(self._base.path, key):
                    if data is None:
                        self._files.remove(self._names(key))
                        self._forget(key, footer)
                    else:
                        custom = None if footer is None else footer.custom
                        self._replace(key, data, Footer(expires_at, custom), footer, absent=key in absent)
        except _TakenError:
            return None
        except KVStoreError as error:
            return error
        return [footer is not None for footer in old]

    def _old(self, key: str) -> Footer | None:
        """The footer that is going to be replaced, None where the key is absent."""
        try:
            file = self._look(key)
        except CorruptValueError:  # it can be overwritten and removed
            return Footer()
        return None if file is None else file.footer

    def _replace(
        self, key: str, data: bytes, footer: Footer, old: Footer | None, *, absent: bool = False, mtime: int | None = None
    ) -> None:
        names = self._names(key)
        if absent:
            if old is not None:
                raise _TakenError
            if not self._plain or os.path.islink(self._files.path(names)):  # it has expired, or leads nowhere
                self._files.remove(names)
        if footer.expires_at is not None:
            self._markers.add(key, footer.expires_at)
        try:
            self._files.replace(names, [data] if self._plain else [data, tail(data, footer)], absent=absent, mtime=mtime)
        except FileExistsError as error:
            raise _TakenError from error
        if old is not None and old.expires_at != footer.expires_at:
            self._forget(key, old)

    def _forget(self, key: str, footer: Footer | None) -> None:
        if footer is not None and footer.expires_at is not None:
            self._markers.discard(key, footer.expires_at)

    async def _rewrite(self, key: str, change: Callable[[Footer], Footer]) -> bool:
        if self._plain:
            raise UnsupportedOperation("layout='plain' keeps no expiry and no metadata")

        def locked() -> bool:
            with self._base.locked(), kvstore_errors(self._base.path, key):
                file = self._look(key, data=True)
                if file is None:
                    return False
                self._replace(key, file.data, change(file.footer), file.footer, mtime=file.about.st_mtime_ns)
                return True

        return await self._on(self._writing, locked)

    def _sweep(self) -> bool:
        """Removes some of what has expired. False: there is nothing left."""
        due = list(islice(self._markers.due(self.clock()), _SWEPT))
        if due:
            with self._base.locked():
                for path in due:
                    key = self._markers.key(path)
                    if self._is_gone(key):
                        self._files.remove(self._names(key))
                    self._markers.remove(path)
        return bool(due)


class _TakenError(Exception):
    """Somebody put a file where there was none."""
