"""Records: typed, kept whole, in every list that they belong to and in no other (P1, P2, P3, P5)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from persistence_helpers import KINDS, Counting, Store, assert_clean, image, message, session
from running import in_loop

from kvstore import MISSING, CorruptValueError, InvalidKeyError, InvalidValueError, escape_segment
from persistence import Container, Image, Kind, Persistence, Record, RecordNotFoundError, RepairReport, create_persistence
from persistence.records import McpServer

HOSTILE = [
    "", ".", "..", "a", "a/b", "a:b", "a?b", "?", "u?1", "u?2", "1e5", "null", "true", "[]", "end$", "$meta", "%", "%~", "%3A",
    "a b", " a", "A", "*", "[a-z]", "a\\b", "\n", "\0", "'; --", "🦊", "é", "e\u0301", "x" * 512, "ß" * 256,
]  # fmt: skip


class Note(Record):
    __kind__ = Kind("notes", id="note_id", indexes=("container_id",))

    note_id: str
    container_id: str | None
    text: str = ""
    pinned: bool = False


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(request.param, tmp_path)


async def names(persistence: Persistence, **filters: str) -> list[str]:
    return [image.image_id for image in await persistence.images.list(**filters)]


@in_loop
async def test_P2_a_record_comes_back_as_it_was_saved_with_its_times(store: Store) -> None:
    servers: dict[str, McpServer] = {"a": {"command": "x"}, "b": {"type": "http", "url": "http://x"}}
    given = image("i1", mcp_servers=servers, metadata={"n": None}, thinking="high", custom_data={"deep": [{"x": 1.0}]})
    async with store.open() as persistence:
        saved = await persistence.images.save(given)
        assert given.created_at == -1, "what was given is left as it was"
        assert saved.created_at == saved.updated_at > 1_600_000_000_000
        assert await persistence.images.get("i1") == saved
        assert await persistence.images.exists("i1")
        assert await persistence.images.get("i2") is None
        assert not await persistence.images.exists("i2")
        times = await persistence.containers.save(Container(container_id="c1", created_at=5, updated_at=6))
        assert (times.created_at, times.updated_at) == (5, 6)
    async with store.storage() as storage:
        assert await storage.get_item("containers:c1") == {"containerId": "c1", "createdAt": 5, "updatedAt": 6}
        stored = await storage.get_item("images:i1")
        assert stored["mcpServers"] == servers
        assert stored["metadata"] == {"n": None}
        assert "description" not in stored


@in_loop
async def test_a_saved_record_keeps_the_time_of_its_creation_if_none_is_given(store: Store) -> None:
    async with store.open() as persistence:
        await persistence.images.save(image("i1", created_at=1000, updated_at=1000))
        again = await persistence.images.save(image("i1", "New"))
        assert again.created_at == 1000 < again.updated_at


@in_loop
async def test_P2_members_that_this_version_does_not_know_are_kept(store: Store) -> None:
    servers = {"a": {"type": "ws", "port": 1, "command": "x"}}
    newer = {"imageId": "i1", "containerId": "c1", "sessionId": "s1", "name": "n", "createdAt": 1, "updatedAt": 2}
    newer |= {"color": None, "extra": {"*": [1]}, "*": 5, "mcpServers": servers}
    async with store.storage() as storage:
        await storage.set_item("images:i1", newer)
    async with store.open() as persistence:
        found = await persistence.images.get("i1")
        assert found is not None
        assert found.extra == {"color": None, "extra": {"*": [1]}, "*": 5}
        found.name = "other"
        await persistence.images.save(found)
        await persistence.images.update_metadata("i1", {"x": 1})
    async with store.storage() as storage:
        after = await storage.get_item("images:i1")
        assert after | {"updatedAt": 2} == newer | {"name": "other", "metadata": {"x": 1}}


@pytest.mark.parametrize(
    "bad",
    [
        image("i1", name=5),  # type: ignore[arg-type]
        image("i1", thinking="a lot"),
        image("i1", created_at=-2),
        image("i1", created_at=2**53 + 1),
        image("i1", updated_at=1.0),
        image("i1", created_at=True),
        image("i1", custom_data={"a": b"bytes"}),
        image("i1", custom_data={"a": float("nan")}),
        image("i1", mcp_servers={"a": "x"}),
        image("i1", name="\ud800"),
        image("i1", extra={"name": "x"}),
        Container(container_id="c1"),
        {"imageId": "i1"},
    ],
)
@in_loop
async def test_P2_what_does_not_fit_is_refused_before_anything_is_touched(tmp_path: Path, bad: Image) -> None:
    driver = Counting(Store("memory", tmp_path).driver())
    async with Store("memory", tmp_path).open(lambda _: driver) as persistence:
        with pytest.raises(InvalidValueError):
            await persistence.images.save(bad)
        assert not driver.taken()


@in_loop
async def test_E1_what_is_refused_says_in_which_call_of_which_record_and_which_member() -> None:
    async with create_persistence("memory") as persistence:
        images: Any = persistence.images
        await images.save(image("i1"))
        await persistence.sessions.save(session("s1"))

        def renamed(record: Image) -> Image:
            record.name = 5  # type: ignore[assignment]
            return record

        async def changed_later(record: Image) -> Image:
            return record

        for call, operation, key, text in (
            (images.save(image("i2", custom_data={"a": b"x"})), "save", "images:i2", "^member 'customData': .*no JSON form"),
            (images.save(image("i2", custom_data={1: 1})), "save", "images:i2", "^member 'customData': .*key must be str"),
            (images.save(image("i2", name=5)), "save", "images:i2", r"\$\.name"),
            (images.save(image("i2", extra={"new": 1, "newer": {2}})), "save", "images:i2", "^member 'newer': "),
            (images.save(None), "save", None, "images keep Image, not NoneType"),
            (images.update("i1", renamed), "update", "images:i1", r"\$\.name"),
            (images.update("i1", changed_later), "update", "images:i1", "a plain function, not an async one"),
            (images.update("i1", lambda record: None), "update", "images:i1", "change has to return the Image, not NoneType"),
            (images.update("i1", lambda record: image("i2")), "update", "images:i1", "keeps its id"),
            (images.update("i1", {"name": "x"}), "update", "images:i1", "change is a function, not dict"),
            (images.update_metadata("i1", {"a": 1, "b": b"x"}), "update_metadata", "images:i1", "^member 'b': "),
            (persistence.sessions.fork("s1", "s2", image_id=5), "fork", "sessions:s2", r"\$\.imageId"),  # type: ignore[arg-type]
            (images.list(name="\ud800"), "list", None, "lone surrogate"),
        ):
            with pytest.raises(InvalidValueError, match=text) as refused:
                await call
            assert (refused.value.operation, refused.value.key) == (operation, key)
        with pytest.raises(RecordNotFoundError) as missing:
            await images.update_metadata("i2", {})
        assert (missing.value.operation, missing.value.key) == ("update_metadata", "images:i2")


@pytest.mark.parametrize("bad", [None, "x" * 513, "\ud800"])
@in_loop
async def test_E1_a_bad_id_is_called_an_id_with_the_call_that_it_was_given_to(bad: Any) -> None:
    async with create_persistence("memory") as persistence:
        images, sessions = persistence.images, persistence.sessions
        await sessions.save(session("s1"))
        for operation, call in (
            ("save", images.save(image(bad))),
            ("get", images.get(bad)),
            ("exists", images.exists(bad)),
            ("update", images.update(bad, lambda record: record)),
            ("update_metadata", images.update_metadata(bad, {})),
            ("delete", images.delete(bad)),
            ("delete", sessions.delete(bad)),
            ("add_message", sessions.add_message(bad, message("m"))),
            ("add_messages", sessions.add_messages(bad, [message("m")])),
            ("get_messages", sessions.get_messages(bad)),
            ("count_messages", sessions.count_messages(bad)),
            ("clear_messages", sessions.clear_messages(bad)),
            ("truncate_after", sessions.truncate_after(bad, "m")),
            ("write_messages", sessions.write_messages(bad, [message("m")])),
            ("fork", sessions.fork(bad, "s2")),
            ("fork", sessions.fork("s1", bad)),
        ):
            with pytest.raises(InvalidKeyError, match=r"^an id ") as refused:
                await call
            assert (refused.value.operation, refused.value.key) == (operation, bad)


@in_loop
async def test_ids_are_any_text_up_to_512_bytes_once_escaped(store: Store) -> None:
    async with store.open() as persistence:
        for it in HOSTILE:
            await persistence.images.save(image(it, name=it, container_id=it))
            await persistence.sessions.save(session(it, image_id=it, container_id=it))
            await persistence.sessions.add_message(it, message(it))
        for it in HOSTILE:
            assert (await persistence.images.get(it)).image_id == it  # type: ignore[union-attr]
            assert await names(persistence, name=it) == [it], "a name finds itself and nothing else"
            assert await names(persistence, container_id=it, name=it) == [it]
            assert [s.session_id for s in await persistence.sessions.list(image_id=it)] == [it]
            assert await persistence.sessions.get_messages(it) == [message(it)]
        assert sorted(await names(persistence)) == sorted(HOSTILE)
        for it in HOSTILE:
            assert await persistence.images.delete(it, cascade=True)
            assert not await persistence.images.delete(it)
        for it in ("x" * 513, ":" * 171, "\ud800", 5):
            with pytest.raises(InvalidKeyError):
                await persistence.images.get(it)  # type: ignore[arg-type]
            with pytest.raises(InvalidKeyError):
                await persistence.sessions.add_message(it, message("m"))  # type: ignore[arg-type]
    await assert_clean(store)
    async with store.storage() as storage:
        assert await storage.get_keys() == []


@in_loop
async def test_names_are_any_text_of_any_length(store: Store) -> None:
    long = ["n" * 100_000, "n" * 99_999, ":" * 64, "🦊" * 16, "🦊" * 17]
    async with store.open() as persistence:
        for number, name in enumerate(long):
            await persistence.images.save(image(f"i{number}", name))
        for number, name in enumerate(long):
            assert await names(persistence, name=name) == [f"i{number}"]
        with pytest.raises(InvalidValueError):
            await persistence.images.list(name="\ud800")


@in_loop
async def test_P5_a_rename_or_a_move_leaves_no_stale_entry(store: Store) -> None:
    async with store.open() as persistence:
        await persistence.images.save(image("i1", "a", "c1", created_at=1))
        await persistence.images.save(image("i1", "b", "c2", created_at=2))
        assert await names(persistence, name="a") == await names(persistence, container_id="c1") == []
        assert await names(persistence, name="b") == await names(persistence, container_id="c2") == ["i1"]
        assert await names(persistence) == ["i1"]
    await assert_clean(store)


@in_loop
async def test_P5_cascade_takes_what_belongs_to_a_record_and_nothing_else(store: Store) -> None:
    async with store.open() as persistence:
        await persistence.containers.save(Container(container_id="c1"))
        for its in ("i1", "i2"):
            await persistence.images.save(image(its))
            await persistence.sessions.save(session(f"s-{its}", its))
            await persistence.sessions.add_message(f"s-{its}", message("m"))
        await persistence.sessions.save(session("stray", "none"))
        await persistence.sessions.save(session("other", "other", "c2"))
        assert await persistence.images.delete("i1")
        assert await persistence.sessions.exists("s-i1"), "without cascade what is below stays"
        assert not await persistence.images.delete("i1", cascade=True)
        assert not await persistence.sessions.exists("s-i1"), "a cascade that was broken off can be made again"
        assert await persistence.containers.delete("c1", cascade=True)
        assert not await names(persistence)
        assert [s.session_id for s in await persistence.sessions.list()] == ["other"]
        assert await persistence.sessions.get_messages("s-i2") == []
    await assert_clean(store)


@in_loop
async def test_update_metadata_merges_removes_and_keeps_null(store: Store) -> None:
    async with store.open() as persistence:
        await persistence.images.save(image("i1", metadata={"a": 1, "b": {"x": 1}, "c": 3}, updated_at=5))
        updated = await persistence.images.update_metadata("i1", {"b": {"y": 2}, "c": MISSING, "d": None, "e": MISSING})
        assert updated.metadata == {"a": 1, "b": {"y": 2}, "d": None}
        assert updated.updated_at > 5
        assert await persistence.images.get("i1") == updated
        with pytest.raises(RecordNotFoundError, match="i2"):
            await persistence.images.update_metadata("i2", {})
        with pytest.raises(InvalidValueError):
            await persistence.images.update_metadata("i1", {"a": {1, 2}})


@in_loop
async def test_updates_of_one_record_lose_nothing_with_many_tasks_and_instances(store: Store) -> None:
    async with store.open() as one, store.open() as two:
        await one.images.save(image("i1", metadata={}))
        some = [
            p.images.update_metadata("i1", {f"{n}{number}": 1}) for number in range(20) for n, p in (("a", one), ("b", two))
        ]
        await asyncio.gather(*some)
        found = await one.images.get("i1")
        assert found is not None
        assert len(found.metadata or {}) == 40


@in_loop
async def test_concurrent_renames_by_two_instances_leave_exactly_one_right_entry(store: Store) -> None:
    async with store.open() as one, store.open() as two:
        for turn in range(6):
            renames = [
                p.images.save(image("i1", f"{turn}-{n}", f"c{n % 3}", created_at=n)) for n in range(3) for p in (one, two)
            ]
            await asyncio.gather(*renames)
            found = await one.images.get("i1")
            assert found is not None
            for n in range(3):
                assert await names(two, name=f"{turn}-{n}") == (["i1"] if found.name == f"{turn}-{n}" else [])
                assert await names(one, container_id=f"c{n}") == (["i1"] if found.container_id == f"c{n}" else [])
            assert await names(two) == ["i1"]
        if store.kind in ("steps", "fs"):
            # Not in one commit, three writers at once may leave an entry that no list shows; never one too few.
            assert (await one.repair()).added_entries == 0
    await assert_clean(store)


@in_loop
async def test_concurrent_saves_and_deletes_leave_a_clean_store(store: Store) -> None:
    async with store.open() as one, store.open() as two, store.open() as three:
        for turn in range(6):
            calls = [one.images.save(image("i1", f"a{turn}")), two.images.delete("i1"), three.images.save(image("i1", "b"))]
            await asyncio.gather(*calls, one.repair())
            found = await one.images.get("i1")
            assert await names(two) == (["i1"] if found else [])
            for name in {"b", f"a{turn}"}:
                assert await names(two, name=name) == (["i1"] if found and found.name == name else [])
    async with store.open() as after:
        await after.repair()
    await assert_clean(store)


@in_loop
async def test_what_is_stored_and_does_not_fit_is_told_and_left_as_it_was(store: Store) -> None:
    async with store.open() as persistence:
        await persistence.images.save(image("i1"))
        await persistence.images.save(image("i2"))
        await persistence.sessions.save(session("s1"))
    bad = {"images:i1": b'{"imageId":"i1"}', "sessions:s1": b"not JSON"}
    async with store.storage() as storage:
        for key, data in bad.items():
            await storage.set_item_raw(key, data)
    async with store.open() as persistence:
        with pytest.raises(CorruptValueError, match="i1"):
            await persistence.images.get("i1")
        with pytest.raises(CorruptValueError, match="i1"):
            await persistence.images.update_metadata("i1", {"a": 1})
        with pytest.raises(CorruptValueError, match="s1"):
            await persistence.sessions.get("s1")
        report = await persistence.repair()
        assert set(report.unreadable) == set(bad)
        async with store.storage() as storage:
            for key, data in bad.items():
                assert await storage.get_item_raw(key) == data
        assert await persistence.images.delete("i1")
        assert await persistence.sessions.delete("s1")
        assert await names(persistence) == ["i2"]
        await persistence.repair()
    await assert_clean(store)


@in_loop
async def test_a_record_that_cannot_be_read_is_told_by_lists_and_stops_neither_them_nor_a_cascade_nor_its_replacement(
    store: Store,
) -> None:
    async with store.open() as persistence:
        await persistence.containers.save(Container(container_id="c1"))
        for number in range(6):
            await persistence.images.save(image(f"i{number}", created_at=number))
            await persistence.sessions.save(session(f"s{number}", f"i{number}"))
    async with store.storage() as storage:
        newer = await storage.get_item("images:i4") | {"thinking": "max"}  # as a later version may write it
        await storage.set_item("images:i4", newer)
        await storage.set_item_raw("images:i2", b"not JSON")
        await storage.set_item("sessions:s1", await storage.get_item("sessions:s1") | {"extra": 1, "updatedAt": "now"})
    async with store.open() as persistence:
        for filters in ({}, {"container_id": "c1"}, {"name": "Helper", "container_id": "c1"}):
            found, unreadable, cursor = [], [], None
            while True:
                page = await persistence.images.list(limit=2, cursor=cursor, **filters)
                found += [image.image_id for image in page]
                unreadable += page.unreadable
                if (cursor := page.cursor) is None:
                    break
            assert (found, unreadable) == (["i5", "i3", "i1", "i0"], ["images:i4", "images:i2"])
        assert (await persistence.sessions.list(image_id="i1")).unreadable == ["sessions:s1"]
        with pytest.raises(CorruptValueError):
            await persistence.images.get("i4")
        assert set((await persistence.repair()).unreadable) == {"images:i4", "images:i2", "sessions:s1"}
        assert (await persistence.images.save(image("i2", created_at=2))).name == "Helper"
        assert (await persistence.images.save(image("i2", created_at=2))).name == "Helper"
        assert await names(persistence) == ["i5", "i3", "i2", "i1", "i0"]
        assert await persistence.containers.delete("c1", cascade=True)
        assert await persistence.repair() == RepairReport(
            added_entries=0, removed_entries=0, mended_heads=0, removed_messages=0, unreadable=(), orphaned=()
        )
    async with store.storage() as storage:
        assert await storage.get_keys() == []


@in_loop
async def test_P3_a_list_is_paged_newest_first_by_its_cursor(store: Store) -> None:
    async with store.open() as persistence:
        for number in range(25):
            await persistence.images.save(image(f"i{number:02}", created_at=number // 2))
        everything = [f"i{number:02}" for number in range(24, -1, -1)]
        for size in (1, 5, 7, 25, 1000):
            found, cursor = [], None
            while True:
                page = await persistence.images.list(container_id="c1", limit=size, cursor=cursor)
                found += [image.image_id for image in page.items]
                cursor = page.cursor
                if cursor is None:
                    break
                assert len(page) == size
            assert found == everything
        assert await names(persistence) == everything
        some = await persistence.images.list(limit=3)
        other = await persistence.images.list(container_id="c1", limit=3, cursor=some.cursor)
        assert [image.image_id for image in other] == everything[3:6], "a cursor is a place in any list"
        for bad in ("", "x", "!", 5, "a" * 24, "MDAwMDAwMDAwMDAwMDAwMTou", "é"):
            with pytest.raises(InvalidValueError, match="cursor"):
                await persistence.images.list(cursor=bad)  # type: ignore[arg-type]
        for limit in (0, -1, True, "5", 1.0):
            with pytest.raises(InvalidValueError, match="limit"):
                await persistence.images.list(limit=limit)  # type: ignore[arg-type]


@in_loop
async def test_pages_under_writes_give_no_record_twice_and_miss_none_that_stays(store: Store) -> None:
    async with store.open() as persistence, store.open() as writer:
        for number in range(30):
            await persistence.images.save(image(f"i{number:02}", "stays" if number % 3 else "goes", created_at=100 + number))
        found, cursor, turn = [], None, 0
        while True:
            page = await persistence.images.list(limit=4, cursor=cursor)
            found += [image.image_id for image in page]
            cursor, turn = page.cursor, turn + 1
            await writer.images.delete(f"i{30 - 3 * turn:02}")
            await writer.images.save(image(f"new{turn}", created_at=1000 + turn))
            await writer.images.update("i01", lambda image: image)
            if cursor is None:
                break
        assert len(found) == len(set(found))
        assert {f"i{number:02}" for number in range(30) if number % 3} <= set(found)
        assert found == sorted(found, reverse=True)


@in_loop
async def test_stale_entries_are_skipped_and_the_page_is_filled_up(store: Store) -> None:
    async with store.open() as persistence:
        for number in range(9):
            await persistence.images.save(image(f"i{number}", created_at=number))
    async with store.storage() as storage:
        for number in (8, 7, 5):
            await storage.set_item(f"images:i{number}", {**await storage.get_item(f"images:i{number}"), "containerId": "c2"})
    async with store.open() as persistence:
        page = await persistence.images.list(container_id="c1", limit=3)
        assert [image.image_id for image in page] == ["i6", "i4", "i3"]
        report = await persistence.repair()
        assert (report.added_entries, report.removed_entries) == (3, 3)
        assert await names(persistence, container_id="c2") == ["i8", "i7", "i5"]
    await assert_clean(store)


@in_loop
async def test_P3_a_page_costs_two_round_trips(tmp_path: Path) -> None:
    driver = Counting(Store("memory", tmp_path).driver())
    async with Store("memory", tmp_path).open(lambda _: driver) as persistence:
        for number in range(200):
            await persistence.images.save(image(f"i{number}", created_at=number))
        for filters in ({}, {"container_id": "c1"}, {"container_id": "c1", "name": "Helper"}):
            driver.taken()
            page = await persistence.images.list(limit=50, **filters)
            assert driver.keys == 51
            assert driver.taken() == ["scan", "read"]
            await persistence.images.list(limit=50, cursor=page.cursor, **filters)
            assert driver.taken() == ["scan", "read"]


@in_loop
async def test_P2_an_app_adds_a_kind_of_its_own_in_a_few_lines(store: Store) -> None:
    async with store.open() as persistence:
        notes = persistence.repository(Note)
        assert persistence.repository(Note) is notes
        for number in range(3):
            saved = await notes.save(Note(note_id=f"n{number}", container_id="c1", created_at=number))
            assert await notes.get(f"n{number}") == saved
        await notes.save(Note(note_id="free", container_id=None))
        assert [note.note_id for note in await notes.list(container_id="c1", limit=2)] == ["n2", "n1"]
        assert len((await notes.list()).items) == 4
        pinned = await notes.update("n1", lambda note: Note(note_id="n1", container_id="c2", pinned=True))
        assert pinned.created_at == 1
        assert await notes.get("n1") == pinned
        assert [note.note_id for note in await notes.list(container_id="c1")] == ["n2", "n0"]
        assert await notes.exists("n1")
        assert await notes.delete("n1")
        assert not await notes.exists("n1")
        with pytest.raises(InvalidValueError, match="did you mean 'container_id'"):
            await notes.list(container="c1")
        with pytest.raises(InvalidValueError, match="keeps its id"):
            await notes.update("n0", lambda note: Note(note_id="n9", container_id="c2"))
        with pytest.raises(RecordNotFoundError):
            await notes.update("n9", lambda note: note)
        assert (await persistence.repair()).removed_entries == 0
    async with store.storage() as storage:
        await storage.set_item("index:notes:containerId:c9:0000000000000000:n0", None)
    async with store.open() as persistence:
        persistence.repository(Note)
        assert (await persistence.repair()).removed_entries == 1


@in_loop
async def test_escaping_is_that_of_kvstore(store: Store) -> None:
    async with store.open() as persistence:
        await persistence.images.save(image("a:b/c"))
    async with store.storage() as storage:
        assert await storage.get_keys("images") == [f"images:{escape_segment('a:b/c')}"]
