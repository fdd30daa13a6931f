"""What a backend has to do: three calls say it all, the others have defaults that are built on them."""

from __future__ import annotations

import enum
import hashlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Self

from kvstore.answers import TRIES, check_page, mistake, never_holds
from kvstore.clock import now_ms
from kvstore.errors import BackendTimeout, BackendUnavailable, ConfigError, KVStoreError, UnsupportedOperation, backend_error
from kvstore.keys import after_all, is_key

Write = tuple[str, bytes | None, int | None]
"""(key, bytes or None to remove, when it expires in milliseconds since 1970 or None for never)."""
Expect = Mapping[str, bytes | None]
"""Key to the exact bytes that must be there, None: the key must be absent."""
Tell = Callable[[Sequence[Write], Sequence[bool]], None]
"""Is told the writes that took effect, and which of their keys were there before."""
Batch = tuple[Sequence[Write], Expect | None]
"""The arguments of one `Driver.write`."""


class NotNow(enum.Enum):
    """What `Driver.read_now` gives where it would have to wait."""

    NOT_NOW = "NOT_NOW"


NOT_NOW: Final = NotNow.NOT_NOW

PAGE = 1000
"""How many keys are asked for at a time where the caller sets no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a driver promises: facts, never hopes. What it does not declare is refused, and its tests expect that."""

    atomic: bool = False
    """A `write` of several keys is all or nothing, to every reader and after a crash."""
    conditional: bool = False
    """`expect` holds against every task, thread and process on the store."""
    ordered: bool = False
    """A `scan` costs what it returns, wherever in the order it starts."""
    expiry: bool = True
    """Values can be given a time to live."""
    metadata: bool = False
    """`stat` tells times and custom metadata; `set_meta` keeps the latter."""
    watch: bool = False
    """`watch` tells of changes by other processes."""
    persistent: bool = True
    """What is written is still there when the driver is opened again with the same options."""
    shared: bool = False
    """Several drivers, in several processes, may be open on one store at once."""
    every_key: bool = True
    """Any legal key can be kept next to any other. Where not, what can't be is refused and nothing is touched."""
    inline: bool = False
    """No call ever waits, so calls need no batching."""
    own_clock: bool = True
    """Expiry is told by `Driver.clock`, not by a server's clock."""


class Stat(NamedTuple):
    """What a driver knows of one key besides its value."""

    size: int
    """In bytes."""
    etag: str
    """Differs whenever the value was written in between; without `capabilities.metadata`, whenever the value differs."""
    mtime: int | None = None
    """The last write, in milliseconds since 1970."""
    expires_at: int | None = None
    """In milliseconds since 1970; None: never."""
    custom: bytes | None = None
    """Custom metadata as it was given to `set_meta`."""


@dataclass(frozen=True, slots=True)
class Event:
    """One key that changed."""

    kind: Literal["update", "remove"]
    key: str


