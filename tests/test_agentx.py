"""P6: what the JavaScript original wrote is imported whole, from each of its layouts, and its faults are not believed."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import sqlite3
import tarfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from persistence_helpers import KINDS, Crashing, Store, Wrapped, assert_clean
from running import in_loop

from kvstore import (
    BackendError,
    ClosedError,
    ConfigError,
    CorruptValueError,
    Driver,
    Expect,
    KVStoreError,
    ReadOnlyError,
    Write,
    create_storage,
)
from kvstore.drivers.memory import MemoryDriver
from persistence import Container, Image, Persistence, Session, create_persistence, import_agentx
from persistence.__main__ import exported
from persistence.agentx import AgentXStore, read_agentx, rewritten

REAL = os.environ.get("KVSTORE_TEST_AGENTX")
needs_real = pytest.mark.skipif(not REAL, reason="KVSTORE_TEST_AGENTX names no directory with stores of the original")
REAL_STORES = ("kv_storage.db", "unstorage.db", "fs.tar.gz", "redis.jsonl", "redis mapping")
LAYOUTS = ("kv_storage", "unstorage", "wal", "directory", "jsonl", "mapping", "storage")


# Small stores in each layout


def container(container_id: str, **more: Any) -> dict[str, Any]:
    return {"containerId": container_id, "createdAt": 1, "updatedAt": 2} | more


def image(image_id: str, container_id: str = "c1", session_id: str = "s1", **more: Any) -> dict[str, Any]:
    ids = {"imageId": image_id, "containerId": container_id, "sessionId": session_id}
    return ids | {"name": f"name of {image_id}", "createdAt": 3, "updatedAt": 4} | more


def session(session_id: str, image_id: str = "i1", container_id: str = "c1") -> dict[str, Any]:
    return {"sessionId": session_id, "imageId": image_id, "containerId": container_id, "createdAt": 5, "updatedAt": 6}


def message(message_id: str, **more: Any) -> dict[str, Any]:
    return {"id": message_id, "role": "user", "subtype": "user", "content": f"text of {message_id}", "timestamp": 7} | more


SMALL: dict[str, Any] = {
    "containers": [container("c1"), container("c2", config={"a": [1, 2.5, None]}, addedLater="kept")],
    "images": [image("i1"), image("i2", "c2", "s2", customData={"deep": {"er": True}}, brandNew=[1])],
    "sessions": [session("s1"), session("s2", "i2", "c2")],
    "messages": {"s1": [message("m1"), message("m2", unheard={"of": 1})], "s2": []},
}


def texts(store: Mapping[str, Any] = SMALL) -> dict[str, str]:
    """The keys of the original, with indexes that are wrong as its own are after a rename."""
    keys: dict[str, str] = {}
    for kind, member in (("containers", "containerId"), ("images", "imageId"), ("sessions", "sessionId")):
        for record in store[kind]:
            keys[rewritten(f"{kind}:{record[member]}")] = json.dumps(record)
    for session_id, messages in store["messages"].items():
        if messages:
            keys[rewritten(f"messages:{session_id}")] = json.dumps(messages)
    return keys | {
        "idx:images:name:an old name:i1": "i1",
        "idx:images:container:gone:i9": "i9",
        "idx:sessions:image:i1:s1": "s1",
    }


def sqlite_store(path: Path, keys: Mapping[str, str], *, table: str = "kv_storage") -> sqlite3.Connection:
    connection = sqlite3.connect(path)
    if table == "kv_storage":
        connection.execute(
            "CREATE TABLE kv_storage (key TEXT PRIMARY KEY, value TEXT NOT NULL, created_at INTEGER, updated_at INTEGER)"
        )
        connection.executemany("INSERT INTO kv_storage VALUES (?, ?, 1, 1)", keys.items())
    else:
        connection.execute(
            "CREATE TABLE unstorage (key TEXT PRIMARY KEY, value TEXT, blob BLOB, created_at TEXT, updated_at TEXT)"
        )
        connection.executemany("INSERT INTO unstorage VALUES (?, ?, NULL, 'then', 'then')", keys.items())
    connection.commit()
    return connection


async def stored(layout: str, keys: Mapping[str, str], path: Path) -> Any:
    """A store of the original in `layout`: what `import_agentx` takes."""
    if layout in ("kv_storage", "unstorage"):
        sqlite_store(path / "agentx.db", keys, table=layout).close()
        return path / "agentx.db"
    if layout == "directory":
        for key, text in keys.items():
            file = (path / "store").joinpath(*key.split(":"))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return str(path / "store")
    if layout == "jsonl":
        lines = [json.dumps({"key": f"agentx:{key}", "value": text}) for key, text in keys.items()]
        (path / "dump.jsonl").write_text("\n".join(lines) + "\n\n")
        return path / "dump.jsonl"
    if layout == "mapping":
        return {f"agentx:{key}": text for key, text in keys.items()}
    storage = create_storage()
    for key, text in keys.items():
        await storage.set_item_raw(key, text.encode())
    return storage


def as_json(store: AgentXStore) -> dict[str, Any]:
    return {name: getattr(store, name) for name in ("containers", "images", "sessions", "messages")}


async def assert_whole(persistence: Persistence, expected: Mapping[str, Any]) -> None:
    """The export is `expected`, every list agrees with the records, and there is nothing to repair."""
    assert await exported(persistence) == expected
    for record in expected["images"]:
        for filters in ({"name": record["name"]}, {"container_id": record["containerId"]}):
            assert record["imageId"] in [found.image_id for found in await persistence.images.list(**filters)]
    for record in expected["sessions"]:
        for filters in ({"image_id": record["imageId"]}, {"container_id": record["containerId"]}):
            assert record["sessionId"] in [found.session_id for found in await persistence.sessions.list(**filters)]
    report = await persistence.repair()
    assert (report.added_entries, report.removed_entries, report.removed_messages, report.unreadable) == (0, 0, 0, ())


# The stores that the original wrote


def real_store(name: str, path: Path) -> Any:
    real = Path(REAL or "")
    if name == "fs.tar.gz":
        with tarfile.open(real / name) as archive:
            archive.extractall(path, filter="data")
        return next(folder for folder in (path, *path.iterdir()) if (folder / "images").is_dir())
    if name == "redis mapping":
        lines = [json.loads(line) for line in (real / "redis.jsonl").read_text().splitlines()]
        return {line["key"]: line["value"] for line in lines}
    return real / name


@needs_real
@pytest.mark.parametrize("driver", ["memory", "sqlite", "fs"])
@pytest.mark.parametrize("name", REAL_STORES)
@in_loop
async def test_P6_each_store_of_the_original_gives_exactly_what_is_expected(name: str, driver: str, tmp_path: Path) -> None:
    expected = json.loads((Path(REAL or "") / "expected.json").read_text())
    source = real_store(name, tmp_path / "source")
    options = {} if driver == "memory" else {"path": tmp_path / "target"}

    store = await read_agentx(source)
    assert as_json(store) == expected
    assert store.problems == []
    async with create_persistence(driver, **options) as persistence:
        report = await import_agentx(source, persistence, strict=True)
        assert report.problems == []
        assert report.messages == sum(map(len, expected["messages"].values()))
        await assert_whole(persistence, expected)
        again = await import_agentx(source, persistence)
        assert (again.containers, again.images, again.sessions, again.messages, again.problems) == (0, 0, 0, 0, [])
        await assert_whole(persistence, expected)


# Each layout


@pytest.mark.parametrize("layout", LAYOUTS)
@in_loop
async def test_P6_every_layout_is_read_whole_and_left_as_it_was(layout: str, tmp_path: Path) -> None:
    kept = None
    if layout == "wal":
        kept = sqlite_store(tmp_path / "agentx.db", {})
        kept.execute("PRAGMA journal_mode = WAL")
        kept.executemany("INSERT INTO kv_storage VALUES (?, ?, 1, 1)", texts().items())
        kept.commit()  # in the log only
        source: Any = tmp_path / "agentx.db"
    else:
        source = await stored(layout, texts(), tmp_path)
    before = fingerprint(tmp_path)
    async with create_persistence("memory") as persistence:
        report = await import_agentx(source, persistence)
        assert report.problems == []
        await assert_whole(persistence, SMALL)
    assert fingerprint(tmp_path) == before
    if kept is not None:
        kept.close()


def fingerprint(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and not file.name.endswith("-shm")
    }


def test_P6_a_wal_file_without_its_log_is_read_and_nothing_is_put_beside_it(tmp_path: Path) -> None:
    connection = sqlite_store(tmp_path / "agentx.db", texts())
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    assert as_json(asyncio.run(read_agentx(tmp_path / "agentx.db"))) == SMALL
    assert [file.name for file in tmp_path.iterdir()] == ["agentx.db"]


def test_P6_where_a_file_has_both_tables_the_newer_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "agentx.db"
    older = {"containers:c1": json.dumps(container("c1", config={"old": True})), "containers:c9": json.dumps(container("c9"))}
    sqlite_store(path, older, table="unstorage").close()
    sqlite_store(path, texts()).close()
    store = asyncio.run(read_agentx(path))
    assert store.containers == [*SMALL["containers"], container("c9")]


@in_loop
async def test_P6_the_base_is_found_named_or_asked_for() -> None:
    keys = texts()
    for base in ("agentx", "my:app", ""):
        prefix = base and base + ":"
        for given in (None, base):
            assert as_json(await read_agentx({prefix + key: text for key, text in keys.items()}, base=given)) == SMALL
    two = {"one:" + key: text for key, text in keys.items()} | {"two:containers:c1": json.dumps(container("c1"))}
    with pytest.raises(ConfigError, match="one, two"):
        await read_agentx(two)
    assert as_json(await read_agentx(two, base="one")) == SMALL
    assert (await read_agentx(two, base="two")).containers == [container("c1")]


@in_loop
async def test_P6_a_key_may_hold_the_name_of_a_kind_and_the_base_is_found_all_the_same() -> None:
    keys = {
        "sessions:containers:x": json.dumps(session("containers:x")),
        "messages:containers:x": json.dumps([message("m1")]),
        "messages:messages:1": json.dumps([message("m2")]),
    }
    for prefix in ("", "agentx:"):
        store = await read_agentx({prefix + key: text for key, text in keys.items()})
        assert store.messages == {"containers:x": [message("m1")], "messages:1": [message("m2")]}
    with pytest.raises(ConfigError, match=r"there are those below: no base$"):
        await read_agentx({"idx:images:name:a:i1": "i1"}, base="nope")


# A directory


@in_loop
async def test_P6_links_to_folders_are_followed_and_none_for_ever(tmp_path: Path) -> None:
    """As where the messages lie on another disk."""
    source = Path(await stored("directory", texts(), tmp_path))
    (source / "messages").rename(tmp_path / "elsewhere")
    (source / "messages").symlink_to("../elsewhere")
    (source / "images" / "back").symlink_to(source)
    (source / "idx" / "there").symlink_to(source / "sessions")
    (source / "sessions" / "here").symlink_to(source / "idx")
    store = await read_agentx(source)
    assert as_json(store) == SMALL


@in_loop
async def test_P6_a_folder_or_a_file_that_cannot_be_opened_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(await stored("directory", texts(), tmp_path))
    (source / "images" / "i3").symlink_to("nowhere")
    with pytest.raises(BackendError, match="images/i3 can't be read: No such file"):
        await read_agentx(source)
    (source / "images" / "i3").unlink()
    scandir = os.scandir

    def denied(path: Any) -> Any:
        if os.fspath(path).endswith("messages"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(BackendError, match="messages can't be read: Permission denied"):
        await read_agentx(source)


@in_loop
async def test_P6_only_the_files_of_a_store_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(await stored("directory", texts(), tmp_path))
    for name in ("videos/holiday", "idx/large"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("large")
    os.mkfifo(source / "images" / "pipe")
    read: list[str] = []
    read_bytes = Path.read_bytes

    def noted(file: Path) -> bytes:
        read.append(file.relative_to(source.parent).parts[1])
        return read_bytes(file)

    monkeypatch.setattr(Path, "read_bytes", noted)
    store = await read_agentx(source)
    assert as_json(store) == SMALL
    assert {*read} == {"containers", "images", "sessions", "messages"}
    assert [problem.key for problem in store.problems] == ["images:pipe", "videos:holiday"]

    read.clear()
    (source.parent / "another" / "images").mkdir(parents=True)
    (source.parent / "another" / "images" / "i1").write_text("{}")
    with pytest.raises(ConfigError, match=r"several bases.* another, store"):
        await read_agentx(source.parent)
    with pytest.raises(ConfigError, match="no key of the original"):
        await read_agentx(source / "videos")
    assert read == []


# What the original spells badly


HOSTILE_IDS = ("u?1", "a/b", "a\\c", "1e5", "null", "true", "x$", "🙂", "with space", "d::e", ":lead", "dots.", "%", "ß")


@pytest.mark.parametrize("layout", ["kv_storage", "mapping", "directory"])
@in_loop
async def test_P6_ids_that_the_original_rewrote_come_back_as_they_were_given(layout: str, tmp_path: Path) -> None:
    expected: dict[str, Any] = {
        "containers": sorted((container(f"c{name}") for name in HOSTILE_IDS), key=lambda record: record["containerId"]),
        "images": sorted(
            (image(f"{name}", f"c{name}", f"s{name}") for name in HOSTILE_IDS), key=lambda record: record["imageId"]
        ),
        "sessions": sorted(
            (session(f"s{name}", name, f"c{name}") for name in HOSTILE_IDS), key=lambda record: record["sessionId"]
        ),
        "messages": {f"s{name}": [message(f"m of {name}")] for name in HOSTILE_IDS},
    }

    source = await stored(layout, texts(expected), tmp_path)
    async with create_persistence("sqlite", path=tmp_path / "target.db") as persistence:
        assert (await import_agentx(source, persistence)).problems == []
        await assert_whole(persistence, expected)


@in_loop
async def test_P6_two_ids_that_shared_one_key_get_the_messages_that_it_holds() -> None:
    """`s?1` and `s?2` wrote over each other's records; the array may hold messages of both, and none is lost."""
    keys = {
        "sessions:s": json.dumps(session("s?2")),
        "messages:s": json.dumps([message("m1"), message("m2")]),
    }
    store = await read_agentx(keys)
    assert [record["sessionId"] for record in store.sessions] == ["s?2"]
    assert store.messages == {"s?2": [message("m1"), message("m2")]}


