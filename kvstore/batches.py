"""Batches: what calls that start together say to a driver, and what each of them is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

from kvstore.answers import mistake
from kvstore.driver import Batch, Driver, Expect, Write
from kvstore.errors import BackendTimeout, BackendUnavailable, KVStoreError, backend_error

MAX_BATCH_KEYS = 1000
MAX_BATCH_BYTES = 8 * 2**20
_BYTES_PER_KEY = MAX_BATCH_BYTES // MAX_BATCH_KEYS

Kind = Literal["read", "has", "write", "turn"]
R = TypeVar("R")
Read = Callable[[Sequence[str]], Awaitable[list[bytes | None]]]


class WriteCall(Protocol):
    def __call__(self, writes: Sequence[Write], expect: Expect | None = None) -> Awaitable[list[bool] | None]: ...


Again = Callable[[Read, WriteCall, Sequence[Write]], Awaitable[list[bool] | None]]
"""What is still to be tried of writes after their `expect` did not hold."""


class Call(Generic[R]):
    """A call that waits, or is under way."""

    __slots__ = ("again", "blind", "done", "expect", "keys", "kind", "mutates", "then", "turn", "weight", "writes")

    def __init__(
        self,
        kind: Kind,
        keys: Sequence[str] | None,
        done: asyncio.Future[R],
        mutates: bool = False,
        writes: Sequence[Write] = (),
        expect: Expect | None = None,
        turn: Call[None] | None = None,
        again: Again | None = None,
        blind: bool = False,
    ) -> None:
        self.kind = kind
        self.keys = keys  # None: any key
        self.done = done
        self.mutates = mutates
        self.writes = writes
        self.expect = expect
        self.turn = turn  # made inside this turn, which holds its keys already
        self.again = again
        self.blind = blind  # sets only, and does not ask what was there
        self.then: Call[None] | None = None  # of a turn: the next one on its key, which follows it directly
        self.weight = _weight(writes) if writes else len(keys or ())


def _weight(writes: Sequence[Write]) -> int:
    """The share of a batch that a call takes, so that neither many keys nor large values make a batch too long."""
    if len(writes) == 1:
        return 1 + len(writes[0][1] or b"") // _BYTES_PER_KEY
    size = sum(len(data) for _, data, _ in writes if data is not None)
    return max(len(writes), size // _BYTES_PER_KEY)


async def carry_out(driver: Driver, kind: Kind, calls: Sequence[Call[Any]], of: Iterable[str]) -> Sequence[Any]:
    """What each of `calls`, all of one kind, is answered, or the error that it raises. `of`: all their keys, each once."""
    try:
        if kind == "write":
            return await _write(driver, calls)
        keys = [*of]
        ask: Callable[[Sequence[str]], Awaitable[list[Any]]] = driver.read if kind == "read" else driver.has
        answers = await ask(keys)
        if (wrong := mistake(kind, answers, keys)) is not None:
            return [wrong] * len(calls)
        if len(keys) == len(calls) == sum([call.weight for call in calls]):  # each asks for one of its own, as most often
            return [[answer] for answer in answers]
        found = dict(zip(keys, answers, strict=True))
        return [[found[key] for key in call.keys or ()] for call in calls]
    except Exception as error:
        known = backend_error(error)
        if not _is_one_calls(known, calls):
            return [known] * len(calls)
        return [outcome for call in calls for outcome in await carry_out(driver, kind, [call], dict.fromkeys(call.keys or ()))]


def _is_one_calls(error: KVStoreError, calls: Sequence[Call[Any]]) -> bool:
    """Whether the others have to be tried once more, one by one, after they failed together.

    A dead backend is everyone's. And where something may have been written, an answer would tell of that.
    """
    return len(calls) > 1 and not (isinstance(error, BackendUnavailable | BackendTimeout) or error.says_maybe_written)


async def _write(driver: Driver, calls: Sequence[Call[Any]]) -> list[Any]:
    """Runs of plain writes become one each, where the last write of a key wins and all its callers are answered."""
    if (driver.merges or len(calls) == 1) and all(call.blind for call in calls):
        sets = [write for call in calls for write in call.writes]
        if len(sets) == len({key for key, _, _ in sets}):
            await driver.put(sets)
            return [[True] * len(call.writes) for call in calls]
    plain = [call.writes[0] for call in calls if call.expect is None and len(call.writes) == 1] if driver.merges else []
    if len(plain) == len(calls) == len({key for key, _, _ in plain}):
        found = await driver.write(plain)
        if found.__class__ is list and len(found) == len(plain):
            return [[was_there] for was_there in found]
        return [mistake("write", found, plain)] * len(calls)
    merged = _merged(calls, restarts=driver.capabilities.metadata, apart=not driver.merges)
    batches = [batch for batch, _ in merged]
    results: Sequence[list[bool] | KVStoreError | None]
    results = [await driver.write(*batches[0])] if len(batches) == 1 else await driver.write_many(batches)
    if (wrong := mistake("write_many", results, batches)) is not None:  # some may have taken effect: nothing is tried again
        return [wrong] * len(calls)
    outcomes: list[Any] = []
    later: set[str] = set()  # keys of batches behind, so nothing may be written to them any more
    for ((writes, expect), parts), result in zip(reversed(merged), reversed(results), strict=True):
        those = [call for call, _ in parts]
        if isinstance(result, KVStoreError) and _is_one_calls(result, those):
            answers = [
                (await carry_out(driver, "write", [call], ()))[0] if later.isdisjoint(call.keys or ()) else result
                for call in those
            ]
        elif isinstance(result, KVStoreError) or (result is None and expect is not None):
            answers = [result] * len(parts)
        elif (wrong := mistake("write", result, writes)) is not None:
            answers = [wrong] * len(parts)
        else:
            found = result or []
            answers = [[place if isinstance(place, bool) else found[place] for place in places] for _, places in parts]
        later.update(key for call in those for key in call.keys or ())
        outcomes[:0] = answers
    for place, call in enumerate(calls):
        if outcomes[place] is None and call.again is not None:
            try:
                again = await call.again(driver.read, driver.write, call.writes)
                outcomes[place] = again and (mistake("write", again, call.writes) or again)
            except Exception as error:  # its own, and the others took effect
                outcomes[place] = error
    return outcomes


_Part = tuple[Call[Any], list[int | bool]]
"""A call, and for each of its writes the place in its batch, or the answer."""


def _alone(call: Call[Any]) -> tuple[Batch, list[_Part]]:
    return (call.writes, call.expect), [(call, list(range(len(call.writes))))]


def _merged(calls: Sequence[Call[Any]], *, restarts: bool, apart: bool) -> list[tuple[Batch, list[_Part]]]:
    """The calls as batches in their order. `restarts`: what follows a removal of its key is no overwrite, and is not merged.

    `apart`: only writes of one and the same key are merged, of which none is done if one fails.
    """
    merged: list[tuple[Batch, list[_Part]]] = []
    writes: list[Write] = []
    places: dict[str, int] = {}
    is_open = False
    for call in calls:
        if call.expect is not None:
            merged.append(_alone(call))
            is_open = False
            continue
        if is_open and apart:
            is_open = len(call.writes) == len(writes) == 1 and call.writes[0][0] in places
        if is_open and restarts:
            is_open = not any(
                data is not None and key in places and writes[places[key]][1] is None for key, data, _ in call.writes
            )
        if not is_open:
            writes, places, is_open = [], {}, True
            merged.append(((writes, None), []))
        answers: list[int | bool] = []
        for write in call.writes:
            place = places.setdefault(write[0], len(writes))
            if place == len(writes):
                writes.append(write)
                answers.append(place)
            else:
                answers.append(writes[place][1] is not None)
                writes[place] = write
        merged[-1][1].append((call, answers))
    return merged
