"""Many tasks, instances and processes on one session: nothing lost, doubled or reordered per writer (P4)."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import subprocess
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from persistence_helpers import KINDS, Crashing, Steps, Store, Wrapped, assert_clean, ids, image, message, run, session
from running import in_loop

from kvstore import BackendError, BackendTimeout, BackendUnavailable, ClosedError, Driver, Expect, Write
from kvstore.drivers.memory import MemoryDriver
from persistence import ConflictError, Container, Image, Persistence, RecordNotFoundError, create_persistence


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(request.param, tmp_path)


async def write(persistence: Persistence, writer: str, count: int, positions: dict[str, int] | None = None) -> None:
    for number in range(count):
        position = await persistence.sessions.add_message("s1", message(f"{writer}-{number}"))
        if positions is not None:
            positions[f"{writer}-{number}"] = position


def assert_in_order(found: Sequence[str], writers: Sequence[str], count: int) -> None:
    assert len(found) == len(set(found)) == len(writers) * count
    for writer in writers:
        its = [name for name in found if name.startswith(f"{writer}-")]
        assert its == [f"{writer}-{number}" for number in range(count)]


@in_loop
async def test_P4_64_tasks_on_one_session(store: Store) -> None:
    async with store.open() as persistence:
        positions: dict[str, int] = {}
        await asyncio.gather(*(write(persistence, f"t{task}", 3, positions) for task in range(64)))
        found = ids(await persistence.sessions.get_messages("s1"))
        assert_in_order(found, [f"t{task}" for task in range(64)], 3)
        assert {name: place for place, name in enumerate(found)} == positions


@in_loop
async def test_P4_calls_of_one_task_that_it_does_not_wait_for_keep_their_order(store: Store) -> None:
    async with store.open() as persistence:
        add = persistence.sessions.add_messages
        calls = [add("s1", [message(f"{n}a"), message(f"{n}b")], expected_count=10 if n == 5 else None) for n in range(40)]
        assert await asyncio.gather(*calls) == list(range(0, 80, 2))
        found = ids(await persistence.sessions.get_messages("s1"))
        assert found == [f"{n}{part}" for n in range(40) for part in "ab"]


@in_loop
async def test_P4_three_instances_with_many_tasks_each_on_one_session(store: Store) -> None:
    async with store.open() as one, store.open() as two, store.open() as three:
        instances = {"a": one, "b": two, "c": three}
        positions: dict[str, int] = {}
        writers = [f"{name}{task}" for name in instances for task in range(6)]
        await asyncio.gather(*(write(instances[writer[0]], writer, 8, positions) for writer in writers))
        for persistence in instances.values():
            found = ids(await persistence.sessions.get_messages("s1"))
            assert_in_order(found, writers, 8)
            assert {name: place for place, name in enumerate(found)} == positions
            assert await persistence.sessions.count_messages("s1") == len(found)
    await assert_clean(store)


def test_P4_truncating_and_clearing_under_writers_takes_nothing_but_what_it_says(store: Store) -> None:
    run(cut_under_writers(store.open, random.Random(7)))
    run(assert_clean(store))


async def cut_under_writers(open: Callable[[], Persistence], dice: random.Random) -> None:
    """An acknowledged message is at its position, or behind a cut that ended after its append began. None comes twice."""
    async with open() as one, open() as two, open() as three:
        began: dict[str, int] = {}
        positions: dict[str, int] = {}
        cuts: list[tuple[int, int]] = []  # when each ended, and the position behind which all is gone
        clock = itertools.count()

        async def write(persistence: Persistence, writer: str, count: int) -> None:
            for number in range(count):
                names = [f"{writer}-{number}{part}" for part in "ab"[: dice.choice((1, 1, 2))]]
                began.update(dict.fromkeys(names, next(clock)))
                position = await persistence.sessions.add_messages("s1", [message(name) for name in names])
                positions.update({name: position + n for n, name in enumerate(names)})

        async def cut() -> None:
            for turn in range(16):
                await asyncio.sleep(0)
                before = ids(await three.sessions.get_messages("s1"))
                if turn % 6 == 5:
                    await three.sessions.clear_messages("s1")
                    cuts.append((next(clock), -1))
                elif before:
                    place = dice.randrange(max(0, len(before) - 8), len(before))
                    await three.sessions.truncate_after("s1", before[place])
                    cuts.append((next(clock), place))
                    after = ids(await three.sessions.get_messages("s1"))
                    assert after[: place + 1] == before[: place + 1], "what stands before a cut stays"
                if turn % 5 == 0:
                    await one.repair()

        writers = {f"{name}{task}": persistence for name, persistence in (("a", one), ("b", two)) for task in range(3)}
        await asyncio.gather(cut(), *(write(persistence, writer, 12) for writer, persistence in writers.items()))
        await asyncio.gather(*(write(persistence, f"{writer}end", 3) for writer, persistence in writers.items()))
        found = ids(await one.sessions.get_messages("s1"))
        assert len(found) == len(set(found))
        there = {name: place for place, name in enumerate(found)}
        for name, position in positions.items():
            if name in there:
                assert there[name] == position
            else:
                assert any(end > began[name] and behind < position for end, behind in cuts), f"{name} is lost"
        for writer in writers:
            its = [int(name[:-1].rpartition("-")[2]) for name in found if name.startswith(f"{writer}-")]
            assert its == sorted(its)
        for instance in (two, three):
            assert ids(await instance.sessions.get_messages("s1")) == found
            assert ids(await instance.sessions.get_messages("s1", last=7)) == found[-7:]
            assert await instance.sessions.count_messages("s1") == len(found)


@in_loop
async def test_forks_and_repairs_at_once_leave_whole_logs(store: Store) -> None:
    async with store.open() as one, store.open() as two:
        await one.sessions.save(session("s1"))
        await one.sessions.write_messages("s1", [message(f"m{number}") for number in range(30)])

        async def forks(persistence: Persistence, name: str) -> None:
            for number in range(3):
                await persistence.sessions.fork("s1", f"{name}{number}", through="m19")
                found = ids(await persistence.sessions.get_messages(f"{name}{number}"))
                assert found == [f"m{number}" for number in range(20)]

        async def repairs() -> None:
            while not all(task.done() for task in forking):
                await two.repair()
                await asyncio.sleep(0)

        forking = [asyncio.create_task(forks(p, name)) for p, name in ((one, "a"), (two, "b"), (one, "c"))]
        await asyncio.gather(*forking, repairs())
        twice = [one.sessions.fork("s1", "d"), two.sessions.fork("s1", "d"), two.sessions.fork("s1", "d")]
        outcomes = await asyncio.gather(*twice, return_exceptions=True)
        assert sum(isinstance(outcome, ConflictError) for outcome in outcomes) == 2, outcomes
        assert await one.sessions.count_messages("d") == 30
    await assert_clean(store)


@in_loop
async def test_a_cancelled_append_harms_no_other(store: Store) -> None:
    async with store.open() as persistence:
        calls = [asyncio.create_task(persistence.sessions.add_message("s1", message(f"m{number}"))) for number in range(30)]
        await asyncio.sleep(0)
        for call in calls[::3]:
            call.cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        found = ids(await persistence.sessions.get_messages("s1"))
        assert len(found) == len(set(found))
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, int):
                assert found[outcome] == f"m{number}"
            else:
                assert isinstance(outcome, asyncio.CancelledError)
        assert await persistence.sessions.add_message("s1", message("next")) == len(found)


class Picky(Wrapped):
    """Refuses what holds the word, as a backend does a value that is too large, and is away when told to be."""

    away = False

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        await asyncio.sleep(0)
        if self.away:
            raise BackendUnavailable("away")
        if any(b"too large" in (data or b"") for _, data, _ in writes):
            raise BackendError("too large")
        return await super().write(writes, expect)


@in_loop
async def test_a_message_that_the_backend_refuses_fails_alone(tmp_path: Path) -> None:
    driver = Picky(Store("memory", tmp_path).driver())
    async with Store("memory", tmp_path).open(lambda _: driver) as persistence:
        add = persistence.sessions.add_message
        given = [message(f"m{number}", content="too large" if number in (0, 5) else "") for number in range(9)]
        outcomes = await asyncio.gather(*(add("s1", one) for one in given), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [BackendError, *[int] * 4, BackendError, *[int] * 3]
        assert ids(await persistence.sessions.get_messages("s1")) == ["m1", "m2", "m3", "m4", "m6", "m7", "m8"]
        driver.away = True
        outcomes = await asyncio.gather(*(add("s1", message(f"x{n}")) for n in range(5)), return_exceptions=True)
        assert all(isinstance(outcome, BackendUnavailable) for outcome in outcomes)
        driver.away = False
        assert await add("s1", message("back")) == 7


class Unanswered(Wrapped):
    """Writes, and gives no answer in time when told so."""

    silent = False

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        await asyncio.sleep(0)
        found = await super().write(writes, expect)
        if self.silent and found is not None:
            raise BackendTimeout("no answer", maybe_written=True)
        return found


@in_loop
async def test_P4_messages_that_may_be_stored_are_not_stored_once_more(tmp_path: Path) -> None:
    driver = Unanswered(Store("memory", tmp_path).driver())
    async with create_persistence(driver) as persistence:
        await persistence.sessions.add_message("s1", message("first"))
        driver.silent = True
        names = [f"m{number}" for number in range(6)]
        adds = [persistence.sessions.add_message("s1", message(name)) for name in names]
        outcomes = await asyncio.gather(*adds, return_exceptions=True)
        assert all(isinstance(outcome, BackendTimeout) for outcome in outcomes)
        driver.silent = False
        found = ids(await persistence.sessions.get_messages("s1"))
        assert found == ["first", *names]


class Gone(Steps):
    """Can't be reached any more after so many calls."""

    left = 1_000

    def _call(self) -> None:
        if self.left == 0:
            raise BackendUnavailable("gone", maybe_written=False)
        self.left -= 1

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        self._call()
        return await super().read(keys)

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        self._call()
        return await super().write(writes, expect)


