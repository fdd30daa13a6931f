"""Files: one a key, in a readable tree, or any existing directory as it is."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from secrets import token_hex
from typing import Any, Literal, NamedTuple, Self, TypeVar
from urllib.parse import unquote, urlsplit

from kvstore.driver import Capabilities, Driver, Expect, Stat, Write
from kvstore.drivers import _footer
from kvstore.drivers._footer import Footer
from kvstore.drivers._paths import MORE, PRIVATE, tree_folders, tree_path, tree_text
from kvstore.errors import (
    BackendError,
    BackendTimeout,
    ConfigError,
    CorruptValueError,
    InvalidKeyError,
    KVStoreError,
    UnsupportedOperation,
)
from kvstore.keys import MAX_KEY_BYTES
from kvstore.worker import Worker

_CACHED_LISTINGS = 64
_RACY = 50_000_000
"""Nanoseconds: a directory that changed less than this before it was listed may change again without its time showing it."""
_MINUTE = 60_000

_ABSENT = (errno.ENOENT, errno.ENOTDIR)

T = TypeVar("T")


class _Listing(NamedTuple):
    """A directory's part of the keys: the text that each of its entries begins with, in order, and its names."""

    texts: list[str]
    names: list[str]


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
        self._path = os.path.abspath(os.path.expanduser(os.fspath(path)))
        if not os.fspath(path) or "\0" in self._path:
            raise ConfigError(f"path is that of a directory, not {path!r}", driver="fs")
        self._plain = layout == "plain"
        self.capabilities = Capabilities(conditional=True, expiry=not self._plain, metadata=not self._plain, shared=True)
        self._fsync = fsync
        self._timeout = timeout
        self._real = self._path
        self._base: int | None = None  # the base's descriptor, which carries the lock
        self._private = os.path.join(self._path, PRIVATE)
        self._listings: OrderedDict[str, tuple[int, _Listing]] = OrderedDict()
        self._reading = Worker("kvstore fs reads")
        self._writing = Worker("kvstore fs writes")

    def __repr__(self) -> str:
        return f"FsDriver({self._path!r})"

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """`file:///absolute/directory`."""
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or not parts.path or parts.query or parts.fragment:
            raise ConfigError("a file URL is file:///absolute/directory; give options as keywords", driver="fs")
        return cls(unquote(parts.path), **options)

    # The calls

    async def connect(self) -> None:
        if self._base is None:
            await self._on(self._writing, self._open)

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self._on(self._reading, lambda: [self._read(key) for key in keys])

    async def has(self, keys: Sequence[str]) -> list[bool]:
        return await self._on(self._reading, lambda: [self._stat(key) is not None for key in keys])

    async def stat(self, keys: Sequence[str]) -> list[Stat | None]:
        return await self._on(self._reading, lambda: [self._stat(key) for key in keys])

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        def page() -> list[str]:
            hidden = self._expired()
            found: list[str] = []
            for key in self._walk(prefix, after, reverse):
                if key not in hidden:
                    found.append(key)
                    if len(found) == limit:
                        break
            return found

        return await self._on(self._reading, page)

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        def locked() -> list[bool] | None:
            with self._lock():
                if expect and any(self._read(key) != data for key, data in expect.items()):
                    return None
                absent = {key for key, data in (expect or {}).items() if data is None}
                try:
                    return [self._write(key, data, expires_at, key in absent) for key, data, expires_at in writes]
                except _TakenError:
                    return None

        return await self._on(self._writing, locked)

    async def touch(self, key: str, expires_at: int | None) -> bool:
        return await self._rewrite(key, lambda footer: Footer(expires_at, footer.custom))

    async def set_meta(self, key: str, custom: bytes | None) -> bool:
        return await self._rewrite(key, lambda footer: Footer(footer.expires_at, None if custom is None else custom.decode()))

    async def sweep(self) -> int | None:
        return await self._on(self._writing, self._sweep)

    async def aclose(self) -> None:
        await self._on(self._reading, lambda: None)
        await self._on(self._writing, self._close)
        await self._reading.aclose()
        await self._writing.aclose()

    async def _rewrite(self, key: str, change: Callable[[Footer], Footer]) -> bool:
        if self._plain:
            raise UnsupportedOperation("layout='plain' keeps no expiry and no metadata")

        def locked() -> bool:
            with self._lock():
                content = self._content(key)
                if content is None:
                    return False
                self._replace(key, _footer.Content(content.data, change(content.footer)), keep_time=True)
                return True

        return await self._on(self._writing, locked)

    async def _on(self, worker: Worker, call: Callable[[], T]) -> T:
        try:
            return await worker.run(call)
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError, key: str | None = None) -> KVStoreError:
        where = error.filename if isinstance(error.filename, str) else self._path
        if error.errno == errno.ENAMETOOLONG:
            return InvalidKeyError("the file system has no room for so long a name", key=key)
        said = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        return BackendError(f"{where}: {said}", key=key)

    # Opening, closing, the lock

    def _open(self) -> None:
        os.makedirs(self._path, exist_ok=True)
        self._real = os.path.realpath(self._path)
        self._base = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if os.path.isdir(os.path.join(self._private, "tmp")):
            with suppress(BackendTimeout), self._lock():
                self._sweep_temporary()

    def _close(self) -> None:
        if self._base is not None:
            os.close(self._base)
            self._base = None

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One writer at a time among all processes; it ends with the process."""
        if self._base is None:
            raise BackendError("the directory was closed")
        deadline, pause = time.monotonic() + self._timeout, 0.0001
        while True:
            try:
                fcntl.flock(self._base, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BackendTimeout(
                        f"{self._path} was locked by another process for {self._timeout:g} seconds; nothing was written"
                    ) from None
                time.sleep(pause)
                pause = min(pause * 2, 0.005)
        try:
            yield
        finally:
            fcntl.flock(self._base, fcntl.LOCK_UN)

    def _sweep_temporary(self) -> None:
        """Who writes holds the lock: what lies here while we hold it was left by one that is dead."""
        folder = os.path.join(self._private, "tmp")
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))

    # Files

    def _names(self, key: str) -> list[str]:
        if not self._plain:
            return tree_path(key)
        names = key.split(":")
        if names[0] == PRIVATE:
            raise InvalidKeyError(f"{PRIVATE} is the driver's own directory", key=key)
        return names

    @contextmanager
    def _opened(self, key: str) -> Iterator[int | None]:
        """The descriptor of a key's file, None where there is none."""
        path = os.path.join(self._path, *self._names(key))
        try:
            # Not blocking: a pipe that somebody put here would wait for its other end.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in _ABSENT:
                yield None
                return
            raise self._error(error, key) from error
        try:
            kind = os.fstat(descriptor).st_mode
            self._check_inside(descriptor, path, key)
            if stat.S_ISDIR(kind) and self._plain:
                yield None
                return
            if not stat.S_ISREG(kind):
                raise BackendError(f"{path} is no file", key=key)
            yield descriptor
        except OSError as error:
            raise self._error(error, key) from error
        finally:
            os.close(descriptor)

    def _check_inside(self, descriptor: int, path: str, key: str) -> None:
        """Raises unless what is open lies below the base, whatever links led to it."""
        try:
            real = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:  # no Linux
            real = os.path.realpath(path)
        if real != self._real and not real.startswith(self._real.rstrip("/") + "/"):
            raise BackendError(f"{path} is a link out of {self._path}; it is not followed", key=key)

    def _content(self, key: str) -> _footer.Content | None:
        with self._opened(key) as descriptor:
            if descriptor is None:
                return None
            left = os.fstat(descriptor).st_size
            pieces = []
            while piece := os.read(descriptor, max(left, 1)):
                pieces.append(piece)
                left -= len(piece)
        whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self._plain:
            return _footer.Content(whole, Footer())
        with _naming(key):
            content = _footer.split(whole)
        return None if self._over(content.footer) else content

    def _read(self, key: str) -> bytes | None:
        content = self._content(key)
        return None if content is None else content.data

    def _stat(self, key: str) -> Stat | None:
        with self._opened(key) as descriptor:
            if descriptor is None:
                return None
            about = os.fstat(descriptor)
            with _naming(key):
                size, footer = (about.st_size, Footer()) if self._plain else _footer.read_footer(descriptor)
        if self._over(footer):
            return None
        etag = f"{about.st_mtime_ns:x}-{about.st_ino:x}-{about.st_size:x}"
        custom = None if footer.custom is None else footer.custom.encode()
        return Stat(size, etag, about.st_mtime_ns // 1_000_000, footer.expires_at, custom)

    def _over(self, footer: Footer) -> bool:
        return footer.expires_at is not None and footer.expires_at <= self.clock()

    # Writing, with the lock held

    def _write(self, key: str, data: bytes | None, expires_at: int | None, absent: bool) -> bool:
        old = self._stat(key)
        if data is None or absent:  # what has expired is in the way of a link
            self._remove(key)
        if data is not None:
            custom = None if old is None or old.custom is None else old.custom.decode()
            self._replace(key, _footer.Content(data, Footer(expires_at, custom)), absent=absent)
        return old is not None

    def _replace(self, key: str, content: _footer.Content, *, absent: bool = False, keep_time: bool = False) -> None:
        *folders, name = self._names(key)
        data = content.data if self._plain else _footer.join(*content)
        if content.footer.expires_at is not None:
            self._mark(key, content.footer.expires_at)
        parent = self._folder(key, folders)
        try:
            times = os.stat(name, dir_fd=parent) if keep_time else None
            temporary = self._temporary(data, times)
            try:
                if absent:  # never replaces what a program that does not know our lock put there
                    os.link(temporary, name, dst_dir_fd=parent)
                    os.unlink(temporary)
                else:
                    os.replace(temporary, name, dst_dir_fd=parent)
            except OSError as error:
                os.unlink(temporary)
                path = os.path.join(self._path, *folders, name)
                if os.path.isdir(path):
                    raise UnsupportedOperation(
                        f"{path} is a directory; layout='plain' can't keep a key beside keys below it", key=key
                    ) from error
                if isinstance(error, FileExistsError):
                    raise _TakenError from error
                raise
            if self._fsync:
                os.fsync(parent)
        except OSError as error:
            raise self._error(error, key) from error
        finally:
            os.close(parent)

    def _temporary(self, data: bytes, times: os.stat_result | None) -> str:
        folder = os.path.join(self._private, "tmp")
        path = os.path.join(folder, token_hex(8))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, 0o666)
        except FileNotFoundError:
            os.makedirs(folder, exist_ok=True)
            descriptor = os.open(path, flags, 0o666)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
            if times is not None:
                os.utime(descriptor, ns=(times.st_atime_ns, times.st_mtime_ns))
            if self._fsync:
                os.fsync(descriptor)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)
        return path

    def _folder(self, key: str, names: Sequence[str]) -> int:
        """A descriptor of the directory that a key's file is in, which is made where it is not there."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        path = os.path.join(self._path, *names)
        try:
            folder = os.open(path, flags)
        except FileNotFoundError:
            folder = os.open(self._path, flags)
            for name in names:
                try:
                    self._check_inside(folder, path, key)  # before anything is made there
                    with suppress(FileExistsError):
                        os.mkdir(name, dir_fd=folder)
                        if self._fsync:
                            os.fsync(folder)
                    inner = os.open(name, flags, dir_fd=folder)
                except NotADirectoryError as error:
                    raise self._in_the_way(path, key) from error
                except OSError as error:
                    raise self._error(error, key) from error
                finally:
                    os.close(folder)
                folder = inner
        except NotADirectoryError as error:
            raise self._in_the_way(path, key) from error
        except OSError as error:
            raise self._error(error, key) from error
        try:
            self._check_inside(folder, path, key)
        except KVStoreError:
            os.close(folder)
            raise
        return folder

    def _in_the_way(self, path: str, key: str) -> KVStoreError:
        return UnsupportedOperation(f"a file is in the way of {path}; layout='plain' can't keep keys below a key", key=key)

    def _remove(self, key: str) -> None:
        """Unlinks a key's file and the directories that it leaves empty."""
        *folders, name = self._names(key)
        try:
            parent = os.open(os.path.join(self._path, *folders), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in _ABSENT:
                return
            raise self._error(error, key) from error
        try:
            self._check_inside(parent, os.path.join(self._path, *folders), key)
            os.unlink(name, dir_fd=parent)
            if self._fsync:
                os.fsync(parent)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno in (errno.EISDIR, errno.EPERM) and self._plain:  # keys below this one
                return
            raise self._error(error, key) from error
        finally:
            os.close(parent)
        with suppress(OSError):  # the first that is not empty
            while folders:
                os.rmdir(os.path.join(self._path, *folders))
                folders.pop()

    # Expiry: an empty file for each in `.kvstore/expiry/<minute>/`, made before the value

    def _mark(self, key: str, expires_at: int) -> None:
        folder = os.path.join(self._private, "expiry", str(expires_at // _MINUTE))
        path = os.path.join(folder, f"{expires_at}-{token_hex(8)}")
        try:
            os.makedirs(folder, exist_ok=True)
            with open(path, "x", encoding="utf-8") as marker:
                marker.write(key)
        except OSError as error:
            raise self._error(error, key) from error

    def _due(self) -> Iterator[tuple[str, str]]:
        """(path, key) of the markers whose time has come."""
        now = self.clock()
        for minute in self._minutes():
            if minute * _MINUTE > now:
                break
            folder = os.path.join(self._private, "expiry", str(minute))
            with suppress(FileNotFoundError):
                for name in os.listdir(folder):
                    if int(name.partition("-")[0]) <= now:
                        path = os.path.join(folder, name)
                        with suppress(FileNotFoundError), open(path, encoding="utf-8") as marker:
                            yield path, marker.read()

    def _minutes(self) -> list[int]:
        try:
            return sorted(int(name) for name in os.listdir(os.path.join(self._private, "expiry")))
        except FileNotFoundError:
            return []

    def _expired(self) -> set[str]:
        """Keys whose files are there, but over."""
        if self._plain:
            return set()
        return {key for _, key in self._due() if self._gone(key)}

    def _gone(self, key: str) -> bool:
        try:
            return bool(key) and self._stat(key) is None
        except CorruptValueError:
            return False

    def _sweep(self) -> int | None:
        if self._plain:
            return None
        for path, key in self._due():
            with self._lock():
                if self._gone(key):
                    self._remove(key)
                with suppress(FileNotFoundError):
                    os.unlink(path)
        now = self.clock()
        for minute in self._minutes():
            folder = os.path.join(self._private, "expiry", str(minute))
            if minute * _MINUTE > now:
                return minute * _MINUTE
            with suppress(OSError), self._lock():
                os.rmdir(folder)
                continue
            names = [name for name in os.listdir(folder) if os.path.isdir(folder)]
            return min((int(name.partition("-")[0]) for name in names), default=now)
        return None

    # Listing

    def _walk(self, prefix: str, after: str | None, reverse: bool) -> Iterator[str]:
        """The keys below `prefix` behind `after`, in order; only the directories that they lie in are read."""
        folders = prefix[:-1].split(":") if self._plain and prefix else tree_folders(prefix[:-1])
        yield from self._walk_folder(os.path.join(self._path, *folders), prefix, after, reverse)

    def _walk_folder(self, folder: str, prefix: str, after: str | None, reverse: bool) -> Iterator[str]:
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
            text, name = texts[index], names[index]
            if text.endswith(":"):
                yield from self._walk_folder(os.path.join(folder, name), prefix + text, after, reverse)
            elif after is None or (prefix + text < after if reverse else prefix + text > after):
                yield prefix + text

    def _listing(self, folder: str) -> _Listing:
        """Sorted by text. A file's is its segment, a directory's ends with `:`, so this is the order of the keys."""
        try:
            changed = os.stat(folder).st_mtime_ns
            cached = self._listings.get(folder)
            if cached is not None and cached[0] == changed:
                self._listings.move_to_end(folder)
                return cached[1]
            began = time.time_ns()
            entries = sorted(self._entries(folder, ""))
        except OSError as error:
            if error.errno in _ABSENT:
                return _Listing([], [])
            raise
        listing = _Listing([text for text, _ in entries], [name for _, name in entries])
        # As git does with its index: what changed a moment ago may change again at the same time.
        if began - changed > _RACY and not any(MORE in name for name in listing.names):
            self._listings[folder] = (changed, listing)
            if len(self._listings) > _CACHED_LISTINGS:
                self._listings.popitem(last=False)
        return listing

    def _entries(self, folder: str, begun: str) -> Iterator[tuple[str, str]]:
        with os.scandir(folder) as found:
            for entry in found:
                is_folder = entry.is_dir(follow_symlinks=False)
                if entry.name == PRIVATE and folder == self._path:
                    continue
                if self._plain:
                    text, more = entry.name, False
                    if ":" in text or not _is_text(text) or not (is_folder or self._is_file(entry)):
                        continue
                else:
                    said = tree_text(entry.name, folder=is_folder)
                    if said is None or (not is_folder and not entry.is_file(follow_symlinks=False)):
                        continue
                    text, more = said
                if more:
                    for inner, name in self._entries(entry.path, begun + text):
                        yield inner, os.path.join(entry.name, name)
                else:
                    yield begun + text + (":" if is_folder else ""), entry.name

    def _is_file(self, entry: os.DirEntry[str]) -> bool:
        if not entry.is_symlink():
            return entry.is_file()
        return entry.is_file() and os.path.realpath(entry.path).startswith(self._real.rstrip("/") + "/")


class _TakenError(Exception):
    """Somebody put a file where there was none."""


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Errors inside are this key's."""
    try:
        yield
    except KVStoreError as error:
        raise error.at(None, key) from error.__cause__


def _is_text(name: str) -> bool:
    try:
        return len(name.encode()) <= MAX_KEY_BYTES
    except UnicodeEncodeError:
        return False
