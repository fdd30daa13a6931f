"""Any file system of fsspec by its URL: S3 by s3fs, Google Cloud Storage, Azure, SFTP and more. One object a key.

The file system runs in fsspec's own thread: what its libraries do there (parsing a listing of 1,000 names takes botocore
150 ms) never holds the caller's event loop.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, TypeVar
from urllib.parse import parse_qsl, quote, unquote

from kvstore.clock import Clock
from kvstore.driver import Capabilities, Driver, Expect, Stat, Write
from kvstore.drivers._fsspec.files import FileStore
from kvstore.drivers._fsspec.listing import Listing
from kvstore.drivers._fsspec.names import MAX_PREFIX_BYTES, Names
from kvstore.drivers._fsspec.objects import Objects
from kvstore.drivers._fsspec.s3 import S3Store
from kvstore.drivers._fsspec.store import AT_ONCE, Store, Telling, called, closed
from kvstore.drivers._options import LOGIN, Parts, check_seconds, own_query, parted, split_url, unclear_url
from kvstore.errors import BackendError, BackendUnavailable, ConfigError, MissingDependencyError, UnsupportedOperation, install

_S3 = ("s3", "s3a")
_SSH = ("sftp", "ssh")
_LIBRARIES = {
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
    **dict.fromkeys(_SSH, "paramiko"),
}
_OWN_QUERY = {"connect_timeout": float, "timeout": float}
_STORAGE_QUERY = ("endpoint_url", "profile", "anon")

T = TypeVar("T")


class FsspecDriver(Driver):
    """Keeps values as objects in any file system of fsspec, so that other programs read them as they are.

    On S3 an object is named as its key, below the URL's prefix, and conditions on the one key that is written hold against
    everyone (`If-Match`; the server is asked once whether it keeps them). Elsewhere names are those of the file driver
    (`images/img_1.json`), there are no conditions, and one driver at a time may be open on a directory.

    Other programs find each value as it is, but for one line behind it where it expires or has custom metadata. A key that is
    no name (on S3: more than 1,024 bytes with the prefix, or control characters) lies under its hash below `.kvstore/`.

    Args:
        url: `s3://bucket/prefix`, `gs://`, `az://`, `abfs://`, `sftp://user@host/directory`, `memory://`, and what else fsspec
            has. For S3 with `?endpoint_url=https://…`, `profile=…` or `anon=true`.
        fs: In place of `url`, an fsspec file system of yours, which stays open. An asynchronous one belongs to the event
            loop that the driver is used in.
        path: Bucket and prefix, or directory, in `fs`; with `url`, what follows it.
        storage_options: For the file system that is made of `url`, as fsspec names them: for S3 `key`, `secret`, `token`,
            `endpoint_url`, `client_kwargs`, `config_kwargs` and so on.
        connect_timeout: Seconds to wait for the first answer, then `BackendUnavailable`.
        timeout: Seconds to wait for an answer, and a second more for each MiB that is sent; then `BackendTimeout`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        fs: Any = None,
        path: str = "",
        storage_options: Mapping[str, Any] | None = None,
        connect_timeout: float = 5.0,
        timeout: float = 10.0,
    ) -> None:
        if (url is None) == (fs is None):
            raise ConfigError("give either a url, such as s3://bucket/prefix, or an fs", driver="fsspec")
        check_seconds("fsspec", connect_timeout=connect_timeout, timeout=timeout)
        self._options = dict(storage_options or {})
        self._shown, password = "", ""
        if url is not None:
            url, asked, parts = _parsed(url)
            self._options = asked | self._options
            self._shown, password = f"{url.partition('://')[0]}://{parts.address}", parts.password
        elif not (callable(getattr(fs, "cat_file", None)) and hasattr(fs, "async_impl")):
            raise ConfigError(f"fs is a file system of fsspec, not {type(fs).__name__}", driver="fsspec")
        elif storage_options:
            raise ConfigError("storage_options are for the file system of a url; yours has its own", driver="fsspec")
        if fs is not None and (not path.strip("/") or "://" in path):
            raise ConfigError("path is a directory in fs, such as bucket/prefix", driver="fsspec")
        if url is not None and path.strip("/"):
            url, self._shown = (f"{place.rstrip('/')}/{path.strip('/')}" for place in (url, self._shown))
        self._url = url
        self._given, self._path = fs, path
        while fs is not None and type(fs).__name__ == "DirFileSystem":
            self._path, fs = f"{fs.path}/{self._path.lstrip('/')}", fs.fs
        self._fs = fs
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        # Secrets of the URL, of a file system that was handed in, and those that were given.
        spellings = {"as it stands": password, "decoded": unquote(password), "encoded": quote(unquote(password), "")}
        self._telling = Telling({**spellings, "own": getattr(fs, "storage_options", {}), **self._options})
        kinds = {url.partition("://")[0]} if url else {fs.protocol} if isinstance(fs.protocol, str) else {*fs.protocol}
        self._s3 = bool(kinds & {*_S3})
        self._time = Clock()
        if self._s3:  # elsewhere no server tells its time
            self.clock = self._time
        self._listing: Listing | None = None
        self._room = asyncio.Semaphore(AT_ONCE)  # for calls: a crowd of them would hand over the interpreter 200 times a pass
        self._loop: asyncio.AbstractEventLoop | None = None  # a file system's own
        self._process = os.getpid()
        self.capabilities = (
            Capabilities(conditional=True, ordered=True, metadata=True, shared=True)
            if self._s3
            else Capabilities(persistent="memory" not in kinds)
        )

    def __repr__(self) -> str:
        return f"FsspecDriver({self._shown!r})" if self._url else f"FsspecDriver(path={self._path!r})"

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """The file system's URL; `connect_timeout` and `timeout` may stand in its query besides what `url` takes."""
        address, own = own_query(url, _OWN_QUERY, "fsspec")
        return cls(address, **(own | options))

    # Connecting

    async def connect(self) -> None:
        self._room = asyncio.Semaphore(AT_ONCE)  # of this event loop
        if self._listing is not None and self._loop is not None and self._process == os.getpid():
            return
        self._process = os.getpid()
        if self._url is not None:
            await asyncio.to_thread(self._imported)
        try:
            async with asyncio.timeout(self._connect_timeout):
                fs, root = await asyncio.to_thread(self._made)
        except TimeoutError as error:
            raise BackendUnavailable(f"no connection in {self._connect_timeout:g} seconds", maybe_written=False) from error
        asynchronous = bool(fs.async_impl and fs.asynchronous)
        settings: dict[str, Any] = {
            "connect_timeout": self._connect_timeout,
            "timeout": self._timeout,
            "telling": self._telling,
        }
        if self._s3:
            bucket, _, prefix = root.partition("/")
            store: Store = S3Store(fs, bucket, prefix, self._time, own=self._given is None, **settings)
        else:
            prefix = root
            remake = None if self._url is None else lambda: self._opened()[0]
            store = FileStore(fs, root, remake=remake, **settings)
        if len(prefix.encode()) > MAX_PREFIX_BYTES:
            raise ConfigError(f"a prefix has at most {MAX_PREFIX_BYTES} bytes", driver="fsspec")
        names = Names(flat=self._s3, prefix_bytes=len(prefix.encode()), at_root=self.at_root)
        self._loop = None
        if not asynchronous:
            from fsspec.asyn import get_loop

            self._loop = fs.loop if fs.async_impl else get_loop()
        try:
            await called(self._loop, store.open())
        except BaseException:
            await called(self._loop, store.aclose())
            raise
        self._listing = Listing(Objects(store, names, lambda: self.clock()))

    def _made(self) -> tuple[Any, str]:
        """The file system and the root in it, which ends with a slash. In a thread, for some connect here."""
        fs, path = self._fs, self._path
        if self._url is not None:
            fs, path = self._opened()
        root = fs._strip_protocol(path).rstrip("/")
        if self._s3:
            bucket = root.partition("/")[0]
            if not bucket:
                raise ConfigError("an S3 URL is s3://bucket/prefix", driver="fsspec")
        return fs, root + "/"

    def _imported(self) -> None:
        """Before the clock ticks, for it may take seconds."""
        scheme = (self._url or "").partition("://")[0]
        try:
            from fsspec import get_filesystem_class

            get_filesystem_class(scheme)
        except ImportError as error:
            line = f"{install('s3' if self._s3 else 'fsspec')} {_LIBRARIES.get(scheme, '')}"
            raise MissingDependencyError(f"{scheme}:// needs a library ({error}): {line.strip()}") from error
        except ValueError as error:
            raise ConfigError(f"fsspec knows no {scheme}://", driver="fsspec") from error

    def _opened(self) -> tuple[Any, str]:
        from fsspec import get_filesystem_class
        from fsspec.core import url_to_fs

        options: dict[str, Any] = {"skip_instance_cache": True}
        scheme = str(self._url).partition("://")[0]
        is_async = get_filesystem_class(scheme).async_impl
        if is_async:  # of the others not all take it
            options["use_listings_cache"] = False
        elif scheme in _SSH:  # fsspec's own, by paramiko
            options |= dict.fromkeys(("timeout", "banner_timeout", "auth_timeout"), self._connect_timeout)
        options |= self._options
        if self._s3:
            config = {
                "connect_timeout": self._connect_timeout,
                "read_timeout": self._timeout,
                "max_pool_connections": AT_ONCE,
                # Nothing is sent twice on its own: a condition whose answer got lost would fail against itself.
                "retries": {"mode": "standard", "total_max_attempts": 1},
            }
            options["config_kwargs"] = config | dict(options.get("config_kwargs") or {})
        try:
            fs, path = url_to_fs(self._url, **options)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"no file system is made of this: {self._telling.clean(error)}", driver="fsspec") from None
        except Exception as error:
            said = f"{type(error).__name__}: {self._telling.clean(error)}"
            raise BackendUnavailable(f"the file system can't be reached: {said}", maybe_written=False) from self._telling.cause(
                error
            )
        if scheme in _SSH and not is_async:  # else each 32 KiB that are written wait 30 ms for an acknowledgement
            way = fs.client.get_transport().sock
            if isinstance(way, socket.socket):  # and no proxy's
                way.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return fs, path

    async def aclose(self) -> None:
        listing, self._listing = self._listing, None
        if listing is not None:
            await called(self._loop, listing.objects.store.aclose())

    # Calls

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self._run(lambda listing: listing.objects.read(keys))

    async def has(self, keys: Sequence[str]) -> list[bool]:
        return await self._run(lambda listing: listing.has(keys))

    async def stat(self, keys: Sequence[str]) -> list[Stat | None]:
        return await self._run(lambda listing: listing.objects.stat(keys))

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        if not expect:
            return await self._run(lambda listing: listing.objects.write(writes), writes=True, whole=len(writes) == 1)
        if not self._s3:
            raise UnsupportedOperation("this file system keeps no conditions")
        if len(writes) != 1 or [*expect] != [writes[0][0]]:
            raise UnsupportedOperation("on S3 a condition holds for the one key that is written, and no other")
        expected = expect[writes[0][0]]
        found = await self._run(lambda listing: listing.objects.swap(*writes[0], expected), writes=True)
        return None if found is None else [found]

    async def touch(self, key: str, expires_at: int | None) -> bool:
        return await self._run(lambda listing: listing.objects.change(key, expires_at=expires_at), writes=True)

    async def set_meta(self, key: str, custom: bytes | None) -> bool:
        if not self._s3:
            return await super().set_meta(key, custom)
        text = None if custom is None else custom.decode()
        return await self._run(lambda listing: listing.objects.change(key, custom=text), writes=True)

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        if limit <= 0:
            return []
        return await self._run(lambda listing: listing.scan(prefix, after, limit, reverse=reverse))

    async def clear(self, prefix: str) -> int:
        return await self._run(lambda listing: listing.clear(prefix), writes=True, whole=False)

    async def sweep(self) -> int | None:
        return await self._run(Listing.sweep, writes=True)

    async def _run(self, work: Callable[[Listing], Coroutine[Any, Any, T]], *, writes: bool = False, whole: bool = True) -> T:
        """Not `whole`: it writes several objects, of which one may fail when others are done."""
        if (listing := self._listing) is None:
            raise closed()
        try:
            async with self._room:
                return await called(self._loop, work(listing))
        except UnsupportedOperation:  # this server takes no conditions, as it turned out
            self.capabilities = replace(self.capabilities, conditional=False, metadata=False)
            raise
        except BackendError as error:
            if not writes:
                raise
            raise type(error)(error.message, maybe_written=error.maybe_written or not whole) from error.__cause__


