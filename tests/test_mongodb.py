"""The MongoDB driver against a real server: the kit, and what is MongoDB's own."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import OperationFailure
from running import in_loop
from servers import mongodb as servers
from servers import own_name
from servers.process import certificate

from kvstore import (
    MISSING,
    BackendError,
    BackendUnavailable,
    ConfigError,
    CorruptValueError,
    Event,
    InvalidValueError,
    MissingDependencyError,
    Storage,
    UnsupportedOperation,
    create_storage,
)
from kvstore.drivers._mongodb import documents, writing
from kvstore.drivers._mongodb.documents import Document, Documents
from kvstore.drivers.mongodb import MAX_VALUE_BYTES, MongodbDriver
from kvstore.errors import install
from kvstore.testing import DriverSuite
from kvstore.testing.conditions import Conditions
from kvstore.testing.listing import DriverCalls
from kvstore.testing.metadata import Metadata
from kvstore.testing.pauses import leaves_the_loop_free
from kvstore.testing.watching import Watching
from persistence import Image, Persistence, create_persistence
from persistence.drivers.mongodb import mongodb_driver

# In the environment, so that the processes that a test starts find the same collections.
MINE = "kvstore-test-" + os.environ.setdefault("KVSTORE_TEST_MONGODB_RUN", token_hex(4))


def name(path: Path) -> str:
    """A collection of a test's own."""
    return f"{MINE}-{own_name(path)}"


@pytest.fixture(autouse=True)
def _drop_collections() -> Iterator[None]:
    """The servers are left as they were; and SecantusDB gets slower with each collection."""
    yield
    for server in (servers.url, servers.replica_set):
        if server.cache_info().currsize:
            with MongoClient(server()) as client:  # type: ignore[var-annotated]
                database = client.get_default_database("kvstore")
                for collection in database.list_collection_names():
                    if collection.startswith(MINE):
                        database.drop_collection(collection)


class TestMongodb(DriverSuite):
    """Any server, a single one too."""

    def make_driver(self, path: Path) -> MongodbDriver:
        return MongodbDriver(servers.url(), collection=name(path))

    @in_loop
    async def test_a_large_value_does_not_hold_the_event_loop(self, tmp_path: Path) -> None:
        """L2: the largest that MongoDB keeps, in place of the kit's 30 MB."""

        async with opened(tmp_path, timeout=60.0) as storage:
            data = bytes(MAX_VALUE_BYTES)

            async def large() -> None:
                await storage.set_item_raw("large", data)
                assert await storage.get_item_raw("large") == data
                await storage.remove_item("large")

            await leaves_the_loop_free(large)

    def test_many_medium_values_in_one_call_do_not_hold_the_event_loop(self, tmp_path: Path) -> None:
        """L2."""
        many_medium_values(tmp_path)


class TestMongodbReplicaSet(Conditions, DriverCalls, Metadata, Watching):
    """What transactions and change streams change; the rest is the same code."""

    def make_driver(self, path: Path) -> MongodbDriver:
        return MongodbDriver(servers.replica_set(), collection=name(path), replica_set=True)

    def test_many_medium_values_in_one_call_do_not_hold_the_event_loop(self, tmp_path: Path) -> None:
        """L2, A1: and they are one all the same."""
        many_medium_values(tmp_path, replica_set=True)


def many_medium_values(path: Path, *, replica_set: bool = False) -> None:
    @in_loop
    async def main() -> None:
        async with opened(path, replica_set=replica_set, timeout=60.0) as storage:
            driver = storage.get_mount("x").driver
            values = {f"k{number}": bytes([number]) * 500_000 for number in range(60)}
            await storage.set_items({"gone": 1, "k1": 1})
            found: list[bool] | None = None

            async def write() -> None:
                nonlocal found
                found = await driver.write([*((key, data, None) for key, data in values.items()), ("gone", None, None)])

            await leaves_the_loop_free(write)
            assert found is not None
            assert len(found) == 61
            assert await driver.read(list(values)) == list(values.values())
            assert await storage.has_item("gone") is False

    main()


