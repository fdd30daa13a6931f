"""Messages: as they came, in order, at a cost that does not grow with the log (P2, P3, P5)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from persistence_helpers import KINDS, Counting, Steps, Store, Wrapped, assert_clean, ids, message, run, session
from running import in_loop

from kvstore import Capabilities, CorruptValueError, Driver, InvalidValueError
from persistence import (
    ConflictError,
    Message,
    Persistence,
    RecordNotFoundError,
    ToolCallMessage,
    UserMessage,
    create_persistence,
)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(request.param, tmp_path)


async def fill(persistence: Any, count: int, session_id: str = "s1", start: int = 0) -> list[str]:
    await persistence.sessions.write_messages(session_id, [message(f"m{number}") for number in range(start, start + count)])
    return [f"m{number}" for number in range(start, start + count)]


@in_loop
async def test_P2_a_message_comes_back_exactly_as_it_came(store: Store) -> None:
    user: UserMessage = {"id": "u1", "timestamp": 1, "subtype": "user", "role": "user", "content": []}
    user["content"] = [{"type": "text", "text": ""}]
    odd: list[Message] = [
        user,
        {"id": ""},
        {"z": 1.0, "id": "x", "a": None, "n": 2**60, "deep": [[{}]], "Id": "🦊", "content": "\0"},
        {"id": "u1"},
    ]
    async with store.open() as persistence:
        for position, given in enumerate(odd):
            assert await persistence.sessions.add_message("s1", given) == position
    async with store.open() as persistence:
        found = await persistence.sessions.get_messages("s1")
        assert found == odd
        assert [list(members) for members in found] == [list(members) for members in odd]
        assert type(found[2]["z"]) is float  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    "bad", [{}, {"id": 1}, {"id": None}, "id", None, [("id", "x")], {"id": "x", "a": {1}}, {"id": "\ud800"}, {"id": "x", 1: 2}]
)
@in_loop
async def test_P2_what_is_no_message_is_refused_before_anything_is_touched(tmp_path: Path, bad: Any) -> None:
    driver = Counting(Store("memory", tmp_path).driver())
    async with Store("memory", tmp_path).open(lambda _: driver) as persistence:
        for call in (
            persistence.sessions.add_message("s1", bad),
            persistence.sessions.add_messages("s1", [message("m"), bad]),
            persistence.sessions.write_messages("s1", [message("m"), bad]),
        ):
            with pytest.raises(InvalidValueError):
                await call
        assert not driver.taken()


@in_loop
async def test_E1_what_is_refused_says_in_which_call_of_which_session_and_which_message() -> None:
    async with create_persistence("memory") as persistence:
        sessions: Any = persistence.sessions
        await sessions.add_message("s1", message("m0"))
        for call, operation, key, text in (
            (sessions.add_message("s1", {}), "add_message", "messages:s1", "a message has an id"),
            (sessions.add_messages("s1", [message("a"), 5]), "add_messages", "messages:s1", "message 1 of those given: "),
            (sessions.write_messages("s2", [{}]), "write_messages", "messages:s2", "message 0 of those given: "),
            (sessions.add_messages("s1", None), "add_messages", None, "messages are a list"),
            (sessions.add_messages("s1", [], expected_count=-1), "add_messages", None, "expected_count is"),
            (sessions.get_messages("s1", last=-1), "get_messages", None, "last is"),
            (sessions.get_messages("s1", start=None), "get_messages", None, "start is"),
            (persistence.images.update_metadata("i1", None), "update_metadata", None, "metadata is"),
        ):
            with pytest.raises(InvalidValueError, match=text) as refused:
                await call
            assert (refused.value.operation, refused.value.key) == (operation, key)
        with pytest.raises(RecordNotFoundError) as missing:
            await sessions.truncate_after("s1", "x")
        assert (missing.value.operation, missing.value.key) == ("truncate_after", "messages:s1")


def test_P2_messages_that_are_read_are_told_apart_by_their_subtype_for_a_type_checker() -> None:
    """What it proves is that mypy passes without a cast."""

    async def main() -> list[str]:
        told = []
        async with create_persistence("memory") as persistence:
            call: ToolCallMessage = {
                "id": "m1",
                "timestamp": 1,
                "subtype": "tool-call",
                "role": "assistant",
                "toolCall": {"type": "tool-call", "id": "c", "name": "ls", "input": {}},
            }
            await persistence.sessions.add_messages("s1", [call, message("m2")])
            found = await persistence.sessions.get_messages("s1")
            for one in found:
                if one["subtype"] == "tool-call":
                    told.append(one["toolCall"]["name"])
                elif one["subtype"] == "user" and isinstance(one["content"], str):
                    told.append(one["content"])
            await persistence.sessions.add_messages("s2", found)
            await persistence.sessions.write_messages("s3", found)
        return told

    assert run(main()) == ["ls", "hi"]


@in_loop
async def test_what_the_caller_changes_after_the_call_changes_nothing_stored(store: Store) -> None:
    async with store.open() as persistence:
        given = [message(f"m{number}", tags=["a"]) for number in range(5)]
        calls = [asyncio.create_task(persistence.sessions.add_message("s1", one)) for one in given]
        await asyncio.sleep(0)
        for one in given:
            one["tags"].append("b")
        await asyncio.gather(*calls)
        found = await persistence.sessions.get_messages("s1")
        assert [one["tags"] for one in found] == [["a"]] * 5  # type: ignore[typeddict-item]
        found.clear()
        assert await persistence.sessions.count_messages("s1") == 5


@in_loop
async def test_messages_are_read_by_position_from_anywhere(store: Store) -> None:
    async with store.open() as persistence:
        sessions = persistence.sessions
        count = 0
        for size in (1, 3, 1, 1, 5, 2, 1, 40, 1, 1, 1, 7):
            assert await sessions.add_messages("s1", [message(f"m{count + n}") for n in range(size)]) == count
            count += size
        await sessions.truncate_after("s1", "m50")
        count = 51
        for size in (1, 20, 1, 1):
            assert await sessions.add_messages("s1", [message(f"m{count + n}") for n in range(size)]) == count
            count += size
        await sessions.truncate_after("s1", "m60")
        count = 61
        for size in (1, 2, 4):
            assert await sessions.add_messages("s1", [message(f"m{count + n}") for n in range(size)]) == count
            count += size
        everything = [f"m{number}" for number in range(count)]
        async with store.open() as cold:
            for reader in (sessions, cold.sessions):
                assert ids(await reader.get_messages("s1")) == everything
                for last in (0, 1, 2, 5, 50, count, 1000):
                    found = ids(await reader.get_messages("s1", last=last))
                    assert found == everything[count - min(last, count) :]
        for start in range(count + 3):
            if start % 5 == 0:
                async with store.open() as cold:
                    assert ids(await cold.sessions.get_messages("s1", start=start)) == everything[start:]
            for limit in (0, 1, 2, 9):
                assert ids(await sessions.get_messages("s1", start=start, limit=limit)) == everything[start : start + limit]
        assert await sessions.get_messages("s1", start=10**9) == []
        assert await sessions.get_messages("none") == []
        assert await sessions.get_messages("none", start=5) == await sessions.get_messages("none", last=5) == []
        assert await sessions.count_messages("none") == await sessions.clear_messages("none") == 0
        for bad in ({"last": -1}, {"start": True}, {"limit": "1"}, {"last": 1, "start": 1}, {"last": 1, "limit": 1}):
            with pytest.raises(InvalidValueError):
                await sessions.get_messages("s1", **bad)


@in_loop
async def test_messages_given_together_are_stored_together_if_there_are_as_many_as_expected(store: Store) -> None:
    async with store.open() as persistence, store.open() as other:
        sessions = persistence.sessions
        assert await sessions.add_messages("s1", []) == 0
        assert await sessions.add_messages("s1", [message("a"), message("b")], expected_count=0) == 0
        await other.sessions.add_message("s1", message("c"))
        for expected in (0, 2, 4):
            for given in ([message("x")], []):
                with pytest.raises(ConflictError, match="3 messages"):
                    await sessions.add_messages("s1", given, expected_count=expected)
        await other.sessions.add_message("s1", message("d"))
        assert await sessions.add_messages("s1", [message("e")], expected_count=4) == 4
        assert await sessions.add_messages("s1", [], expected_count=5) == 5
        outcomes = await asyncio.gather(
            *(p.sessions.add_messages("s1", [message("f")], expected_count=5) for p in (persistence, other) * 5),
            return_exceptions=True,
        )
        assert sorted(str(type(outcome).__name__) for outcome in outcomes) == ["ConflictError"] * 9 + ["int"]
        assert ids(await sessions.get_messages("s1")) == list("abcdef")
        with pytest.raises(InvalidValueError):
            await sessions.add_messages("s1", [], expected_count=-1)


@in_loop
async def test_truncate_keeps_the_message_and_drops_what_follows(store: Store) -> None:
    async with store.open() as persistence:
        sessions = persistence.sessions
        with pytest.raises(RecordNotFoundError):
            await sessions.truncate_after("s1", "m1")
        await fill(persistence, 10)
        await sessions.add_messages("s1", [message("a"), message("b"), message("c")])
        with pytest.raises(RecordNotFoundError, match="'x'"):
            await sessions.truncate_after("s1", "x")
        assert await sessions.truncate_after("s1", "c") == 0
        assert await sessions.truncate_after("s1", "b") == 1
        assert await sessions.truncate_after("s1", "b") == 0
        assert await sessions.truncate_after("s1", "a") == 1
        assert await sessions.add_message("s1", message("d")) == 11
        assert await sessions.truncate_after("s1", "m9") == 2
        assert await sessions.truncate_after("s1", "m3") == 6
        assert ids(await sessions.get_messages("s1")) == ["m0", "m1", "m2", "m3"]
        await sessions.add_message("s1", message("m1"))
        assert await sessions.truncate_after("s1", "m1") == 0, "the last message with this id counts"
        assert await sessions.clear_messages("s1") == 5
        assert await sessions.get_messages("s1") == []
        assert await sessions.add_message("s1", message("new")) == 0
    await assert_clean(store)


@in_loop
async def test_a_log_that_is_truncated_again_and_again_keeps_a_small_head(store: Store) -> None:
    async with store.open() as persistence:
        await persistence.sessions.add_messages("s1", [message("first"), message("second")])
        expected = ["first", "second"]
        for turn in range(40):
            await persistence.sessions.add_messages("s1", [message(f"k{turn}"), message("x")])
            await persistence.sessions.add_message("s1", message("y"))
            assert await persistence.sessions.truncate_after("s1", f"k{turn}") == 2
            expected.append(f"k{turn}")
        assert ids(await persistence.sessions.get_messages("s1")) == expected
        assert ids(await persistence.sessions.get_messages("s1", start=30, limit=9)) == expected[30:39]
        async with store.storage() as storage:
            assert len((await storage.get_item("heads:s1"))["closed"]) <= 32
    await assert_clean(store)


@in_loop
async def test_a_fork_copies_messages_and_is_independent(store: Store) -> None:
    async with store.open() as persistence:
        sessions = persistence.sessions
        with pytest.raises(RecordNotFoundError):
            await sessions.fork("s1", "s2")
        await sessions.save(session("s1", "i1", "c1", extra={"title": "T"}))
        empty = await sessions.fork("s1", "empty")
        assert (empty.image_id, empty.container_id, empty.extra) == ("i1", "c1", {"title": "T"})
        assert await sessions.get("empty") == empty
        await fill(persistence, 5)
        await sessions.add_messages("s1", [message("a"), message("b")])
        await sessions.truncate_after("s1", "m3")
        await sessions.add_messages("s1", [message("a"), message("b"), message("c")])
        forked = await sessions.fork("s1", "s2", image_id="i2", through="b")
        assert (forked.session_id, forked.image_id, forked.container_id) == ("s2", "i2", "c1")
        assert [s.session_id for s in await sessions.list(image_id="i2")] == ["s2"]
        assert await sessions.add_message("s2", message("z")) == 6
        assert await sessions.truncate_after("s1", "m1") == 5
        assert ids(await sessions.get_messages("s2")) == ["m0", "m1", "m2", "m3", "a", "b", "z"]
        for target in ("s1", "s2", "empty"):
            with pytest.raises(ConflictError):
                await sessions.fork("s1", target)
        await sessions.add_message("log only", message("m"))
        with pytest.raises(ConflictError):
            await sessions.fork("s1", "log only")
        with pytest.raises(RecordNotFoundError):
            await sessions.fork("s1", "s3", through="x")
        assert not await sessions.exists("s3")
    await assert_clean(store)


@in_loop
async def test_a_whole_log_is_written_at_once_where_there_is_none(store: Store) -> None:
    async with store.open() as persistence:
        sessions = persistence.sessions
        await sessions.write_messages("s1", [])
        assert await sessions.count_messages("s1") == 0
        seen: set[int] = set()

        async def watch() -> None:
            while 601 not in seen:
                seen.add(len(await sessions.get_messages("s1")))
                await asyncio.sleep(0)

        written, _ = await asyncio.gather(fill(persistence, 601), watch())
        assert seen <= {0, 601}
        assert ids(await sessions.get_messages("s1")) == written
        assert await sessions.add_message("s1", message("next")) == 601
        for count in (0, 2):
            with pytest.raises(ConflictError, match="log of messages already"):
                await fill(persistence, count)
    await assert_clean(store)


@in_loop
async def test_P5_deleting_a_session_takes_its_messages(store: Store) -> None:
    async with store.open() as persistence:
        sessions = persistence.sessions
        await sessions.save(session("s1"))
        for name in ("s1", "s1:x", "s"):
            await fill(persistence, 3, name)
            await sessions.truncate_after(name, "m1")
        await sessions.add_message("s1", message("m"))
        assert await sessions.delete("s1")
        assert not await sessions.delete("s1")
        assert await sessions.get_messages("s1") == []
        assert await sessions.count_messages("s1:x") == await sessions.count_messages("s") == 2
        assert await sessions.delete("s1:x"), "messages without a session record are deleted too"
        assert await sessions.delete("s")
    async with store.storage() as storage:
        assert await storage.get_keys() == []


@in_loop
async def test_P5_messages_without_a_session_are_found_and_told(store: Store) -> None:
    async with store.open() as persistence:
        sessions = persistence.sessions
        for name in ("s1", "s:2", "empty"):
            await sessions.save(session(name))
        await fill(persistence, 2)
        await fill(persistence, 2, "s:2")
        await fill(persistence, 1, "cleared")
        await sessions.clear_messages("cleared")
        assert sorted(await sessions.logs()) == ["s1", "s:2"]
        assert (await persistence.repair()).orphaned == ()
        await sessions.delete("s:2")
        await sessions.add_message("s:2", message("of a turn that went on"))
        assert (await persistence.repair()).orphaned == ("s:2",)
        assert await sessions.delete("s:2")
        assert await sessions.logs() == ["s1"]
    await assert_clean(store)


@in_loop
async def test_a_log_with_a_hole_is_told_and_can_still_be_deleted(store: Store) -> None:
    async with store.open() as persistence:
        await fill(persistence, 5)
        await persistence.sessions.truncate_after("s1", "m3")
        await persistence.sessions.add_message("s1", message("m"))
    async with store.storage() as storage:
        (key, *_) = await storage.get_keys("messages")
        for broken in (5, {"at": "x"}, {"at": 0, "messages": []}, None):
            entries = [key for key in await storage.get_keys("messages") if key.endswith("0" * 12)]
            for key in entries:
                await (storage.remove_item(key) if broken is None else storage.set_item(key, broken))
            async with store.open() as persistence:
                with pytest.raises(CorruptValueError, match="messages:s1"):
                    await persistence.sessions.get_messages("s1")
    async with store.open() as persistence:
        assert await persistence.sessions.delete("s1")
    await assert_clean(store)


async def lose(store: Store, *numbers: int) -> None:
    """Entries of the log are gone, as after a restart of a server that had not synced, or where one of them was evicted."""
    async with store.storage() as storage:
        keys = await storage.get_keys("messages:s1")
        await storage.remove_items([key for key in keys if int(key.rpartition(":")[2], 16) in numbers])


@in_loop
async def test_P4_after_a_server_lost_its_last_moments_nothing_is_written_behind_a_hole(store: Store) -> None:
    async with store.open() as one, store.open() as two, store.open() as three:
        for number in range(6):
            await one.sessions.add_message("s1", message(f"m{number}"))
        assert await two.sessions.add_message("s1", message("m6")) == 6
        assert await three.sessions.count_messages("s1") == 7
        await lose(store, 3, 4, 5, 6)
        assert await two.sessions.add_message("s1", message("a")) == 3
        assert await one.sessions.add_message("s1", message("b")) == 4
        assert await three.sessions.add_message("s1", message("c")) == 5
        async with store.open() as cold:
            for persistence in (one, two, three, cold):
                assert ids(await persistence.sessions.get_messages("s1")) == ["m0", "m1", "m2", "a", "b", "c"]
                assert await persistence.sessions.count_messages("s1") == 6
        report = await one.repair()
        assert report.unreadable == ()
    await assert_clean(store)


@in_loop
async def test_P4_a_log_that_lost_its_end_and_grew_again_is_appended_to_at_its_new_end(store: Store) -> None:
    async with store.open() as one, store.open() as two:
        for number in range(4):
            await one.sessions.add_message("s1", message(f"m{number}"))
        await lose(store, 2, 3)
        for name in "ab":
            await two.sessions.add_messages("s1", [message(f"{name}1"), message(f"{name}2")])
        assert await one.sessions.add_message("s1", message("c")) == 6
        for persistence in (one, two):
            assert ids(await persistence.sessions.get_messages("s1")) == ["m0", "m1", "a1", "a2", "b1", "b2", "c"]


@in_loop
async def test_P4_what_a_server_lost_is_no_hole_to_who_remembers_it(store: Store) -> None:
    left = ["m0", "m1", "m2"]
    for call in ("get", "last", "count", "fork", "truncate", "clear"):
        async with store.open() as persistence:
            sessions = persistence.sessions
            await sessions.save(session("s1"))
            for number in range(6):
                await sessions.add_message("s1", message(f"m{number}", content="long" * (5_000 if number == 5 else 1)))
            await lose(store, 3, 4, 5)
            match call:
                case "get":
                    assert ids(await sessions.get_messages("s1")) == left
                case "last":
                    assert ids(await sessions.get_messages("s1", last=50)) == left
                case "count":
                    assert await sessions.count_messages("s1") == 3
                case "fork":
                    await sessions.fork("s1", "s2")
                    assert ids(await sessions.get_messages("s2")) == left
                case "truncate":
                    assert await sessions.truncate_after("s1", "m1") == 1
                    left = ["m0", "m1"]
                case "clear":
                    assert await sessions.clear_messages("s1") == 3
                    left = []
            assert ids(await sessions.get_messages("s1", last=1)) == left[-1:]
            assert await sessions.add_message("s1", message("next")) == len(left)
            assert await sessions.delete("s1")
            left = ["m0", "m1", "m2"]


@pytest.mark.parametrize("damage", ["gone", "no JSON", "no entry"])
@in_loop
async def test_P4_a_hole_is_told_by_every_read_of_it_and_by_repair_and_a_cut_before_it_mends_it(
    store: Store, damage: str
) -> None:
    async with store.open() as warm:
        for number in range(8):
            await warm.sessions.add_message("s1", message(f"m{number}"))
        async with store.storage() as storage:
            keys = await storage.get_keys("messages:s1")
            for key in keys[3:5]:
                if damage == "gone":
                    await storage.remove_item(key)
                else:
                    await storage.set_item_raw(key, b"{" if damage == "no JSON" else b'{"at":3}')
        async with store.open() as cold:
            for persistence in (warm, cold):
                for wanted in ({}, {"last": 6}, {"start": 2}):
                    with pytest.raises(CorruptValueError, match="messages:s1"):
                        await persistence.sessions.get_messages("s1", **wanted)
                assert ids(await persistence.sessions.get_messages("s1", limit=3)) == ["m0", "m1", "m2"]
                assert ids(await persistence.sessions.get_messages("s1", last=2)) == ["m6", "m7"]
                assert ids(await persistence.sessions.get_messages("s1", start=5)) == ["m5", "m6", "m7"]
                assert await persistence.sessions.count_messages("s1") == 8
            assert (await cold.repair()).unreadable == tuple(keys[3:4] if damage == "gone" else keys[3:5])
            assert await cold.sessions.truncate_after("s1", "m2") == 5
            assert ids(await warm.sessions.get_messages("s1")) == ["m0", "m1", "m2"]
            assert (await cold.repair()).unreadable == ()
    await assert_clean(store)


class Torn(Wrapped):
    """Reads one key of several later than the others, after something else has happened."""

    def __init__(self, inner: Driver, ordered: bool) -> None:
        super().__init__(inner)
        self.capabilities = Capabilities(conditional=True, ordered=ordered, persistent=False)
        self.late = ""
        self.happen: Callable[[], Coroutine[Any, Any, object]] | None = None

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        await asyncio.sleep(0)
        found = dict(zip(keys, await super().read(keys), strict=True))
        late = [key for key in keys if key.endswith(self.late)]
        if late and self.happen:
            happen, self.happen = self.happen, None
            await happen()
            found |= zip(late, await super().read(late), strict=True)
        return [found[key] for key in keys]


@pytest.mark.parametrize("cut", ["clear", "delete", "truncate"])
@pytest.mark.parametrize("ordered", [True, False])
@in_loop
async def test_P4_a_read_that_is_not_of_one_moment_gives_a_state_that_was_there(
    tmp_path: Path, cut: str, ordered: bool
) -> None:
    left = {"truncate": 41}.get(cut, 0)
    for warm in (False, True):
        for call in ("all", "start", "last", "fork"):
            path = tmp_path / f"{warm}{call}"
            store = Store("memory", path)
            torn = Torn(store.driver(), ordered)
            async with store.open(lambda _, torn=torn: torn) as reader, store.open(Steps) as writer:  # type: ignore[misc]
                await writer.sessions.save(session("s1"))
                await fill(writer, 60)
                if warm:
                    await reader.sessions.count_messages("s1")

                async def happen(writer: Persistence = writer) -> None:
                    match cut:
                        case "clear":
                            await writer.sessions.clear_messages("s1")
                        case "delete":
                            await writer.sessions.delete("s1")
                        case "truncate":
                            await writer.sessions.truncate_after("s1", "m40")

                torn.late, torn.happen = f":{50 if left else 30:012x}", happen
                match call:
                    case "all":
                        assert len(await reader.sessions.get_messages("s1")) in (60, left)
                    case "start":
                        assert len(await reader.sessions.get_messages("s1", start=5)) in (55, max(0, left - 5))
                    case "last":
                        assert ids(await reader.sessions.get_messages("s1", last=50))[-1:] in (
                            ["m59"],
                            ["m40"] * (left > 0),
                        )
                    case "fork":
                        with suppress(RecordNotFoundError):  # it was deleted
                            await reader.sessions.fork("s1", "s2")
                            assert cut != "delete"
                        assert await writer.sessions.count_messages("s2") in (60, left)
                assert torn.happen is None


@in_loop
async def test_P3_an_append_costs_one_round_trip_at_any_length(tmp_path: Path) -> None:
    driver = Counting(Store("memory", tmp_path).driver())
    async with Store("memory", tmp_path).open(lambda _: driver) as persistence:
        for count in (0, 10, 10_000):
            if count:
                await fill(persistence, count, f"s{count}")
            await persistence.sessions.add_message(f"s{count}", message("first"))
            driver.taken()
            for _ in range(5):
                await persistence.sessions.add_messages(f"s{count}", [message("next"), message("one")])
                assert driver.taken() == ["write"]
            await persistence.sessions.get_messages(f"s{count}", last=1)
            driver.taken()
            await persistence.sessions.add_message(f"s{count}", message("last"))
            assert driver.taken() == ["write"]
    # Cold: the head, the last key, the last entry, the append.
    async with Store("memory", tmp_path).open(lambda _: driver) as persistence:
        driver.taken()
        assert await persistence.sessions.add_message("s10000", message("m")) == 10_012
        assert driver.taken() == ["read", "scan", "read", "write"]


@in_loop
async def test_P3_reading_the_last_50_costs_one_round_trip_at_any_length(tmp_path: Path) -> None:
    driver = Counting(Store("memory", tmp_path).driver())
    async with Store("memory", tmp_path).open(lambda _: driver) as persistence:
        for count in (60, 10_000):
            await fill(persistence, count, f"s{count}")
            assert await persistence.sessions.count_messages(f"s{count}") == count
            driver.taken()
            found = await persistence.sessions.get_messages(f"s{count}", last=50)
            assert len(found) == 50
            assert driver.keys < 64
            assert driver.taken() == ["read"]


@in_loop
async def test_P3_the_end_of_a_long_log_is_found_in_few_reads_without_ordered_listing(tmp_path: Path) -> None:
    store = Store("memory", tmp_path)
    async with store.open() as persistence:
        await fill(persistence, 5_000)
    drivers: list[Counting] = []
    for _ in range(2):
        async with store.open(lambda inner: drivers.append(Counting(Steps(inner))) or drivers[-1]) as persistence:  # type: ignore[func-returns-value]
            assert await persistence.sessions.count_messages("s1") == 5_000
            assert len(drivers[-1].calls) <= 6
            assert "scan" not in drivers[-1].taken()
            assert ids(await persistence.sessions.get_messages("s1", start=4_000, limit=2)) == ["m4000", "m4001"]
            assert drivers[-1].taken() == ["read", "read"]