def _parsed(url: str) -> tuple[str, dict[str, Any], Parts]:
    """The URL without its query, what that says for the file system, and the rest of it."""
    address, _, query = url.partition("?")
    scheme, found, rest = address.partition("://")
    if not found or not re.fullmatch("[a-z][a-z0-9+.-]*", scheme) or (not rest.strip("/") and scheme != "memory"):
        raise ConfigError("a URL is a scheme that fsspec knows and a place, such as s3://bucket/prefix", driver="fsspec")
    if scheme in ("file", "local"):
        raise ConfigError("files of this machine are the fs driver's: fs, or file:///directory", driver="fsspec")
    if scheme in _S3 and "@" in rest.partition("/")[0]:
        raise ConfigError("credentials for S3 stand in storage_options (key, secret) or in the environment", driver="fsspec")
    parts = Parts("", rest) if scheme in _S3 and rest.startswith("arn:") else parted(url, LOGIN, "fsspec")
    split_url(address, "fsspec")  # as fsspec does
    asked: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if scheme not in _S3 or name not in _STORAGE_QUERY:
            if "@" in query:
                raise unclear_url("fsspec")
            raise ConfigError(
                f"there is no option {name!r} in a URL of {scheme}://; give it in storage_options", driver="fsspec"
            )
        asked[name] = value.lower() == "true" if name == "anon" else value
    return address, asked, parts
