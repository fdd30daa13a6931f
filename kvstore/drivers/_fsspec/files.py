"""Any other file system of fsspec: its own asynchronous methods where it has them, else threads."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from secrets import token_hex
from typing import Any

from kvstore.drivers._fsspec.names import PARTS
from kvstore.drivers._fsspec.store import AT_ONCE, Found, Store, Telling, closed, gathered
from kvstore.errors import BackendError, BackendTimeout, BackendUnavailable, KVStoreError

_PER_SECOND = 2**20
_SEVERAL_THREADS = ("file", "local")
"""Others share a connection or a dict among their calls."""
_ANSWERS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_AGAIN = ("cat_file", "find", "info", "ls", "makedirs", "pipe_file")
"""What may be done twice. A file that was moved or removed by the first try is not there for the second."""


class FileStore(Store):
    """Files below the directory `root`. `remake` connects anew, where the file system is not its owner's to replace."""

    def __init__(
        self,
        fs: Any,
        root: str,
        *,
        remake: Callable[[], Any] | None,
        connect_timeout: float,
        timeout: float,
        telling: Telling,
    ) -> None:
        from fsspec import AbstractFileSystem
        from fsspec.asyn import AsyncFileSystem

        self._fs = fs
        self._remake = remake
        self._is_lost = False
        self._root = root
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._telling = telling
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        # An object is replaced as a whole; a file has to be written beside and moved.
        self._whole = bool(fs.async_impl or protocols & {"memory"})
        method, base = ("_find", AsyncFileSystem) if fs.async_impl else ("find", AbstractFileSystem)
        self._finds = getattr(type(fs), method) is not getattr(base, method)
        self._room = asyncio.Semaphore(AT_ONCE)
        self._threads: ThreadPoolExecutor | None = None
        self._count = 16 if protocols & {*_SEVERAL_THREADS} else 1
        self._late: set[asyncio.Future[Any]] = set()

    async def open(self) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout):
                if not self._fs.async_impl and self._threads is None:
                    self._threads = ThreadPoolExecutor(self._count, "kvstore fsspec")
                try:
                    parts = await self._call("ls", self._path(PARTS).rstrip("/"), detail=False)
                except FileNotFoundError:
                    parts = []
                for path in parts:  # what a program that was killed did not end
                    with suppress(FileNotFoundError):
                        await self._call("rm_file", path)
        except (BackendTimeout, TimeoutError) as error:
            raise BackendUnavailable(f"no answer in {self._connect_timeout:g} seconds", maybe_written=False) from error
        except OSError as error:
            raise BackendUnavailable(self._telling.clean(error), maybe_written=False) from self._telling.cause(error)

    async def aclose(self) -> None:
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False)

    async def get(self, name: str, end: int | None = None) -> Found | None:
        path = self._path(name)
        try:
            if end is not None:
                size = int((await self._called("info", path))["size"])
                if size > end:
                    return Found(await self._called("cat_file", path, start=size - end, end=size), size)
            data = await self._called("cat_file", path)
        except (FileNotFoundError, IsADirectoryError):
            return None
        return Found(data, len(data))

    async def put(self, name: str, data: bytes, *, match: str | None = None, sure: bool = True) -> bool:
        path = self._path(name)
        part = path if self._whole else self._path(PARTS + token_hex(8))
        try:
            await self._made(part, lambda: self._called("pipe_file", part, data, size=len(data)))
            if part != path:
                await self._made(path, lambda: self._called("mv", part, path))
        except BaseException:
            if part != path:
                with suppress(Exception):
                    await self._called("rm_file", part)
            raise
        return True

    async def _made(self, path: str, call: Callable[[], Any]) -> None:
        """`call`, and once more after its directory was made where that is missing."""
        try:
            await call()
        except FileNotFoundError:
            await self._called("makedirs", posixpath.dirname(path), exist_ok=True)
            try:
                await call()
            except FileNotFoundError as error:
                raise self._error(error) from self._telling.cause(error)

    async def delete(self, names: Sequence[str]) -> None:
        await gathered(map(self._delete, names))

    async def _delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            await self._called("rm_file", self._path(name))

    async def delete_if(self, name: str, etag: str | None, *, sure: bool = True) -> bool | None:
        await self._delete(name)
        return True

    async def _found(self, folder: str) -> list[str]:
        """The files below it. Where a file system has no listing of its own, fsspec's leaves out what it fails to list."""
        found: list[str] = []
        folders = [folder]
        while folders:
            folder = folders.pop()
            try:
                if self._finds:
                    return [*await self._called("find", folder)]
                listed = await self._called("ls", folder, detail=True)
            except (FileNotFoundError, NotADirectoryError):  # removed meanwhile, if it was ever there
                continue
            for entry in listed:
                is_folder = entry["type"] == "directory" and entry["name"].rstrip("/") != folder
                (folders if is_folder else found).append(entry["name"].rstrip("/"))
        return found

    async def list(self, start: str, after: str, limit: int) -> tuple[list[str], str | None]:
        found = await self._found(self._path(start).rstrip("/"))
        names = [path[len(self._root) :] for path in found if path.startswith(self._root + start)]
        return sorted(name for name in names if name > after), None

    def _path(self, name: str) -> str:
        return self._root + name

    async def _called(self, method: str, *arguments: Any, size: int = 0, **options: Any) -> Any:
        async with self._room:
            if self._late and (await asyncio.wait(self._late, timeout=self._timeout))[1]:
                raise BackendTimeout("an earlier call, which did not answer in time, is still under way")
            try:
                return await self._call(method, *arguments, seconds=self._timeout + size / _PER_SECOND, **options)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError, KVStoreError):
                raise
            except Exception as error:
                raise self._error(error) from self._telling.cause(error)

    async def _call(self, method: str, *arguments: Any, seconds: float | None = None, **options: Any) -> Any:
        self._fs.invalidate_cache()  # what others wrote is in no cache
        if self._fs.async_impl:
            async with asyncio.timeout(seconds):
                return await getattr(self._fs, f"_{method}")(*arguments, **options)
        if self._threads is None:
            raise closed()
        work = partial(self._answer, method, *arguments, **options)
        begun = asyncio.get_running_loop().run_in_executor(self._threads, work)
        begun.add_done_callback(lambda call: call.cancelled() or call.exception())  # maybe nobody waits for it any more
        done, _ = await asyncio.wait([begun], timeout=seconds)
        if done:
            return begun.result()
        # A thread can't be stopped: later calls wait for it, so that what it writes passes none of theirs.
        self._late.add(begun)
        begun.add_done_callback(self._late.discard)
        raise BackendTimeout(f"no answer in {seconds:g} seconds")

    def _answer(self, method: str, *arguments: Any, **options: Any) -> Any:
        """In a thread. A call that had no answer may have lost the connection, which SFTP's file system never opens again."""
        try:
            return self._answer_once(method, *arguments, **options)
        except KVStoreError:
            raise
        except Exception:
            if not self._is_lost or method not in _AGAIN:
                raise
        return self._answer_once(method, *arguments, **options)

    def _answer_once(self, method: str, *arguments: Any, **options: Any) -> Any:
        if self._is_lost and self._remake is not None:
            self._fs, self._is_lost = self._remake(), False
        try:
            return getattr(self._fs, method)(*arguments, **options)
        except _ANSWERS:
            raise
        except Exception:
            self._is_lost = self._remake is not None
            raise

    def _error(self, error: Exception) -> KVStoreError:
        said = f"{type(error).__name__}: {self._telling.clean(error)}"
        if isinstance(error, TimeoutError):
            return BackendTimeout(f"the file system did not answer: {said}")
        is_lost = isinstance(error, OSError) and error.errno is None  # paramiko's "Socket is closed"
        if is_lost or isinstance(error, PermissionError | ConnectionError | EOFError | FileNotFoundError):
            return BackendUnavailable(f"the file system can't be used: {said}")
        return BackendError(f"the file system failed: {said}")