@in_loop
async def test_P6_messages_whose_session_is_gone_are_kept_under_the_id_of_their_key() -> None:
    async with create_persistence("memory") as persistence:
        report = await import_agentx({"messages:orphan": json.dumps([message("m1")])}, persistence)
        assert (report.sessions, report.messages) == (0, 1)
        assert await persistence.sessions.get_messages("orphan") == [message("m1")]


@in_loop
async def test_P6_the_originals_own_metadata_is_passed_over_and_a_kind_that_is_not_known_is_told() -> None:
    store = await read_agentx(texts() | {"foo$": "{}", "providers:p1": "{}"})
    assert as_json(store) == SMALL
    assert [(problem.key, problem.reason) for problem in store.problems] == [
        ("providers:p1", "keys of this kind are not known")
    ]


# What can't be read


BAD = {
    "containers:torn": '{"containerId": "to',
    "images:list": "[]",
    "images:noid": '{"name": "no id"}',
    "images:number": '{"imageId": 5}',
    "sessions:text": "bare text",
    "messages:s2": '{"not": "an array"}',
    "images:wrong": json.dumps(image("wrong") | {"name": 5}),
}


@pytest.mark.parametrize("layout", LAYOUTS[:2] + LAYOUTS[3:])
@in_loop
async def test_P6_what_cannot_be_read_is_reported_and_the_rest_imported(layout: str, tmp_path: Path) -> None:
    source = await stored(layout, texts() | BAD, tmp_path)
    async with create_persistence("memory") as persistence:
        report = await import_agentx(source, persistence)
        assert sorted(problem.key for problem in report.problems) == sorted(BAD)
        assert all(problem.reason for problem in report.problems)
        assert await exported(persistence) == SMALL