def opened(path: Path, *, replica_set: bool = False, **options: Any) -> Storage:
    url = servers.replica_set() if replica_set else servers.url()
    return create_storage(MongodbDriver(url, collection=name(path), replica_set=replica_set, **options))


def client_of(url: str) -> AsyncMongoClient[dict[str, Any]]:
    return AsyncMongoClient(url, serverSelectionTimeoutMS=5000)


# What lies in MongoDB


@in_loop
async def test_a_value_is_a_document_that_other_programs_read(tmp_path: Path) -> None:
    async with opened(tmp_path, base="app") as storage, client_of(servers.url()) as client:
        await storage.set_item("a:b", {"x": 1}, ttl=100)
        await storage.set_meta("a:b", {"owner": "me"})
        await storage.set_item("forever", 1)
        collection = client.get_default_database()[name(tmp_path)]
        document = await collection.find_one({"_id": "app:a:b"})
        assert document is not None
        assert document.keys() == {"_id", "value", "size", "kvstore_expires_at", "mtime", "revision", "custom"}
        assert (document["value"], document["size"], document["custom"]) == (b'{"x":1}', 7, b'{"owner":"me"}')
        assert 99 < (document["kvstore_expires_at"] - document["mtime"]).total_seconds() <= 100
        forever = await collection.find_one({"_id": "app:forever"})
        assert forever is not None
        assert forever["kvstore_expires_at"].year == 9999
        indexes = await collection.index_information()
        assert [index.get("expireAfterSeconds") for index in indexes.values()].count(300) == 1


@pytest.mark.parametrize("replica_set", [False, True])
@in_loop
async def test_R4_documents_of_other_programs_are_not_seen_and_not_touched(tmp_path: Path, replica_set: bool) -> None:
    url = servers.replica_set() if replica_set else servers.url()

    past = datetime(2020, 1, 1, tzinfo=UTC)
    theirs = {"x": 1, "value": b"1", "size": 1, "revision": "1", "expires_at": past}

    async with (
        client_of(url) as client,
        opened(tmp_path, replica_set=replica_set) as storage,
        opened(tmp_path, replica_set=replica_set, base="sub") as below,
    ):
        collection = client.get_default_database()[name(tmp_path)]
        others = [theirs | {"_id": _id} for _id in (ObjectId(), 7, "key", "sub:key", "a:b", "sub.x", "sub")]
        await collection.insert_many(others)
        await storage.set_items({"a:1": 1, "a:2": 2})
        await below.set_items({"mine": 1, "a:1": 3})
        assert await below.get_keys() == ["a:1", "mine"]
        assert await storage.get_keys("a") == ["a:1", "a:2"]
        assert await storage.has_item("key") is False
        assert await below.clear() == 2
        assert await storage.remove_items(["key", "a:b", "a:2"]) == 1
        assert await storage.count() == await storage.clear() == 1
        for call in (
            storage.get_item("key"),
            storage.get_items(["a:1", "key"]),
            storage.set_item("key", 1),
            storage.set_items({"n": 1, "key": 1}),
            storage.add_item("key", 1),
        ):
            with pytest.raises(CorruptValueError, match="another program") as caught:
                await call
            assert caught.value.key == "key"
        await storage.get_mount("x").driver.sweep()
        await storage.clear()
        left = await collection.find().to_list()
        assert {repr(document["_id"]) for document in left} == {repr(document["_id"]) for document in others}
        assert all(document["value"] == b"1" and document["x"] == 1 for document in left)


