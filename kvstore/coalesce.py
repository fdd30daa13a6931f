"""Coalescing: what is called while a batch is in flight makes up the next one. Once, for every driver.

Idle, a call goes straight through to the driver in its caller's task. Busy, calls wait in the order in which they came;
whenever a batch ends, all that may start now start together: reads as one `read`, writes as one `write`. A call may start
when no earlier, unfinished call concerns the same key and one of the two writes; so calls on one key take effect in order.

A write whose caller is cancelled never happens after a later call: it goes on in a task of its own, or else its driver says
when it can't happen any more (`Driver.settle`), and what comes later on its keys waits for that.

A driver may have several lanes: then a crowd is parted among them, so that neither it nor its server waits idle for the other.
After a batch of several calls the next one waits for the end of its pass of the event loop, for those who were answered
together mostly come again together: a crowd that sent its first call ahead would make two round trips of every one.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from asyncio import get_running_loop
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import chain, islice
from typing import Any, TypeVar

from kvstore.answers import mistake
from kvstore.batches import MAX_BATCH_KEYS, Again, Call, Kind, carry_out
from kvstore.clock import Clock
from kvstore.driver import NOT_NOW, Driver, Expect, NotNow, Tell, Write
from kvstore.errors import BackendError, BackendUnavailable, KVStoreError, UnsupportedOperation, backend_error

ANSWERS_PER_PASS = 200
_WINDOW = 500
"""How many of the waiting calls are looked at to see which may start: or each batch of a crowd on one key would look at all."""
_ROUNDED = 2
"""Milliseconds that two readings of a clock may differ by for their rounding."""

_log = logging.getLogger("kvstore")

Turn = Call[None]
T = TypeVar("T")
R = TypeVar("R")


class Coalescer:
    """One driver's calls, connected once, batched, in order. Errors that escape the driver become `BackendError`."""

    def __init__(self, driver: Driver, connected: Callable[[], None]) -> None:
        self._driver = driver
        self._lanes = driver.lanes
        self._settles = goes_with(driver, "settle", "write")
        self._puts = goes_with(driver, "put", "write")
        self._shields = not (driver.cancellable and self._settles)
        self._read_now = driver.read_now if goes_with(driver, "read_now", "read") else None
        self._write_now = driver.write_now if goes_with(driver, "write_now", "write") else None
        self._connected = connected
        self._notify: Tell | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._claim = threading.Lock()  # two threads may come first at one moment
        self._left = False  # an event loop ended in the middle of something, or a driver was cancelled
        self._reset()

    def _reset(self) -> None:
        self._pending: deque[Call[Any]] = deque()
        self._flying: dict[Kind, list[Collection[str]]] = {}  # by kind the keys of each batch in flight
        self._turns: dict[Turn, None] = {}
        # Writes that were cancelled, each with the keys of its call. They are settled once somebody waits for them, for at the
        # end of an event loop nobody does.
        self._unsettled: list[tuple[Sequence[Write], Collection[str]]] = []
        # By key the last turn, active or waiting, where nothing else waits: one that comes now follows it directly.
        self._last: dict[str, Turn] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._turn_over: asyncio.Future[None] | None = None  # what closing waits for
        self._dispatching = False
        self._crowded = False  # the last batch had several calls

    def on_write(self, notify: Tell | None) -> None:
        """`notify` is called with each batch of writes that took effect, once its caller may know."""
        self._notify = notify

    # The calls

    def read_now(self, key: str) -> bytes | NotNow | Awaitable[list[bytes | None]] | None:
        """`Driver.read_now`, where nothing is under way. In a crowd what to wait for, without a coroutine on the way."""
        loop = self._loop
        if loop is None or loop is not get_running_loop():
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
        return self._queued(Call("read", (key,), loop.create_future()))

    def write_now(self, key: str, data: bytes, expires_at: int | None) -> bool | Awaitable[object]:
        """`Driver.write_now`, where nothing is under way and nobody watches. Else what to wait for, or False."""
        loop = self._loop
        if loop is None or loop is not get_running_loop():
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
            return self._started(Call("write", (key,), loop.create_future(), True, ((key, data, expires_at),)))
        call = Call("write", (key,), loop.create_future(), True, ((key, data, expires_at),), blind=self._puts)
        return self._queued(call)

    def read(self, keys: Sequence[str], *, turn: Turn | None = None) -> Coroutine[Any, Any, list[bytes | None]]:
        return self._look("read", self._driver.read, keys, turn)

    def has(self, keys: Sequence[str]) -> Coroutine[Any, Any, list[bool]]:
        return self._look("has", self._driver.has, keys, None)

    async def _look(
        self, kind: Kind, ask: Callable[[Sequence[str]], Awaitable[list[T]]], keys: Sequence[str], turn: Turn | None
    ) -> list[T]:
        if self._has_to_wait(kind, keys, turn):
            return await self._queued(Call(kind, keys, self._future(), turn=turn))
        self._flying.setdefault(kind, []).append(keys)
        try:
            answers = await ask(keys)
            # As `mistake` does, which is only asked then: the call would take 1 % of a get.
            if (answers.__class__ is not list or len(answers) != len(keys)) and (wrong := mistake(kind, answers, keys)):
                raise wrong
            return answers
        except Exception as error:
            raise (known := backend_error(error)) from known.__cause__
        finally:
            self._landed(kind, keys)

    async def write(
        self, writes: Sequence[Write], expect: Expect | None = None, *, turn: Turn | None = None, again: Again | None = None
    ) -> list[bool] | None:
        """`again`: what is still to be tried where `expect` did not hold, before any later call on the same keys."""
        # Where somebody watches, the write runs in a task of its own, so that a cancelled caller's change is told too.
        if self._shields or self._notify is not None:
            return await self.write_soon(writes, expect, turn=turn, again=again)
        keys = _keys(writes, expect)
        if self._has_to_wait("write", keys, turn):
            return await self._queued(Call("write", keys, self._future(), True, writes, expect, turn, again))
        self._flying.setdefault("write", []).append(keys)
        is_over = True
        try:
            found = await self._driver.write(writes, expect)
            if found is None and again is not None:
                found = await again(self._driver.read, self._driver.write, writes)
            if (found is not None or expect is None) and (wrong := mistake("write", found, writes)) is not None:
                raise wrong
            if self._notify is not None and found is not None:  # since it began
                self._notify(writes, found)
            return found
        except asyncio.CancelledError:
            is_over = False
            self._unsettled.append((writes, keys))
            if self._notify is not None:
                self._settle()
            elif self._pending:
                self._dispatch_soon()
            raise
        except Exception as error:
            raise (known := backend_error(error)) from known.__cause__
        finally:
            if is_over:
                self._landed("write", keys)

    def _settle(self) -> None:
        """What was cancelled, before whoever waits for it goes on."""
        cancelled, self._unsettled = self._unsettled, []
        self._task(self._settled(cancelled))

    async def _settled(self, cancelled: list[tuple[Sequence[Write], Collection[str]]]) -> None:
        try:
            await self._driver.settle()
            for writes, _ in cancelled:
                if self._notify is not None:  # since they began, so what took effect has to be told
                    found = await self._driver.read([key for key, _, _ in writes])
                    done = [write for write, data in zip(writes, found, strict=True) if data == write[1]]
                    self._notify(done, [True] * len(done))
        except Exception as error:  # nobody waits for this
            _log.warning("%s: a cancelled write could not be settled: %s", self._driver.name, error)
        finally:
            for _, keys in cancelled:
                self._landed("write", keys)

    # The same, in their place in the order from now on, whenever they are waited for

    def read_soon(self, keys: Sequence[str]) -> asyncio.Future[list[bytes | None]]:
        return self._begun(Call("read", keys, self._future()))

    def write_soon(
        self,
        writes: Sequence[Write],
        expect: Expect | None = None,
        *,
        turn: Turn | None = None,
        again: Again | None = None,
        blind: bool = False,
    ) -> asyncio.Future[list[bool] | None]:
        blind = blind and self._puts
        return self._begun(Call("write", _keys(writes, expect), self._future(), True, writes, expect, turn, again, blind))

    def run_soon(self, work: Callable[[], Awaitable[T]], keys: Sequence[str] | None) -> asyncio.Future[T]:
        """A call that changes something and can't be merged. It goes to its end, whoever stops waiting for it."""
        turn = self._taken(keys, mutates=True)

        async def run() -> T:
            try:
                await turn.done
                return await work()
            except asyncio.CancelledError:
                self._left = True
                raise
            finally:
                self._end(turn)

        task = self._task(run())
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # maybe nobody waits for it any more
        return asyncio.shield(task)

    # Calls that can't be merged

    async def run(self, work: Callable[[], Awaitable[T]], keys: Sequence[str] | None, *, mutates: bool) -> T:
        if mutates:
            return await self.run_soon(work, keys)
        async with self.turn(keys, mutates=False):
            return await work()

    @asynccontextmanager
    async def turn(self, keys: Sequence[str] | None, *, mutates: bool) -> AsyncIterator[Turn]:
        """Inside, nothing earlier on `keys` (None: any) is under way.

        If it mutates, later calls on them wait for its end, but for those that are given the turn.
        """
        turn = self._taken(keys, mutates=mutates)
        try:
            await turn.done
            yield turn
        finally:
            self._end(turn)

    def _taken(self, keys: Sequence[str] | None, *, mutates: bool) -> Turn:
        """A turn that is there when it is `done`."""
        connected = self._is_connected()
        turn: Turn = Call("turn", keys, self._future(), mutates)
        key = keys[0] if mutates and keys is not None and len(keys) == 1 else None
        if key is not None and (last := self._last.get(key)) is not None:
            last.then = turn
        elif connected and not (self._pending or self._turns or self._flying):
            self._turns[turn] = None
            turn.done.set_result(None)
        else:
            self._pending.append(turn)
            self._dispatch_soon()
        if key is None:
            self._last.clear()
        else:
            self._last[key] = turn
        return turn

    def _end(self, turn: Turn) -> None:
        """Of a turn that was taken, or is not waited for any more."""
        if turn in self._turns:  # else it is passed by where it waits
            del self._turns[turn]
            following = self._alive(turn)
            if following is not None and self._is_written(following.keys or ()):  # by a cancelled call of the turn
                self._pending.appendleft(following)
            elif following is not None:
                self._turns[following] = None
                following.done.set_result(None)
        if self._turn_over is not None and not self._turn_over.done():
            self._turn_over.set_result(None)
        if self._pending:
            self._dispatch_soon()

    def _alive(self, turn: Turn) -> Turn | None:
        """The first of `turn` and those that follow it that is neither over nor cancelled."""
        while turn.done.done():
            if turn.then is None:
                if turn.keys and self._last.get(turn.keys[0]) is turn:
                    del self._last[turn.keys[0]]
                return None
            turn = turn.then
        return turn

    async def aclose(self, *, close: bool = True) -> None:
        """Waits for what is under way, then closes the driver, unless `close` is False."""
        here = asyncio.get_running_loop()
        if self._loop not in (None, here) or (self._connecting is not None and self._connecting.get_loop() is not here):
            self._move()
        if self._connecting is not None:
            await asyncio.wait([self._connecting])
        while self._pending or self._flying or self._turns:
            async with self.turn(None, mutates=True):
                pass
            if self._turns:  # listings, which hold nobody up but this
                self._turn_over = self._future()
                await self._turn_over
        if not close:
            return
        try:
            await self._driver.aclose()
        except Exception as error:
            raise (known := backend_error(error)) from known.__cause__

    # Connecting

    def _is_connected(self) -> bool:
        """In this event loop. If not, that begins now, and what comes meanwhile waits in its order like any other call."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return True
        with self._claim:
            if self._connecting is None or self._connecting.get_loop() is not loop:
                self._move()
                self._connecting = loop.create_task(self._connect(loop))
        return False

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        """Whose failure is that of all who wait."""
        clock, began = self._driver.clock, time.monotonic()
        before = clock()
        try:
            await self._driver.connect()
            moved = clock() - before - round((time.monotonic() - began) * 1000)
            if isinstance(clock, Clock) and abs(moved) > _ROUNDED:  # a server has set it
                self._postpone(moved)
            if self._left and self._settles:
                await self._driver.settle()
            self._loop, self._left = loop, False
            self._connected()
        except (Exception, asyncio.CancelledError) as error:
            known = backend_error(error if isinstance(error, Exception) else BackendUnavailable("connecting was cancelled"))
            waiting, self._pending = self._pending, deque()
            self._last.clear()
            for call in waiting:
                one: Call[Any] | None = call
                while one is not None:
                    if not one.done.done():
                        one.done.set_exception(known)
                    one = one.then
        finally:
            if self._connecting is not None and self._connecting.get_loop() is loop:  # it may end after its event loop
                self._connecting = None
        self._dispatch()

    def _postpone(self, moved: int) -> None:
        """By how many milliseconds the clock is another one than that by which those who wait said when a value expires."""
        for call in self._pending:
            call.writes = [(key, data, at if at is None else at + moved + _ROUNDED) for key, data, at in call.writes]

    def _move(self) -> None:
        """Leaves the event loop that was used before, which has to be over."""
        loops = [self._loop] if self._connecting is None else [self._loop, self._connecting.get_loop()]
        for loop in loops:
            if loop is not None and loop.is_running() and loop is not asyncio.get_running_loop():
                raise UnsupportedOperation(
                    "this storage is in use by another event loop that is running; give each thread a storage of its own"
                )
        self._loop = self._connecting = None
        self._left = self._left or bool(self._flying or self._turns)
        self._reset()

    # Batching

    def _future(self) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    def _begun(self, call: Call[R]) -> asyncio.Future[R]:
        """What the call is answered, in its place in the order from now on."""
        return self._queued(call) if self._has_to_wait(call.kind, call.keys or (), call.turn) else self._started(call)

    def _queued(self, call: Call[R]) -> asyncio.Future[R]:
        if call.turn is not None:  # which has its keys, and others wait for its end: so before them all
            self._pending.appendleft(call)
        else:
            self._pending.append(call)
            if self._last:
                self._last.clear()
        if not self._dispatching and (self._unsettled or not self._is_full(call.kind)):
            self._dispatch_soon()
        return call.done

    def _started(self, call: Call[R]) -> asyncio.Future[R]:
        self._start(call.kind, [call])
        return call.done

    def _dispatch_soon(self) -> None:
        """At the end of this pass of the event loop, once, however many calls come in it."""
        if not self._dispatching:
            self._dispatching = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _has_to_wait(self, kind: Kind, keys: Sequence[str], turn: Turn | None) -> bool:
        """Whether a call may not start now: for others before it, for a crowd to gather, or for a lane."""
        if not self._is_connected() or self._pending or (self._crowded and turn is None):
            return True
        if self._turns if turn is None else len(self._turns) > 1:
            return True
        if not self._flying:
            return False
        barring = self._flying.values() if kind == "write" else [self._flying.get("write", ())]
        return self._is_full(kind) or any(key in held for batches in barring for held in batches for key in keys)

    def _is_full(self, kind: Kind) -> bool:
        """Whether no batch more of this kind may start."""
        batches = self._flying.get(kind)
        return batches is not None and len(batches) >= self._lanes

    def _share(self, kind: Kind, waiting: int) -> int:
        """How many calls the next batch may have, so that all lanes have as many."""
        return -(-(waiting + sum(map(len, self._flying.get(kind, ())))) // self._lanes)

    def _is_written(self, keys: Iterable[str]) -> bool:
        return any(key in held for held in self._flying.get("write", ()) for key in keys)

    def _landed(self, kind: Kind, keys: Collection[str]) -> None:
        self._remove(kind, keys)
        if self._pending and self._loop is not None and self._loop.is_running():  # else it ended in the middle
            self._dispatch()

    def _remove(self, kind: Kind, keys: Collection[str]) -> None:
        batches = self._flying.get(kind, ())
        if len(batches) == 1 and batches[0] is keys:  # as most often, which takes 0.1 µs less
            del self._flying[kind]
        elif others := [held for held in batches if held is not keys]:
            self._flying[kind] = others
        else:
            self._flying.pop(kind, None)

    def _dispatch(self) -> None:
        """Starts all waiting calls that may start, in the order in which they came."""
        self._dispatching = False
        if self._connecting is not None or not self._pending:
            return
        if self._unsettled and not all(call.done.done() for call in self._pending):
            self._settle()
        kinds = {call.kind for call in islice(self._pending, _WINDOW)}
        if len(kinds) == 1 and "turn" not in kinds and not self._turns and not (self._flying and self._flying.keys() != kinds):
            [kind] = kinds
            self._dispatch_alike(kind)
        else:
            self._dispatch_unlike()
        if self._pending and not (self._flying or self._turns):  # all that was looked at had been cancelled
            self._dispatch_soon()

    def _dispatch_alike(self, kind: Kind) -> None:
        """Where all that wait, and all that fly, are of one kind, as in most crowds. A call takes 0.3 to 1 µs less."""
        pending = self._pending
        while pending and not self._is_full(kind):
            # Of calls that this batch must not pass.
            held: set[str] = set().union(*self._flying.get(kind, ())) if kind == "write" else set()
            calls: list[Call[Any]] = []
            waiting: list[Call[Any]] = []
            room, share = MAX_BATCH_KEYS, self._share(kind, len(pending))
            while pending and room > 0 and len(calls) < share:
                call = pending.popleft()
                if call.kind != kind:
                    waiting.append(call)
                    break
                if call.done.done():  # cancelled before it began
                    continue
                if held and not held.isdisjoint(call.keys or ()):
                    waiting.append(call)
                    if len(waiting) >= _WINDOW:
                        break
                    held.update(call.keys or ())
                    continue
                calls.append(call)
                room -= call.weight
                if call.again is not None:
                    held.update(call.keys or ())
            pending.extendleft(reversed(waiting))
            if not calls:
                return
            self._start(kind, calls)

    def _dispatch_unlike(self) -> None:
        flying, turns = self._flying, len(self._turns)
        # The keys of earlier calls; stuck: written by one that a write must not pass.
        written = set(chain.from_iterable(flying.get("write", ())))
        stuck = set(written)
        read = set(chain.from_iterable([*flying.get("read", ()), *flying.get("has", ())]))
        # By a call on any key: one that changes something lets nothing pass, a listing that has to wait no writes.
        is_barred = is_listed = False
        for turn in self._turns:
            if turn.keys is None:
                is_barred = is_barred or turn.mutates
            elif turn.mutates:
                written.update(turn.keys)
                stuck.update(turn.keys)
            else:
                read.update(turn.keys)
        batches: dict[Kind, list[Call[Any]]] = {"read": [], "has": [], "write": []}
        rest = self._pending
        window = [rest.popleft() for _ in range(min(_WINDOW, len(rest)))]
        kinds = Counter([call.kind for call in window])
        share = {kind: 0 if self._is_full(kind) else self._share(kind, kinds[kind]) for kind in batches}
        room: dict[Kind, int] = dict.fromkeys(batches, MAX_BATCH_KEYS)
        waiting: list[Call[Any]] = []
        for call in window:
            if call.done.done():  # cancelled before it began
                if call.kind != "turn" or (alive := self._alive(call)) is None:
                    continue
                call = alive
            kind, mutates, keys = call.kind, call.mutates, call.keys
            if is_barred and call.turn is None:
                waiting.append(call)
                continue
            if mutates:
                start = not (is_listed or _touches(read, keys) or _touches(written if kind == "turn" else stuck, keys))
            else:
                start = not _touches(written, keys)
            if kind == "turn":
                start = start and len(self._turns) < turns + ANSWERS_PER_PASS
            else:
                start = (start or call.turn is not None) and len(batches[kind]) < share[kind] and room[kind] > 0
            if keys is None:
                is_barred = mutates
                is_listed = is_listed or not (mutates or start)
            elif mutates:
                written.update(keys)
                if not start or kind == "turn" or call.again is not None:
                    stuck.update(keys)
            else:
                read.update(keys)
            if not start:
                waiting.append(call)
            elif kind == "turn":
                self._turns[call] = None
                call.done.set_result(None)
            else:
                batches[kind].append(call)
                room[kind] -= call.weight
        rest.extendleft(reversed(waiting))
        if self._pending and len(self._turns) >= turns + ANSWERS_PER_PASS:
            self._dispatch_soon()
        for kind, calls in batches.items():
            if calls:
                self._start(kind, calls)
        if any(calls and kinds[kind] > len(calls) and not self._is_full(kind) for kind, calls in batches.items()):
            self._dispatch_unlike()

    def _start(self, kind: Kind, calls: list[Call[Any]]) -> None:
        self._crowded = len(calls) > 1
        keys = dict.fromkeys(chain.from_iterable([call.keys or () for call in calls]))
        self._flying.setdefault(kind, []).append(keys)
        self._task(self._fly(kind, calls, keys))

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _fly(self, kind: Kind, calls: list[Call[Any]], keys: dict[str, None]) -> None:
        outcomes: Sequence[Any]
        try:
            try:
                outcomes = await carry_out(self._driver, kind, calls, keys)
            except asyncio.CancelledError as error:  # by the driver itself, or at the end of the event loop
                outcomes = [_known(error)] * len(calls)
                self._left = True
            finally:
                self._remove(kind, keys)
            if len(self._pending) >= len(calls):  # else it waits for those who are answered now, and may come again
                self._dispatch()
            if kind == "write" and self._notify is not None:
                for call, outcome in zip(calls, outcomes, strict=True):
                    if isinstance(outcome, list):
                        self._notify(call.writes, outcome)
            for start in range(0, len(calls), ANSWERS_PER_PASS):
                if start:  # or a thousand tasks would all go on in one pass
                    await asyncio.sleep(0)
                end = start + ANSWERS_PER_PASS
                for call, outcome in zip(calls[start:end], outcomes[start:end], strict=True):
                    done = call.done
                    if not done.done():
                        if isinstance(outcome, Exception):
                            done.set_exception(backend_error(outcome))
                        else:
                            done.set_result(outcome)
        except (Exception, asyncio.CancelledError) as error:  # whatever it was, nobody waits for ever
            for call in calls:
                if not call.done.done():
                    call.done.set_exception(_known(error))
            raise
        finally:
            if self._pending and self._loop is not None and self._loop.is_running():  # else it ended in the middle
                self._dispatch_soon()


def _known(error: BaseException) -> KVStoreError:
    if isinstance(error, Exception):
        return backend_error(error)
    return BackendError("the call was cancelled by the driver; whether it was done is not known")


def goes_with(driver: Driver, now: str, later: str) -> bool:
    """Whether the class that has the method `now` has `later` too. One that overrides `later` alone is not passed by."""
    places = [next(place for place, cls in enumerate(type(driver).__mro__) if name in vars(cls)) for name in (now, later)]
    return places[0] <= places[1]


def _touches(held: set[str], keys: Sequence[str] | None) -> bool:
    """Whether one of `keys` is held; None: any."""
    return bool(held) if keys is None else not held.isdisjoint(keys)


def _keys(writes: Sequence[Write], expect: Expect | None) -> Sequence[str]:
    keys = (writes[0][0],) if len(writes) == 1 else [key for key, _, _ in writes]
    return [*keys, *expect] if expect else keys
