"""The PostgreSQL and MySQL drivers against the real servers: the kit, and what is their own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from running import in_loop
from servers import mysql, postgresql
from servers import own_name as table
from servers.process import Server, certificate
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from kvstore import (
    MISSING,
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ConfigError,
    InvalidValueError,
    MissingDependencyError,
    Storage,
    create_storage,
)
from kvstore.driver import Batch
from kvstore.drivers._sql.connection import AsyncmyConnection, AsyncpgConnection, Connection, _places
from kvstore.drivers._sql.driver import SqlDriver
from kvstore.drivers._sql.limits import Limit, Limits
from kvstore.drivers._sql.server import Fault
from kvstore.drivers._sql.statements import PIECE
from kvstore.drivers.mysql import MysqlDriver
from kvstore.drivers.postgresql import PostgresqlDriver
from kvstore.errors import install
from kvstore.testing import DriverSuite, FakeClock


class TestPostgresql(DriverSuite):
    def make_driver(self, path: Path) -> PostgresqlDriver:
        return PostgresqlDriver(postgresql.url(), table=table(path))


class TestPostgresqlByPsycopg(DriverSuite):
    """The same by another client library, which SQLAlchemy knows and the driver does not."""

    def make_driver(self, path: Path) -> PostgresqlDriver:
        return PostgresqlDriver(postgresql.url().replace("postgresql:", "postgresql+psycopg:"), table=table(path))


class TestMysql(DriverSuite):
    def make_driver(self, path: Path) -> MysqlDriver:
        return MysqlDriver(mysql.url(), table=table(path))


@dataclass
class Kind:
    """A server, and how its driver is named."""

    name: str
    url: Callable[[], str]
    start: Callable[..., tuple[Server, int]]
    address: str
    """Of a server of a test's own, by its port."""
    client: str
    connection: type[Connection]

    def driver(self, path: Path) -> SqlDriver:
        driver = {"postgresql": PostgresqlDriver, "mysql": MysqlDriver}[self.name](self.url(), table=table(path))
        assert isinstance(driver, SqlDriver)
        return driver

    def opened(self, path: Path, **options: Any) -> Storage:
        return create_storage(self.name, url=self.url(), table=table(path), **options)

    def private(self, port: int) -> str:
        return self.address.format(port)

    def engine(self) -> AsyncEngine:
        return create_async_engine(self.url().replace(":", f"+{self.client}:", 1), isolation_level="AUTOCOMMIT")


KINDS = [
    Kind(
        "postgresql",
        postgresql.url,
        postgresql.start,
        "postgresql://postgres@127.0.0.1:{}/postgres",
        "asyncpg",
        AsyncpgConnection,
    ),
    Kind(
        "mysql",
        mysql.url,
        mysql.start,
        f"mysql://kvstore:{mysql.PASSWORD}@127.0.0.1:{{}}/kvstore",
        "asyncmy",
        AsyncmyConnection,
    ),
]
each_server = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


# What lies in the database


@each_server
@in_loop
async def test_values_are_bytes_in_a_table_that_other_programs_read(kind: Kind, tmp_path: Path) -> None:
    engine = kind.engine()
    async with kind.opened(tmp_path) as storage, engine.connect() as client:
        await storage.set_item("a:b", {"x": 1})
        rows = (await client.exec_driver_sql(f"SELECT * FROM {table(tmp_path)}")).mappings().all()
        assert [(row["key"], bytes(row["value"])) for row in rows] in ([("a:b", b'{"x":1}')], [(b"a:b", b'{"x":1}')])
    await engine.dispose()


@each_server
@in_loop
async def test_a_table_of_another_program_is_refused_and_left(kind: Kind, tmp_path: Path) -> None:
    engine = kind.engine()
    async with engine.connect() as client:
        await client.exec_driver_sql(f"CREATE TABLE {table(tmp_path)} (x INTEGER)")
        async with kind.opened(tmp_path) as storage:
            with pytest.raises(BackendError, match="another program's; choose another `table`"):
                await storage.set_item("key", 1)
        await client.exec_driver_sql(f"INSERT INTO {table(tmp_path)} VALUES (1)")
    await engine.dispose()


@each_server
@in_loop
async def test_a_newer_schema_is_refused(kind: Kind, tmp_path: Path) -> None:
    engine = kind.engine()
    async with engine.connect() as client:
        async with kind.opened(tmp_path) as storage:
            await storage.set_item("key", 1)
        await client.exec_driver_sql(f"UPDATE kvstore_schema SET version = 99 WHERE name = '{table(tmp_path)}'")
        async with kind.opened(tmp_path) as storage:
            with pytest.raises(BackendError, match="schema version 99"):
                await storage.get_item("key")
    await engine.dispose()


