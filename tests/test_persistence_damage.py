"""Damage: what is stored and is not as this version writes it is told, harms nothing else and can be mended (P4, V4, E1)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from persistence_helpers import KINDS, Store, Wrapped, assert_clean, ids, image, message, run, session
from running import in_loop

from kvstore import CorruptValueError, Driver, Expect, InvalidValueError, Write
from persistence import ConflictError, Container, Persistence, create_persistence

GENERATION = "0123456789abcdef"
SOON = 10.0


@pytest.fixture(params=["memory", "steps", "sqlite", "fs", "redis", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(request.param, tmp_path)


async def put(store: Store, key: str, data: bytes | str) -> None:
    async with store.storage() as storage:
        await storage.set_item_raw(key, data.encode() if isinstance(data, str) else data)


async def fill(persistence: Persistence, *message_ids: str, session_id: str = "s1") -> None:
    await persistence.sessions.save(session(session_id))
    for message_id in message_ids:
        await persistence.sessions.add_message(session_id, message(message_id))


async def entry_keys(store: Store, session_id: str = "s1") -> list[str]:
    async with store.storage() as storage:
        return await storage.get_keys(f"messages:{session_id}")


def entry(at: Any, *messages: Any) -> str:
    return json.dumps({"at": at, "messages": messages})


# Heads


@pytest.mark.parametrize(
    "head",
    [
        '{"generation":"G","later":1}',
        '{"generation":"G","closed":[]}',
        '{ "generation" : "G" }',
        '{"staged":["q"],"generation":"G","later":{"n":null}}',
        '{"generation":"G","otherwise":"aGk="}',
        '{"generation":"G","generation":"G"}',
        '{"generation":null}',
        '{"staged":["q"],"later":1}',
        "{}",
    ],
)
@in_loop
async def test_P4_a_head_that_another_version_wrote_is_read_and_changed_and_none_of_it_takes_for_ever(
    store: Store, head: str
) -> None:
    there = ["m0", "m1"] if "G" in head else []
    for change in ("add", "repair", "truncate", "clear", "write", "fork", "delete"):
        async with store.open() as warm, store.open() as persistence, asyncio.timeout(SOON):
            sessions = persistence.sessions
            await sessions.delete("s1")
            assert await warm.sessions.add_messages("s1", []) == 0
            await put(store, "heads:s1", head.replace('"G"', f'"{GENERATION}"'))
            for number, message_id in enumerate(there):
                key = f"messages:s1:{GENERATION}:{number:012x}"
                await put(store, key, json.dumps({"at": number, "messages": [message(message_id)]}))
            assert await sessions.count_messages("s1") == await warm.sessions.count_messages("s1") == len(there)
            left = there
            if change == "add":
                assert await sessions.add_message("s1", message("m")) == len(there)
                assert await warm.sessions.add_message("s1", message("n")) == len(there) + 1
                left = [*there, "m", "n"]
            elif change == "truncate" and there:
                assert await sessions.truncate_after("s1", "m0") == 1
                left = ["m0"]
            elif change == "clear":
                assert await sessions.clear_messages("s1") == len(there)
                left = []
            elif change in ("write", "fork"):
                await sessions.write_messages("s2", [message("w")])
                await sessions.save(session("s2"))
                with pytest.raises(ConflictError) if there else nullcontext():
                    await (sessions.write_messages("s1", [message("w")]) if change == "write" else sessions.fork("s2", "s1"))
                    left = ["w"]
                await sessions.delete("s2")
            elif change == "delete":
                await sessions.delete("s1")
                left = []
            assert ids(await warm.sessions.get_messages("s1")) == ids(await sessions.get_messages("s1")) == left
            await persistence.repair()
            assert ids(await warm.sessions.get_messages("s1")) == left
    await assert_clean(store)


@pytest.mark.parametrize(
    "head",
    [
        *(
            "",
            "{nope",
            "5",
            "[]",
            '{"generation":""}',
            '{"generation":"/"}',
            '{"generation":".."}',
            '{"generation":"a\\u0000b"}',
        ),
        '{"generation":"%s"}' % ("x" * 2_000),
        '{"generation":"g","closed":[{"generation":"f","entries":10000000000000,"end":5}]}',
        '{"generation":"g","closed":[{"generation":"f","entries":0,"end":5}]}',
        '{"generation":"g","closed":[{"generation":"g","entries":1,"end":1}]}',
        '{"generation":"g","staged":["a:b"]}',
    ],
)
@in_loop
async def test_E1_a_head_that_cannot_be_read_is_told_with_its_place_and_stops_no_other_session(store: Store, head: str) -> None:
    async with store.open() as persistence:
        sessions = persistence.sessions
        await persistence.containers.save(Container(container_id="c1"))
        await fill(persistence, "m0", session_id="good")
        for clear in (True, False):
            await fill(persistence, "m0", "m1")
            await put(store, "heads:s1", head)
            with pytest.raises(CorruptValueError) as warm:
                await sessions.add_message("s1", message("m"))
            assert warm.value.key == "heads:s1"
            async with store.open() as cold, asyncio.timeout(SOON):
                for call in (
                    cold.sessions.count_messages("s1"),
                    cold.sessions.get_messages("s1"),
                    cold.sessions.get_messages("s1", start=1),
                    cold.sessions.add_message("s1", message("m")),
                    cold.sessions.truncate_after("s1", "m0"),
                    cold.sessions.write_messages("s1", [message("m")]),
                    cold.sessions.fork("s1", "s2"),
                ):
                    with pytest.raises(CorruptValueError, match="clear_messages or delete") as told:
                        await call
                    assert told.value.key == "heads:s1"
                    assert None not in (told.value.operation, told.value.mount, told.value.driver)
                assert await cold.sessions.logs() == ["good", "s1"]
                assert (await cold.repair()).unreadable == ("heads:s1",)
                if clear:
                    assert await cold.sessions.clear_messages("s1") == 2
                    assert await cold.sessions.add_message("s1", message("m")) == 0
                    await cold.sessions.delete("s1")
                else:
                    assert await cold.containers.delete("c1", cascade=True)
                    assert await sessions.logs() == []
    await assert_clean(store)


@in_loop
async def test_keys_that_are_no_heads_of_ours_stop_neither_repair_nor_the_list_of_logs(store: Store) -> None:
    head = json.dumps({"generation": GENERATION})
    for key in ("heads:" + "x" * 600, "heads:%41", "heads:a:b", f"messages:s1:{GENERATION}:zz"):
        await put(store, key, head)
    async with store.open() as persistence:
        await put(store, "heads:s1", head)
        assert await persistence.sessions.add_message("s1", message("m0")) == 0
        assert await persistence.sessions.logs() == ["s1"]
        report = await persistence.repair()
        assert (report.unreadable, report.orphaned) == ((), ("s1",))


@in_loop
async def test_what_lies_at_an_absurd_number_is_a_hole_that_costs_no_more_than_another(store: Store) -> None:
    async with store.open() as persistence:
        await fill(persistence, "m0", "m1")
    last = (await entry_keys(store))[-1]
    stray = last.rpartition(":")[0] + ":f000000000000"[:13]
    await put(store, stray, entry(0xF00000000000, message("far")))
    async with store.open() as persistence, asyncio.timeout(SOON):
        assert (await persistence.repair()).unreadable == (last[:-1] + "2",)
        assert await persistence.sessions.truncate_after("s1", "m0") >= 1
        assert ids(await persistence.sessions.get_messages("s1")) == ["m0"]
    await assert_clean(store)


# Gaps


UNORDERED = ("steps", "fs", "redis-unindexed")


GAPS = [(6, 3, 4), (40, 15, 32), (5, 0, 1), (40, 15, 18), (40, 0, 39), (90, 88, 89), (300, 60, 200)]
"""How many messages there were, the first that is gone, and the one behind."""


@pytest.mark.parametrize(
    ("kind", "gap"),
    [(kind, gap) for kind in (*KINDS, "redis-unindexed") for gap in (GAPS[:2] if kind in KINDS[4:] else GAPS)],
)
@in_loop
async def test_P4_a_gap_is_told_and_neither_hides_what_is_behind_it_nor_is_written_to(
    kind: str, gap: tuple[int, int, int], tmp_path: Path
) -> None:
    store, (count, first, behind) = Store(kind, tmp_path), gap
    names = [f"m{number}" for number in range(count)]
    async with store.open() as persistence:
        await persistence.sessions.save(session("s1"))
        await persistence.sessions.write_messages("s1", [message(name) for name in names])
    keys = await entry_keys(store)
    async with store.storage() as storage:
        await storage.remove_items(keys[first:behind])

    async def read(**part: int) -> list[str]:  # by one who remembers nothing
        async with store.open() as cold:
            return ids(await cold.sessions.get_messages("s1", **part))

    # All is gone where an end is sought by looking at some entries, but not for who looks at all.
    is_hidden = kind in UNORDERED and gap in ((40, 15, 32), (40, 0, 39))
    for added in range(0 if is_hidden else 3):
        async with store.open() as cold:
            assert await cold.sessions.count_messages("s1") == count + added
        async with store.open() as cold:
            assert (await cold.repair()).unreadable == (keys[first],)
            assert await cold.sessions.logs() == ["s1"]
        for part in (
            {},
            {"start": first},
            {"start": behind - 1, "limit": 1},
            {"last": count + added - first},
            {"limit": behind},
        ):
            with pytest.raises(CorruptValueError, match="this entry of a message log is gone"):
                await read(**part)
        assert await read(last=1) == names[-1:]
        assert await read(start=behind) == await read(last=count + added - behind) == names[behind:]
        assert await read(start=behind, limit=1) == names[behind : behind + 1]
        assert (await read(limit=first) if first else []) == names[:first]
        async with store.open() as cold:
            assert await cold.sessions.add_message("s1", message(f"new{added}")) == count + added
        names.append(f"new{added}")
    assert (await entry_keys(store))[: count + first - behind] == [key for key in keys if key not in keys[first:behind]]
    async with store.open() as cold:
        assert (await cold.repair()).unreadable == (keys[first],)
        if is_hidden:
            return
        if first:
            assert await cold.sessions.truncate_after("s1", names[first - 1]) >= count + 3 - behind
            assert await cold.sessions.add_message("s1", message("next")) == first
            assert ids(await cold.sessions.get_messages("s1")) == [*names[:first], "next"]
        else:
            assert await cold.sessions.clear_messages("s1") == count + 3
            assert await cold.sessions.add_message("s1", message("next")) == 0
    await assert_clean(store)


# Entries


DAMAGED = [
    "",
    "{nope",
    "5",
    entry(1),
    entry(1, 5),
    entry(1, None),
    entry(7, message("m1")),
    entry(0, message("m1")),
    entry(-1, {}),
]


@pytest.mark.parametrize("data", DAMAGED)
@in_loop
async def test_E1_an_entry_that_cannot_be_read_or_stands_elsewhere_is_told_with_its_place(store: Store, data: str) -> None:
    async with store.open() as persistence:
        await fill(persistence, "m0", "m1", "m2")
    keys = await entry_keys(store)
    await put(store, keys[1], data)
    async with store.open() as persistence:
        sessions = persistence.sessions
        calls = [sessions.get_messages("s1"), sessions.get_messages("s1", last=3), sessions.fork("s1", "s2")]
        for call in (*calls, sessions.get_messages("s1", start=1, limit=2)):
            with pytest.raises(CorruptValueError, match="truncate_after a message before") as told:
                await call
            assert told.value.key in keys[1:]
            assert None not in (told.value.operation, told.value.mount, told.value.driver)
        unreadable = (await persistence.repair()).unreadable
        assert unreadable[0] == keys[1]
        assert "at" in data or len(unreadable) == 1
        if "m1" in data:
            with pytest.raises(CorruptValueError):
                await sessions.truncate_after("s1", "m1")
        async with store.storage() as storage:
            assert await storage.get_item_raw(keys[1]) == data.encode()
        assert await sessions.truncate_after("s1", "m0") == 2
        assert await sessions.count_messages("s1") == await sessions.add_message("s1", message("m1")) == 1
        assert (await persistence.repair()).unreadable == ()
    await assert_clean(store)


@pytest.mark.parametrize("mend", ["truncate_after", "clear_messages", "delete"])
@pytest.mark.parametrize("data", ["", '{"at":2', entry(0, message("m2")), entry(10**19, message("m2"))])
@in_loop
async def test_P4_a_log_whose_last_entry_is_damaged_is_mended_by_a_cut_before_it(store: Store, data: str, mend: str) -> None:
    async with store.open() as persistence:
        await fill(persistence, "m0", "m1", "m2")
    await put(store, (await entry_keys(store))[-1], data)
    async with store.open() as persistence:
        sessions = persistence.sessions
        with pytest.raises(CorruptValueError):
            await sessions.add_message("s1", message("m"))
        fork = await sessions.fork("s1", "s2", through="m1")
        assert ids(await sessions.get_messages(fork.session_id)) == ["m0", "m1"]
        if mend == "truncate_after":
            assert await sessions.truncate_after("s1", "m0") >= 2
            assert ids(await sessions.get_messages("s1")) == ["m0"]
        elif mend == "clear_messages":
            assert await sessions.clear_messages("s1") >= 3
            assert await sessions.get_messages("s1") == []
        else:
            assert await sessions.delete("s1")
        await sessions.add_message("s1", message("next"))
        assert ids(await sessions.get_messages("s1"))[-1] == "next"
        assert (await persistence.repair()).unreadable == ()


@in_loop
async def test_P4_a_log_with_integers_of_any_size_is_forked_exactly(store: Store) -> None:
    """V1: beyond 64 bits exact or refused. What another program stored is read exactly, so it is copied exactly."""
    async with store.open() as persistence:
        await fill(persistence, "m0")
        (key,) = await entry_keys(store)
        await put(store, key, entry(0, {"id": "m0", "n": 10**20, "f": 1.0}))
        await persistence.sessions.fork("s1", "s2")
        found = await persistence.sessions.get_messages("s2")
        assert found == [{"id": "m0", "n": 10**20, "f": 1.0}]
    await assert_clean(store)


def test_P4_what_a_backend_refuses_to_store_leaves_no_mark_that_a_log_is_being_written(tmp_path: Path) -> None:
    class Small(Wrapped):
        async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
            if any(data is not None and len(data) > 1_000 for _, data, _ in writes):
                raise InvalidValueError("too large")
            return await super().write(writes, expect)

    async def main() -> None:
        store = Store("memory", tmp_path)
        async with store.open(Small) as persistence:
            with pytest.raises(InvalidValueError, match="too large"):
                await persistence.sessions.write_messages("s1", [message("m0"), message("m1", content="x" * 2_000)])
        async with store.storage() as storage:
            assert await storage.get_keys() == []

    run(main())


@in_loop
async def test_E1_a_log_that_is_there_already_is_told_with_the_call() -> None:
    async with create_persistence("memory") as persistence:
        await fill(persistence, "m0")
        with pytest.raises(ConflictError) as told:
            await persistence.sessions.write_messages("s1", [message("m")])
        assert told.value.operation == "write_messages"


# Records


@pytest.mark.parametrize("data", ["", "{nope", "5.5"])
@in_loop
async def test_P5_an_index_entry_of_any_bytes_harms_no_record_and_goes_with_it(store: Store, data: str) -> None:
    async with store.open() as persistence:
        entry_of = "index:images:name:old:0000000000000005:i1"
        for change in ("save", "update", "delete", "cascade", "repair"):
            await persistence.containers.save(Container(container_id="c1"))
            await persistence.images.save(image("i1", "old", created_at=5))
            await put(store, entry_of, data)
            if change == "save":
                assert (await persistence.images.save(image("i1", "new"))).created_at == 5
            elif change == "update":
                changed = await persistence.images.update("i1", lambda old: replace(old, name="new"))
                assert changed.name == "new"
            elif change == "delete":
                assert await persistence.images.delete("i1")
            elif change == "cascade":
                assert await persistence.containers.delete("c1", cascade=True)
            else:
                await put(store, "index:images:name:old:0000000000000005:gone", data)
                assert (await persistence.repair()).removed_entries == 1
                assert [found.image_id for found in await persistence.images.list(name="old")] == ["i1"]
                await persistence.images.delete("i1")
            async with store.storage() as storage:
                assert not await storage.has_item(entry_of)
    await assert_clean(store)


RECORD = '{"imageId":"i1","containerId":"c1","sessionId":"s1","name":"n","createdAt":7,"updatedAt":1%s}'


@pytest.mark.parametrize("more", [f',"x":{10**40}', ',"x":%s' % ("[" * 300 + "]" * 300)])
@in_loop
async def test_V1_a_record_with_what_only_others_can_write_is_read_repaired_replaced_and_deleted(
    store: Store, more: str
) -> None:
    async with store.open() as persistence:
        for change in ("save", "delete"):
            await put(store, "images:i1", RECORD % more)
            assert (await persistence.repair()).added_entries == 4 - 1
            assert [found.image_id for found in await persistence.images.list(name="n")] == ["i1"]
            if change == "save":
                assert (await persistence.images.save(image("i1"))).created_at == 7
            assert await persistence.images.delete("i1")
    await assert_clean(store)


@pytest.mark.parametrize("replace_it", [False, True])
@in_loop
async def test_P5_a_copy_of_a_record_under_another_id_takes_no_entries_along(store: Store, replace_it: bool) -> None:
    async with store.open() as persistence:
        await persistence.containers.save(Container(container_id="c1"))
        await persistence.images.save(image("i1"))
        await persistence.sessions.save(session("s1"))
        for key, copied in (("images:i1", "images:i2"), ("sessions:s1", "sessions:s2")):
            await persistence.storage.set_item(copied, await persistence.storage.get_item(key))
        assert (await persistence.repair()).unreadable == ("images:i2", "sessions:s2")
        if replace_it:
            await persistence.images.save(image("i2", container_id="c2"))
            await persistence.sessions.save(session("s2", "i2", "c2"))
        else:
            assert await persistence.images.delete("i2")
            assert await persistence.sessions.delete("s2")
        assert [found.image_id for found in await persistence.images.list(container_id="c1")] == ["i1"]
        assert [found.session_id for found in await persistence.sessions.list(image_id="i1")] == ["s1"]
        await persistence.containers.delete("c1", cascade=True)
        assert not await persistence.images.exists("i1")
        assert not await persistence.sessions.exists("s1")
    await assert_clean(store)


@in_loop
async def test_E1_a_record_whose_id_is_too_long_for_a_key_can_be_replaced_or_deleted(store: Store) -> None:
    async with store.open() as persistence:
        for name in ("i1", "i2"):
            await persistence.storage.set_item(f"images:{name}", {"imageId": "x" * 1000})
        await persistence.images.save(image("i1"))
        assert await persistence.images.delete("i2")
    await assert_clean(store)


@pytest.mark.parametrize("data", ['["x",{}]', '["2026",{"sessionId":"s1","imageId":"i1","containerId":"c1"}]', '[":",{}]'])
@in_loop
async def test_E1_a_list_that_stands_where_a_session_should_is_told_and_left(store: Store, data: str) -> None:
    await put(store, "sessions:s1", data)
    async with store.open() as persistence:
        assert (await persistence.repair()).unreadable == ("sessions:s1",)
        with pytest.raises(CorruptValueError, match="no Session"):
            await persistence.sessions.get("s1")
        assert await persistence.storage.get_item_raw("sessions:s1") == data.encode()
        assert await persistence.sessions.delete("s1")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("[]", "no JSON object"),
        (RECORD.replace("i1", "y" * 600) % "", "no Image"),
        (RECORD.replace("i1", "i2") % "", "another id"),
        (RECORD.replace(":7", ":true") % "", "createdAt"),
    ],
)
@in_loop
async def test_E1_a_record_that_is_none_is_told_with_its_place_and_can_be_replaced(store: Store, data: str, said: str) -> None:
    await put(store, "images:i1", data)
    async with store.open() as persistence:
        for call in (persistence.images.get("i1"), persistence.images.update_metadata("i1", {"a": 1})):
            with pytest.raises(CorruptValueError, match=said) as told:
                await call
            assert told.value.key == "images:i1"
            assert None not in (told.value.operation, told.value.mount, told.value.driver)
        assert (await persistence.repair()).unreadable == ("images:i1",)
        await persistence.images.save(image("i1"))
        assert [found.image_id for found in await persistence.images.list()] == ["i1"]
        await persistence.images.delete("i1")


class Blind(Wrapped):
    """Can't read some keys, as `fs` can't read a file whose footer is damaged."""

    def __init__(self, inner: Driver, blind: set[str]) -> None:
        super().__init__(inner)
        self.blind = blind

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        found = await super().read(keys)
        for key, data in zip(keys, found, strict=True):
            if key in self.blind and data is not None:
                raise CorruptValueError("damaged", key=key)
        return found


@pytest.mark.parametrize("kind", ["memory", "steps"])
@in_loop
async def test_what_its_driver_cannot_read_is_passed_over_by_repair_and_by_changes_beside_it(kind: str, tmp_path: Path) -> None:
    store, blind, its_entry = Store(kind, tmp_path), set[str](), "index:images:name:old:0000000000000005:i1"
    async with store.open(lambda driver: Blind(driver, blind)) as persistence:
        for change in ("save", "delete"):
            await persistence.images.save(image("i1", "old", created_at=5))
            blind.add(its_entry)
            assert (await persistence.repair()).unreadable == (its_entry,)
            if change == "save":
                assert (await persistence.images.save(image("i1", "new"))).created_at == 5
            assert await persistence.images.delete("i1")
            blind.clear()
            await persistence.repair()
        for change in ("clear", "delete"):
            await fill(persistence, "m0", "m1")
            blind.add("heads:s1")
            assert (await persistence.repair()).unreadable == ("heads:s1",)
            if change == "clear":
                assert await persistence.sessions.clear_messages("s1") == 2
            blind.clear()
            assert await persistence.sessions.delete("s1")
    await assert_clean(store)
