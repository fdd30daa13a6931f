"""Coalescing: what is called while a batch is in flight makes up the next one; faults and cancellation stay each caller's."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from fakes import Queued
from running import in_loop

from kvstore import (
    MISSING,
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    CorruptValueError,
    Event,
    Storage,
    create_storage,
)
from kvstore.clock import Clock
from kvstore.driver import Batch, Expect, Write
from kvstore.drivers.memory import MemoryDriver
from kvstore.drivers.sqlite import SqliteDriver
from kvstore.errors import KVStoreError


class Recording(Queued):
    """Writes down its calls, and does none before its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[str]]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fault: Exception | None = None
        self.bad: dict[str, Exception] = {}
        self.connects = 0

    async def connect(self) -> None:
        self.connects += 1
        await self.before("connect", [])

    async def before(self, call: str, keys: Sequence[str]) -> None:
        self.calls.append((call, list(keys)))
        await self.gate.wait()
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault
        for key in keys:
            if key in self.bad:
                raise self.bad[key]

    async def write_many(self, batches: Sequence[Batch]) -> list[list[bool] | KVStoreError | None]:
        self.calls.append(("write many", [str(len(writes)) for writes, _ in batches]))
        return await super().write_many(batches)

    def since(self) -> list[tuple[str, list[str]]]:
        """The calls since it was last asked."""
        calls, self.calls = self.calls, []
        return calls


async def _busy(driver: Recording, kind: str = "read") -> tuple[Storage, asyncio.Task[object]]:
    """A connected storage with a call in flight that ends when the gate opens."""
    storage = create_storage(driver)
    await storage.set_items({f"k{number}": number for number in range(10)})
    driver.since()
    driver.gate.clear()
    first: asyncio.Task[object] = asyncio.create_task(
        storage.get_item("first") if kind == "read" else storage.set_item("first", 1)
    )
    await _settle()
    assert driver.since() == [("read" if kind == "read" else "write", ["first"])]
    return storage, first


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@in_loop
async def test_reads_that_wait_become_one() -> None:
    driver = Recording()
    storage, first = await _busy(driver)
    reads = [asyncio.create_task(storage.get_item(f"k{number % 4}")) for number in range(8)]
    many = asyncio.create_task(storage.get_items(["k9", "k0", "missing"]))
    await _settle()
    assert driver.since() == []

    driver.gate.set()
    assert await asyncio.gather(*reads) == [0, 1, 2, 3] * 2
    assert await many == {"k9": 9, "k0": 0, "missing": None}
    await first
    assert driver.since() == [("read", ["k0", "k1", "k2", "k3", "k9", "missing"])]


@in_loop
async def test_an_idle_call_goes_straight_through() -> None:
    driver = Recording()
    storage = create_storage(driver)
    for number in range(3):
        await storage.set_item("key", number)
        await storage.get_item("key")
        await storage.has_item("key")

    assert driver.since() == [("connect", []), *[("write", ["key"]), ("read", ["key"]), ("has", ["key"])] * 3]


@in_loop
async def test_writes_that_wait_become_one_where_the_last_of_a_key_wins() -> None:
    driver = Recording()
    driver.capabilities = replace(driver.capabilities, metadata=False)
    storage, first = await _busy(driver, "write")
    calls = [
        asyncio.create_task(storage.remove_item("k0")),
        asyncio.create_task(storage.remove_item("k0")),
        asyncio.create_task(storage.set_item("k0", "again")),
        asyncio.create_task(storage.remove_items(["k0", "k1", "missing"])),
        asyncio.create_task(storage.set_item("k0", "last")),
        asyncio.create_task(storage.set_items({"new": 1, "k2": "two"})),
    ]
    driver.gate.set()

    assert await asyncio.gather(first, *calls) == [None, True, False, None, 2, None, None]
    assert driver.since() == [("write", ["k0", "k1", "missing", "new", "k2"])]
    assert await storage.get_items(["k0", "k1", "k2", "new"]) == {"k0": "last", "k1": None, "k2": "two", "new": 1}


@in_loop
async def test_reads_and_writes_of_different_keys_do_not_wait_for_each_other() -> None:
    driver = Recording()
    storage, first = await _busy(driver, "write")
    read = asyncio.create_task(storage.get_item("k1"))
    await _settle()

    assert driver.since() == [("read", ["k1"])]
    driver.gate.set()
    assert await asyncio.gather(first, read) == [None, 1]


