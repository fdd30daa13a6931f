"""A crash between any two steps leaves a store that reads right, and that `repair` sweeps clean (P4, P5)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from persistence_helpers import KINDS, Store, crashes, ids, image, message, run, session

from persistence import Container, Persistence


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
            assert await log(persistence, name) in ([["m1", "m2"], []] if exists and name == "s1" else [[]]), (
                "no messages without the session"
            )
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
    everything = ["m0", "m1", "a", "b"]

    async def prepare(persistence: Persistence) -> None:
        await persistence.sessions.save(session("s1"))
        await persistence.sessions.write_messages("s1", [message("m0"), message("m1")])
        await persistence.sessions.add_messages("s1", [message("a"), message("b"), message("c")])

    async def act(persistence: Persistence) -> None:
        await persistence.sessions.fork("s1", "s2", image_id="i2", through="b")

    async def check(persistence: Persistence, done: bool) -> None:
        assert await log(persistence) == [*everything, "c"]
        exists = await persistence.sessions.exists("s2")
        assert [session.session_id for session in await persistence.sessions.list(image_id="i2")] == ["s2"] * exists
        if exists:
            assert await log(persistence, "s2") == everything
        assert exists or not done

    assert run(crashes(stores, prepare, act, check)) >= 3


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


def test_a_log_whose_writing_crashed_can_be_written_again_without_a_repair(tmp_path: Path) -> None:
    from persistence_helpers import Crashing

    from kvstore import BackendUnavailable

    async def main() -> None:
        store = Store("memory", tmp_path)
        async with store.open(lambda driver: Crashing(driver, 2)) as persistence:
            with pytest.raises(BackendUnavailable):
                await persistence.sessions.write_messages("s1", [message("m")])
        async with store.open() as persistence:
            await persistence.sessions.write_messages("s1", [message("m")])
            assert await log(persistence) == ["m"]

    run(main())