@pytest.mark.parametrize("table", ["kv_storage", "unstorage"])
@in_loop
async def test_P6_a_text_or_a_key_that_is_not_utf8_is_the_fault_of_its_row_alone(table: str, tmp_path: Path) -> None:
    connection = sqlite_store(
        tmp_path / "agentx.db", {key: text for key, text in texts().items() if key != "messages:s1"}, table=table
    )
    columns = "key, value, created_at, updated_at"
    for key, value in ((b"messages:s1", b'[{"id":"\xff"}]'), (b"images:\xff", b"{}"), (b"messages:\xff", b'[{"id":"m"}]')):
        connection.execute(f"INSERT INTO {table} ({columns}) VALUES (CAST(? AS TEXT), CAST(? AS TEXT), 1, 1)", (key, value))
    connection.execute(f"INSERT INTO {table} ({columns}) VALUES (NULL, '', 1, 1)")
    connection.commit()
    connection.close()

    async with create_persistence("memory") as persistence:
        report = await import_agentx(tmp_path / "agentx.db", persistence)
        keys = ["", "images:\udcff", "messages:s1", "messages:\udcff"]
        assert sorted(problem.key for problem in report.problems) == keys
        assert await exported(persistence) == SMALL | {"messages": {"s1": [], "s2": []}}