@in_loop
async def test_a_read_waits_for_an_earlier_write_of_its_key() -> None:
    driver = Recording()
    storage, first = await _busy(driver, "write")
    read = asyncio.create_task(storage.get_item("first"))
    listed = asyncio.create_task(storage.get_keys())
    await _settle()
    assert driver.since() == []

    driver.gate.set()
    assert await read == 1
    assert "first" in await listed
    await first


@in_loop
async def test_a_write_waits_for_an_earlier_read_of_its_key() -> None:
    driver = Recording()
    storage, first = await _busy(driver)
    write = asyncio.create_task(storage.set_item("first", "later"))
    await _settle()
    assert driver.since() == []

    driver.gate.set()
    assert await first is None
    await write
    assert await storage.get_item("first") == "later"


@in_loop
async def test_conditional_writes_are_not_merged_with_others() -> None:
    driver = Recording()
    storage, first = await _busy(driver, "write")
    calls = [
        asyncio.create_task(storage.set_item("a", 1)),
        asyncio.create_task(storage.set_item("b", 1)),
        asyncio.create_task(storage.add_item("a", 2)),
        asyncio.create_task(storage.compare_and_set("a", 1, 3)),
        asyncio.create_task(storage.set_item("c", 1)),
        asyncio.create_task(storage.add_item("d", 4)),
        asyncio.create_task(storage.set_item("a", 5)),
        asyncio.create_task(storage.set_item("e", 5)),
    ]
    driver.gate.set()

    assert await asyncio.gather(first, *calls) == [None, None, None, False, True, None, True, None, None]
    assert await storage.get_items(["a", "b", "c", "d", "e"]) == {"a": 5, "b": 1, "c": 1, "d": 4, "e": 5}
    calls_made = driver.since()
    assert calls_made[0] == ("write many", ["2", "1", "1", "1", "1", "1"])  # not what follows a condition on its key
    assert [keys for name, keys in calls_made if name == "write if"] == [["a"], ["a"], ["d"]]


@in_loop
async def test_one_calls_fault_is_its_own() -> None:
    driver = Recording()
    storage, first = await _busy(driver, "write")
    driver.bad = {"bad": ValueError("too large"), "torn": CorruptValueError("torn")}
    writes = [asyncio.create_task(storage.set_item(key, 1)) for key in ("a", "bad", "b")]
    reads = [asyncio.create_task(storage.get_item(key)) for key in ("k1", "torn", "k2")]
    driver.gate.set()

    written = await asyncio.gather(*writes, return_exceptions=True)
    found = await asyncio.gather(*reads, return_exceptions=True)
    await first
    assert (written[0], written[2], found[0], found[2]) == (None, None, 1, 2)
    assert isinstance(written[1], BackendError)
    assert (written[1].operation, written[1].key, written[1].mount, written[1].driver) == (
        "set_item",
        "bad",
        "",
        "test_coalesce",
    )
    assert isinstance(found[1], CorruptValueError)
    assert (found[1].operation, found[1].key) == ("get_item", "torn")
    assert await storage.get_items(["a", "b"]) == {"a": 1, "b": 1}


@in_loop
async def test_one_calls_fault_is_its_own_beside_conditions_too() -> None:
    driver = Recording()
    storage, first = await _busy(driver, "write")
    driver.bad = {"bad": CorruptValueError("torn")}
    calls = [asyncio.create_task(storage.set_item(key, 1)) for key in ("a", "bad", "b")]
    calls += [asyncio.create_task(storage.add_item(key, 2)) for key in ("b", "c")]
    driver.gate.set()

    outcomes = await asyncio.gather(first, *calls, return_exceptions=True)
    assert [outcomes[place] for place in (1, 5)] == [None, True]
    # What `b` was set to would come after its condition now, so that fails as its batch did.
    assert [type(outcome) for outcome in outcomes[2:4]] == [CorruptValueError] * 2
    assert outcomes[4] is True
    assert await storage.get_items(["a", "b", "c"]) == {"a": 1, "b": 2, "c": 2}


