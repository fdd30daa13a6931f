"""What the driver asks of a place for objects, be it S3 or any other file system."""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from kvstore.errors import BackendUnavailable

T = TypeVar("T")

AT_ONCE = 32
"""How many objects of a batch are read or written at a time."""


class Found(NamedTuple):
    """An object, or its end."""

    data: bytes
    size: int
    """Of the whole object, in bytes."""
    etag: str = ""
    """What a condition goes by."""
    revision: str = ""
    """Of one write: no other one has the same."""
    mtime: int | None = None
    """In milliseconds since 1970."""


class Store(ABC):
    """Objects by name below a prefix. Errors are of `KVStoreError`'s tree; a missing object is none."""

    @abstractmethod
    async def open(self) -> None:
        """Connects. Raises `BackendUnavailable` where there is nothing to use."""

    @abstractmethod
    async def get(self, name: str, end: int | None = None) -> Found | None:
        """An object, or with `end` only so many bytes of its end."""

    @abstractmethod
    async def put(self, name: str, data: bytes, *, match: str | None = None, sure: bool = True) -> bool:
        """Writes an object as a whole. With `match` only if it has that etag, or if it is missing where `match` is empty.

        Raises `UnsupportedOperation` where there are no such conditions here; unless `sure`, writes all the same.
        """

    @abstractmethod
    async def delete(self, names: Sequence[str]) -> None: ...

    @abstractmethod
    async def delete_if(self, name: str, etag: str | None, *, sure: bool = True) -> bool | None:
        """Removes an object that has that etag. False: it has not; None: there are no such conditions here.

        Unless `sure`, removes it where there are none, or where no `etag` is told.
        """

    @abstractmethod
    async def list(self, start: str, after: str, limit: int) -> tuple[list[str], str | None]:
        """Names that start with `start`, in order, behind `after`; and behind what they go on, None: nowhere.

        At most `limit`, or all of them where names are not kept in order.
        """

    @abstractmethod
    async def aclose(self) -> None: ...


async def gathered(work: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all, some at a time; or the first error, once what was begun is over and nothing goes on behind it."""
    results: dict[int, T] = {}
    errors: list[Exception] = []
    left = enumerate(work)

    async def take() -> None:
        for place, one in left:
            try:
                results[place] = await one
            except Exception as error:
                errors.append(error)
            if errors:
                break

    await asyncio.gather(*(take() for _ in range(AT_ONCE)))
    if errors:
        raise errors[0]
    return [results[place] for place in range(len(results))]


async def called(loop: asyncio.AbstractEventLoop | None, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives in the event loop of a file system, which has a thread of its own; None: in the caller's."""
    if loop is None:
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


class Telling:
    """Texts for messages, without the secrets that are among the options."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._secrets = sorted(filter(lambda text: len(text) > 3, _secrets(options)), key=len, reverse=True)

    def clean(self, error: BaseException | str) -> str:
        text = str(error)
        for secret in self._secrets:  # which may have several lines
            text = text.replace(secret, "***")
        return text.strip().partition("\n")[0][:500]  # Azure's goes on with XML

    def cause(self, error: BaseException) -> BaseException | None:
        """`error` where it shows no secret, nor what caused it."""
        shown: BaseException | None = error
        while shown is not None:
            if any(secret in f"{shown}{shown.args}" for secret in self._secrets):
                return None
            shown = shown.__cause__ or shown.__context__
        return error


_PLAIN = ("endpoint_url", "region_name", "host", "port", "protocol", "project")


def _secrets(options: object, name: str = "") -> set[str]:
    if isinstance(options, Mapping):
        return {text for key, value in options.items() for text in _secrets(value, str(key))}
    if not isinstance(options, str):
        return set()
    return {*re.findall("://[^/@:]*:(.*)@", options)} if name in _PLAIN else {options}


def closed() -> BackendUnavailable:
    return BackendUnavailable("the connection was closed", maybe_written=False)