@in_loop
async def test_P4_what_fails_behind_the_step_that_counts_is_maybe_written() -> None:
    """Else whoever repeats it adds a message twice, or changes a record twice."""
    driver = Gone(MemoryDriver())
    async with create_persistence(driver) as persistence:
        sessions, images = persistence.sessions, persistence.images
        await images.save(Image(image_id="i1", container_id="c1", session_id="s1", name="0"))
        await sessions.add_message("s1", message("m0"))

        def renamed(image: Image) -> Image:
            image.name += "+"
            return image

        async def state() -> tuple[int, Image | None]:
            return await sessions.count_messages("s1"), await images.get("i1")

        for call in (lambda: sessions.add_message("s1", message("m")), lambda: images.update("i1", renamed)):
            outcomes: set[tuple[bool, bool]] = set()
            for left in range(9):
                before = await state()
                driver.left = left
                try:
                    await call()
                except BackendUnavailable as error:
                    driver.left = 1_000
                    outcomes.add((before != await state(), error.maybe_written))
                driver.left = 1_000
            assert outcomes >= {(False, False), (True, True)}
            assert (True, False) not in outcomes


@in_loop
async def test_appends_that_wait_when_it_is_closed_are_told(tmp_path: Path) -> None:
    persistence = Store("memory", tmp_path).open(Picky)
    calls = [asyncio.create_task(persistence.sessions.add_message("s1", message(f"m{n}"))) for n in range(5)]
    await asyncio.sleep(0)
    await persistence.aclose()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert outcomes[0] == 0 or isinstance(outcomes[0], ClosedError)
    assert all(isinstance(outcome, ClosedError) for outcome in outcomes[1:])