@in_loop
async def test_T1_what_waits_for_the_connection_expires_by_the_clock_that_the_server_sets() -> None:
    class Early(Recording):
        async def connect(self) -> None:
            await super().connect()
            self.clock.set(self.clock() + 3_600_000)  # type: ignore[attr-defined]

    driver = Early()
    driver.clock = Clock()
    storage = create_storage(driver)
    await asyncio.gather(storage.set_item("one", 1, ttl=600), storage.set_items({"two": 2}, ttl=600), storage.touch("one", 600))
    for key in ("one", "two"):
        meta = await storage.get_meta(key)
        assert meta is not None
        assert meta.expires_at is not None
        assert abs(meta.expires_at.timestamp() - time.time() - 4_200) < 5


@in_loop
async def test_calls_that_wait_for_the_connection_are_not_overtaken() -> None:
    """A3."""
    driver = Recording()
    driver.gate.clear()
    storage = create_storage(driver)
    calls = []
    for number in range(60):
        calls.append(asyncio.create_task(storage.set_item("key", number)))
        if number == 20:
            driver.gate.set()
        await asyncio.sleep(0)

    await asyncio.gather(*calls)
    assert await storage.get_item("key") == 59


@in_loop
async def test_thousands_of_calls_that_can_not_be_merged_cost_about_as_much_each_as_hundreds() -> None:
    """L2: neither those on one key, which follow each other, nor those on keys of their own."""
    driver = Recording()
    storage = create_storage(driver)
    passes: dict[tuple[int, bool], float] = {}
    for size in (500, 4_000, 500, 4_000):  # the better of two, for other work of the machine
        await storage.set_items({f"key:{number}": 0 for number in range(size)})
        for own in (False, True):
            before = time.process_time()

            async def update(number: int, own: bool = own) -> None:
                await storage.update_item(f"key:{number if own else 0}", lambda value: value + 1)

            await asyncio.gather(*(update(number) for number in range(size)))
            passes[size, own] = min(passes.get((size, own), 1.0), (time.process_time() - before) / size)
        assert await storage.get_item("key:0") == size + 1

    for own in (False, True):
        assert passes[4_000, own] < 4 * passes[500, own]


