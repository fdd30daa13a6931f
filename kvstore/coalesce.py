"""Coalescing: what is called while a batch is in flight makes up the next one. Once, for every driver.

Idle, a call goes straight through to the driver in its caller's task. Busy, calls wait in the order in which they came;
whenever a batch ends, all that may start now start together: reads as one `read`, writes as one `write`. A call may start
when no earlier, unfinished call concerns the same key and one of the two writes; so calls on one key take effect in order.

A write whose caller is cancelled goes on, so that it never happens after a later one: it runs in a task of its own, unless
its driver sees to that (`Driver.cancellable`).

A driver may have several lanes: then a crowd is parted among them, so that neither it nor its server waits idle for the other.
After a batch of several calls the next one waits for the end of its pass of the event loop, for those who were answered
together mostly come again together: a crowd that sent its first call ahead would make two round trips of every one.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, Literal, TypeVar

from kvstore.driver import NOT_NOW, Batch, Driver, Expect, NotNow, Write
from kvstore.errors import BackendError, BackendTimeout, BackendUnavailable, KVStoreError, UnsupportedOperation

MAX_BATCH_KEYS = 1000
MAX_BATCH_BYTES = 8 * 2**20
ANSWERS_PER_PASS = 200
_BYTES_PER_KEY = MAX_BATCH_BYTES // MAX_BATCH_KEYS

Notify = Callable[[Sequence[Write], Sequence[bool]], None]
_Kind = Literal["read", "has", "write", "turn"]
T = TypeVar("T")
R = TypeVar("R")


class _Call(Generic[R]):
    __slots__ = ("done", "expect", "keys", "kind", "mutates", "turn", "writes")

    def __init__(
        self,
        kind: _Kind,
        keys: Sequence[str] | None,
        done: asyncio.Future[R],
        mutates: bool = False,
        writes: Sequence[Write] = (),
        expect: Expect | None = None,
        turn: _Call[None] | None = None,
    ) -> None:
        self.kind = kind
        self.keys = keys  # None: any key
        self.done = done
        self.mutates = mutates
        self.writes = writes
        self.expect = expect
        self.turn = turn  # made inside this turn, which holds its keys already


Turn = _Call[None]


class _Keys:
    """A set of keys that may be all of them."""

    __slots__ = ("all", "some")

    def __init__(self) -> None:
        self.all = False
        self.some: set[str] = set()

    def add(self, keys: Iterable[str] | None) -> None:
        if keys is None:
            self.all = True
        else:
            self.some.update(keys)

    def touches(self, keys: Iterable[str] | None) -> bool:
        if self.all:
            return True
        return bool(self.some) if keys is None else not self.some.isdisjoint(keys)


class Coalescer:
    """One driver's calls, connected once, batched, in order. Errors that escape the driver become `BackendError`."""

    def __init__(self, driver: Driver, connected: Callable[[], None] = lambda: None) -> None:
        self._driver = driver
        self._lanes = driver.lanes
        self._shields = not driver.cancellable
        self._read_now = driver.read_now if goes_with(driver, "read_now", "read") else None
        self._write_now = driver.write_now if goes_with(driver, "write_now", "write") else None
        self._connected = connected
        self._notify: Notify | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._reset()

    def _reset(self) -> None:
        self._pending: deque[_Call[Any]] = deque()
        self._flying: dict[_Kind, list[Collection[str]]] = {}  # by kind the keys of each batch in flight
        self._turns: list[_Call[Any]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn_over: asyncio.Future[None] | None = None  # what closing waits for
        self._attaching: set[object] = set()  # one a caller that waits for the connection
        self._dispatching = False
        self._crowded = False  # the last batch had several calls

    def on_write(self, notify: Notify | None) -> None:
        """`notify` is called with each batch of writes that took effect, once its caller may know."""
        self._notify = notify

    # The calls

    def read_now(self, key: str) -> bytes | NotNow | Awaitable[list[bytes | None]] | None:
        """`Driver.read_now`, where nothing is under way. In a crowd what to wait for, without a coroutine on the way."""
        if self._loop is not asyncio.get_running_loop():
            return NOT_NOW
        if not (self._pending or self._flying or self._turns):
            if self._read_now is not None:
                try:
                    data = self._read_now(key)
                except Exception as error:
                    raise (known := backend_error(error)) from known.__cause__
                if data is not NOT_NOW:
                    return data
            if not self._crowded:
                return NOT_NOW
        elif not (self._pending or self._crowded or self._is_full("read")):
            return NOT_NOW
        return self._queued(_Call("read", (key,), self._future()))

    def write_now(self, key: str, data: bytes, expires_at: int | None) -> bool | Awaitable[object]:
        """`Driver.write_now`, where nothing is under way and nobody watches. Else what to wait for, or False."""
        if self._loop is not asyncio.get_running_loop():
            return False
        if not (self._pending or self._crowded or self._is_full("write")):
            if self._flying or self._turns or self._notify is not None:
                return False
            if self._write_now is not None:
                try:
                    if self._write_now(key, data, expires_at):
                        return True
                except Exception as error:
                    raise (known := backend_error(error)) from known.__cause__
            if not self._shields:
                return False
            return self._started(_Call("write", (key,), self._future(), True, ((key, data, expires_at),)))
        return self._queued(_Call("write", (key,), self._future(), True, ((key, data, expires_at),)))

    def read(self, keys: Sequence[str], *, turn: Turn | None = None) -> Coroutine[Any, Any, list[bytes | None]]:
        return self._look("read", self._driver.read, keys, turn)

    def has(self, keys: Sequence[str]) -> Coroutine[Any, Any, list[bool]]:
        return self._look("has", self._driver.has, keys, None)

    async def _look(
        self, kind: _Kind, ask: Callable[[Sequence[str]], Awaitable[list[T]]], keys: Sequence[str], turn: Turn | None
    ) -> list[T]:
        if self._loop is not asyncio.get_running_loop():
            await self._attach()
        flying = self._flying
        if (
            self._pending
            or (self._crowded and turn is None)
            or not self._is_free(turn)
            or (flying and (self._is_full(kind) or not _apart(flying.get("write", ()), keys)))
        ):
            return await self._queued(_Call(kind, keys, self._future(), turn=turn))
        flying.setdefault(kind, []).append(keys)
        try:
            return await ask(keys)
        except Exception as error:
            raise (known := backend_error(error)) from known.__cause__
        finally:
            self._landed(kind, keys)

    async def write(
        self, writes: Sequence[Write], expect: Expect | None = None, *, turn: Turn | None = None
    ) -> list[bool] | None:
        if self._loop is not asyncio.get_running_loop():
            await self._attach()
        keys = (writes[0][0],) if len(writes) == 1 else [key for key, _, _ in writes]
        if expect:
            keys = [*keys, *expect]
        # Where somebody watches, the write runs in a task of its own, so that a cancelled caller's change is told too.
        flying = self._flying
        busy = (
            self._pending
            or (self._crowded and turn is None)
            or not self._is_free(turn)
            or self._notify
            or (flying and (self._is_full("write") or not all(_apart(batches, keys) for batches in flying.values())))
        )
        if busy or self._shields:
            call: _Call[Any] = _Call("write", keys, self._future(), mutates=True, writes=writes, expect=expect, turn=turn)
            return await (self._queued(call) if busy else self._started(call))
        flying.setdefault("write", []).append(keys)
        try:
            return await self._driver.write(writes, expect)
        except Exception as error:
            raise (known := backend_error(error)) from known.__cause__
        finally:
            self._landed("write", keys)

    @asynccontextmanager
    async def turn(self, keys: Sequence[str] | None, *, mutates: bool) -> AsyncIterator[Turn]:
        """For calls that can't be merged: inside, nothing earlier on `keys` (None: any) is under way.

        If it mutates, later calls on them wait for its end, but for those that are given the turn.
        """
        turn = await self._begun(keys, mutates)
        try:
            yield turn
        finally:
            self._end(turn)

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]], keys: Sequence[str] | None, *, mutates: bool) -> T:
        """A call that can't be merged, in a turn."""
        if not (mutates and self._shields):
            async with self.turn(keys, mutates=mutates):
                return await work()
        turn = await self._begun(keys, mutates)
        task = asyncio.get_running_loop().create_task(work())
        task.add_done_callback(lambda _: self._end(turn))
        return await asyncio.shield(task)

    async def _begun(self, keys: Sequence[str] | None, mutates: bool) -> Turn:
        if self._loop is not asyncio.get_running_loop():
            await self._attach()
        turn: Turn = _Call("turn", keys, self._future(), mutates=mutates)
        if self._pending or self._turns or self._flying:
            self._pending.append(turn)
            self._dispatch()
        else:
            self._turns.append(turn)
            turn.done.set_result(None)
        try:
            await turn.done
        except BaseException:
            self._end(turn)
            raise
        return turn

    def _end(self, turn: Turn) -> None:
        if turn in self._turns:
            self._turns.remove(turn)
        if self._turn_over is not None and not self._turn_over.done():
            self._turn_over.set_result(None)
        if self._pending:
            self._dispatch()

    async def aclose(self) -> None:
        """Waits for what is under way, then closes the driver."""
        here = asyncio.get_running_loop()
        if self._loop not in (None, here) or (self._connecting is not None and self._connecting.get_loop() is not here):
            self._move()
        while self._attaching:  # those who wait, and those who were told and are about to go on
            await (asyncio.sleep(0) if self._connecting is None else asyncio.wait([self._connecting]))
        while self._pending or self._flying or self._turns:
            async with self.turn(None, mutates=True):
                pass
            if self._turns:  # listings, which hold nobody up but this
                self._turn_over = self._future()
                await self._turn_over
        try:
            await self._driver.aclose()
        except Exception as error:
            raise (known := backend_error(error)) from known.__cause__

    # Connecting

    async def _attach(self) -> None:
        """Connects the driver, once an event loop, whoever comes first; a failure is everyone's who waits."""
        loop = asyncio.get_running_loop()
        while self._loop is not loop:
            if self._connecting is None or self._connecting.get_loop() is not loop:
                self._move()
                self._connecting = loop.create_task(self._connect(loop))
                self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
            connecting, attaching, me = self._connecting, self._attaching, object()
            attaching.add(me)
            try:
                await asyncio.shield(connecting)
            finally:
                attaching.remove(me)

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            await self._driver.connect()
            self._loop = loop
            self._connected()
        except Exception as error:
            raise (known := backend_error(error)) from known.__cause__
        finally:
            if self._connecting is not None and self._connecting.get_loop() is loop:  # it may end after its event loop
                self._connecting = None

    def _move(self) -> None:
        """Leaves the event loop that was used before, which has to be over."""
        loops = [self._loop] if self._connecting is None else [self._loop, self._connecting.get_loop()]
        for loop in loops:
            if loop is not None and loop.is_running() and loop is not asyncio.get_running_loop():
                raise UnsupportedOperation(
                    "this storage is in use by another event loop that is running; give each thread a storage of its own"
                )
        self._loop = self._connecting = None
        self._reset()

    # Batching

    def _future(self) -> asyncio.Future[Any]:
        assert self._loop is not None
        return self._loop.create_future()

    def _queued(self, call: _Call[R]) -> asyncio.Future[R]:
        self._pending.append(call)
        if not self._is_full(call.kind):
            self._dispatch_soon()
        return call.done

    def _started(self, call: _Call[R]) -> asyncio.Future[R]:
        self._start(call.kind, [call])
        return call.done

    def _dispatch_soon(self) -> None:
        """At the end of this pass of the event loop, once, however many calls come in it."""
        if not self._dispatching:
            self._dispatching = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _is_free(self, turn: Turn | None) -> bool:
        """Whether no turn but this one is taken."""
        return not self._turns if turn is None else len(self._turns) == 1

    def _is_full(self, kind: _Kind) -> bool:
        """Whether no batch more of this kind may start."""
        batches = self._flying.get(kind)
        return batches is not None and len(batches) >= self._lanes

    def _share(self, kind: _Kind, waiting: int) -> int:
        """How many calls the next batch may have, so that all lanes have as many."""
        return -(-(waiting + sum(map(len, self._flying.get(kind, ())))) // self._lanes)

    def _landed(self, kind: _Kind, keys: Collection[str]) -> None:
        self._remove(kind, keys)
        if self._pending:
            self._dispatch()

    def _remove(self, kind: _Kind, keys: Collection[str]) -> None:
        batches = self._flying.get(kind, [])
        if keys in batches:  # else all was reset meanwhile
            batches.remove(keys)
            if not batches:
                del self._flying[kind]

    def _dispatch(self) -> None:
        """Starts all waiting calls that may start, in the order in which they came."""
        self._dispatching = False
        kinds = {call.kind for call in self._pending}
        if len(kinds) == 1 and "turn" not in kinds and not self._turns and not (self._flying and self._flying.keys() != kinds):
            [kind] = kinds
            self._dispatch_alike(kind)
        else:
            self._dispatch_unlike()

    def _dispatch_alike(self, kind: _Kind) -> None:
        """Where all that wait, and all that fly, are of one kind, as most often in a crowd."""
        while self._pending and not self._is_full(kind):
            # Of calls that this batch must not pass.
            held: set[str] = set().union(*self._flying.get(kind, ())) if kind == "write" else set()
            calls: list[_Call[Any]] = []
            waiting: list[_Call[Any]] = []
            room, share = MAX_BATCH_KEYS, self._share(kind, len(self._pending))
            while self._pending and room > 0 and len(calls) < share:
                call = self._pending.popleft()
                if call.done.done():  # cancelled before it began
                    continue
                if held and not held.isdisjoint(call.keys or ()):
                    waiting.append(call)
                    held.update(call.keys or ())
                    continue
                calls.append(call)
                room -= _weight(call)
            self._pending.extendleft(reversed(waiting))
            if not calls:
                return
            self._start(kind, calls)

    def _dispatch_unlike(self) -> None:
        # Of earlier calls; stuck: written by one that a write must not pass.
        read, written, stuck = _Keys(), _Keys(), _Keys()
        flying = self._flying
        for one, held in [(one, held) for one, batches in flying.items() for held in batches]:
            (written if one == "write" else read).add(held)
            if one == "write":
                stuck.add(held)
        for turn in self._turns:
            if turn.mutates:
                written.add(turn.keys)
                stuck.add(turn.keys)
            elif turn.keys is not None:  # a listing holds nobody up
                read.add(turn.keys)
        batches: dict[_Kind, list[_Call[Any]]] = {"read": [], "has": [], "write": []}
        kinds = Counter(call.kind for call in self._pending)
        share = {kind: 0 if self._is_full(kind) else self._share(kind, kinds[kind]) for kind in batches}
        room: dict[_Kind, int] = dict.fromkeys(batches, MAX_BATCH_KEYS)
        waiting: deque[_Call[Any]] = deque()
        for call in self._pending:
            if call.done.done():  # cancelled before it began
                continue
            kind, keys, mutates = call.kind, call.keys, call.mutates
            if keys is None or kind == "turn":
                start = not (written.touches(keys) or (mutates and read.touches(keys)))
                if start:
                    self._turns.append(call)
                    call.done.set_result(None)
                if mutates:
                    written.add(keys)
                    stuck.add(keys)
                elif keys is not None or not start:
                    read.add(keys)
            elif mutates:
                free = call.turn or (not (read.all or stuck.all) and read.some.isdisjoint(keys) and stuck.some.isdisjoint(keys))
                start = bool(free) and len(batches[kind]) < share[kind] and room[kind] > 0
                written.some.update(keys)
                if not start:
                    stuck.some.update(keys)
            else:
                free = call.turn or (not written.all and written.some.isdisjoint(keys))
                start = bool(free) and len(batches[kind]) < share[kind] and room[kind] > 0
                read.some.update(keys)
            if not start:
                waiting.append(call)
            elif kind != "turn":
                batches[kind].append(call)
                room[kind] -= _weight(call)
        self._pending = waiting
        for kind, calls in batches.items():
            if calls:
                self._start(kind, calls)
        if any(calls and kinds[kind] > len(calls) and not self._is_full(kind) for kind, calls in batches.items()):
            self._dispatch_unlike()

    def _start(self, kind: _Kind, calls: list[_Call[Any]]) -> None:
        self._crowded = len(calls) > 1
        keys = {key for call in calls for key in call.keys or ()}
        self._flying.setdefault(kind, []).append(keys)
        task = asyncio.get_running_loop().create_task(self._fly(kind, calls, keys))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fly(self, kind: _Kind, calls: list[_Call[Any]], keys: Collection[str]) -> None:
        try:
            outcomes = await self._run(kind, calls)
        except Exception as error:
            outcomes = await self._run_singly(kind, calls, backend_error(error))
        finally:
            self._remove(kind, keys)
        if len(self._pending) >= len(calls):  # else it waits for those who are answered now, and may come again
            self._dispatch()
        if kind == "write" and self._notify is not None:
            for call, outcome in zip(calls, outcomes, strict=True):
                if isinstance(outcome, list):
                    self._notify(call.writes, outcome)
        for place, (call, outcome) in enumerate(zip(calls, outcomes, strict=True), start=1):
            if not call.done.done():
                if isinstance(outcome, Exception):
                    call.done.set_exception(backend_error(outcome))
                else:
                    call.done.set_result(outcome)
            if place % ANSWERS_PER_PASS == 0:  # or a thousand tasks would all go on in one pass
                await asyncio.sleep(0)
        if self._pending:
            self._dispatch_soon()

    async def _run(self, kind: _Kind, calls: Sequence[_Call[Any]]) -> Sequence[Any]:
        if kind == "write":
            return await self._run_writes(calls)
        keys = list(dict.fromkeys(key for call in calls for key in call.keys or ()))
        ask: Callable[[Sequence[str]], Awaitable[list[Any]]] = self._driver.read if kind == "read" else self._driver.has
        found = dict(zip(keys, await ask(keys), strict=True))
        return [[found[key] for key in call.keys or ()] for call in calls]

    async def _run_singly(self, kind: _Kind, calls: Sequence[_Call[Any]], error: KVStoreError) -> Sequence[Any]:
        """After a batch failed: once more one by one, so that a fault of one call is its own. A dead backend is everyone's."""
        if len(calls) == 1 or isinstance(error, BackendUnavailable | BackendTimeout):
            return [error] * len(calls)
        outcomes: list[Any] = []
        for call in calls:
            try:
                outcomes += await self._run(kind, [call])
            except Exception as single:
                outcomes.append(backend_error(single))
        return outcomes

    async def _run_writes(self, calls: Sequence[_Call[Any]]) -> list[Any]:
        """Runs of plain writes become one each, where the last write of a key wins and all its callers are answered."""
        plain = [call.writes[0] for call in calls if call.expect is None and len(call.writes) == 1]
        if len(plain) == len(calls) == len({key for key, _, _ in plain}):
            return [[was_there] for was_there in await self._driver.write(plain) or ()]
        batches: list[Batch] = []
        answers: list[tuple[int, list[int | bool]]] = []  # per call: its batch, and per write the place in it or the answer
        places: dict[str, int] = {}
        merged: list[Write] | None = None
        for call in calls:
            if call.expect is not None:
                batches.append((call.writes, call.expect))
                answers.append((len(batches) - 1, []))
                merged = None
                continue
            if merged is None:
                merged, places = [], {}
                batches.append((merged, None))
            places_of: list[int | bool] = []
            for write in call.writes:
                place = places.get(write[0])
                if place is None:
                    places[write[0]] = len(merged)
                    places_of.append(len(merged))
                    merged.append(write)
                else:
                    places_of.append(merged[place][1] is not None)
                    merged[place] = write
            answers.append((len(batches) - 1, places_of))
        if len(batches) == 1:
            results: Sequence[list[bool] | KVStoreError | None] = [await self._driver.write(*batches[0])]
        else:
            results = await self._driver.write_many(batches)
        outcomes: list[Any] = []
        for call, (batch, places_of) in zip(calls, answers, strict=True):
            result = results[batch]
            if call.expect is None and isinstance(result, list):
                result = [place if isinstance(place, bool) else result[place] for place in places_of]
            outcomes.append(result)
        return outcomes


def backend_error(error: Exception) -> KVStoreError:
    """`error` as one of the tree; what a driver let through is a `BackendError` that it caused."""
    if isinstance(error, KVStoreError):
        return error
    wrapped = BackendError(f"the backend failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def goes_with(driver: Driver, now: str, later: str) -> bool:
    """Whether the class that has the method `now` has `later` too. One that overrides `later` alone is not passed by."""
    places = [next(place for place, cls in enumerate(type(driver).__mro__) if name in vars(cls)) for name in (now, later)]
    return places[0] <= places[1]


def _apart(batches: Iterable[Collection[str]], keys: Sequence[str]) -> bool:
    return not any(key in held for held in batches for key in keys)


def _weight(call: _Call[Any]) -> int:
    """The share of a batch that a call takes, so that neither many keys nor large values make a batch too long."""
    if not call.writes:
        return len(call.keys or ())
    if len(call.writes) == 1:
        return 1 + len(call.writes[0][1] or b"") // _BYTES_PER_KEY
    size = sum(len(data) for _, data, _ in call.writes if data is not None)
    return max(len(call.writes), size // _BYTES_PER_KEY)
