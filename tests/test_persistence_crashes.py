"""A crash between any two steps leaves a store that reads right, and that `repair` sweeps clean (P4, P5)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from persistence_helpers import (
    KINDS,
    Crashing,
    Store,
    Wrapped,
    assert_clean,
    crashes,
    ids,
    image,
    message,
    run,
    session,
)
from running import in_loop

from kvstore import BackendUnavailable, Driver, Expect, Write
from persistence import ConflictError, Container, Persistence, RecordNotFoundError


@pytest.fixture(params=KINDS)
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    numbers = itertools.count()

    def store() -> Store:
        path = tmp_path / str(next(numbers))
        path.mkdir()
        return Store(request.param, path)

    return store


async def names(persistence: Persistence, **filters: str) -> list[str]:
    return [image.image_id for image in await persistence.images.list(**filters)]


async def log(persistence: Persistence, session_id: str = "s1") -> list[str]:
    sessions = persistence.sessions
    found = ids(await sessions.get_messages(session_id))
    assert await sessions.count_messages(session_id) == len(found)
    assert ids(await sessions.get_messages(session_id, last=2)) == found[-2:]
    return found


def test_P4_a_crash_while_a_record_is_saved_or_renamed(stores: Callable[[], Store]) -> None:
    async def prepare(persistence: Persistence) -> None:
        await persistence.images.save(image("i1", "a", "c1", created_at=1))

    async def act(persistence: Persistence) -> None:
        await persistence.images.save(image("i1", "b", "c2", created_at=2))
        await persistence.images.save(image("i2", "b", "c2"))

    async def check(persistence: Persistence, done: bool) -> None:
        found = await persistence.images.get("i1")
        assert found is not None
        assert (found.name, found.container_id) in (("a", "c1"), ("b", "c2"))
        there = ["i1"] if found.name == "a" else []
        assert await names(persistence, name="a") == await names(persistence, container_id="c1") == there
        moved = ["i2"] * await persistence.images.exists("i2") + ["i1"] * (found.name == "b")
        assert await names(persistence, name="b") == await names(persistence, container_id="c2") == moved
        assert not done or moved == ["i2", "i1"]

    assert run(crashes(stores, prepare, act, check)) >= 2


def test_P5_a_crash_while_a_container_is_deleted_with_all_that_is_its(stores: Callable[[], Store]) -> None:
    async def prepare(persistence: Persistence) -> None:
        await persistence.containers.save(Container(container_id="c1"))
        await persistence.images.save(image("i1"))
        for name in ("s1", "s2"):
            await persistence.sessions.save(session(name))
        await persistence.sessions.write_messages("s1", [message("m1"), message("m2")])

    async def act(persistence: Persistence) -> None:
        await persistence.containers.delete("c1", cascade=True)

    async def check(persistence: Persistence, done: bool) -> None:
        sessions = [session.session_id for session in await persistence.sessions.list(image_id="i1")]
        for name in ("s1", "s2"):
            exists = await persistence.sessions.exists(name)
            assert exists == (name in sessions)
            assert await log(persistence, name) == ["m1", "m2"] * (exists and name == "s1"), "all its messages go with it"
        assert await names(persistence, container_id="c1") == ["i1"] * await persistence.images.exists("i1")
        if sessions:
            assert await persistence.images.exists("i1")
        if await persistence.images.exists("i1"):
            assert await persistence.containers.exists("c1")
        assert not done or not await persistence.containers.exists("c1")

    assert run(crashes(stores, prepare, act, check)) >= 4


def test_P4_a_crash_while_messages_are_appended(stores: Callable[[], Store]) -> None:
    async def prepare(persistence: Persistence) -> None:
        pass

    acknowledged: list[str] = []

    async def act(persistence: Persistence) -> None:
        acknowledged.clear()
        for number in range(3):
            await persistence.sessions.add_messages("s1", [message(f"call{number}"), message(f"result{number}")])
            acknowledged.extend((f"call{number}", f"result{number}"))

    async def check(persistence: Persistence, done: bool) -> None:
        found = await log(persistence)
        assert found[: len(acknowledged)] == acknowledged
        assert len(found) <= len(acknowledged) + 2
        assert len(found) % 2 == 0, "what was given together is there together or not at all"

    assert run(crashes(stores, prepare, act, check)) >= 3


@pytest.mark.parametrize("forked", [False, True])
def test_P4_a_log_whose_first_append_crashed_can_be_written_or_forked_to(stores: Callable[[], Store], forked: bool) -> None:
    async def prepare(persistence: Persistence) -> None:
        await persistence.sessions.save(session("source"))
        await persistence.sessions.add_message("source", message("n"))

    async def act(persistence: Persistence) -> None:
        await persistence.sessions.add_message("s1", message("m"))

    async def check(persistence: Persistence, done: bool) -> None:
        found = await log(persistence)
        assert found == ["m"] if done else found in ([], ["m"], ["n"])
        if not found:
            assert "s1" not in await persistence.sessions.logs()
            if forked:
                await persistence.sessions.fork("source", "s1")
            else:
                await persistence.sessions.write_messages("s1", [message("n")])

    assert run(crashes(stores, prepare, act, check)) >= 1


def test_P4_a_crash_while_a_log_is_truncated_or_cleared(stores: Callable[[], Store]) -> None:
    states = [["m0", "m1", "a", "b", "c", "m2"], ["m0", "m1", "a"], ["m0", "m1", "a", "z"], ["m0"], [], ["n"]]

    async def prepare(persistence: Persistence) -> None:
        await persistence.sessions.write_messages("s1", [message("m0"), message("m1")])
        await persistence.sessions.add_messages("s1", [message("a"), message("b"), message("c")])
        await persistence.sessions.add_message("s1", message("m2"))

    async def act(persistence: Persistence) -> None:
        assert await persistence.sessions.truncate_after("s1", "a") == 3
        await persistence.sessions.add_message("s1", message("z"))
        assert await persistence.sessions.truncate_after("s1", "m0") == 3
        assert await persistence.sessions.clear_messages("s1") == 1
        await persistence.sessions.add_message("s1", message("n"))

    async def check(persistence: Persistence, done: bool) -> None:
        found = await log(persistence)
        assert found in states
        assert not done or found == ["n"]

    assert run(crashes(stores, prepare, act, check)) >= 5


def test_P4_a_crash_while_a_session_is_forked(stores: Callable[[], Store]) -> None:
    async def check(persistence: Persistence, done: bool) -> None:
        assert await log(persistence) == [*FORKED, "c"]
        exists = await fork_is_whole_or_not_there(persistence)
        assert exists or not done

    assert run(crashes(stores, prepare_fork, fork, check)) >= 3


FORKED = ["m0", "m1", "a", "b"]


async def prepare_fork(persistence: Persistence) -> None:
    await persistence.sessions.save(session("s1"))
    await persistence.sessions.write_messages("s1", [message("m0"), message("m1")])
    await persistence.sessions.add_messages("s1", [message("a"), message("b"), message("c")])


async def fork(persistence: Persistence) -> None:
    await persistence.sessions.fork("s1", "s2", image_id="i2", through="b")


async def fork_is_whole_or_not_there(persistence: Persistence) -> bool:
    """And so says every call."""
    exists = await persistence.sessions.exists("s2")
    assert (await persistence.sessions.get("s2") is not None) == exists
    assert await names_of_sessions(persistence, "i2") == ["s2"] * exists
    assert await log(persistence, "s2") == FORKED * exists
    return exists


async def append(persistence: Persistence, existed: bool) -> None:
    assert await persistence.sessions.add_message("s2", message("mine")) == len(FORKED) * existed
    await persistence.repair()
    assert await log(persistence, "s2") == [*FORKED * existed, "mine"]
    assert await persistence.sessions.exists("s2") == existed


async def fork_again(persistence: Persistence, existed: bool) -> None:
    try:
        await fork(persistence)
        assert not existed
    except ConflictError:
        assert existed
    assert await fork_is_whole_or_not_there(persistence)


async def save(persistence: Persistence, existed: bool) -> None:
    await persistence.sessions.save(session("s2", image_id="i3"))
    assert await names_of_sessions(persistence, "i3") == ["s2"]
    assert await names_of_sessions(persistence, "i2") == []
    assert await log(persistence, "s2") == FORKED * existed


async def update(persistence: Persistence, existed: bool) -> None:
    try:
        await persistence.sessions.update("s2", lambda session: session)
        assert existed
    except RecordNotFoundError:
        assert not existed
    assert await fork_is_whole_or_not_there(persistence) == existed


async def delete(persistence: Persistence, existed: bool) -> None:
    assert await persistence.sessions.delete("s2") or not existed
    assert not await fork_is_whole_or_not_there(persistence)


async def clear(persistence: Persistence, existed: bool) -> None:
    assert await persistence.sessions.clear_messages("s2") == len(FORKED) * existed
    assert await log(persistence, "s2") == []
    assert await persistence.sessions.exists("s2") == existed


async def truncate(persistence: Persistence, existed: bool) -> None:
    if existed:
        for number in range(34):  # so often that what is kept is copied to a generation of its own
            for name in ("x", "y"):
                await persistence.sessions.add_message("s2", message(f"{name}{number}"))
            assert await persistence.sessions.truncate_after("s2", f"x{number}") == 1
        assert await persistence.sessions.truncate_after("s2", "b") == 34
    assert await fork_is_whole_or_not_there(persistence) == existed


async def names_of_sessions(persistence: Persistence, image_id: str) -> list[str]:
    return [session.session_id for session in await persistence.sessions.list(image_id=image_id)]


async def prepare_removal(persistence: Persistence) -> None:
    await prepare_fork(persistence)
    await persistence.images.save(image("i2"))
    await fork(persistence)


async def cascade(persistence: Persistence) -> None:
    await persistence.images.delete("i2", cascade=True)


async def remove(persistence: Persistence) -> None:
    await persistence.sessions.delete("s2")


Call = Callable[[Persistence], Coroutine[Any, Any, None]]
BOTH_AT_ONE_MOMENT = [(prepare_fork, fork), (prepare_removal, cascade), (prepare_removal, remove)]
AFTER = [append, fork_again, save, update, delete, clear, truncate]
After = Callable[[Persistence, bool], Coroutine[Any, Any, None]]


@pytest.mark.parametrize("act", [cascade, remove])
def test_P5_a_crash_while_a_session_is_deleted_leaves_it_whole_or_not_there(stores: Callable[[], Store], act: Call) -> None:
    async def check(persistence: Persistence, done: bool) -> None:
        exists = await fork_is_whole_or_not_there(persistence)
        assert not exists or not done

    assert run(crashes(stores, prepare_removal, act, check)) >= 1


# Files are written key by key, as "steps" are; what is done on them beside a fork is tested by the crashes above.
@pytest.mark.parametrize("then", AFTER)
@pytest.mark.parametrize(("prepare", "act"), BOTH_AT_ONE_MOMENT)
@pytest.mark.parametrize("stores", ["steps", "sqlite"], indirect=True)
@in_loop
async def test_P4_what_is_done_after_a_fork_or_a_deletion_that_crashed_holds_and_a_repair_leaves_it(
    stores: Callable[[], Store], prepare: Call, act: Call, then: After
) -> None:
    for steps in itertools.count():
        store = stores()
        async with store.open() as before:
            await prepare(before)
        done = True
        async with store.open(lambda driver, steps=steps: Crashing(driver, steps)) as during:  # type: ignore[misc]
            try:
                await act(during)
            except BackendUnavailable:
                done = False
        async with store.open() as after:
            existed = await fork_is_whole_or_not_there(after)
            await then(after, existed)
            seen = await log(after, "s2"), await after.sessions.get("s2"), await names_of_sessions(after, "i2")
            await after.repair()
            assert seen == (await log(after, "s2"), await after.sessions.get("s2"), await names_of_sessions(after, "i2"))
        await assert_clean(store)
        if done:
            return


class Meanwhile(Wrapped):
    """Lets something else happen before one of its steps."""

    def __init__(self, inner: Driver, steps: int, happen: Callable[[], Coroutine[Any, Any, None]]) -> None:
        super().__init__(inner)
        self.left = steps
        self.happen = happen

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        self.left -= 1
        if self.left == -1:
            await self.happen()
        return await super().write(writes, expect)


async def repair(persistence: Persistence, existed: bool) -> None:
    await persistence.repair()
    assert await fork_is_whole_or_not_there(persistence) == existed


@pytest.mark.parametrize("then", [*AFTER, repair])
@pytest.mark.parametrize("stores", ["steps", "sqlite"], indirect=True)
@in_loop
async def test_P4_what_comes_between_two_steps_of_a_fork_holds(stores: Callable[[], Store], then: After) -> None:
    for steps in itertools.count():
        store = stores()
        async with store.open() as other:
            await prepare_fork(other)
            seen: list[Any] = []

            async def happen(other: Persistence = other, seen: list[Any] = seen) -> None:
                existed = await fork_is_whole_or_not_there(other)
                await then(other, existed)
                seen += [existed, await log(other, "s2"), await other.sessions.get("s2")]

            async with store.open(lambda driver, n=steps, happen=happen: Meanwhile(driver, n, happen)) as forking:  # type: ignore[misc]
                try:
                    await fork(forking)
                    forked = True
                except ConflictError:
                    forked = False
            if not seen:
                assert await fork_is_whole_or_not_there(other)
                return
            existed, messages, record = seen
            if existed:
                assert forked, "who has been seen is not taken back"
            if existed or not forked:
                assert await log(other, "s2") == messages
                assert await other.sessions.get("s2") == record
            else:
                assert await fork_is_whole_or_not_there(other)
                assert messages == []
                assert record is None
            await other.repair()
        await assert_clean(store)


@pytest.mark.parametrize("then", [*AFTER, repair])
@pytest.mark.parametrize("act", [cascade, remove])
@pytest.mark.parametrize("stores", ["steps", "sqlite"], indirect=True)
@in_loop
async def test_P5_what_comes_between_two_steps_of_a_deletion_holds_or_goes_with_the_session(
    stores: Callable[[], Store], act: Call, then: After
) -> None:
    for steps in itertools.count():
        store = stores()
        async with store.open() as other:
            await prepare_removal(other)
            seen: list[Any] = []

            async def happen(other: Persistence = other, seen: list[Any] = seen) -> None:
                existed = await fork_is_whole_or_not_there(other)
                await then(other, existed)
                seen += [existed, await log(other, "s2")]

            async with store.open(lambda driver, n=steps, happen=happen: Meanwhile(driver, n, happen)) as deleting:  # type: ignore[misc]
                await act(deleting)
            exists = await other.sessions.exists("s2")
            if not seen:
                assert not exists
                return
            existed, messages = seen
            if act is cascade and then is save:
                assert exists, "it was moved to another image before, or made anew"
            began_anew = then is append and not existed
            assert await log(other, "s2") == (messages if exists or began_anew else [])
            await other.repair()
        await assert_clean(store)


@pytest.mark.parametrize("stores", ["steps"], indirect=True)
@in_loop
async def test_P5_a_deletion_says_whether_there_was_a_session_or_a_message(stores: Callable[[], Store]) -> None:
    for steps in itertools.count():
        store = stores()
        async with store.open() as before:
            await prepare_removal(before)
        done = True
        async with store.open(lambda driver, steps=steps: Crashing(driver, steps)) as during:  # type: ignore[misc]
            try:
                await remove(during)
            except BackendUnavailable:
                done = False
        async with store.open() as after:
            existed = await fork_is_whole_or_not_there(after)
            assert await after.sessions.delete("s2") == existed, "what a crash leaves to be swept is none"
            assert not await after.sessions.delete("s2")
            await after.sessions.add_message("s2", message("m"))
            assert await after.sessions.delete("s2")
        if done:
            return


def test_P4_a_crash_while_a_whole_log_is_written(stores: Callable[[], Store]) -> None:
    whole = [f"m{number}" for number in range(7)]

    async def prepare(persistence: Persistence) -> None:
        pass

    async def act(persistence: Persistence) -> None:
        await persistence.sessions.write_messages("s1", [message(name) for name in whole])

    async def check(persistence: Persistence, done: bool) -> None:
        found = await log(persistence)
        assert found == whole or (not done and found == [])

    assert run(crashes(stores, prepare, act, check)) >= 3


@in_loop
async def test_a_log_whose_writing_crashed_can_be_written_again_without_a_repair(tmp_path: Path) -> None:
    store = Store("memory", tmp_path)
    async with store.open(lambda driver: Crashing(driver, 2)) as persistence:
        with pytest.raises(BackendUnavailable):
            await persistence.sessions.write_messages("s1", [message("m")])
    async with store.open() as persistence:
        await persistence.sessions.write_messages("s1", [message("m")])
        assert await log(persistence) == ["m"]