@in_loop
async def test_a_dead_backend_is_everyones_fault_and_each_error_names_its_own_key() -> None:
    driver = Recording()
    storage, first = await _busy(driver, "write")
    driver.fault = BackendUnavailable("gone")
    writes = [asyncio.create_task(storage.set_item(f"w{number}", 1)) for number in range(5)]
    reads = [asyncio.create_task(storage.get_item(f"k{number}")) for number in range(5)]
    driver.gate.set()

    outcomes = await asyncio.gather(*writes, *reads, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [BackendUnavailable] * 10
    assert [outcome.key for outcome in outcomes if isinstance(outcome, KVStoreError)] == [
        *(f"w{number}" for number in range(5)),
        *(f"k{number}" for number in range(5)),
    ]
    assert len(driver.since()) <= 3  # nobody asks it once more, one by one
    await asyncio.gather(first, return_exceptions=True)
    driver.fault = None
    assert await storage.get_item("k3") == 3


@in_loop
async def test_those_who_wait_for_a_key_are_not_forgotten_when_others_give_up() -> None:
    chance = Random(5)
    driver = Recording()
    storage = create_storage(driver)
    await storage.set_items({"a": 0, "b": 0})
    done = 0

    async def update(key: str) -> None:
        nonlocal done
        await storage.update_item(key, lambda value: value + 1)
        done += 1

    for _ in range(300):
        calls: list[asyncio.Task[object]] = []
        for _ in range(chance.randint(2, 8)):
            kind = chance.random()
            key = chance.choice("ab")
            if kind < 0.7:
                calls.append(asyncio.create_task(update(key)))
            elif kind < 0.8:
                calls.append(asyncio.create_task(storage.get_meta(key)))
            elif kind < 0.9:
                calls.append(asyncio.create_task(storage.get_item(key)))
            else:
                calls.append(asyncio.create_task(storage.count()))
            if chance.random() < 0.3:
                await asyncio.sleep(0)
            if chance.random() < 0.3:
                chance.choice(calls).cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(*calls, return_exceptions=True)
    async with asyncio.timeout(5):
        await storage.update_item("a", lambda value: value + 1)
        found = await storage.get_items(["a", "b"])
    assert sum(found.values()) >= done + 1


@in_loop
async def test_a_crowd_that_waits_for_a_key_does_not_hold_up_the_update_that_it_waits_for() -> None:
    driver = Recording()
    storage = create_storage(driver)
    await storage.set_item("key", 0)
    async with asyncio.timeout(20):
        updated, *_ = await asyncio.gather(
            storage.update_item("key", lambda value: value + 1), *(storage.set_item("key", number) for number in range(2_000))
        )
    assert (updated, await storage.get_item("key")) == (1, 1_999)


@pytest.mark.parametrize("first", ["reads", "reads and writes"])
@in_loop
async def test_those_behind_a_crowd_that_gave_up_are_not_forgotten(first: str) -> None:
    driver = Recording()
    storage, flying = await _busy(driver, "write")
    crowd: list[asyncio.Task[object]] = [
        asyncio.create_task(storage.get_item("first") if number % 100 or first == "reads" else storage.set_item("first", 1))
        for number in range(2_000)
    ]
    last = asyncio.create_task(storage.set_item("first", "last"))
    await _settle()
    for task in crowd:
        task.cancel()
    await _settle()
    driver.gate.set()
    async with asyncio.timeout(20):
        await asyncio.gather(flying, last)
    assert await storage.get_item("first") == "last"


@in_loop
async def test_a_failed_connect_is_told_to_those_too_who_wait_for_each_other() -> None:
    driver = Recording()
    storage = create_storage(driver)
    driver.fault = OSError("refused")
    updates = (storage.update_item("key", lambda value: (value or 0) + 1) for _ in range(5))
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(*updates, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [BackendError] * 5
        driver.fault = None
        assert await storage.update_item("key", lambda value: (value or 0) + 1) == 1


@in_loop
async def test_what_is_wrong_with_a_value_that_is_compared_is_no_fault_of_the_others() -> None:
    driver = Recording()
    storage, first = await _busy(driver, "write")
    async with storage.watch() as events:
        driver._entries |= {"torn": (b"not json", None, 0.0, None), "old": (b"1", None, 0.0, None)}
        calls = [
            asyncio.create_task(storage.add_item("new", 1)),
            asyncio.create_task(storage.remove_item("old")),
            asyncio.create_task(storage.compare_and_set("torn", {"a": 1}, 2)),
        ]
        driver.gate.set()
        outcomes = await asyncio.gather(first, *calls, return_exceptions=True)
        told = [(await anext(events)).key for _ in range(3)]
    assert outcomes[1:3] == [True, True]
    assert isinstance(outcomes[3], CorruptValueError)
    assert sorted(told) == ["first", "new", "old"]


@in_loop
async def test_a_fault_that_is_not_of_the_tree_is_its_own_calls_too() -> None:
    driver = Recording()
    storage, first = await _busy(driver, "write")
    driver.bad = {"bad": OSError("bad item")}
    calls = [asyncio.create_task(storage.add_item(key, 1)) for key in ("a", "bad", "b")]
    driver.gate.set()

    outcomes = await asyncio.gather(first, *calls, return_exceptions=True)
    assert [outcomes[1], outcomes[3]] == [True, True]
    assert isinstance(outcomes[2], BackendError)


@pytest.mark.parametrize("call", ["connect", "read", "write"])
@in_loop
async def test_a_driver_that_is_cancelled_inside_leaves_nobody_waiting(call: str) -> None:
    class Cancelled(Recording):
        async def before(self, called: str, keys: Sequence[str]) -> None:
            await super().before(called, keys)
            if called == call and not self.calls.count(("again", [])):
                raise asyncio.CancelledError

    driver = Cancelled()
    storage = create_storage(driver)
    async with asyncio.timeout(5):
        tasks = [storage.set_item("a", 1), storage.get_item("b"), storage.set_item("c", 1), storage.get_item("d")]
        await asyncio.gather(*tasks, return_exceptions=True)
        driver.calls.append(("again", []))
        await storage.set_item("a", 2)
        assert await storage.get_item("a") == 2


@in_loop
async def test_a_call_that_fails_after_its_caller_gave_up_is_no_error_that_nobody_retrieved() -> None:
    said: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context["message"]))
    driver = Recording()
    storage = create_storage(driver)
    await storage.set_item("key", 1)
    driver.gate.clear()
    touch = asyncio.create_task(storage.touch("key", 5))
    await _settle()
    touch.cancel()
    await _settle()
    driver.fault = OSError("late")
    driver.gate.set()
    await _settle()
    del touch
    gc.collect()
    await _settle()
    assert said == []