@pytest.mark.server
@in_loop
async def test_a_schema_of_postgresql_is_made_and_keeps_its_keys_apart(tmp_path: Path) -> None:
    kind = KINDS[0]
    async with kind.opened(tmp_path, schema="Some_App") as mine, kind.opened(tmp_path) as other:
        await mine.set_item("key", 1)
        assert not await other.has_item("key")
    async with kind.opened(tmp_path, schema="Some_App") as mine:
        assert await mine.get_item("key") == 1


@pytest.mark.server
@pytest.mark.parametrize("others", [("{}_expires_at", "{}_pkey", "{}"), ("{}", "{}_pkey", "{}_expires_at")])
@in_loop
async def test_no_table_of_postgresql_has_the_name_of_anothers_index(others: tuple[str, ...], tmp_path: Path) -> None:
    for other in others:
        async with create_storage(postgresql.url(), table=other.format(table(tmp_path))) as storage:
            await storage.set_item("key", other)
            assert await storage.get_item("key") == other


@each_server
@in_loop
async def test_many_that_come_first_make_one_table(kind: Kind, tmp_path: Path) -> None:
    storages = [kind.opened(tmp_path) for _ in range(8)]
    await asyncio.gather(*(storage.set_item(f"key{number}", number) for number, storage in enumerate(storages)))
    assert await storages[0].count() == 8
    for storage in storages:
        await storage.aclose()


@each_server
@in_loop
async def test_L1_an_engine_that_was_handed_in_stays_open(kind: Kind, tmp_path: Path) -> None:
    engine = kind.engine()
    async with create_storage(kind.name, engine=engine, table=table(tmp_path)) as storage:
        await storage.set_item("key", 1)
    async with engine.connect() as client:
        assert len((await client.exec_driver_sql(f"SELECT * FROM {table(tmp_path)}")).all()) == 1
        # The settings that the driver makes are not its user's.
        if kind.name == "mysql":
            [(mode,)] = (await client.exec_driver_sql("SELECT @@sql_mode")).all()
            assert "ANSI_QUOTES" not in str(mode)
    await engine.dispose()


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgresql+psycopg", "mysql+asyncmy"])
@in_loop
async def test_A1_an_engine_that_leaves_transactions_open_commits_each_write(scheme: str, tmp_path: Path) -> None:
    """As `create_async_engine` makes it, without any option."""

    kind = next(kind for kind in KINDS if scheme.startswith(kind.name))
    engine = create_async_engine(kind.url().replace(kind.name, scheme, 1))
    async with (
        kind.opened(tmp_path, timeout=2) as other,
        create_storage(kind.name, engine=engine, table=table(tmp_path)) as storage,
    ):
        await storage.set_item("key", 1)
        assert await other.get_item("key") == 1
        await other.set_item("key", 2)
        assert await storage.compare_and_set("key", 2, 3)
        assert await storage.commit({"key": 4, "new": 4}, expect={"key": 3})
        assert await other.get_items(["key", "new"]) == {"key": 4, "new": 4}
    await engine.dispose()