@in_loop
async def test_a_value_that_is_no_binary_data_is_corrupt_by_its_name_and_left(tmp_path: Path) -> None:
    async with opened(tmp_path) as storage, client_of(servers.url()) as client:
        await storage.set_items({"bad": 1, "good": 1})
        collection = client.get_default_database()[name(tmp_path)]
        await collection.update_one({"_id": "bad"}, {"$set": {"value": "text"}})
        for call in (storage.get_item("bad"), storage.get_items(["good", "bad"])):
            with pytest.raises(CorruptValueError) as caught:
                await call
            assert (caught.value.key, caught.value.driver) == ("bad", "mongodb")
        found = await asyncio.gather(storage.get_item("good"), storage.get_item("bad"), return_exceptions=True)
        assert found[0] == 1


@in_loop
async def test_a_value_over_16_MB_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    async with opened(tmp_path) as storage:
        data = bytes(MAX_VALUE_BYTES + 1)
        calls = [storage.set_item_raw("large", data), storage.set_items({"small": 1}), storage.set_item("other", 1)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(outcomes[0], InvalidValueError)
        assert "16,777,217" not in str(outcomes[0])
        assert f"at most {MAX_VALUE_BYTES:,}" in str(outcomes[0])
        assert (outcomes[0].key, outcomes[1:]) == ("large", [None, None])
        with pytest.raises(InvalidValueError):
            await storage.set_items({"third": 1, "large": "x" * MAX_VALUE_BYTES})
        assert await storage.get_keys() == ["other", "small"]


@in_loop
async def test_large_values_are_compared_too(tmp_path: Path) -> None:
    async with opened(tmp_path, timeout=60.0) as storage:
        one, two = "x" * 9_000_000, "y" * 9_000_000
        await storage.set_item("key", one)
        assert await storage.compare_and_set("key", two, one) is False
        assert await storage.compare_and_set("key", one, two) is True
        assert await storage.compare_and_set("key", two, MISSING) is True
        assert not await storage.has_item("key")


@in_loop
async def test_a_collection_with_a_collation_is_refused(tmp_path: Path) -> None:
    async with client_of(servers.url()) as client, opened(tmp_path) as storage:
        collation = {"locale": "en", "strength": 1}
        await client.get_default_database().create_collection(name(tmp_path), collation=collation)
        with pytest.raises(ConfigError, match="collation"):
            await storage.set_item("key", 1)


@in_loop
async def test_L1_a_client_that_was_handed_in_stays_open(tmp_path: Path) -> None:
    async with client_of(servers.url()) as client:
        async with create_storage("mongodb", client=client, database="kvstore_test", collection=name(tmp_path)) as storage:
            await storage.set_item("key", 1)
        document = await client["kvstore_test"][name(tmp_path)].find_one({"_id": "key"})
        assert document is not None
        assert document["value"] == b"1"


def test_L1_a_client_that_was_handed_in_is_refused_in_another_event_loop(tmp_path: Path) -> None:
    client = client_of(servers.url())
    storage = create_storage("mongodb", client=client, database="kvstore_test", collection=name(tmp_path))

    async def use() -> None:
        await storage.set_item("key", 1)

    async def close() -> None:
        with pytest.raises(UnsupportedOperation, match="another event loop"):
            await use()
        await storage.aclose()

    with asyncio.Runner() as first:
        first.run(use())
        asyncio.run(close())
        first.run(client.close())


# Expiry


@pytest.mark.parametrize("replica_set", [False, True])
@in_loop
async def test_T1_expiry_goes_by_the_servers_clock(tmp_path: Path, replica_set: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither seen as gone nor swept, early or late, by a program on a machine whose clock is wrong."""

    ahead, right = 0, time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: right() + ahead * 10**9)

    for wrong in (3600, -3600):
        ahead = 0
        async with opened(tmp_path, replica_set=replica_set) as storage, opened(tmp_path, replica_set=replica_set) as other:
            await storage.set_item("theirs", 1, ttl=600)
            ahead = wrong
            await other.get_item("connect")
            await other.set_item("mine", 1, ttl=600)
            await other.set_item("short", 1, ttl=0.1)
            await asyncio.sleep(0.2)
            assert await other.get_items(["theirs", "mine", "short"]) == {"theirs": 1, "mine": 1, "short": None}
            await other.get_mount("x").driver.sweep()
            ahead = 0
            assert await storage.get_items(["theirs", "mine", "short"]) == {"theirs": 1, "mine": 1, "short": None}
            meta = await storage.get_meta("mine")
            assert meta is not None
            assert meta.expires_at is not None
            assert meta.mtime is not None
            assert abs((meta.expires_at - meta.mtime).total_seconds() - 600) < 1
            assert abs((meta.mtime - datetime.now(UTC)).total_seconds()) < 60


@in_loop
async def test_T1_a_server_whose_clock_was_set_is_followed_by_the_next_sweep(tmp_path: Path) -> None:
    driver = MongodbDriver(servers.url(), collection=name(tmp_path))
    async with create_storage(driver) as storage:
        await storage.get_item("connect")
        driver._time.set(driver._time() + 3_600_000)
        await driver.sweep()
        assert abs(driver.clock() - time.time() * 1000) < 10_000


# Replica sets


@in_loop
async def test_W1_changes_by_another_process_are_told_once_and_touch_and_expiry_are_not(tmp_path: Path) -> None:
    async with (
        opened(tmp_path, replica_set=True) as mine,
        opened(tmp_path, replica_set=True) as other,
        client_of(servers.replica_set()) as client,
        mine.watch("a") as events,
    ):
        await client.get_default_database()[name(tmp_path)].insert_one({"_id": "a:theirs", "revision": "7"})
        await mine.set_item("a:mine", 1)
        await other.set_items({"a:1": 1, "b": 1})
        await other.set_item("a:1", 1)
        await other.set_meta("a:1", {"x": 1})
        await other.touch("a:1")
        await other.set_item("a:short", 1, ttl=0.01)
        await asyncio.sleep(0.02)
        await other.get_mount("x").driver.sweep()
        await other.remove_items(["a:1", "a:missing"])
        await other.commit({"a:2": 1}, expect={"a:1": MISSING, "b": 1})
        await other.clear()
        await other.set_item("a:end", 1)
        told: list[Event] = []
        async with asyncio.timeout(20):
            while Event("update", "a:end") not in told:
                told.append(await anext(events))
    told.remove(Event("update", "a:mine"))
    update, remove = [[Event(kind, f"a:{key}") for key in ("1", "2", "short", "mine")] for kind in ("update", "remove")]
    end = Event("update", "a:end")
    assert told[:5] == [update[0], update[0], update[2], remove[0], update[1]]
    assert sorted(told[5:], key=str) == sorted([remove[1], remove[3], end], key=str)


@in_loop
async def test_A2_two_commits_that_expect_what_the_other_one_changes_do_not_both_hold(tmp_path: Path) -> None:
    async with opened(tmp_path, replica_set=True) as one, opened(tmp_path, replica_set=True) as two:
        for number in range(5):
            await one.set_items({"a": 0, "b": 0})
            await one.remove_items(["c", "d"])
            held = await asyncio.gather(
                one.commit({"a": 1}, expect={"b": 0}),
                two.commit({"b": 1}, expect={"a": 0}),
            )
            assert sorted(held) == [False, True], number
            held = await asyncio.gather(
                one.commit({"c": 1}, expect={"d": MISSING}),
                two.commit({"d": 1}, expect={"c": MISSING}),
            )
            assert sorted(held) == [False, True], number
        assert len(await one.get_keys()) == 3


@in_loop
async def test_A1_a_batch_is_seen_whole_or_not_at_all(tmp_path: Path) -> None:
    async with opened(tmp_path, replica_set=True) as writer, opened(tmp_path, replica_set=True) as reader:
        keys = [f"key:{number}" for number in range(10)]
        await writer.set_items(dict.fromkeys(keys, 0))
        done = asyncio.Event()

        async def read() -> None:
            while not done.is_set():
                assert len(set((await reader.get_items(keys)).values())) == 1

        reading = asyncio.create_task(read())
        for number in range(20):
            await writer.set_items(dict.fromkeys(keys, number))
        done.set()
        await reading


@in_loop
async def test_a_single_server_is_no_replica_set() -> None:
    server, port = servers.start()
    async with create_storage(f"mongodb://127.0.0.1:{port}/?replica_set=true") as storage:
        with pytest.raises(ConfigError, match="no replica set"):
            await storage.set_item("key", 1)
    server.stop()


# Faults


@in_loop
async def test_A3_when_one_removal_of_a_batch_fails_none_is_left_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would come later would undo a later write."""
    take, over = writing._take, []

    async def taken(documents: Documents, asked: dict[str, Any]) -> bool:
        if asked["_id"] == "bad":
            raise OperationFailure("broken")
        await asyncio.sleep(0.05)
        over.append(asked["_id"])
        return await take(documents, asked)

    monkeypatch.setattr(writing, "_take", taken)
    async with opened(tmp_path) as storage:
        await storage.set_items({"bad": 1, "slow": 1})
        with pytest.raises(BackendError, match="broken"):
            await storage.get_mount("x").driver.write([("bad", None, None), ("slow", None, None)])
        assert over == ["slow"]
        assert await storage.get_keys() == ["bad"]


@pytest.mark.parametrize("replica_set", [False, True])
@in_loop
async def test_more_names_than_one_command_holds_are_sent_in_several(
    tmp_path: Path, replica_set: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "_SHARE", 3 * 1024)
    most, some = 0, Documents.some

    def counted(self: Documents, keys: Sequence[str]) -> Document:
        nonlocal most
        most = max(most, len(keys))
        return some(self, keys)

    monkeypatch.setattr(Documents, "some", counted)

    async with opened(tmp_path, replica_set=replica_set) as storage:
        driver = storage.get_mount("x").driver
        keys = [f"key:{number}" for number in range(10)]
        await storage.set_items(dict.fromkeys(keys, 1), ttl=0.001)
        await asyncio.sleep(0.01)
        await storage.set_items(dict.fromkeys(keys, 2))
        assert await storage.get_items([*keys, "other"]) == dict.fromkeys(keys, 2) | {"other": None}
        assert await driver.has([*keys, "other"]) == [True] * 10 + [False]
        if replica_set:
            assert await storage.commit({"other": 1}, removes=keys[:9], expect=dict.fromkeys(keys, 2))
            assert await storage.get_keys() == ["key:9", "other"]
    assert most == 3


@in_loop
async def test_a_wrong_password_is_unavailable_and_never_shown_and_who_may_only_read_reads() -> None:
    directory = servers.new_directory()
    first, port = servers.start(directory=directory, durable=True)
    async with client_of(f"mongodb://127.0.0.1:{port}") as client:
        await client.admin.command("createUser", "me", pwd="right-one", roles=["root"])
        await client.admin.command("createUser", "reader", pwd="its", roles=[{"role": "read", "db": "kvstore"}])
    first.kill()
    server, port = servers.start(directory=directory, auth=True)
    for login in ("me:hunter2@", ""):
        async with create_storage(f"mongodb://{login}127.0.0.1:{port}/?authSource=admin", connect_timeout=2.0) as storage:
            with pytest.raises(BackendUnavailable, match="refuses") as caught:
                await storage.get_item("key")
            assert "hunter2" not in f"{caught.value}{caught.value.__cause__}{storage.get_mount('key').driver!r}"
    async with create_storage(f"mongodb://me:right-one@127.0.0.1:{port}/?authSource=admin") as storage:
        await storage.set_item("key", 1)
    async with create_storage(f"mongodb://reader:its@127.0.0.1:{port}/?authSource=admin") as storage:
        assert await storage.get_item("key") == 1
        with pytest.raises(BackendUnavailable, match="not authorized"):
            await storage.set_item("key", 2)
    server.stop()


@in_loop
async def test_TLS_is_checked() -> None:
    made, key = await asyncio.to_thread(certificate)
    server, port = servers.start(tls=(made, key))
    async with create_storage(f"mongodb://127.0.0.1:{port}/?tls=true&tlsCAFile={made}") as storage:
        await storage.set_item("key", 1)
        assert await storage.get_item("key") == 1
    async with create_storage(f"mongodb://127.0.0.1:{port}/?tls=true", connect_timeout=1.0) as storage:
        with pytest.raises(BackendUnavailable, match="certificate"):
            await storage.get_item("key")
    server.stop()


# Options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "either a url, such as"),
        ({"url": "http://x"}, "starts with mongodb://"),
        ({"url": "mongodb://x", "timeout": 0}, "timeout"),
        ({"url": "mongodb://x", "collection": ""}, "collection"),
        ({"url": "mongodb://x", "colection": "x"}, "'collection'"),
        ({"url": "mongodb://x", "replica_set": "yes"}, "replica_set"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        create_storage("mongodb", **options)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mongodb://127.0.0.1:1/?conecttimeoutms=1", "conecttimeoutms"),
        ("mongodb://me:hun/ter2@127.0.0.1:1/", "."),
        ("mongodb://me:hunter2@127.0.0.1:99999999/", "."),
        ("mongodb://127.0.0.1:1/?w=0", "w=0"),
        ("mongodb://127.0.0.1:1/wrong database", "Bad database name"),
        ("mongodb://127.0.0.1:1/?collection=$x", "no name of a database or collection"),
    ],
)
@in_loop
async def test_a_wrong_url_is_refused_and_no_password_shown(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        async with create_storage(url) as storage:
            await storage.get_item("key")
    assert "ter2" not in f"{caught.value}{caught.value.__cause__}"


@in_loop
async def test_a_url_names_the_database_and_takes_options(tmp_path: Path) -> None:
    address = servers.url().partition("?")[0]
    async with create_storage(f"{address}?collection={name(tmp_path)}&base=b&timeout=7&retryWrites=true") as storage:
        await storage.set_item("key", 1)
    async with client_of(servers.url()) as client:
        assert await client.get_default_database("kvstore")[name(tmp_path)].count_documents({"_id": "b:key"}) == 1
    with pytest.raises(ConfigError, match="replica_set is true or false"):
        create_storage(f"{address}?replica_set=maybe")


@in_loop
async def test_without_pymongo_the_pip_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setitem(sys.modules, "pymongo", None)
    async with create_storage("mongodb://127.0.0.1:1") as storage:
        with pytest.raises(MissingDependencyError, match=re.escape(install("mongodb"))):
            await storage.get_item("key")


def test_the_module_imports_no_client() -> None:
    code = "import sys, kvstore.drivers.mongodb; sys.exit('pymongo' in sys.modules or 'bson' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@in_loop
async def test_persistence_takes_the_transactions_of_a_replica_set(tmp_path: Path) -> None:
    def opened() -> Persistence:
        return create_persistence(mongodb_driver(servers.replica_set(), collection=name(tmp_path), replica_set=True))

    async with opened() as one, opened() as two:
        await one.images.save(Image(image_id="i1", container_id="c1", session_id="s1", name="a"))
        await two.images.save(Image(image_id="i1", container_id="c2", session_id="s1", name="b"))
        assert (await one.images.list(container_id="c1")).items == []
        assert [image.name for image in (await one.images.list(container_id="c2")).items] == ["b"]
        calls = [(one, two)[number % 2].sessions.add_message("s1", {"id": f"m{number}"}) for number in range(20)]
        places = await asyncio.gather(*calls)
        assert [message["id"] for message in await two.sessions.get_messages("s1")] == [
            f"m{number}" for _, number in sorted(zip(places, range(20), strict=True))
        ]
        assert await one.sessions.truncate_after("s1", "m0") == 19 - places[0]
        report = await two.repair()
        assert (report.added_entries, report.removed_entries, report.mended_heads) == (0, 0, 0)