@in_loop
async def test_P6_strict_writes_nothing_where_anything_cannot_be_read() -> None:
    for key, text in BAD.items():
        async with create_persistence("memory") as persistence:
            with pytest.raises(CorruptValueError) as caught:
                await import_agentx(texts() | {key: text}, persistence, strict=True)
            assert caught.value.key == key
            assert (await exported(persistence))["containers"] == []


@in_loop
async def test_P6_a_message_without_an_id_is_reported_by_its_place_and_the_others_kept() -> None:
    async with create_persistence("memory") as persistence:
        log = [message("m1"), {"no": "id"}, "text", message("m2")]
        report = await import_agentx({"messages:s1": json.dumps(log)}, persistence)
        assert [problem.reason[:9] for problem in report.problems] == ["message 1", "message 2"]
        assert await persistence.sessions.get_messages("s1") == [message("m1"), message("m2")]


CUT = "\ud83d"  # half of an emoji, as JavaScript's `slice` leaves it and writes it: as an escape


@pytest.mark.parametrize("layout", ["kv_storage", "mapping", "directory"])
@in_loop
async def test_P6_a_message_that_cannot_be_stored_is_left_out_and_told_and_the_others_kept(layout: str, tmp_path: Path) -> None:
    bad: list[Any] = [{"content": CUT}, {"content": f"{CUT}x"}, {CUT: 1}, {"n": 2**64}, {"n": float("nan")}]
    messages = [message(f"m{number}") | (bad[number // 2] if number % 2 else {}) for number in range(2 * len(bad))]
    kept = messages[::2]
    lost = {"sessions:cut": json.dumps(session("cut") | {"note": CUT}), "messages:s1": json.dumps(messages)}
    source = await stored(layout, texts() | lost, tmp_path)
    async with create_persistence("memory") as persistence:
        report = await import_agentx(source, persistence)
        found: list[Any] = [*await persistence.sessions.get_messages("s1")]
        assert found == kept
        (record, *problems) = sorted(report.problems, reverse=True)
        assert record.key == "sessions:cut"
        assert [problem.reason.partition(":")[0] for problem in problems] == [f"message {n}" for n in (9, 7, 5, 3, 1)]
        assert all("truncated" not in problem.reason for problem in report.problems)
        assert "surrogate" in record.reason
        with pytest.raises(CorruptValueError):
            await import_agentx(source, persistence, strict=True)


@in_loop
async def test_P6_half_a_character_in_a_text_that_is_given_is_told_and_not_replaced() -> None:
    async with create_persistence("memory") as persistence:
        report = await import_agentx({"messages:s1": f'[{{"id":"m"}},{{"id":"{CUT}"}}]'}, persistence)
        assert await persistence.sessions.get_messages("s1") == [{"id": "m"}]
        assert [problem.key for problem in report.problems] == ["messages:s1"]


@pytest.mark.parametrize("source", [5, None, {5: "x"}, {b"images:i1": "x"}, "", b"x", [("a", "b")]])
@in_loop
async def test_E1_what_is_no_source_is_a_config_error(source: Any) -> None:
    async with create_persistence("memory") as persistence:
        with pytest.raises(ConfigError, match="a source is"):
            await import_agentx(source, persistence)


@pytest.mark.parametrize("target", [None, create_storage()])
@in_loop
async def test_E1_what_is_no_target_is_a_config_error(target: Any) -> None:
    with pytest.raises(ConfigError, match="imported into a Persistence, not"):
        await import_agentx(texts(), target)


def test_P6_a_source_that_is_none_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text.db").write_text("no database at all, but some text")
    (tmp_path / "torn.jsonl").write_text('{"key": "a"\n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "number.jsonl").write_text('{"key": 5, "value": "x"}\n')
    (tmp_path / "folder").mkdir()
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE other (id)")
    (tmp_path / "damaged.db").write_bytes((tmp_path / "other.db").read_bytes()[:2000] + b"\xff" * 3000)
    for name, error, says in (
        ("missing", BackendError, "No such file"),
        ("empty", ConfigError, "no SQLite file"),
        ("text.db", ConfigError, "no SQLite file"),
        ("torn.jsonl", ConfigError, "no dump"),
        ("list.jsonl", ConfigError, "no dump"),
        ("number.jsonl", ConfigError, "no dump"),
        ("other.db", ConfigError, "neither table"),
        ("damaged.db", BackendError, "can't be read"),
        ("folder", ConfigError, "no key"),
    ):
        with pytest.raises(error, match=says) as caught:
            asyncio.run(read_agentx(tmp_path / name))
        assert name in str(caught.value)


@in_loop
async def test_P6_a_file_that_is_no_text_is_reported(tmp_path: Path) -> None:
    source = await stored("directory", texts(), tmp_path)
    (tmp_path / "store" / "images" / "bytes").write_bytes(b"\xff\xfe")
    store = await read_agentx(source)
    assert [problem.key for problem in store.problems] == ["images:bytes"]
    assert as_json(store) == SMALL


# Again, and after an interruption


@in_loop
async def test_P6_a_log_that_is_here_in_part_is_completed() -> None:
    messages = [message(f"m{number}") for number in range(20)]
    source = texts() | {"messages:s1": json.dumps(messages)}
    for there in (0, 1, 7, 20):
        async with create_persistence("memory") as persistence:
            for one in messages[:there]:
                await persistence.sessions.add_message("s1", one)
            report = await import_agentx(source, persistence)
            assert (report.messages, report.problems) == (20 - there, [])
            assert await persistence.sessions.get_messages("s1") == messages


@pytest.mark.parametrize("begun", [0, 3])
@pytest.mark.parametrize("kind", ["memory", "steps", "sqlite", "fs"])
@in_loop
async def test_P6_two_imports_at_once_double_nothing_and_find_nothing_wrong(kind: str, begun: int, tmp_path: Path) -> None:
    messages = [message(f"m{number}") for number in range(12)]
    source = texts() | {"messages:s1": json.dumps(messages)}

    store = Store(kind, tmp_path)
    async with store.open() as one, store.open() as two:
        for given in messages[:begun]:
            await one.sessions.add_message("s1", given)
        reports = await asyncio.gather(*(import_agentx(source, persistence) for persistence in (one, two, one)))
        assert [report.problems for report in reports] == [[], [], []]
        assert sum(report.messages for report in reports) == 12 - begun
        assert await two.sessions.get_messages("s1") == messages


@pytest.mark.parametrize("kind", ["memory", "steps", "sqlite", "fs"])
@in_loop
async def test_P6_an_import_beside_an_append_leaves_a_log_that_went_on_and_tells_it(kind: str, tmp_path: Path) -> None:
    messages = [message(f"m{number}") for number in range(12)]
    source = texts() | {"messages:s1": json.dumps(messages)}

    store = Store(kind, tmp_path)
    async with store.open() as one, store.open() as two:
        for given in messages[:3]:
            await one.sessions.add_message("s1", given)
        report, place = await asyncio.gather(import_agentx(source, one), two.sessions.add_message("s1", message("live")))
        found = await two.sessions.get_messages("s1")
        assert found[place] == message("live")
        assert found[:place] == messages[:place]
        assert found[place + 1 :] == []
        assert [problem.key for problem in report.problems] == ["messages:s1"] * (place < 12)


@in_loop
async def test_P6_a_log_that_was_begun_and_is_empty_is_imported_into() -> None:
    """As a crash leaves it on a driver that is not atomic."""
    storage = create_storage()
    await storage.set_item("heads:s1", {"generation": "0" * 16})
    async with create_persistence(storage) as persistence:
        report = await import_agentx(texts(), persistence)
        assert (report.messages, report.problems) == (2, [])
        assert await persistence.sessions.get_messages("s1") == SMALL["messages"]["s1"]


@in_loop
async def test_P6_a_log_that_only_went_on_here_is_there_already() -> None:
    async with create_persistence("memory") as persistence:
        await import_agentx(texts(), persistence)
        for session_id in ("s1", "s2"):
            await persistence.sessions.add_message(session_id, message("later"))
        report = await import_agentx(texts(), persistence)
        assert (report.messages, report.already_there, report.problems) == (0, 8, [])
        report = await import_agentx({"messages:s1": "torn"}, persistence)
        assert [problem.reason[:11] for problem in report.problems] == ["what is sto"]
        assert [m["id"] for m in await persistence.sessions.get_messages("s1")] == ["m1", "m2", "later"]


@in_loop
async def test_P6_what_differs_here_is_reported_and_left_or_replaced_if_asked() -> None:
    async with create_persistence("memory") as persistence:
        await persistence.sessions.save(Session(session_id="s1", image_id="mine", container_id="mine"))
        await persistence.sessions.add_message("s1", message("mine"))
        report = await import_agentx(texts(), persistence)
        assert [problem.key for problem in report.problems] == ["sessions:s1", "messages:s1"]
        kept = await persistence.sessions.get("s1")
        assert kept is not None
        assert kept.image_id == "mine"

        report = await import_agentx(texts(), persistence, overwrite=True)
        assert [problem.key for problem in report.problems] == ["messages:s1"]  # a log is never replaced
        kept = await persistence.sessions.get("s1")
        assert kept is not None
        assert kept.image_id == "i1"
        assert await persistence.sessions.get_messages("s1") == [message("mine")]


def test_P6_an_import_that_was_stopped_anywhere_is_completed_by_the_next(tmp_path: Path) -> None:
    """Cancelled after each number of passes of the event loop in turn."""
    messages = {f"s{number}": [message(f"m{number}:{at}") for at in range(5)] for number in (1, 2)}
    expected = SMALL | {"messages": messages}

    async def main(passes: int) -> bool:
        async with create_persistence("fs", path=tmp_path / f"target{passes}") as persistence:
            importing = asyncio.create_task(import_agentx(texts(expected), persistence))
            for _ in range(passes):
                await asyncio.sleep(0.0005)
            stopped = importing.cancel()
            await asyncio.gather(importing, return_exceptions=True)
        async with create_persistence("fs", path=tmp_path / f"target{passes}") as persistence:
            assert (await import_agentx(texts(expected), persistence)).problems == []
            await persistence.repair()
            await assert_whole(persistence, expected)
        return stopped

    passes = 0
    while asyncio.run(main(passes)):
        passes += 3
    assert passes


@in_loop
async def test_E1_a_target_that_is_away_closed_or_read_only_is_an_error_and_no_list_of_problems() -> None:
    away = create_persistence(Crashing(MemoryDriver(), 5))
    closed = create_persistence("memory")
    await closed.aclose()
    read_only = create_persistence(create_storage("memory", read_only=True))
    targets: list[tuple[Persistence, type[KVStoreError]]] = [
        (away, BackendError),
        (closed, ClosedError),
        (read_only, ReadOnlyError),
    ]
    for target, error in targets:
        with pytest.raises(error):
            await import_agentx(texts(), target)


# Beside an app


class Before(Wrapped):
    """The app acts before a record or its entries are written."""

    def __init__(self, inner: Driver, app: Callable[[], Coroutine[Any, Any, None]]) -> None:
        super().__init__(inner)
        self.capabilities = dataclasses.replace(inner.capabilities, inline=False)
        self.app: Callable[[], Coroutine[Any, Any, None]] | None = app

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        app, self.app = self.app, None
        if app is not None:
            await app()
        return await super().write(writes, expect)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@in_loop
async def test_P4_an_import_overwrites_nothing_that_an_app_saved_meanwhile_unless_asked(
    kind: str, overwrite: bool, tmp_path: Path
) -> None:
    store = Store(kind, tmp_path)
    async with store.open() as app:

        async def save() -> None:
            await app.containers.save(Container(container_id="c1", config={"its": "own"}))

        async with store.open(lambda driver: Before(driver, save)) as persistence:
            source = {"containers:c1": json.dumps(container("c1"))}
            report = await import_agentx(source, persistence, overwrite=overwrite)
        found = await app.containers.get("c1")
        assert found is not None
        assert report.containers == overwrite
        assert (found.config == {"its": "own"}) == (not overwrite)
        assert [problem.key for problem in report.problems] == ([] if overwrite else ["containers:c1"])
        assert len((await app.containers.list()).items) == 1
    await assert_clean(store)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@in_loop
async def test_P6_imports_at_once_count_each_record_once_and_take_no_update_of_an_app_back(
    kind: str, overwrite: bool, tmp_path: Path
) -> None:
    images = [image(f"i{number}") for number in range(8)]
    del images[0]["createdAt"], images[1]["updatedAt"]
    source = {f"images:{one['imageId']}": json.dumps(one) for one in images}
    store = Store(kind, tmp_path)
    async with store.open() as one, store.open() as two, store.open() as app:
        if overwrite:
            for number in range(8):
                await app.images.save(Image(image_id=f"i{number}", container_id="mine", session_id="mine", name="mine"))
            reports = await asyncio.gather(*(import_agentx(source, target, overwrite=True) for target in (one, two, one)))
        else:

            async def update(image_id: str) -> None:
                while not await app.images.exists(image_id):
                    await asyncio.sleep(0)
                await app.images.update_metadata(image_id, {"theme": "dark"})

            imports = [import_agentx(source, target) for target in (one, two, one)]
            reports, _ = await asyncio.gather(
                asyncio.gather(*imports), asyncio.gather(*(update(one["imageId"]) for one in images))
            )
        assert sum(report.images for report in reports) == 8
        found = await app.images.list()
        assert len(found.items) == 8
        for kept in found:
            assert kept.metadata == (None if overwrite else {"theme": "dark"})
            assert kept.container_id == "c1"
        if overwrite:
            assert [report.problems for report in reports] == [[], [], []]
            assert sum(report.already_there for report in reports) == 16
    await assert_clean(store)