def told(
    kind: Kind,
    monkeypatch: pytest.MonkeyPatch,
    then: Callable[[str, tuple[Any, ...]], Awaitable[None]],
    *,
    before: bool = False,
) -> None:
    """Has `then` called after each statement, before its caller goes on; or before the statement."""

    def patched(ask: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def asked(connection: Connection, sql: str, *arguments: Any) -> Any:
            if before:
                await then(sql, arguments)
            answer = await ask(connection, sql, *arguments)
            if not before:
                await then(sql, arguments)
            return answer

        return asked

    for name in ("fetch", "change"):
        monkeypatch.setattr(kind.connection, name, patched(getattr(kind.connection, name)))


def beside(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, words: str, work: Callable[[], Coroutine[Any, Any, object]]
) -> list[asyncio.Task[object]]:
    """Has `work` begun by another program once, after the first statement with `words`, and its task told.

    The statement's caller goes on once it is done, or waits for a lock.
    """
    begun: list[asyncio.Task[object]] = []

    async def then(sql: str, arguments: tuple[Any, ...]) -> None:
        if words in sql and not begun:
            begun.append(asyncio.create_task(work()))
            await asyncio.wait(begun, timeout=0.3)

    told(kind, monkeypatch, then)
    return begun


# Several programs at once


@pytest.mark.server
@each_server
@pytest.mark.parametrize(
    "batches",
    [
        [([("key", None, None), ("other", None, None)], None)],
        [([("key", None, None), ("large", bytes(PIECE + 1), None)], None)],
        [([("key", None, None)], None), ([("other", b"1", None)], {"other": b"2"})],
    ],
    ids=["several", "beside a large value", "beside a condition"],
)
@in_loop
async def test_R2_a_removal_takes_nothing_that_it_did_not_find(
    kind: Kind, batches: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A2: or what another program has added meanwhile would be taken by nobody."""

    driver = kind.driver(tmp_path)
    async with kind.opened(tmp_path) as other, create_storage(driver) as storage:
        await other.set_item("large", 1)
        await storage.get_item("key")
        added = beside(kind, monkeypatch, "FOR UPDATE", lambda: other.add_item("key", 1))
        if len(batches) == 1:
            result = await driver.write(*batches[0])
        else:
            [result, _] = await driver.write_many(batches)  # type: ignore[assignment]
        assert isinstance(result, list)
        there = [await task for task in added] == [True]
        assert await other.has_item("key") is (there and not result[0])


@each_server
@in_loop
async def test_A2_a_key_that_others_remove_and_add_meanwhile_is_added_once(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = kind.driver(tmp_path)
    async with kind.opened(tmp_path) as other, create_storage(driver) as storage:
        await storage.set_item("key", "old")
        await other.set_item("x", 1)
        beside(kind, monkeypatch, "INSERT", lambda: other.remove_item("key"))
        begun = beside(kind, monkeypatch, "FOR UPDATE", lambda: other.add_item("key", "theirs"))
        mine, _ = await driver.write_many([([("key", b'"mine"', None)], {"key": None}), ([("x", b"1", None)], None)])
        [theirs] = begun
        assert [mine == [False], await theirs].count(True) == 1
        assert await storage.get_item("key") == ("theirs" if await theirs else "mine")


@each_server
@in_loop
async def test_T2_metadata_goes_with_a_removal_that_a_later_write_of_the_crowd_follows(kind: Kind, tmp_path: Path) -> None:
    driver = kind.driver(tmp_path)
    async with create_storage(driver) as storage:
        for condition in ({"key": None}, {"x": None}):
            await storage.set_item("key", 0)
            await storage.set_meta("key", {"owner": "ann"})
            batches: list[Batch] = [([("key", None, None)], None), ([("key", b"1", None)], condition)]
            assert await driver.write_many(batches) == [[True], [False]]
            meta = await storage.get_meta("key")
            assert meta is not None
            assert meta.custom == {}
            assert await storage.get_item("key") == 1


@pytest.mark.server
@in_loop
async def test_programs_that_write_the_same_keys_of_postgresql_never_wait_for_each_other_in_a_circle(tmp_path: Path) -> None:
    """The server looks for deadlocks after a second, so that each would take as long."""
    conflicts: list[str] = []

    def opened() -> Storage:
        driver = KINDS[0].driver(tmp_path)
        fault = driver._server.fault

        def seen(error: BaseException) -> Fault | None:
            found = fault(error)
            if found is not None and found.again:
                conflicts.append(found.message)
            return found

        driver._server.fault = seen  # type: ignore[method-assign]
        return create_storage(driver)

    async def one(storage: Storage, random: Random) -> None:
        for number in range(12):
            keys = [f"key:{place:02}" for place in random.sample(range(40), 20)]
            await storage.set_items(dict.fromkeys(keys, number))
            await storage.commit(dict.fromkeys(keys[:10], number), removes=keys[10:])
            await storage.commit(dict.fromkeys(keys[:4], number), removes=keys[4:], expect={keys[0]: MISSING, keys[9]: number})
            await storage.remove_items(keys)
            await asyncio.gather(
                *(storage.add_item(key, number) for key in keys), *(storage.update_item(key, str) for key in keys)
            )
            if number % 4 == 0:
                large = "x" * (PIECE + 1)
                await storage.commit({key: large if key == keys[3] else number for key in keys[:10]}, removes=keys[10:])
                await storage.clear("key")

    storages = [opened() for _ in range(4)]
    await asyncio.gather(*(one(storage, Random(place)) for place, storage in enumerate(storages)))
    for storage in storages:
        await storage.aclose()
    assert conflicts == []


@each_server
@in_loop
async def test_R2_sets_and_removals_in_one_call_tell_what_was_there(kind: Kind, tmp_path: Path) -> None:
    driver = kind.driver(tmp_path)
    async with create_storage(driver) as storage:
        await storage.set_items({"b": 1, "c": 1})
        await storage.set_item("d", 1, ttl=0.001)
        await storage.set_item("e", 1, ttl=0.001)
        await asyncio.sleep(0.01)
        for large in (b"1", bytes(PIECE + 1)):
            writes = [("a", None, None), ("b", None, None), ("c", large, None), ("d", None, None), ("e", b"1", None)]
            assert await driver.write([*writes, ("f", b"1", None)]) == [False, True, True, False, False, False]
            assert await storage.get_keys() == ["c", "e", "f"]
            await storage.remove_items(["e", "f"])
            await storage.set_item("b", 1)


# The server's clock


@each_server
@in_loop
async def test_T1_a_server_whose_clock_was_set_right_is_asked_before_a_sweep(kind: Kind, tmp_path: Path) -> None:
    """Or it would remove what is alive, of everyone."""

    driver = kind.driver(tmp_path)
    async with kind.opened(tmp_path) as other, create_storage(driver) as storage:
        await storage.get_item("key")
        await other.set_item("key", 1, ttl=600)
        right = driver._time()
        driver._time.set(right + 3_600_000)
        due = await driver.sweep()
        assert await other.get_item("key") == 1
        assert due is not None
        assert due > right
        assert abs(driver.clock() - right) < 60_000


@each_server
@in_loop
async def test_T1_each_new_connection_tells_the_time(kind: Kind, tmp_path: Path) -> None:
    driver = kind.driver(tmp_path)
    async with create_storage(driver) as storage:
        await storage.set_item("key", 1, ttl=600)
        right = driver._time()
        driver._time.set(right + 3_600_000)
        driver._pool._drop()
        assert await storage.has_item("other") is False
        assert await storage.get_item("key") == 1
        assert abs(driver.clock() - right) < 60_000


@pytest.mark.server
@in_loop
async def test_T1_an_hour_that_comes_twice_where_the_server_stands_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When summer time ends. A clock that is an hour ahead would remove what is alive."""
    monkeypatch.setenv("TZ", "Europe/Berlin")

    kind = KINDS[1]
    server, port = await asyncio.to_thread(kind.start)
    driver = MysqlDriver(kind.private(port))
    async with create_storage(driver) as storage:
        await storage.get_item("key")

        async def told_at(at: int, connection: Connection) -> int:
            await connection.fetch(f"SET timestamp = {at}")
            [[told]] = await connection.fetch(driver._server.sql.time)
            return int(told)

        first, second = 1_792_886_400 + 1_800, 1_792_890_000 + 1_800
        assert await driver._pool.ask(partial(told_at, first)) == first * 1000
        assert await driver._pool.ask(partial(told_at, second)) == second * 1000
    await asyncio.to_thread(server.stop)


# Faults


@each_server
@in_loop
async def test_a_connection_that_the_server_ended_is_replaced_unnoticed(kind: Kind, tmp_path: Path) -> None:
    engine = kind.engine()
    async with kind.opened(tmp_path) as storage, engine.connect() as client:
        await storage.set_item("key", 1)
        if kind.name == "postgresql":
            others = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%{}%' AND pid <> pg_backend_pid()"
            )
            await client.exec_driver_sql(others.format(table(tmp_path)))
        else:
            listed = (
                await client.exec_driver_sql("SELECT id FROM information_schema.processlist WHERE id <> CONNECTION_ID()")
            ).all()
            for (number,) in listed:
                await client.exec_driver_sql(f"KILL {number}")
        await asyncio.sleep(0.1)
        assert await storage.get_item("key") == 1
        await storage.set_item("key", 2)
    await engine.dispose()


@each_server
@in_loop
async def test_A3_a_write_that_was_given_up_does_not_take_effect_after_the_next_one(kind: Kind, tmp_path: Path) -> None:
    name = table(tmp_path)
    slow = "new.value = '\"old\"'"
    if kind.name == "postgresql":
        sql = [
            f"CREATE OR REPLACE FUNCTION {name}_slow() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN IF {slow} THEN PERFORM pg_sleep(1); END IF; RETURN new; END $$",
            f"DROP TRIGGER IF EXISTS slow ON {name}",
            f"CREATE TRIGGER slow BEFORE INSERT ON {name} FOR EACH ROW EXECUTE FUNCTION {name}_slow()",
        ]
    else:
        sleep = f"FOR EACH ROW SET @slept = (SELECT IF({slow}, SLEEP(1), 0))"
        sql = [f"DROP TRIGGER IF EXISTS {name}_slow", f"CREATE TRIGGER {name}_slow BEFORE INSERT ON {name} {sleep}"]
    engine = kind.engine()
    async with kind.opened(tmp_path, timeout=0.5) as storage, engine.connect() as client:
        await storage.get_item("key")
        for statement in sql:
            await client.exec_driver_sql(statement)
        with pytest.raises(BackendTimeout, match="whether anything was written is not known"):
            await storage.set_item("key", "old")
        await storage.set_item("key", "new")
        await asyncio.sleep(1)
        assert await storage.get_item("key") == "new"
    await engine.dispose()


@each_server
@in_loop
async def test_a_session_is_ended_by_what_no_other_one_is_called(kind: Kind, tmp_path: Path) -> None:
    driver = kind.driver(tmp_path)
    async with create_storage(driver) as storage:
        await storage.get_item("key")
        mine, left = [await driver._pool._opened() for _ in range(2)]
        assert left.session is not None
        assert not await driver._server.end(mine, left.session + "0")
        await left.fetch("SELECT 1")
        while await driver._server.end(mine, left.session):
            await asyncio.sleep(0.01)
        with pytest.raises(Exception, match=r"(?i)terminat|kill|lost|closed|gone"):
            await left.fetch("SELECT 1")
        await mine.fetch("SELECT 1")
        for connection in (mine, left):
            await connection.aclose()


@each_server
@in_loop
async def test_a_row_that_another_program_locks_is_a_timeout_and_nothing_is_written_later(kind: Kind, tmp_path: Path) -> None:
    engine = kind.engine()
    async with kind.opened(tmp_path, timeout=1.5) as storage, engine.connect() as client:
        await storage.set_item("key", 1)
        await client.exec_driver_sql("BEGIN")
        await client.exec_driver_sql(f"UPDATE {table(tmp_path)} SET mtime = 1")
        with pytest.raises(BackendTimeout, match="nothing was written"):
            await storage.set_item("key", 2)
        if kind.name == "postgresql":  # MySQL has locked what lies between the rows, too
            await storage.set_item("other", 2)
        await client.exec_driver_sql("ROLLBACK")
        await asyncio.sleep(0.1)
        assert await storage.get_item("key") == 1
    await engine.dispose()


@each_server
@in_loop
async def test_a_transaction_that_could_not_be_ended_keeps_no_locks(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = kind.driver(tmp_path)
    async with kind.opened(tmp_path, timeout=2) as other, create_storage(driver) as storage:
        await storage.set_items({"a": 1, "b": 1})
        await other.get_item("a")

        async def then(sql: str, arguments: tuple[Any, ...]) -> None:
            if sql == "ROLLBACK" or sql.startswith("INSERT"):
                raise ZeroDivisionError if sql == "ROLLBACK" else BackendError("no")

        with monkeypatch.context() as patch:
            told(kind, patch, then, before=True)
            with pytest.raises(BackendError, match="no"):
                await storage.commit({"a": 2, "b": 2}, expect={"a": 1})
        await other.set_items({"a": 3, "b": 3})
        assert await storage.get_items(["a", "b"]) == {"a": 3, "b": 3}


@each_server
@in_loop
async def test_a_write_that_conflicts_again_and_again_ends_in_time(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kind.opened(tmp_path, timeout=0.5) as storage:
        await storage.get_item("a")

        async def then(sql: str, arguments: tuple[Any, ...]) -> None:
            if sql == "COMMIT":
                await asyncio.sleep(0.2)
                raise conflict

        conflict = Exception(1213, "deadlock")
        conflict.sqlstate = "40P01"  # type: ignore[attr-defined]
        told(kind, monkeypatch, then, before=True)
        began = time.monotonic()
        with pytest.raises(BackendTimeout):
            await storage.commit({"a": 2, "b": 2}, expect={"a": MISSING})
        assert time.monotonic() - began < 2


@each_server
@in_loop
async def test_deadlocks_are_tried_again(kind: Kind, tmp_path: Path) -> None:
    storages = [kind.opened(tmp_path) for _ in range(6)]
    keys = [f"key:{number}" for number in range(40)]

    async def one(place: int, storage: Storage) -> None:
        for number in range(15):
            await storage.set_items(dict.fromkeys(keys[place:] + keys[:place], number))
            await storage.commit({keys[place]: number, keys[-place]: number}, removes=keys[10:30])
            await storage.clear("key")

    async with asyncio.timeout(60):
        await asyncio.gather(*(one(place, storage) for place, storage in enumerate(storages)))
    for storage in storages:
        await storage.aclose()


@each_server
@in_loop
async def test_a_wrong_password_and_a_wrong_database_are_unavailable_and_said(kind: Kind) -> None:
    server, port = await asyncio.to_thread(kind.start)
    if kind.name == "postgresql":
        async with create_storage(kind.private(port)) as storage:
            await storage.get_item("key")
        hba = next(Path(server.directory).glob("data/pg_hba.conf"))
        engine = create_async_engine(kind.private(port).replace(":", "+asyncpg:", 1), isolation_level="AUTOCOMMIT")
        async with engine.connect() as client:
            await client.exec_driver_sql("CREATE ROLE app LOGIN PASSWORD 'right-one'")
            hba.write_text("host all app 127.0.0.1/32 scram-sha-256\n" + hba.read_text())
            await client.exec_driver_sql("SELECT pg_reload_conf()")
        await engine.dispose()
        wrong = f"postgresql://app:hunter2@127.0.0.1:{port}/postgres"
    else:
        wrong = f"mysql://kvstore:hunter2@127.0.0.1:{port}/kvstore"
    async with create_storage(wrong) as storage:
        with pytest.raises(BackendUnavailable, match=r"password|denied") as caught:
            await storage.get_item("key")
        assert "hunter2" not in f"{caught.value}{storage.get_mount('key').driver!r}"
    root = kind.private(port).replace(f"kvstore:{mysql.PASSWORD}", "root").rpartition("/")[0]
    async with create_storage(f"{root}/nowhere") as storage:
        with pytest.raises(BackendUnavailable, match="nowhere"):
            await storage.get_item("key")
    await asyncio.to_thread(server.stop)


@each_server
@in_loop
async def test_TLS_is_checked(kind: Kind) -> None:
    made, key = await asyncio.to_thread(certificate)
    if kind.name == "postgresql":
        owner = postgresql.user()
        for file in (made.parent, key, made):
            os.chown(file, -1 if owner is None else owner, -1)
        server, port = await asyncio.to_thread(kind.start, "ssl=on", f"ssl_cert_file={made}", f"ssl_key_file={key}")
        right, wrong = f"?sslmode=verify-full&sslrootcert={made}", "?sslmode=verify-full"
    else:
        server, port = await asyncio.to_thread(kind.start, f"--ssl-cert={made}", f"--ssl-key={key}")
        right, wrong = f"?ssl_ca={made}", "?ssl=true"
    async with create_storage(kind.private(port) + right) as storage:
        await storage.set_item("key", 1)
        assert await storage.get_item("key") == 1
    async with create_storage(kind.private(port) + wrong) as storage:
        with pytest.raises(BackendUnavailable, match=r"(?i)certificate"):
            await storage.get_item("key")
    await asyncio.to_thread(server.stop)


@pytest.mark.server
@in_loop
async def test_a_value_over_the_packet_of_mysql_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    async with KINDS[1].opened(tmp_path) as storage:
        await storage.set_item("key", 1)
        with pytest.raises(InvalidValueError, match="MySQL takes at most") as caught:
            await storage.set_item_raw("key", bytes(64 * 2**20))
        assert caught.value.key == "key"
        assert await storage.get_item("key") == 1
        held = b"\0'\\\"\n" * (12 * 2**20)  # whatever is escaped
        await storage.set_item_raw("key", held)
        assert await storage.get_item_raw("key") == held


@pytest.mark.server
@in_loop
async def test_values_of_half_a_packet_of_mysql_are_compared_and_larger_metadata_is_refused(tmp_path: Path) -> None:
    kind = KINDS[1]
    server, port = await asyncio.to_thread(kind.start, "--max-allowed-packet=1M")
    async with create_storage(kind.private(port)) as storage:
        for size in (2**18, PIECE - 2):
            await storage.set_item("key", "x" * size)
            assert await storage.compare_and_set("key", "x" * size, "'" * size)
            assert await storage.get_item("key") == "'" * size
        with pytest.raises(InvalidValueError, match=r"the metadata has .* this MySQL takes at most") as caught:
            await storage.set_meta("key", {"note": "x" * 2**20})
        assert (caught.value.key, caught.value.operation) == ("key", "set_meta")
        await storage.set_meta("key", {"note": "x" * 10**6})
    await asyncio.to_thread(server.stop)


@each_server
@in_loop
async def test_more_than_a_packet_in_one_call_is_all_or_nothing(kind: Kind, tmp_path: Path) -> None:
    async with kind.opened(tmp_path) as storage:
        values = {f"key:{number}": "x" * 100_000 for number in range(100)}
        await storage.set_items(values)
        assert await storage.get_items(values) == values
        assert await storage.commit(dict.fromkeys(values, 1), expect={"key:0": "x" * 100_000, "key:1": 2}) is False
        assert await storage.get_items(values) == values


@each_server
@in_loop
async def test_L2_no_statement_carries_much_more_than_a_piece(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More would be packed in one go, which holds the event loop: 30 MB for 50 ms."""
    most = 0

    async def then(sql: str, arguments: tuple[Any, ...]) -> None:
        nonlocal most
        most = max(most, len(sql) + sum(map(_bytes_of, arguments)))

    driver = kind.driver(tmp_path)
    async with create_storage(driver) as storage:
        await storage.get_item("key")
        told(kind, monkeypatch, then)
        values = {f"key:{number:02}": bytes([number]) * 200_000 for number in range(30)}
        added: list[Batch] = [([(key, data, None)], {key: None}) for key, data in values.items()]
        assert await driver.write_many(added[:15]) == [[False]] * 15
        assert await driver.write_many(added) == [None] * 15 + [[False]] * 15
        assert await driver.write([(key, data, None) for key, data in values.items()]) == [True] * 30
        assert await driver.write_many([([(key, data, None)], {key: data}) for key, data in values.items()]) == [[True]] * 30
        assert await driver.read([*values]) == [*values.values()]
    assert 0 < most < 3 * PIECE


def _bytes_of(argument: Any) -> int:
    return (
        sum(map(_bytes_of, argument))
        if isinstance(argument, list | tuple)
        else len(argument if isinstance(argument, bytes) else str(argument))
    )


@pytest.mark.server
@in_loop
async def test_a_statement_is_kept_for_as_many_rows_as_the_last_one_had(tmp_path: Path) -> None:
    """Others hold their values: a thousand of them would be a gigabyte."""

    async def kept(*counts: int) -> int:
        before = _places.cache_info().misses
        for count in counts:
            rows = {f"{place:03}": (count, place) for place in range(count)}
            await storage.set_items(rows)
            assert await storage.get_items([*rows]) == {key: [*value] for key, value in rows.items()}
        return _places.cache_info().misses - before

    async with KINDS[1].opened(tmp_path) as storage:
        await kept(129, 128, 64, 32, 16, 8, 4, 2)  # for what reads the same
        assert await kept(2, 3, 5, 6, 7, 2, 9) == 1
        assert await kept(40, 40, 40) == 1
        assert await kept(129, 129) == 0


@pytest.mark.server
@in_loop
async def test_R2_crowds_of_one_size_tell_what_was_there_and_what_had_expired(tmp_path: Path) -> None:
    driver = MysqlDriver(mysql.url(), table=table(tmp_path))
    driver.clock = clock = FakeClock()
    async with create_storage(driver) as storage:
        await storage.has_item("key")
        for number, lives in enumerate((False, True, False, True)):
            now, data = clock(), bytes([number, 0, 39, 92])
            assert await driver.write([("a", data, now + 1000), ("b", data, None)]) == [lives, number > 0]
            assert await driver.read(["a", "b"]) == [data, data]
            clock.advance(1.2 if lives else 0.6)


@each_server
@in_loop
async def test_a_session_that_a_proxy_has_reset_is_replaced(kind: Kind, tmp_path: Path) -> None:
    async with kind.opened(tmp_path, connections=1) as storage:
        items = {f"{number}": number for number in range(8)}
        calls = (lambda: storage.set_items(items), lambda: storage.get_item("1"), lambda: storage.set_item("1", 1))
        for call in (*calls, *calls):
            for other in (*calls, *calls):  # so that all statements are prepared
                await other()
            [connection] = storage.get_mount("1").driver._pool._idle  # type: ignore[attr-defined]
            if kind.name == "mysql":
                await connection._client._execute_command(0x1F, b"")  # COM_RESET_CONNECTION
                await connection._client._read_ok_packet()
            else:
                await connection._client.execute("DEALLOCATE ALL")
            await call()
            assert await storage.get_items([*items]) == items


class Relay:
    """Stands before a server, and once `cuts` loses its next answer and the connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.cuts = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            yield server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)

        async def answer() -> None:
            while data := await there.read(65536):
                if self.cuts:
                    self.cuts = False
                    break
                writer.write(data)
            writer.transport.abort()
            back.transport.abort()

        answering = asyncio.create_task(answer())
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                back.write(data)
        back.close()
        await asyncio.wait([answering])


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgresql+psycopg", "mysql+asyncmy"])
@in_loop
async def test_A2_an_answer_that_is_lost_is_an_error_and_never_a_wrong_answer(scheme: str, tmp_path: Path) -> None:
    url = make_url((mysql if scheme.startswith("mysql") else postgresql).url())
    relay = Relay(url.port or 0)
    async with relay.open() as port:
        near = url.set(drivername=scheme, host="127.0.0.1", port=port).render_as_string(hide_password=False)
        # Or the answer may be one to a further connection that is being made.
        async with create_storage(near, table=table(tmp_path), connections=1) as storage:
            await storage.set_items({f"old{number}": number for number in range(6)})
            for call, name in ((lambda key: storage.add_item(key, 1), "new"), (storage.remove_item, "old")):
                relay.cuts = True
                calls = (call(f"{name}{number}") for number in range(6))
                answers = await asyncio.gather(*calls, return_exceptions=True)
                failed = [answer for answer in answers if answer is not True]
                assert failed
                assert all(isinstance(answer, BackendUnavailable) and answer.maybe_written for answer in failed), answers


# Options


@each_server
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "either a url, such as"),
        ({"url": "http://x"}, "starts with"),
        ({"url": "OWN://x", "timeout": 0}, "positive"),
        ({"url": "OWN://x", "table": "a; drop"}, "plain name"),
        ({"url": "OWN://x", "tabel": "x"}, "did you mean 'table'"),
        ({"url": "OWN://x/y?sslmod=x"}, "no option 'sslmod'"),
    ],
)
def test_a_wrong_option_is_refused_by_name(kind: Kind, options: dict[str, Any], says: str) -> None:
    given = {name: value.replace("OWN", kind.name) if isinstance(value, str) else value for name, value in options.items()}
    with pytest.raises(ConfigError, match=says):
        create_storage(kind.name, **given)


