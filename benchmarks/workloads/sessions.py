"""What is asked of a session store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count as counter
from typing import Any

from benchmarks.peers.contract import Message, SessionStore
from benchmarks.workloads.clock import Taken, timed
from benchmarks.workloads.values import Pool

_fresh = counter()


def ids(store: SessionStore, messages: Sequence[Any]) -> list[str]:
    return [store.content(message).partition(" ")[0] for message in messages]


def numbered(pool: Pool, session: str, start: int, count: int) -> list[Message]:
    return [pool.message(f"{session}-{number}", number) for number in range(start, start + count)]


async def append(store: SessionStore, pool: Pool, *, calls: int, sessions: int, seed: int, watch: bool = False) -> Taken:
    """Appends one by one to each of so many sessions, all sessions at once. The sessions stay, and grow from round to round."""
    names = [f"crowd{number}" for number in range(sessions)]
    for name in names:
        await _create_once(store, name)
    each = max(1, calls // sessions)
    work = {name: numbered(pool, name, seed, each) for name in names}

    async def one(name: str) -> None:
        for message in work[name]:
            await store.append(name, message)

    return await timed(lambda: asyncio.gather(*map(one, names)), each * sessions, watch=watch)


async def append_grow(store: SessionStore, pool: Pool, *, session: str, start: int, calls: int, watch: bool = False) -> Taken:
    """The next messages of one session, one after another."""
    await _create_once(store, session)
    messages = numbered(pool, session, start, calls)

    async def work() -> None:
        for message in messages:
            await store.append(session, message)

    return await timed(work, calls, watch=watch)


async def append_many(store: SessionStore, pool: Pool, *, session: str, start: int, count: int) -> None:
    await _create_once(store, session)
    for first in range(start, start + count, 100):
        await store.append_many(session, numbered(pool, session, first, min(100, start + count - first)))


async def last(
    store: SessionStore, pool: Pool, *, session: str, count: int, size: int, calls: int, watch: bool = False
) -> Taken:
    """The last `count` messages of `size`."""
    found: Sequence[Any] = ()

    async def work() -> None:
        nonlocal found
        for _ in range(calls):
            found = await store.last(session, count)

    taken = await timed(work, calls, watch=watch)
    check(ids(store, found), session, size - count, count)
    return taken


async def all_(store: SessionStore, pool: Pool, *, session: str, size: int, watch: bool = False) -> Taken:
    found: Sequence[Any] = ()

    async def work() -> None:
        nonlocal found
        found = await store.all(session)

    taken = await timed(work, 1, watch=watch)
    check(ids(store, found), session, 0, size)
    return taken


def check(found: list[str], session: str, start: int, count: int) -> None:
    wanted = [f"{session}-{number}" for number in range(start, start + count)]
    if found != wanted:
        lost, more = len(set(wanted) - set(found)), len(found) - len(set(found))
        raise AssertionError(
            f"of {count:,} messages {lost:,} are missing and {more:,} doubled, or their order is another: {found[:3]} …"
        )


async def truncate(store: SessionStore, pool: Pool, *, session: str, size: int, drop: int, watch: bool = False) -> Taken:
    """Removes the last messages, which are put back first."""
    await append_many(store, pool, session=session, start=size, count=drop)
    through = f"{session}-{size - 1}"
    taken = await timed(lambda: store.truncate(session, through=through, drop=drop), 1, watch=watch)
    check(ids(store, await store.last(session, 5)), session, size - 5, 5)
    return taken


async def fork(store: SessionStore, pool: Pool, *, session: str, count: int, watch: bool = False) -> Taken:
    """A new session with the first messages of a long one."""
    new = f"fork{next(_fresh)}"
    taken = await timed(lambda: store.fork(session, new, through=f"{session}-{count - 1}", count=count), 1, watch=watch)
    check(ids(store, await store.last(new, 5)), session, count - 5, 5)
    return taken


async def records(store: SessionStore, pool: Pool, *, owners: int, count: int) -> None:
    """`count` records, spread over the owners."""
    for first in range(0, count, 200):
        await asyncio.gather(
            *(store.add_record(f"owner{number % owners}", number) for number in range(first, min(first + 200, count)))
        )


async def list_records(
    store: SessionStore, pool: Pool, *, owners: int, count: int, seed: int, calls: int, watch: bool = False
) -> Taken:
    """All records of one owner."""
    found = 0

    async def work() -> None:
        nonlocal found
        for call in range(calls):
            found += len(await store.list_records(f"owner{(seed + call) * 37 % owners}"))

    taken = await timed(work, calls, watch=watch)
    if found != calls * (count // owners):
        raise AssertionError(f"{calls} listings gave {found} records, not {calls * (count // owners)}")
    return taken


async def contend(store: SessionStore, pool: Pool, *, session: str, writer: int, calls: int) -> dict[str, Any]:
    """Appends that other processes make at the same time, too. Says which were refused."""
    acknowledged, refused, reason = [], 0, ""
    for number in range(calls):
        message = pool.message(f"w{writer}-{number}", number)
        try:
            await store.append(session, message)
        except Exception as error:
            refused += 1
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
        else:
            acknowledged.append(message["id"])
    return {"acknowledged": acknowledged, "refused": refused, "reason": reason}


async def found(store: SessionStore, pool: Pool, *, session: str) -> dict[str, Any]:
    return {"ids": ids(store, await store.all(session))}


_created: set[str] = set()


async def _create_once(store: SessionStore, session: str) -> None:
    if session not in _created:
        _created.add(session)
        await store.create(session)