class Driver(ABC):
    """A backend.

    Keys arrive normalized and relative to the mount, values as bytes, expiry in milliseconds since 1970. Every key that
    `normalize_key` lets through is legal, and what the backend can't spell the driver escapes reversibly. An expired key
    is absent for every call. `prefix` is a literal that ends with `:` or is empty.

    Errors of the backend are raised as `BackendUnavailable`, `BackendTimeout` or `BackendError`, what is stored
    and can't be read as `CorruptValueError`, and whatever else escapes is wrapped in a `BackendError` above.
    """

    capabilities: Capabilities
    at_root: bool = True
    """Whether its keys are whole keys. Then one under the first segment `$meta` is none, and so another program's.

    Set by the mount, for drivers whose backend holds what others put there (see `kvstore.keys.is_key`).
    """
    read_only: bool = False
    """Whether nothing is to be made, not even a store where there is none. Set by the mount, which lets no write through."""
    clock: Callable[[], int] = now_ms
    """Tells the time in milliseconds since 1970: a `Clock` that a server may set, or in tests one that stands still."""

    lanes: int = 1
    """How many batches of reads, and how many of writes, are given to the driver at once; those of writes share no key."""
    merges: bool = True
    """Whether the writes of several callers may come as one `write`. Where that may fail with some of them done, those of
    different keys come as batches of `write_many`, each of which has an outcome of its own."""
    cancellable: bool = False
    """Whether a `write` may be cancelled: whether it happens is then open, but not after the end of `settle`, which the class
    that has `write` has too. Where it may not, it runs in a task of its own, which takes 25 µs more, and is never cancelled."""

    @property
    def name(self) -> str:
        """The short name that errors show: the module's, such as `sqlite`."""
        return type(self).__module__.rpartition(".")[2]

    @classmethod
    def from_url(cls, url: str, **options: object) -> Self:
        """The driver that `url` names, with `options` besides. Raises `ConfigError` where it has no URL form."""
        raise ConfigError(f"driver {cls.__name__} has no URL form")

    async def connect(self) -> None:
        """Called before the first call, and once more in each further event loop. Must be repeatable."""

    @abstractmethod
    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of `keys` in their order, None for a missing one. No key is named twice."""

    @abstractmethod
    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        """Sets and removes, in one go. For each: was the key there before. No key is named twice.

        With `expect` nothing is written unless all of it holds; None says that it did not.
        """

    @abstractmethod
    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        """At most `limit` keys that start with `prefix`, by code point, downwards if `reverse`; fewer only where they end.

        They start behind `after`, a text that need not be a key and may be longer than one.
        """

    async def settle(self) -> None:
        """Returns when no write that was cancelled so far can take effect any more. Later calls on its keys wait for that.

        Asked of a driver that is `cancellable`, and after a `connect` in another event loop than that of writes that it ended.
        """

    async def aclose(self) -> None:
        """Gives everything back. Called once, and not when a call is under way."""

    # What follows a driver may do faster or better than on the three calls.

    def read_now(self, key: str) -> bytes | NotNow | None:
        """The value of one key if that takes no waiting, not even for a turn of the event loop; else `NOT_NOW`.

        Asked first, while no other call is under way, by a caller that comes with `read` after a `NOT_NOW`.
        """
        return NOT_NOW

    def write_now(self, key: str, data: bytes, expires_at: int | None) -> bool:
        """Sets one key if that takes no waiting. False: nothing was done, and the caller comes with `write`."""
        return False

    async def write_and_tell(
        self, writes: Sequence[Write], expect: Expect | None, tell: Callable[[list[bool]], None]
    ) -> list[bool] | None:
        """`write` that calls `tell` with what it found, before any later call takes effect, whoever is cancelled meanwhile.

        Asked of a driver whose `capabilities.inline` says that it never waits. Where it waits for its turn in the event loop
        after all, it has to see to that.
        """
        found = await self.write(writes, expect)
        if found is not None:
            if (wrong := mistake("write", found, writes)) is not None:
                raise wrong
            tell(found)
        return found

    async def put(self, writes: Sequence[Write]) -> None:
        """`write` that sets only, for callers who do not ask what was there, where that is cheaper.

        Called for crowds and batches, if the class that has `write` has it too.
        """
        await self.write(writes)

    async def has(self, keys: Sequence[str]) -> list[bool]:
        """Which of `keys` are there."""
        return [data is not None for data in await self.read(keys)]

    async def write_many(self, batches: Sequence[Batch]) -> list[list[bool] | KVStoreError | None]:
        """Several independent `write` calls in order, for one round trip. Per batch its result, or its error.

        What raises says that none of them took effect (`BackendUnavailable` and `BackendTimeout`: that it is not known).
        """
        results: list[list[bool] | KVStoreError | None] = []
        for writes, expect in batches:
            try:
                results.append(await self.write(writes, expect))
            except (BackendUnavailable, BackendTimeout) as error:  # each of the others would wait as long for nothing
                return results + [error] * (len(batches) - len(results))
            except Exception as error:
                results.append(backend_error(error))
        return results

    async def stat(self, keys: Sequence[str]) -> list[Stat | None]:
        """What is known of `keys` in their order, None for a missing one."""
        return [None if data is None else Stat(len(data), value_etag(data)) for data in await self.read(keys)]

    async def touch(self, key: str, expires_at: int | None) -> bool:
        """Sets when `key` expires and leaves its value. False: it is not there."""
        if not self.capabilities.expiry:
            return (await self.has([key]))[0]
        if not self.capabilities.conditional:
            raise UnsupportedOperation("touch needs a driver with conditional writes")
        for _ in range(TRIES):
            [data] = await self.read([key])
            if data is None:
                return False
            if await self.write([(key, data, expires_at)], {key: data}) is not None:
                return True
        raise never_holds()

    async def set_meta(self, key: str, custom: bytes | None) -> bool:
        """Keeps `custom` for `key`, None to remove it. False: the key is not there.

        It stays when the value is overwritten and goes when the key is removed or expires.
        """
        raise UnsupportedOperation("this driver keeps no custom metadata")

    async def count(self, prefix: str) -> int:
        """How many keys start with `prefix`."""
        total, after = 0, None
        while page := await self._page(prefix, after):
            total, after = total + len(page), page[-1]
        return total

    async def _page(self, prefix: str, after: str | None) -> list[str]:
        page = await self.scan(prefix, after=after, limit=PAGE, reverse=False)
        check_page(page, after)
        return page

    async def clear(self, prefix: str) -> int:
        """Removes the keys that start with `prefix`, and says how many were there."""
        return await self.clear_and_tell(prefix, (), lambda writes, found: None)

    async def clear_and_tell(self, prefix: str, masked: tuple[str, ...], tell: Tell) -> int:
        """`clear` that leaves what starts with one of `masked`, and calls `tell` with the removals and what they found."""
        total, after = 0, None
        while page := await self._page(prefix, after):
            after = next((after_all(hidden) for hidden in masked if page[-1].startswith(hidden)), page[-1])
            kept = (key for key in page if not key.startswith(masked) and is_key(key, at_root=self.at_root))
            writes: list[Write] = [(key, None, None) for key in kept]
            found = await self.write(writes) if writes else []
            if (wrong := mistake("write", found, writes)) is not None:
                raise wrong
            tell(writes, found or [])
            total += sum(found or ())
        return total

    async def sweep(self) -> int | None:
        """Takes back the space of expired keys. Returns when the next one expires, None where none will.

        Called from time to time. A backend that does this by itself needs none.
        """
        return None

    def watch(self, prefix: str) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Inside the context: the changes below `prefix` that others make. Those made by this driver are told above."""
        raise UnsupportedOperation("this driver can't tell of changes by other processes")


def value_etag(data: bytes) -> str:
    """An etag that differs whenever the value does, for where none is kept."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()