@each_server
@pytest.mark.parametrize("query", ["tabel=x", "timeout=soon", "connections=0"])
def test_a_wrong_url_is_refused(kind: Kind, query: str) -> None:
    with pytest.raises(ConfigError):
        create_storage(f"{kind.name}://localhost/x?{query}")


@each_server
def test_a_url_with_a_wrong_port_is_refused_without_its_password(kind: Kind) -> None:
    with pytest.raises(ConfigError, match="the port a number") as caught:
        create_storage(kind.name, url=f"{kind.name}://me:hunter2@localhost:port/x")
    assert "hunter2" not in f"{caught.value}{caught.value.__cause__}{caught.value.__context__}"


@each_server
@pytest.mark.parametrize("rest", ["u:p@ss/hunter2@h/x", "u:p?hunter2@h/x", "u:p/hunter2@h/x", "u:hunter2@h/x"])
def test_E1_a_password_that_is_not_escaped_is_shown_by_no_error_and_no_driver(kind: Kind, rest: str) -> None:
    try:
        shown = repr(create_storage(f"{kind.name}://{rest}").get_mount("key").driver)
    except ConfigError as error:
        shown = f"{error}{error.__cause__}"
    assert "hunter2" not in shown
    assert "p@ss" not in shown


@each_server
@in_loop
async def test_a_scheme_is_taken_in_any_case(kind: Kind, tmp_path: Path) -> None:
    scheme, _, rest = kind.url().partition(":")
    async with create_storage(f"{scheme.upper()}:{rest}", table=table(tmp_path)) as storage:
        await storage.set_item("key", 1)
        assert await storage.get_item("key") == 1


