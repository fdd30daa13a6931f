"""Libraries that keep files: fsspec, obstore and opendal."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import fsspec
import opendal
import orjson
from obstore.store import LocalStore

from benchmarks.peers.contract import Place, Store


class Fsspec(Store):
    """Its local file system, which has no asyncio: `pipe_file` writes in place, `find` lists."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._files = fsspec.filesystem("file", auto_mkdir=True)

    @classmethod
    async def open(cls, place: Place) -> Self:
        root = place.folder / "fsspec"
        root.mkdir(exist_ok=True)
        return cls(root)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key.replace(':', '/')}"

    async def get(self, key: str) -> object:
        return orjson.loads(await asyncio.to_thread(self._files.cat_file, self._path(key)))

    async def set(self, key: str, value: object) -> None:
        await asyncio.to_thread(self._files.pipe_file, self._path(key), orjson.dumps(value))

    async def list_prefix(self, prefix: str) -> Sequence[object]:
        return await asyncio.to_thread(self._files.find, self._path(prefix))

    async def clear(self) -> None:
        await asyncio.to_thread(self._files.rm, self._root, recursive=True)
        await asyncio.to_thread(self._files.makedirs, self._root)


class Obstore(Store):
    """Its local store, which writes beside and renames."""

    def __init__(self, store: Any) -> None:
        self._store = store

    @classmethod
    async def open(cls, place: Place) -> Self:
        return cls(LocalStore(place.folder / "obstore", mkdir=True))

    async def get(self, key: str) -> object:
        answer = await self._store.get_async(key.replace(":", "/"))
        return orjson.loads(memoryview(await answer.bytes_async()))

    async def set(self, key: str, value: object) -> None:
        await self._store.put_async(key.replace(":", "/"), orjson.dumps(value))

    async def list_prefix(self, prefix: str) -> Sequence[object]:
        return [entry["path"] async for page in self._store.list(prefix or None, chunk_size=1_000) for entry in page]

    async def clear(self) -> None:
        async for page in self._store.list(chunk_size=1_000):
            await self._store.delete_async([entry["path"] for entry in page])


class Opendal(Store):
    """Its fs service with `atomic_write_dir`, so that a write is all or nothing."""

    def __init__(self, operator: Any) -> None:
        self._operator = operator

    @classmethod
    async def open(cls, place: Place) -> Self:
        root, writing = place.folder / "opendal", place.folder / "opendal-writing"
        return cls(opendal.AsyncOperator("fs", root=str(root), atomic_write_dir=str(writing)))

    async def get(self, key: str) -> object:
        return orjson.loads(await self._operator.read(key.replace(":", "/")))

    async def set(self, key: str, value: object) -> None:
        await self._operator.write(key.replace(":", "/"), orjson.dumps(value))

    async def list_prefix(self, prefix: str) -> Sequence[object]:
        entries = await self._operator.list(f"{prefix}/" if prefix else "", recursive=True)
        return [entry.path async for entry in entries if not entry.path.endswith("/")]

    async def clear(self) -> None:
        await self._operator.remove_all("")