@in_loop
async def test_memory_does_not_grow_with_the_sessions_that_were_used(tmp_path: Path) -> None:
    async with Store("memory", tmp_path).open() as persistence:
        for number in range(1500):
            await persistence.sessions.add_message(f"s{number}", message("m"))
        log = persistence.sessions._log
        assert not log.appender._waiting
        assert not log.appender._tasks
        assert len(log.reader._tails) <= 1024
        assert await persistence.sessions.add_message("s0", message("m")) == 1


def test_an_instance_is_used_from_several_event_loops_in_turn(store: Store) -> None:
    persistence = store.open()

    async def add(expected: int) -> None:
        calls = [persistence.sessions.add_message("s1", message(f"{expected}-{n}")) for n in range(3)]
        assert await asyncio.gather(*calls) == [expected, expected + 1, expected + 2]

    for turn in range(3):
        run(add(turn * 3))
    run(persistence.aclose())


WRITER = """
import asyncio, sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
from persistence_helpers import Store, message

async def main():
    async with Store({kind!r}, Path({path!r})).open() as persistence:
        sys.stdout.write("ready\\n"); sys.stdout.flush()
        sys.stdin.readline()
        for number in range({count}):
            await persistence.sessions.add_message("s1", message(f"{name}-{{number}}"))

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("memory", "steps")])
def test_P4_four_processes_with_many_messages_each_on_one_session(kind: str, tmp_path: Path) -> None:
    tests = str(Path(__file__).parent)
    count = 200 if kind in ("sqlite", "fs") else 50
    Store(kind, tmp_path).driver()  # starts the server here, else each process would start one of its own
    processes = []
    for name in "abcd":
        code = WRITER.format(tests=tests, kind=kind, path=str(tmp_path), name=name, count=count)
        command = [sys.executable, "-c", code]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.wait(60) for process in processes] == [0] * 4
    for process in processes:
        process.communicate()

    async def main() -> None:
        async with Store(kind, tmp_path).open() as persistence:
            assert_in_order(ids(await persistence.sessions.get_messages("s1")), list("abcd"), count)
            assert await persistence.sessions.count_messages("s1") == 4 * count
        await assert_clean(Store(kind, tmp_path))

    run(main())


def changed(**members: Any) -> Callable[[Any], Any]:
    return lambda record: replace(record, **members)


class Between(Wrapped):
    """Something else happens before one of its calls."""

    def __init__(self, inner: Driver) -> None:
        super().__init__(inner)
        self.capabilities = dataclasses.replace(inner.capabilities, inline=False)
        self.left = -1
        self.happen: Callable[[], Coroutine[Any, Any, None]] | None = None

    async def _call(self) -> None:
        self.left -= 1
        if self.left == -1 and self.happen:
            await self.happen()

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        await self._call()
        return await super().read(keys)

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        await self._call()
        return await super().write(writes, expect)

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        await self._call()
        return await super().scan(prefix, after=after, limit=limit, reverse=reverse)


@pytest.mark.parametrize("messages", [0, 2])
@pytest.mark.parametrize("above", ["image", "container"])
@in_loop
async def test_P5_a_cascade_leaves_what_was_moved_away_between_any_two_of_its_steps(
    store: Store, above: str, messages: int
) -> None:
    between = Between(store.driver())
    async with store.open() as app, store.open(lambda _: between) as cascade:
        for calls in itertools.count(step=3 if store.kind == "mongodb" else 1):  # the stand-in is slow
            await app.containers.save(Container(container_id="c1"))
            await app.images.save(image("i1"))
            for name in ("s1", "s2"):
                await app.sessions.save(session(name))
                for number in range(messages):
                    await app.sessions.add_message(name, message(f"m{number}"))
            moved = []

            async def move(moved: list[str] = moved) -> None:
                with suppress(RecordNotFoundError):
                    if above == "container":
                        await app.images.update("i1", changed(container_id="c2"))
                        moved.append("i1")
                    for name in ("s1", "s2"):
                        image_id = "i1" if above == "container" else "i2"
                        await app.sessions.update(name, changed(image_id=image_id, container_id="c2"))
                        moved.append(name)

            between.left, between.happen = calls, move
            if above == "container":
                assert await cascade.containers.delete("c1", cascade=True)
            else:
                assert await cascade.images.delete("i1", cascade=True)
            assert await app.images.exists("i1") == ("i1" in moved)
            for name in ("s1", "s2"):
                assert await app.sessions.exists(name) == (name in moved)
                found = ids(await app.sessions.get_messages(name))
                assert found == [f"m{number}" for number in range(messages)] * (name in moved)
            there = await app.sessions.list(container_id="c2")
            assert sorted(record.session_id for record in there) == [name for name in moved if name != "i1"]
            report = await app.repair()
            assert (report.mended_heads, report.removed_messages, report.orphaned) == (0, 0, ())
            for name in ("s1", "s2"):
                await app.sessions.delete(name)
            await app.images.delete("i1")
            if between.left >= 0:
                assert moved == []
                break
    await assert_clean(store)


def between_keys(store: Store) -> Between:
    """A driver on a store of "steps" that lets something else happen between the keys of one call too."""
    assert isinstance(store._memory, Steps)
    return Between(store._memory.inner)


@pytest.mark.parametrize("then", ["repair", "rename back", "rename", "delete"])
@in_loop
async def test_P5_whatever_comes_between_two_steps_of_a_rename_every_record_is_in_its_lists(tmp_path: Path, then: str) -> None:
    for calls in itertools.count():
        store = Store("steps", tmp_path)
        between = between_keys(store)
        async with store.open() as app, store.open(lambda _, inner=between: Steps(inner)) as renaming:  # type: ignore[misc]
            await app.images.save(image("i1", "old"))

            async def happen(app: Persistence = app) -> None:
                if then == "repair":
                    await app.repair()
                elif then == "delete":
                    await app.images.delete("i1")
                else:
                    await app.images.update("i1", changed(name="new" if then == "rename" else "old"))

            between.left, between.happen = calls, happen
            with suppress(RecordNotFoundError):
                await renaming.images.update("i1", changed(name="new"))
            there = await app.images.get("i1")
            for name in ("old", "new"):
                listed = [record.image_id for record in await app.images.list(name=name)]
                assert listed == ["i1"] * (there is not None and there.name == name), calls
            assert len(await app.images.list()) == (there is not None)
            if between.left >= 0:
                return


@in_loop
async def test_P4_a_session_is_read_while_what_a_fork_that_crashed_left_is_settled(tmp_path: Path) -> None:
    for crashed_after in itertools.count():
        store = Store("steps", tmp_path)
        async with store.open() as app:
            await app.sessions.save(session("s1"))
            await app.sessions.add_message("s1", message("a"))
            done = True
            async with store.open(lambda driver, n=crashed_after: Crashing(driver, n)) as forking:  # type: ignore[misc]
                try:
                    await forking.sessions.fork("s1", "s2")
                except BackendUnavailable:
                    done = False
            existed = await app.sessions.exists("s2")
            between = between_keys(store)
            async with store.open(lambda _, inner=between: Steps(inner)) as reading:  # type: ignore[misc]
                await reading.sessions.exists("other")

                async def settle(app: Persistence = app) -> None:
                    await app.repair()

                between.left, between.happen = 1, settle
                assert (await reading.sessions.get("s2") is not None) == existed, crashed_after
            if done:
                return


@pytest.mark.parametrize("store", ["memory", "steps", "sqlite", "fs"], indirect=True)
@in_loop
async def test_P4_a_fork_beside_the_deletion_of_its_source_has_all_messages_or_fails(store: Store) -> None:
    for calls in itertools.count():
        async with store.open() as other:
            await other.sessions.save(session("s1"))
            await other.sessions.write_messages("s1", [message(name) for name in "abc"])

            async def happen(other: Persistence = other) -> None:
                assert await other.sessions.delete("s1")

            between = Between(store.driver())
            between.left, between.happen = calls, happen
            async with create_persistence(between) as forking:
                with suppress(RecordNotFoundError):
                    await forking.sessions.fork("s1", "s2")
            exists = await other.sessions.exists("s2")
            assert ids(await other.sessions.get_messages("s2")) == ["a", "b", "c"] * exists
            if await other.sessions.delete("s1"):
                assert exists, "nothing happened meanwhile"
                return
            await other.sessions.delete("s2")
        await assert_clean(store)


@pytest.mark.parametrize("store", ["steps"], indirect=True)
@pytest.mark.parametrize("new", [False, True])
@in_loop
async def test_P5_a_repair_that_stops_beside_a_save_leaves_the_record_in_its_lists(store: Store, new: bool) -> None:
    async def save(persistence: Persistence) -> None:
        await persistence.images.save(image("i1", "b", "c2", created_at=1))

    for before in itertools.count(1):  # calls of the save, of the repair, the rest of the save, one more of the repair
        finished = False
        for calls in itertools.count(1):
            async with store.open() as app:
                await app.images.delete("i1")
                if not new:
                    await app.images.save(image("i1", "a", "c1", created_at=1))
                saving, repairing = Between(store.driver()), Between(store.driver())
                paused, go_on = asyncio.Event(), asyncio.Event()

                async def pause(paused: asyncio.Event = paused, go_on: asyncio.Event = go_on) -> None:
                    paused.set()
                    await go_on.wait()

                saving.left, saving.happen = before, pause
                async with create_persistence(saving) as one, create_persistence(repairing) as two:
                    task = asyncio.create_task(save(one))
                    waiting = asyncio.create_task(paused.wait())
                    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
                    finished = task.done()

                    async def crash() -> None:
                        raise BackendUnavailable("crashed")

                    async def finish(
                        task: asyncio.Task[None] = task, go_on: asyncio.Event = go_on, repairing: Between = repairing
                    ) -> None:
                        go_on.set()
                        await task
                        repairing.left, repairing.happen = 0, crash  # this one call yet

                    repairing.left, repairing.happen = calls, finish
                    try:
                        await two.repair()
                        stopped = False
                    except BackendUnavailable:
                        stopped = True
                    go_on.set()
                    await task
                    waiting.cancel()
                for filters in ({"name": "b"}, {"container_id": "c2"}):
                    assert [found.image_id for found in await app.images.list(**filters)] == ["i1"], (before, calls)
            if finished or not stopped:
                break
        if finished:
            break
    async with store.open() as app:
        await app.repair()
    await assert_clean(store)