@in_loop
async def test_a_backend_that_does_not_answer_makes_a_crowd_of_conditions_wait_once() -> None:
    driver = Recording()
    storage, first = await _busy(driver, "write")
    adds = [asyncio.create_task(storage.add_item(f"new:{number}", 1)) for number in range(20)]
    driver.bad = {"new:3": BackendTimeout("no answer")}
    driver.gate.set()

    outcomes = await asyncio.gather(first, *adds, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[4:]] == [BackendTimeout] * 17
    assert [keys for name, keys in driver.since() if name == "write if"] == [[f"new:{number}"] for number in range(4)]


@in_loop
async def test_what_escapes_a_driver_is_a_backend_error_with_its_cause() -> None:
    driver = Recording()
    storage = create_storage(driver)
    await storage.set_item("key", 1)
    cause = OSError(28, "No space left on device")
    driver.fault = cause
    for operation, call in {
        "get_item": storage.get_item("key"),
        "set_item": storage.set_item("key", 1),
        "has_item": storage.has_item("key"),
        "add_item": storage.add_item("key", 1),
    }.items():
        with pytest.raises(BackendError, match="No space left") as caught:
            await call
        assert caught.value.__cause__ is cause
        assert (caught.value.operation, caught.value.key) == (operation, "key")


@in_loop
async def test_a_cancelled_caller_leaves_the_batch_to_the_others() -> None:
    driver = Recording()
    storage, first = await _busy(driver, "write")
    writes = [asyncio.create_task(storage.set_item(f"w{number}", number)) for number in range(4)]
    reads = [asyncio.create_task(storage.get_item("first")) for _ in range(3)]
    await _settle()
    writes[1].cancel()
    reads[1].cancel()
    await _settle()
    driver.gate.set()

    outcomes = await asyncio.gather(first, *writes, *reads, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(asyncio.CancelledError) == 2
    assert (outcomes[5], outcomes[7]) == (1, 1)
    assert ("write", ["w0", "w2", "w3"]) in driver.since()
    assert await storage.get_item("w1") is None


@in_loop
async def test_a_caller_cancelled_in_flight_leaves_its_batch_running() -> None:
    driver = Recording()
    storage, first = await _busy(driver)
    batch = [asyncio.create_task(storage.set_item(f"w{number}", number)) for number in range(3)]
    await _settle()
    batch[0].cancel()
    await _settle()
    driver.gate.set()

    await asyncio.gather(first, *batch, return_exceptions=True)
    assert await storage.get_items(["w1", "w2"]) == {"w1": 1, "w2": 2}


class Settling(Queued):
    """Whose write goes on when it is cancelled, as in a thread, and is over when the gate opens."""

    cancellable = True

    def __init__(self, fault: Exception | None = None) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.begun: list[asyncio.Future[list[bool] | None]] = []
        self.fault = fault

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        self.begun.append(asyncio.ensure_future(self._late(super().write(writes, expect))))
        return await asyncio.shield(self.begun[-1])

    async def _late(self, write: Coroutine[object, object, list[bool] | None]) -> list[bool] | None:
        await self.gate.wait()
        return await write

    async def settle(self) -> None:
        await asyncio.gather(*self.begun, return_exceptions=True)
        if self.fault is not None:
            raise self.fault


@pytest.mark.parametrize("fault", [None, BackendUnavailable("it can't be reached")])
@pytest.mark.parametrize("call", ["set_item", "compare_and_set", "update_item"])
@in_loop
async def test_A3_calls_on_the_key_of_a_cancelled_write_wait_until_its_driver_has_settled_it(
    call: str, fault: Exception | None
) -> None:
    driver = Settling(fault)
    storage = create_storage(driver)
    assert await storage.get_item("key") is None
    arguments = {"set_item": (1,), "compare_and_set": (MISSING, 1), "update_item": (lambda _: 1,)}[call]
    write = asyncio.create_task(getattr(storage, call)("key", *arguments))
    await _settle()
    write.cancel()
    await asyncio.wait([write], timeout=1)
    assert write.cancelled()

    assert await storage.get_item("other") is None
    later = [asyncio.create_task(storage.get_item("key")), asyncio.create_task(storage.get_keys())]
    await _settle()
    assert not any(task.done() for task in later)
    driver.gate.set()
    assert await asyncio.gather(*later) == [1, ["key"]]
    await storage.aclose()


@in_loop
async def test_what_can_not_be_settled_alone_is_never_cancelled() -> None:
    driver = Settling()
    driver.gate.set()
    storage = create_storage(driver)
    await storage.set_item("key", 1)
    touch = asyncio.create_task(storage.touch("key", 60))
    await asyncio.sleep(0)
    touch.cancel()
    await asyncio.wait([touch])
    meta = await storage.get_meta("key")
    assert meta is not None
    assert meta.expires_at is not None


@pytest.mark.parametrize("cancelled", [False, True])
@in_loop
async def test_W1_a_watch_is_told_of_a_write_that_was_under_way_when_it_began(cancelled: bool) -> None:
    driver = Settling()
    storage = create_storage(driver)
    await storage.get_item("key")
    write = asyncio.create_task(storage.set_item("key", 1))
    await _settle()
    async with storage.watch() as events, asyncio.timeout(5):
        if cancelled:
            write.cancel()
        await _settle()
        driver.gate.set()
        assert await anext(events) == Event("update", "key")
        await asyncio.wait([write])


class Forgetful(Recording):
    """Writes, and then loses the answer."""

    forgets = False

    async def write_many(self, batches: Sequence[Batch]) -> list[list[bool] | KVStoreError | None]:
        found = await super().write_many(batches)
        if self.forgets:
            raise BackendError("the answer is lost", maybe_written=True)
        return found


@in_loop
async def test_what_may_have_been_written_is_not_tried_again_and_answered_wrongly() -> None:
    """A2, E1: else who added a key would be told that it was there."""
    driver = Forgetful()
    storage, first = await _busy(driver, "write")
    adds = [asyncio.create_task(storage.add_item(f"new{number}", number)) for number in range(3)]
    await _settle()
    driver.forgets = True
    driver.gate.set()
    outcomes = await asyncio.gather(first, *adds, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[1:]] == [BackendError] * 3
    driver.forgets = False
    assert await storage.get_items(["new0", "new1", "new2"]) == {"new0": 0, "new1": 1, "new2": 2}


@in_loop
async def test_an_update_that_gave_up_behind_a_crowd_lets_those_behind_it_go_on() -> None:
    driver = Recording()
    storage, first = await _busy(driver, "write")
    crowd = [asyncio.create_task(storage.set_item(f"k{number}", number)) for number in range(700)]
    updates = [asyncio.create_task(storage.update_item("key", lambda value: value + 1, default=0)) for _ in range(3)]
    await _settle()
    updates[0].cancel()
    driver.gate.set()
    async with asyncio.timeout(5):
        await asyncio.gather(first, *crowd)
        assert await asyncio.gather(*updates[1:]) == [1, 2]
        assert await storage.update_item("key", lambda value: value + 1) == 3


class Putting(Recording):
    async def put(self, writes: Sequence[Write]) -> None:
        await self._around("put", [key for key, _, _ in writes], MemoryDriver.write(self, writes))


class PuttingAndWriting(Putting):
    """A user's, with a way of its own to write, which nothing may pass by."""

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        return await super().write(writes, expect)


@in_loop
@pytest.mark.parametrize(("driver", "call"), [(Putting(), "put"), (PuttingAndWriting(), "write")])
async def test_a_crowd_that_only_sets_is_not_told_what_was_there(driver: Recording, call: str) -> None:
    storage, first = await _busy(driver, "write")
    async with storage.watch() as events:
        crowd = [asyncio.create_task(storage.set_item(f"k{number}", number)) for number in range(3)]
        await _settle()
        driver.gate.set()
        await asyncio.gather(first, *crowd)
        assert [(await anext(events)).key for _ in range(4)] == ["first", "k0", "k1", "k2"]
    assert driver.since() == [(call, ["k0", "k1", "k2"])]
    removed, _ = await asyncio.gather(storage.remove_item("k0"), storage.set_item("k1", 2))
    assert (removed, await storage.get_items(["k0", "k1"])) == (True, {"k0": None, "k1": 2})


class WritesElsewhereToo(Settling):
    """A user's driver on one that can be cancelled, which says nothing of that for what it does besides."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere: list[str] = []

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        found = await super().write(writes, expect)
        await asyncio.sleep(0)
        self.elsewhere += [key for key, _, _ in writes]
        return found


@in_loop
async def test_a_driver_that_writes_in_another_way_than_the_one_it_is_made_of_is_not_cancelled() -> None:
    driver = WritesElsewhereToo()
    storage = create_storage(driver)
    await storage.get_item("key")
    write = asyncio.create_task(storage.set_item("key", 1))
    await _settle()
    write.cancel()
    driver.gate.set()
    await asyncio.wait([write])
    assert (await storage.get_item("key"), driver.elsewhere) == (1, ["key"])


@pytest.mark.parametrize("lanes", [1, 2])
@in_loop
async def test_A3_an_update_sees_what_a_cancelled_update_before_it_has_written(lanes: int) -> None:
    driver = Settling()
    driver.lanes = lanes
    storage = create_storage(driver)
    await storage.get_item("key")
    updates = [asyncio.create_task(storage.update_item("key", lambda old: [*old, 1], [])) for _ in range(3)]
    await _settle()
    updates[0].cancel()
    for _ in range(10):  # in which the next one would get to its write
        await _settle()
    assert len(driver.begun) == 1
    driver.gate.set()
    assert (await asyncio.gather(*updates, return_exceptions=True))[1:] == [[1, 1], [1, 1, 1]]


@pytest.mark.parametrize("ends", ["cancels", "leaves"])
@pytest.mark.parametrize("call", ["set_item", "set_items", "clear"])
def test_L1_what_an_event_loop_ended_over_is_done_before_the_next_one_looks(tmp_path: Path, call: str, ends: str) -> None:
    storage = create_storage("sqlite", path=tmp_path / "app.db")
    driver = storage.get_mount("key").driver
    assert isinstance(driver, SqliteDriver)
    calls = {"set_item": lambda: storage.set_item("key", 2), "set_items": lambda: storage.set_items({"key": 2, "other": 2})}

    async def write() -> None:
        await storage.set_item("key", 1)
        driver._file._writing.submit(lambda: time.sleep(0.2))
        task = asyncio.ensure_future(calls.get(call, storage.clear)())
        await asyncio.sleep(0.01)
        del task

    async def look() -> None:
        assert await storage.get_item("key") == (None if call == "clear" else 2)
        await storage.aclose()

    if ends == "cancels":
        asyncio.run(write())
    else:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(write())
        loop.close()
    asyncio.run(look())


@in_loop
async def test_a_driver_is_connected_once_by_whoever_comes_first() -> None:
    driver = Recording()
    driver.gate.clear()
    storage = create_storage(driver)
    calls = [asyncio.create_task(storage.set_item(f"key:{number}", number)) for number in range(50)]
    calls += [asyncio.create_task(storage.get_keys())]
    await _settle()
    calls[0].cancel()
    await _settle()
    assert driver.since() == [("connect", [])]

    driver.gate.set()
    await asyncio.gather(*calls, return_exceptions=True)
    assert driver.connects == 1
    assert await storage.count() == 49


@in_loop
async def test_a_failed_connect_is_told_to_all_who_wait_and_tried_again_later() -> None:
    driver = Recording()
    storage = create_storage(driver)
    driver.fault = OSError("refused")
    outcomes = await asyncio.gather(*(storage.get_item(f"key:{number}") for number in range(5)), return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [BackendError] * 5
    assert driver.connects == 1
    driver.fault = None
    await storage.set_item("key", 1)
    assert await storage.get_item("key") == 1
    assert driver.connects == 2


@in_loop
async def test_a_crowd_is_cut_into_batches_of_a_thousand_keys_at_most() -> None:
    driver = Recording()
    storage, first = await _busy(driver)
    reads = [asyncio.create_task(storage.get_item(f"x{number}")) for number in range(2_500)]
    driver.gate.set()
    await asyncio.gather(first, *reads)

    sizes = [len(keys) for _, keys in driver.since()]
    assert sum(sizes) == 2_500
    assert max(sizes) <= 1_000
    assert len(sizes) <= 4


@in_loop
async def test_large_values_are_not_all_put_in_one_batch() -> None:
    driver = Recording()
    storage, first = await _busy(driver, "write")
    writes = [asyncio.create_task(storage.set_item_raw(f"x{number}", bytes(1_000_000))) for number in range(20)]
    driver.gate.set()
    await asyncio.gather(first, *writes)

    assert max(len(keys) for _, keys in driver.since()) <= 9


@in_loop
async def test_a_clear_is_in_order_with_the_writes_around_it() -> None:
    driver = Recording()
    storage, first = await _busy(driver, "write")
    before = asyncio.create_task(storage.set_item("base:before", 1))
    cleared = asyncio.create_task(storage.clear("base"))
    after = asyncio.create_task(storage.set_item("base:after", 1))
    driver.gate.set()

    assert await asyncio.gather(first, before, cleared, after) == [None, None, 1, None]
    assert await storage.get_keys("base") == ["base:after"]


@in_loop
async def test_a_listing_holds_up_no_writer() -> None:
    class Slow(Recording):
        async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
            await self.before("scan", [])
            return await super().scan(prefix, after=after, limit=limit, reverse=reverse)

    driver = Slow()
    storage = create_storage(driver)
    await storage.set_item("key", 1)
    driver.gate.clear()
    listing = asyncio.create_task(storage.get_keys())
    await _settle()
    write = asyncio.create_task(storage.set_item("other", 1))
    read = asyncio.create_task(storage.get_item("key"))
    await _settle()

    assert sorted(driver.since()[-2:]) == [("read", ["key"]), ("write", ["other"])]
    driver.gate.set()
    await asyncio.gather(listing, write, read)


@in_loop
async def test_closing_waits_for_what_is_under_way() -> None:
    class Closing(Recording):
        async def aclose(self) -> None:
            self.calls.append(("aclose", []))

    driver = Closing()
    storage, first = await _busy(driver, "write")
    waiting = asyncio.create_task(storage.set_item("waiting", 1))
    await _settle()
    closing = asyncio.create_task(storage.aclose())
    await _settle()
    assert driver.since() == []

    driver.gate.set()
    await asyncio.gather(first, waiting, closing)
    assert driver.since() == [("write", ["waiting"]), ("aclose", [])]


@in_loop
async def test_updates_of_one_key_take_turns_within_a_process() -> None:
    driver = Recording()
    storage = create_storage(driver)
    await asyncio.gather(*(storage.update_item("counter", lambda value: value + 1, 0) for _ in range(30)))

    assert await storage.get_item("counter") == 30
    assert len([name for name, _ in driver.since() if name == "write if"]) == 30


@in_loop
async def test_an_update_takes_effect_in_the_order_in_which_it_was_gathered() -> None:
    storage = create_storage(Recording())
    for _ in range(5):
        await storage.set_item("key", 1)
        await asyncio.gather(storage.update_item("key", lambda value: value + 1), storage.set_item("key", 10))
        assert await storage.get_item("key") == 10
        await asyncio.gather(storage.set_item("key", 20), storage.update_item("key", lambda value: value + 1))
        assert await storage.get_item("key") == 21
        await asyncio.gather(storage.update_item("key", lambda value: MISSING), storage.add_item("key", 30))
        assert await storage.get_item("key") == 30


class TwoLanes(Recording):
    lanes = 2


@in_loop
async def test_a_crowd_that_comes_again_together_is_one_batch_in_every_round() -> None:
    driver = Recording()
    storage = create_storage(driver)
    await storage.set_item("first", 0)
    driver.since()

    async def task(number: int) -> None:
        for turn in range(3):
            await storage.set_item(f"key{number}", turn)

    await asyncio.gather(*map(task, range(8)))
    assert [len(keys) for _, keys in driver.since()] == [1, 7, 8, 8]


@in_loop
async def test_a_crowd_is_parted_among_the_lanes_of_a_driver() -> None:
    driver = TwoLanes()
    storage, first = await _busy(driver)
    reads = [asyncio.create_task(storage.get_item(f"k{number}")) for number in range(9)]
    await _settle()
    # The first went at once, since a lane was free; the others wait for either.
    assert driver.since() == [("read", ["k0"])]
    driver.gate.set()
    assert await asyncio.gather(*reads) == list(range(9))
    await first
    assert [len(keys) for _, keys in driver.since()] == [5, 3]


@in_loop
async def test_writes_of_one_key_never_fly_in_two_lanes() -> None:
    driver = TwoLanes()
    storage, first = await _busy(driver, "write")
    same = [asyncio.create_task(storage.set_item("first", number)) for number in range(3)]
    other = asyncio.create_task(storage.set_item("other", 1))
    await _settle()
    assert driver.since() == [("write", ["other"])]
    driver.gate.set()
    await asyncio.gather(first, other, *same)
    assert {call for call, _ in driver.since()} == {"write"}
    assert await storage.get_item("first") == 2