@pytest.mark.parametrize(
    ("scheme", "error", "says"),
    [
        ("postgresql+psycopg2", ConfigError, "psycopg2 is no client for asyncio; without it the URL names asyncpg"),
        ("mysql+pymysql", ConfigError, "pymysql is no client for asyncio; without it the URL names asyncmy"),
        ("postgresql+psycopg", MissingDependencyError, r'needs psycopg: pip install "psycopg\[binary\]"'),
        ("mysql+aiomysql", MissingDependencyError, 'needs aiomysql: pip install "aiomysql"'),
    ],
)
@in_loop
async def test_a_client_that_can_not_be_used_is_said_with_what_helps(
    scheme: str, error: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, scheme.partition("+")[2], None)

    async with create_storage(f"{scheme}://localhost/x") as storage:
        with pytest.raises(error, match=says):
            await storage.get_item("key")


@each_server
def test_without_its_libraries_the_line_that_installs_them_is_said(kind: Kind) -> None:
    script = f"""
import asyncio, sys
sys.modules["sqlalchemy"] = None
from kvstore import MissingDependencyError, create_storage
try:
    asyncio.run(create_storage("{kind.name}://localhost/x").get_item("key"))
except MissingDependencyError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert install(kind.name) in said


@pytest.mark.server
@in_loop
async def test_a_server_that_returns_no_rows_of_an_upsert_is_asked_what_was_there(tmp_path: Path) -> None:
    """As MySQL is, and MariaDB before 10.5."""

    driver = MysqlDriver(mysql.url(), table=table(tmp_path))
    async with create_storage(driver) as storage:
        await storage.set_item("first", 1)
        driver._server._tell = ""  # type: ignore[attr-defined]
        for found in (False, True):
            assert await driver.write([("one", b"1", None)]) == [found]
            assert await driver.write([("a", b"1", None), ("first", b"2", None), ("b", b"3", None)]) == [found, True, found]
        assert await storage.get_items(["one", "a", "first", "b"]) == {"one": 1, "a": 1, "first": 2, "b": 3}


# How long a call may take


@in_loop
async def test_each_call_ends_when_its_own_time_is_over() -> None:
    limits, ended = Limits(0.3), dict[int, float]()

    async def call(number: int, seconds: float) -> None:
        began = time.monotonic()
        try:
            with Limit(limits):
                await asyncio.sleep(seconds)
        except TimeoutError:
            ended[number] = time.monotonic() - began

    async with asyncio.TaskGroup() as calls:
        for number, seconds in enumerate((9, 0.02, 9, 9, 0.02, 9)):
            calls.create_task(call(number, seconds))
            await asyncio.sleep(0.04)
    assert [*ended] == [0, 2, 3, 5]
    assert all(0.29 < taken < 0.45 for taken in ended.values()), "the last began 0.2 seconds after the first"
    with Limit(limits):
        await asyncio.sleep(0.05)
    with pytest.raises(TimeoutError), Limit(limits):
        await asyncio.sleep(9)
    assert not limits.under_way


@pytest.mark.parametrize("when", [0.02, 0.1])
@in_loop
async def test_a_call_that_others_cancel_is_cancelled_even_when_its_time_is_over(when: float) -> None:
    limits = Limits(when)

    async def call() -> None:
        with Limit(limits):
            try:
                await asyncio.sleep(9)
            finally:
                task.cancel()

    task = asyncio.create_task(call())
    asyncio.get_running_loop().call_later(0.05, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


@in_loop
async def test_a_time_that_is_over_further_out_is_told_there() -> None:
    async def call() -> None:
        with Limit(Limits(9)):
            await asyncio.sleep(9)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await call()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
