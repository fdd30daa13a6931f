"""The Redis driver against the real server: the kit, and what is Redis's own."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster
from redis.crc import key_slot
from running import in_loop
from servers import own_name as base
from servers import redis as servers
from servers.process import certificate, free_port, new_directory

from kvstore import (
    MISSING,
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ConfigError,
    CorruptValueError,
    Event,
    KVStoreError,
    Storage,
    UnsupportedOperation,
    create_storage,
    snapshot,
)
from kvstore.clock import Clock
from kvstore.drivers.redis import RedisDriver
from kvstore.testing import DriverSuite
from kvstore.testing.pauses import leaves_the_loop_free


class TestRedis(DriverSuite):
    def make_driver(self, path: Path) -> RedisDriver:
        return RedisDriver(servers.url(), base=base(path))


class TestRedisWithoutIndex(DriverSuite):
    """Nothing but the values, as other programs have them too."""

    def make_driver(self, path: Path) -> RedisDriver:
        return RedisDriver(servers.url(), base=base(path), index=False)


class TestRedisCluster(DriverSuite):
    """Each mount in one slot."""

    def make_driver(self, path: Path) -> RedisDriver:
        return RedisDriver(servers.cluster(), base=base(path), cluster=True)


def opened(path: Path, **options: object) -> Storage:
    return create_storage(RedisDriver(servers.url(), base=base(path), **options))  # type: ignore[arg-type]


# What lies in Redis


@in_loop
async def test_values_are_plain_strings_that_other_programs_read(tmp_path: Path) -> None:
    async with opened(tmp_path) as storage, Redis.from_url(servers.url()) as client:
        await storage.set_item("a:b", {"x": 1}, ttl=100)
        assert await client.get(f"{base(tmp_path)}:a:b") == b'{"x":1}'
        assert 99_000 < await client.pttl(f"{base(tmp_path)}:a:b") <= 100_000


@in_loop
async def test_R4_what_is_not_below_the_base_is_never_touched_and_the_base_is_literal(tmp_path: Path) -> None:
    name = base(tmp_path)
    async with Redis.from_url(servers.url()) as client:
        others = [f"{name}x:a", f"{name}", f"x{name}:a", name.replace("kvstore", "*") + ":a"]
        for other in others:
            await client.set(other, b"1")
        for index in (True, False):
            driver = RedisDriver(servers.url(), base="kv*-" + name[8:] if not index else name, index=index)
            async with create_storage(driver) as storage:
                await storage.set_items({"a": 1, "b:c": 2})
                assert await storage.get_keys() == ["a", "b:c"]
                assert await storage.clear() == 2
        assert await client.exists(*others) == len(others)
        await client.delete(*others)


@in_loop
async def test_keys_of_another_program_are_listed_once_the_index_is_rebuilt(tmp_path: Path) -> None:
    driver = RedisDriver(servers.url(), base=base(tmp_path))
    async with create_storage(driver) as storage, Redis.from_url(servers.url()) as client:
        await storage.set_item("ours", 1)
        await client.set(f"{base(tmp_path)}:theirs", b"2")
        await client.set(f"{base(tmp_path)}:short", b"3", px=300)
        assert await storage.get_items(["ours", "theirs"]) == {"ours": 1, "theirs": 2}
        assert await storage.get_keys() == ["ours"]
        assert await driver.rebuild_index() == 3
        assert await storage.get_keys() == ["ours", "short", "theirs"]
        await asyncio.sleep(0.35)
        assert await storage.get_keys() == ["ours", "theirs"]
        assert await storage.clear() == 2
        assert await client.keys(f"{base(tmp_path)}:*") == []


@in_loop
async def test_K2_what_the_driver_keeps_lies_where_no_key_of_a_mount_can(tmp_path: Path) -> None:
    name = base(tmp_path)
    driver = RedisDriver(servers.url(), base=name)
    async with create_storage().mount("c", driver) as storage, Redis.from_url(servers.url()) as client:
        await storage.set_items({"c:x": 1, "c:$meta:of:x": {"forged": True}, "c:$meta:index": 2}, ttl=100)
        await storage.set_meta("c:x", {"a": 1})
        values = {f"{name}:{key}".encode() for key in ("x", "$meta:of:x", "$meta:index")}
        own = {f"{name}::$meta:{key}".encode() for key in ("index", "expiring", "written", "of:x")}
        assert set(await client.keys(f"{name}:*")) == values | own
        assert await driver.rebuild_index() == 3
        assert await storage.get_keys() == ["c:$meta:index", "c:$meta:of:x", "c:x"]
        await storage.remove_item("c:x")
        assert await storage.get_item("c:$meta:of:x") == {"forged": True}


@asynccontextmanager
async def others(name: str) -> AsyncIterator[Redis]:
    """With keys of another program below the base, of which `a` and `a:b` alone are keys."""
    texts = ["a", "a:b", "user/1", "a::b", ":a", "a:", "..", "a:.", "$meta", "$meta:x", "x" * 1025, ""]
    names = [f"{name}:{text}".encode() for text in texts] + [f"{name}:".encode() + b"\xff"]
    async with Redis.from_url(servers.url()) as client:
        await client.mset(dict.fromkeys(names, b"1"))
        yield client
        await client.delete(*names)


@in_loop
async def test_R4_of_another_program_what_is_no_key_is_neither_listed_nor_counted_nor_cleared(tmp_path: Path) -> None:
    name = base(tmp_path)
    async with others(name) as client, opened(tmp_path, index=False) as storage:
        before = set(await client.keys(f"{name}:*"))
        assert await storage.get_keys() == ["a", "a:b"]
        assert await storage.count() == 2
        assert await snapshot(storage) == {"a": 1, "a:b": 1}
        async with storage.watch():
            assert await storage.clear("a") == 1
        assert await storage.clear() == 1
        assert before - set(await client.keys(f"{name}:*")) == {f"{name}:a".encode(), f"{name}:a:b".encode()}


@in_loop
async def test_R3_a_rebuilt_index_holds_what_is_a_key(tmp_path: Path) -> None:
    driver = RedisDriver(servers.url(), base=base(tmp_path))
    async with others(base(tmp_path)) as client, create_storage(driver) as storage:
        await storage.set_items({"ours": 1, "gone": 2})
        await client.delete(f"{base(tmp_path)}:gone")
        assert await driver.rebuild_index() == 3
        assert await storage.get_keys() == ["a", "a:b", "ours"]
        assert await storage.clear() == 3


@in_loop
async def test_R3_what_is_written_while_the_index_is_rebuilt_is_listed(tmp_path: Path) -> None:
    driver = RedisDriver(servers.url(), base=base(tmp_path))
    async with create_storage(driver) as storage:
        await storage.set_items({f"old:{number}": number for number in range(3000)})

        async def write() -> None:
            for number in range(100):
                await storage.set_item(f"new:{number}", number)
                await storage.remove_item(f"old:{number}")

        await asyncio.gather(write(), *(driver.rebuild_index() for _ in range(5)))
        assert await storage.count("new") == 100
        assert await storage.count("old") == 2900


@pytest.mark.parametrize("index", [True, False])
@in_loop
async def test_another_type_under_a_key_is_corrupt_by_its_name_and_left(tmp_path: Path, index: bool) -> None:
    async with opened(tmp_path, index=index) as storage, Redis.from_url(servers.url()) as client:
        await client.rpush(f"{base(tmp_path)}:list", b"x")  # type: ignore[misc]
        await storage.set_item("good", 1)
        for call in (
            *(
                storage.get_item("list"),
                storage.get_items(["good", "list"]),
                storage.has_item("list"),
                storage.add_item("list", 1),
            ),
            *(
                storage.compare_and_set("list", 1, 2),
                storage.touch("list", 5),
                storage.remove_item("list"),
                storage.get_meta("list"),
            ),
        ):
            with pytest.raises(CorruptValueError, match="no string under this key") as caught:
                await call
            assert (caught.value.key, caught.value.driver) == ("list", "redis")
        for several in (storage.remove_items(["good", "list"]), storage.commit({"good": 2}, removes=["list"])):
            with pytest.raises(CorruptValueError, match="one of these keys"):
                await several
        if index:
            with pytest.raises(CorruptValueError, match="no string under this key"):
                await storage.set_meta("list", {"a": 1})
        assert await storage.get_keys() == ["good"]
        assert await storage.clear() == 1
        assert await client.lrange(f"{base(tmp_path)}:list", 0, -1) == [b"x"]  # type: ignore[misc]
        assert await client.ttl(f"{base(tmp_path)}:list") == -1


@in_loop
async def test_W1_changes_by_another_process_are_told_once_and_in_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as mine, opened(tmp_path) as other, mine.watch("a") as events:
        await other.set_items({"a:1": 1, "b": 1})
        await other.remove_item("a:1")
        await other.remove_item("a:1")
        await other.set_item("a:end", 1)
        async with asyncio.timeout(10):
            told = [await anext(events) for _ in range(3)]
        assert told == [Event("update", "a:1"), Event("remove", "a:1"), Event("update", "a:end")]


@in_loop
async def test_W1_changes_in_another_database_are_not_told(tmp_path: Path) -> None:
    other_url = servers.url().rpartition("/")[0] + "/1"
    other = create_storage(RedisDriver(other_url, base=base(tmp_path)))
    async with opened(tmp_path) as mine, opened(tmp_path) as same, other, mine.watch() as events:
        await other.set_item("elsewhere", 1)
        await same.set_item("here", 1)
        async with asyncio.timeout(10):
            assert await anext(events) == Event("update", "here")
        await other.clear()


@in_loop
async def test_W1_E1_a_watch_whose_server_is_gone_ends_with_BackendUnavailable() -> None:
    server, port = servers.start()
    url = f"redis://127.0.0.1:{port}"
    async with create_storage(url) as storage, create_storage(url) as other, storage.watch() as events:
        await other.set_item("key", 1)
        assert await anext(events) == Event("update", "key")
        server.kill()
        async with asyncio.timeout(10):
            with pytest.raises(BackendUnavailable, match="Redis can't be reached") as caught:
                await anext(events)
        assert (caught.value.operation, caught.value.driver) == ("watch", "redis")
    server.stop()


@in_loop
async def test_L1_a_client_that_was_handed_in_stays_open(tmp_path: Path) -> None:
    async with Redis.from_url(servers.url()) as client:
        async with create_storage("redis", client=client, base=base(tmp_path)) as storage:
            await storage.set_item("key", 1)
        assert await client.get(f"{base(tmp_path)}:key") == b"1"


def test_a_client_that_decodes_is_refused() -> None:
    with pytest.raises(ConfigError, match="decode_responses=False"):
        RedisDriver(client=Redis(decode_responses=True))


# Faults


@in_loop
async def test_a_server_that_stands_still_while_a_connection_is_opened_again_is_a_timeout_too() -> None:
    server, port = servers.start()
    async with create_storage(f"redis://127.0.0.1:{port}", timeout=0.3) as storage:
        await storage.set_item("key", 1)
        server.pause()
        async with asyncio.timeout(10):
            for _ in range(3):  # by the connection that there is, and by those that are made in its place
                with pytest.raises(BackendTimeout):
                    await storage.set_item("key", 2)
        server.resume()
        await storage.set_item("key", 3)
        assert await storage.get_item("key") == 3
    server.stop()


@pytest.mark.parametrize("handed_in", [False, True])
@in_loop
async def test_A3_what_a_cancelled_caller_sent_happens_before_all_later_calls_or_never(tmp_path: Path, handed_in: bool) -> None:
    async with Redis.from_url(servers.url()) as client:
        driver = RedisDriver(client=client, base=base(tmp_path)) if handed_in else None
        async with create_storage(driver) if driver else opened(tmp_path) as storage:
            for size in (10, 40_000, 400_000, 2_000_000):
                for turns in range(12):
                    # Several keys are one command, however large.
                    late = asyncio.create_task(storage.set_items(dict.fromkeys(("a", "b", "c"), f"late{turns}" + "x" * size)))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    late.cancel()
                    await storage.set_item("b", turns)
                    assert await storage.get_item("b") == turns
                    await asyncio.sleep(0.005)
                    assert await storage.get_item("b") == turns
            assert [name for name in await client.keys(f"{base(tmp_path)}::$meta:part:*") if await client.ttl(name) < 0] == []


@in_loop
async def test_a_wrong_password_is_unavailable_and_never_shown() -> None:
    server, port = servers.start("--requirepass", "right-one")
    for url in (f"redis://:hunter2@127.0.0.1:{port}", f"redis://127.0.0.1:{port}"):
        async with create_storage(url) as storage:
            with pytest.raises(BackendUnavailable) as caught:
                await storage.get_item("key")
            assert "hunter2" not in str(caught.value)
    async with create_storage(f"redis://:right-one@127.0.0.1:{port}") as storage:
        await storage.set_item("key", 1)
    server.stop()


@in_loop
async def test_a_unix_socket_and_a_user_of_few_rights() -> None:
    folder = new_directory()
    user = "user app on >pass ~app:* &app:* +@all -@dangerous"
    server, port = servers.start("--unixsocket", str(folder / "s"))
    async with Redis(port=port) as admin:
        await admin.execute_command("ACL", "SETUSER", *user.split()[1:])
    async with create_storage(f"unix://{folder}/s", base="app") as storage:
        await storage.set_item("key", 1)
    async with create_storage(f"redis://app:pass@127.0.0.1:{port}?base=app") as storage:
        assert await storage.get_items(["key"]) == {"key": 1}
        assert await storage.get_keys() == ["key"]
        assert await storage.clear() == 1
    async with create_storage(f"redis://app:pass@127.0.0.1:{port}?base=other") as storage:
        with pytest.raises(KVStoreError):
            await storage.set_item("key", 1)
    server.stop()


@in_loop
async def test_TLS_is_checked(tmp_path: Path) -> None:
    made, key = await asyncio.to_thread(certificate)
    tls_port = free_port()
    options = ["--tls-port", str(tls_port), "--tls-cert-file", str(made), "--tls-key-file", str(key)]
    try:
        server, _ = servers.start(*options, "--tls-ca-cert-file", str(made), "--tls-auth-clients", "no")
    except RuntimeError as error:
        pytest.skip(f"this server was built without TLS: apt-get install redis-server ({str(error)[-80:]!r})")
    async with create_storage(f"rediss://127.0.0.1:{tls_port}?ssl_ca_certs={made}") as storage:
        await storage.set_item("key", 1)
        assert await storage.get_item("key") == 1
    async with create_storage(f"rediss://127.0.0.1:{tls_port}") as storage:
        with pytest.raises(BackendUnavailable, match="certificate"):
            await storage.get_item("key")
    server.stop()


@in_loop
async def test_Sentinel_leads_to_the_master_and_to_the_next_one() -> None:
    master, master_port = servers.start()
    replica, _ = servers.start("--replicaof", "127.0.0.1", str(master_port), "--repl-diskless-sync-delay", "0")
    folder = new_directory()
    conf = folder / "sentinel.conf"
    conf.write_text("")
    sentinel, port = servers.start_sentinel(conf)
    async with Redis(port=port) as admin:
        await admin.execute_command("SENTINEL", "MONITOR", "mymaster", "127.0.0.1", str(master_port), "1")
        for name, value in (("down-after-milliseconds", "300"), ("failover-timeout", "2000")):
            await admin.execute_command("SENTINEL", "SET", "mymaster", name, value)
        async with create_storage(f"redis+sentinel://127.0.0.1:{port}/mymaster/0", timeout=2.0) as storage:
            await storage.set_item("key", 1)
            async with asyncio.timeout(30):
                while not await admin.execute_command("SENTINEL", "REPLICAS", "mymaster"):
                    await asyncio.sleep(0.1)
                async with Redis(port=master_port) as first:
                    await first.execute_command("WAIT", "1", "5000")
                master.kill()
                while True:
                    try:
                        await storage.set_item("key", 2)
                        break
                    except (BackendUnavailable, BackendTimeout, KVStoreError):
                        await asyncio.sleep(0.1)
            assert await storage.get_item("key") == 2
    for server in (sentinel, replica, master):
        server.stop()


@in_loop
async def test_E1_a_Sentinel_that_is_not_there_or_knows_no_such_master_is_said_in_a_sentence() -> None:
    conf = new_directory() / "sentinel.conf"
    conf.write_text("")
    sentinel, port = servers.start_sentinel(conf)
    nowhere = free_port()
    for hosts, says in ((f"127.0.0.1:{port}", "they know none"), (f"127.0.0.1:{nowhere}", "not every one can be reached")):
        async with create_storage(f"redis+sentinel://{hosts}/mymaster") as storage:
            with pytest.raises(
                BackendUnavailable, match=f"the Sentinels at {hosts} name no master 'mymaster': {says}"
            ) as caught:
                await storage.get_item("key")
            assert len(str(caught.value)) < 250
    sentinel.stop()


@in_loop
async def test_a_slot_of_the_cluster_that_is_moved_amid_writes_loses_nothing(tmp_path: Path) -> None:
    driver = RedisDriver(servers.cluster(), base=base(tmp_path), cluster=True)
    async with create_storage(driver) as storage, Redis.from_url(servers.cluster()) as first:
        await storage.set_items({f"key:{number}": number for number in range(200)})
        slot = await first.execute_command("CLUSTER", "KEYSLOT", f"{{{base(tmp_path)}}}:key")
        nodes = {
            str(name): Redis(host=host, port=port)
            for name, host, port in [(n["node_id"], *a.split(":")) for a, n in (await first.cluster("nodes")).items()]
        }
        owner = await _owner(nodes, slot)
        other = next(name for name in nodes if name != owner)
        acknowledged: dict[str, int] = {}
        over = False

        async def write(task: int) -> None:
            number = 0
            while not over:
                await storage.set_item(f"task:{task}", number)
                acknowledged[f"task:{task}"] = number
                assert await storage.get_item(f"key:{number % 200}") == number % 200
                number += 1

        async def move() -> None:
            nonlocal over
            try:
                await asyncio.sleep(0.05)
                await _move(nodes[owner], nodes[other], owner, other, slot)
                await asyncio.sleep(0.1)
            finally:
                over = True

        async with asyncio.timeout(60):
            await asyncio.gather(move(), *map(write, range(8)))
        assert await _owner(nodes, slot) == other
        assert await storage.get_items(acknowledged) == acknowledged
        assert await storage.count() == 208
        for node in nodes.values():
            await node.aclose()


async def _owner(nodes: dict[str, Redis], slot: int) -> str:
    for first, last, (_, _, name, *_), *_ in await next(iter(nodes.values())).execute_command("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return name.decode() if isinstance(name, bytes) else str(name)
    raise AssertionError(f"nobody owns slot {slot}")


async def _move(source: Redis, target: Redis, source_id: str, target_id: str, slot: int) -> None:
    """As redis-cli --cluster reshard does it."""
    await target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
    await source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
    host, port = (target.connection_pool.connection_kwargs[name] for name in ("host", "port"))
    while keys := await source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 50):
        await source.execute_command("MIGRATE", host, port, "", 0, 5000, "KEYS", *keys)
        await asyncio.sleep(0.005)
    for node in (target, source):
        await node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_id)


@in_loop
async def test_a_database_that_is_not_there_is_unavailable_and_said() -> None:
    async with create_storage(servers.url().rpartition("/")[0] + "/9999") as storage:
        with pytest.raises(BackendUnavailable, match="DB index"):
            await storage.get_item("key")


# What was lost or changed on the way


async def _through(port: int, late: Callable[[bytes], float], lost: Callable[[bytes], bool]) -> asyncio.Server:
    """A way to a server: what is sent takes `late` seconds, and the connection ends in place of an answer to what is `lost`."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
        cut = False

        async def send() -> None:
            nonlocal cut
            while data := await reader.read(2**16):
                cut = cut or lost(data)
                await asyncio.sleep(late(data))
                to_server.write(data)
                await to_server.drain()
            to_server.close()

        async def answer() -> None:
            while (data := await from_server.read(2**16)) and not cut:
                writer.write(data)
                await writer.drain()
            writer.close()

        await asyncio.gather(send(), answer(), return_exceptions=True)

    return await asyncio.start_server(forward, "127.0.0.1", 0)


def port_of(server: asyncio.Server) -> int:
    return int(server.sockets[0].getsockname()[1])


@pytest.mark.parametrize("cluster", [False, True])
@in_loop
async def test_A2_what_is_not_idempotent_is_never_sent_twice_by_a_client_that_was_handed_in(
    tmp_path: Path, cluster: bool
) -> None:
    """Nor told to have failed when it was its own answer that was lost."""

    armed = False

    def lost(data: bytes) -> bool:
        nonlocal armed
        is_lost, armed = armed and b"EVALSHA" in data, armed and b"EVALSHA" not in data
        return is_lost

    url = servers.cluster() if cluster else servers.url()
    proxy = await _through(int(url.split(":")[2].partition("/")[0]), lambda _: 0.0, lost)
    client: Any = Redis(port=port_of(proxy))
    if cluster:
        there = lambda address: ("127.0.0.1", port_of(proxy)) if f":{address[1]}" in url else address  # noqa: E731
        client = RedisCluster.from_url(url, address_remap=there)
    name = next(f"{base(tmp_path)}{n}" for n in range(99) if not cluster or key_slot(f"{base(tmp_path)}{n}".encode()) < 5000)
    async with client, create_storage("redis", client=client, base=name) as storage:
        await storage.set_items({"c": 0, "r": 1})
        await storage.add_item("warm", 1)
        for call in (
            lambda: storage.add_item("n", 1),
            lambda: storage.update_item("c", lambda value: value + 1),
            lambda: storage.remove_item("r"),
        ):
            armed = True
            with pytest.raises(BackendUnavailable, match="whether anything was written is not known"):
                await call()
            assert not armed
        assert await storage.get_items(["n", "c", "r"]) == {"n": 1, "c": 1, "r": None}
    proxy.close()


@pytest.mark.parametrize("index", [True, False])
@in_loop
async def test_A3_a_write_that_was_given_up_never_takes_effect_after_a_later_one(tmp_path: Path, index: bool) -> None:
    """As one that lay in the socket of a server that stood still."""

    def late(data: bytes) -> float:
        return 1.0 if b"late" in data else 0.3 if b"slow" in data else 0

    proxy = await _through(int(servers.url().split(":")[2].partition("/")[0]), late, lambda _: False)
    driver = RedisDriver(f"redis://127.0.0.1:{port_of(proxy)}", base=base(tmp_path), index=index, timeout=0.4)
    async with create_storage(driver) as storage, Redis.from_url(servers.url()) as client:
        await storage.set_items({"a": 1, "b": 1})
        given_up = asyncio.create_task(storage.set_items({"a": "late", "b": "late"}))
        await asyncio.sleep(0.2)
        slow = asyncio.create_task(storage.set_item("c", "slow"))  # on its way when the server hears what is given up
        with pytest.raises(BackendTimeout, match="whether anything was written is not known"):
            await given_up
        await storage.set_item("a", 2)
        assert await storage.remove_item("b")
        await slow
        await asyncio.sleep(1)
        assert await storage.get_items(["a", "b", "c"]) == {"a": 2, "b": None, "c": "slow"}
        [fence] = await client.keys(f"{base(tmp_path)}::$meta:of::*")
        assert 0 < await client.ttl(fence) <= 86_400
        assert await storage.get_keys() == ["a", "c"]
    proxy.close()


@in_loop
async def test_E1_a_write_that_could_not_be_sent_behind_one_that_was_given_up_is_known_not_to_be_written() -> None:
    server, port = await asyncio.to_thread(servers.start)
    async with create_storage(f"redis://127.0.0.1:{port}/0", timeout=0.3, connect_timeout=0.3) as storage:
        await storage.set_item("key", 1)
        server.pause()
        with pytest.raises(BackendTimeout) as given_up:
            await storage.set_item("key", 2)
        with pytest.raises(BackendError, match="nothing was written") as unsent:
            await storage.set_item("key", 3)
        assert (given_up.value.maybe_written, unsent.value.maybe_written) == (True, False)
        server.resume()
        await storage.set_item("key", 4)
        await asyncio.sleep(0.2)
        assert await storage.get_item("key") == 4
    await asyncio.to_thread(server.stop)


@in_loop
async def test_A3_a_listing_without_an_index_and_has_never_pass_a_write_whose_caller_was_cancelled(tmp_path: Path) -> None:
    proxy = await _through(
        int(servers.url().split(":")[2].partition("/")[0]), lambda data: 0.05 * (data.count(b"x") > 20_000), lambda _: False
    )
    driver = RedisDriver(f"redis://127.0.0.1:{port_of(proxy)}", base=base(tmp_path), index=False)
    async with create_storage(driver) as storage:
        for what in ("clear", "has"):
            await asyncio.gather(*(storage.set_item(f"warm:{number}", 1) for number in range(4)))  # several connections
            for _ in range(3):
                await storage.set_item("warm:0", 1)  # now in its caller's task
            late = asyncio.create_task(storage.set_item("k", "x" * 60_000))
            await asyncio.sleep(0.003)
            late.cancel()
            if what == "has":
                assert await storage.get_mount("k").has(["k", "warm:1"]) == [True, True]
            else:
                assert await storage.clear() == 5
                await asyncio.sleep(0.5)
                assert await storage.get_keys() == []
    proxy.close()


@in_loop
async def test_T2_a_key_that_expires_in_the_very_millisecond_of_a_count_is_not_counted_for_ever(tmp_path: Path) -> None:
    async with opened(tmp_path) as storage:
        await asyncio.gather(*(storage.set_item(f"k{n}", n, ttl=0.3 + n / 1000) for n in range(300)))
        async with asyncio.timeout(10):
            while await storage.count():
                await asyncio.sleep(0)
        assert await storage.get_keys() == []


@in_loop
async def test_A1_V4_a_large_value_is_read_whole_while_another_program_writes_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as storage, Redis.from_url(servers.url()) as client:
        values = [letter * 3_000_000 for letter in (b"a", b"b")]
        await storage.set_item_raw("key", values[0])

        async def write(pause: float, over: asyncio.Event) -> None:
            while not over.is_set():
                for value in values:
                    await client.set(f"{base(tmp_path)}:key", value)
                    await asyncio.sleep(pause)

        for pause in (0.0, 0.01, 0.1):  # all the time, and now and then
            over = asyncio.Event()
            writing = asyncio.create_task(write(pause, over))
            for _ in range(10):
                assert await storage.get_item_raw("key") in values
            over.set()
            await writing
        await storage.remove_item("key")
        assert await storage.get_item_raw("key") is None


@in_loop
async def test_A1_a_large_value_is_read_whole_where_the_server_evicts() -> None:
    server, port = servers.start("--maxmemory", "40mb", "--maxmemory-policy", "volatile-lru")
    url = f"redis://127.0.0.1:{port}"
    async with create_storage(url) as storage, create_storage(url) as other:
        await storage.set_item_raw("big", b"x" * 12_000_000)
        await storage.set_item_raw("big2", b"y" * 6_000_000)
        for _ in range(6):
            calls = [storage.get_item_raw("big"), other.get_item_raw("big"), storage.get_item_raw("big2")]
            assert [len(data) for data in await asyncio.gather(*calls)] == [12_000_000, 12_000_000, 6_000_000]
    server.stop()


@in_loop
async def test_a_login_that_may_not_write_reads_a_large_value() -> None:
    server, port = servers.start()
    async with Redis(port=port) as admin, create_storage(f"redis://127.0.0.1:{port}") as storage:
        await admin.execute_command("ACL", "SETUSER", "reader", "on", ">pass", "~*", "+@all", "-@write")
        await storage.set_items({"big": "x" * 3_000_000, "small": 1})
        async with create_storage(f"redis://reader:pass@127.0.0.1:{port}") as reader:
            assert await reader.get_items(["big", "small", "none"]) == {"big": "x" * 3_000_000, "small": 1, "none": None}
            assert await reader.get_item("big") == "x" * 3_000_000
    server.stop()


@pytest.mark.parametrize("times", [1, 100])
@in_loop
async def test_A1_A2_nothing_is_written_where_a_part_of_it_was_lost_on_the_server(tmp_path: Path, times: int) -> None:
    """As by an eviction. It is sent again, some times."""

    async with opened(tmp_path) as storage, Redis.from_url(servers.url()) as client:
        driver: Any = storage.get_mount("key").driver
        send, lost = driver._pieces.send, 0

        async def send_in_vain(data: bytes) -> str:
            nonlocal lost
            part: str = await send(data)
            lost += 1
            if lost <= times:
                await client.delete(part)
            return part

        driver._pieces.send = send_in_vain
        for sets, expect in (
            ({"a": 1, "b": "x" * 2_700_000}, {"a": MISSING}),
            ({"c": 1, "d": 2}, {"b": "x" * 5_000_000}),
            ({f"e{number}": "x" * 500_000 for number in range(12)}, {}),
        ):
            lost = 0
            if times == 1:
                assert await storage.commit(sets, expect=expect) is ("c" not in sets)
            else:
                with pytest.raises(BackendError, match="nothing was written"):
                    await storage.commit(sets, expect=expect)
        assert await storage.count() == (14 if times == 1 else 0)
        assert await client.exists(*(f"{base(tmp_path)}:{key}" for key in ("a", "b", "c", "d", "e0"))) == (
            3 if times == 1 else 0
        )
        assert await client.keys(f"{base(tmp_path)}::$meta:part:*") == []


@in_loop
async def test_R4_clearing_counts_what_was_there_and_not_what_another_program_had_removed(tmp_path: Path) -> None:
    async with opened(tmp_path) as storage, Redis.from_url(servers.url()) as client:
        for gone in ([], [3, 700, 2_000]):
            await storage.set_items({f"k:{number}": number for number in range(2_500)})
            await storage.set_meta("k:5", {"a": 1})
            if gone:
                await client.delete(*(f"{base(tmp_path)}:k:{number}" for number in gone))
            async with storage.watch() as events:
                assert await storage.clear() == 2_500 - len(gone)
                await storage.set_item("end", 1)
                told = []
                while (event := await anext(events)).key != "end":
                    told.append(event)
            assert len(told) == 2_500 - len(gone)
            assert await storage.remove_item("end")
            assert not [name for name in await client.keys(f"{base(tmp_path)}:*") if b":$meta:changes" not in name]


@in_loop
async def test_A2_a_large_value_is_compared_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with opened(tmp_path) as storage, Redis.from_url(servers.url()) as client:
        big, other = "x" * 6_000_000, "x" * 5_999_999 + "y"
        await storage.set_item("big", big)
        assert await storage.compare_and_set("big", other, 1) is False
        assert await storage.compare_and_set("big", big, other) is True
        assert await storage.commit({"a": big}, expect={"big": big, "a": MISSING}) is False
        assert await storage.commit({"a": 1}, expect={"big": other, "a": MISSING}) is True
        await storage.set_items({f"m:{number}": f"{number}" * 250_000 for number in range(10, 40)}, ttl=100)
        for number in range(10, 40):
            assert await storage.get_item(f"m:{number}") == f"{number}" * 250_000
            assert 99_000 < await client.pttl(f"{base(tmp_path)}:m:{number}") <= 100_001
        assert await client.keys(f"{base(tmp_path)}::$meta:part:*") == []


@in_loop
async def test_L2_many_medium_values_and_a_large_condition_leave_the_event_loop_free(tmp_path: Path) -> None:
    async with opened(tmp_path) as storage:
        mount, big = storage.get_mount("key"), os.urandom(30_000_000)
        values = [(f"m:{number}", os.urandom(500_000), None) for number in range(60)]
        await leaves_the_loop_free(lambda: mount.write(values))
        await storage.set_item_raw("big", big)
        await leaves_the_loop_free(lambda: mount.write([("small", b"1", None)], {"big": big}))


@in_loop
async def test_E1_a_login_without_a_right_to_the_channel_writes_and_is_told_so() -> None:
    server, port = servers.start()
    async with Redis(port=port) as admin:
        await admin.execute_command("ACL", "SETUSER", "app", "on", ">pass", "resetchannels", "~app:*", "+@all")
    async with create_storage(f"redis://app:pass@127.0.0.1:{port}", base="app") as storage:
        assert await storage.add_item("n", 1) is True
        await storage.set_items({f"k{number}": number for number in range(10)})
        assert await asyncio.gather(*(storage.remove_item(f"k{number}") for number in range(10))) == [True] * 10
        assert await storage.clear() == 1
        with pytest.raises(BackendUnavailable, match="the user has no right to this"):
            async with storage.watch():
                pass
    server.stop()


@pytest.mark.parametrize("step", [3600, -3600])
@in_loop
async def test_T1_a_step_of_this_machines_clock_lets_nothing_expire_early_or_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    real, stepped = time.time_ns, 0
    monkeypatch.setattr(time, "time_ns", lambda: real() + stepped * 10**9)
    async with opened(tmp_path) as storage, opened(tmp_path) as other:
        await storage.get_item("key")
        await other.set_item("session", 1, ttl=600)
        stepped = step
        await storage.set_item("key", 1, ttl=0.5)
        assert await other.get_item("key") == 1
        await asyncio.sleep(0.6)
        assert await other.get_items(["key", "session"]) == {"key": None, "session": 1}


@in_loop
async def test_T1_the_servers_clock_is_looked_at_again_with_a_sweep(tmp_path: Path) -> None:
    for index in (True, False):
        driver = RedisDriver(servers.url(), base=base(tmp_path), index=index)
        await driver.connect()
        clock = driver.clock
        assert isinstance(clock, Clock)
        for wrong in (-3_600_000, 3_600_000):
            clock.set(clock() + wrong)
            await driver.sweep()
            assert abs(clock() - time.time_ns() // 10**6) < 1000
        await driver.aclose()


def test_L1_a_client_that_was_handed_in_is_of_one_event_loop_and_that_is_said(tmp_path: Path) -> None:
    client = Redis.from_url(servers.url())
    storage = create_storage("redis", client=client, base=base(tmp_path))
    asyncio.run(_set(storage, client))
    with pytest.raises(UnsupportedOperation, match="belongs to another event loop"):
        asyncio.run(_set(storage, client))


async def _set(storage: Storage, client: Redis) -> None:
    await storage.set_item("key", 1)
    await client.aclose()


@in_loop
async def test_a_driver_that_was_closed_says_so(tmp_path: Path) -> None:
    async with Redis.from_url(servers.url()) as client:
        for given in (None, client):
            url = servers.url() if given is None else None
            driver = RedisDriver(url, client=given, base=base(tmp_path), index=False)
            await driver.connect()
            await driver.aclose()
            for call in (
                driver.read(["a"]),
                driver.has(["a", "b"]),
                driver.write([("a", b"1", None)]),
                driver.count(""),
                driver.watch("").__aenter__(),
            ):
                with pytest.raises(BackendUnavailable, match="the connection was closed"):
                    await call


# Options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "either a url, such as"),
        ({"url": "http://x"}, "starts with redis://"),
        ({"url": "redis://x", "timeout": 0}, "positive"),
        ({"url": "redis://x", "bsae": "x"}, "did you mean 'base'"),
        ({"url": "redis://x?base=y"}, "as an option beside `url`"),
        ({"url": "redis://x?db=1"}, "no option 'db' in this URL"),
        ({"url": "redis://x/1", "cluster": True}, "no database"),
        ({"url": "redis://x", "cluster": True, "base": "}app"}, "can't start with }"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        create_storage("redis", **options)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://host/abc", "the database in a Redis URL is a number, not 'abc'"),
        ("redis://host/0/1", "is a number"),
        ("redis://host:notaport", "the port a number"),
        ("redis://host:99999", "up to 65535"),
        ("redis://[::1", "host"),
        ("unix://", "path/of/the/socket"),
        ("redis+sentinel://host:26379/", "names the service"),
        ("redis+sentinel://host:26379", "names the service"),
        ("redis+sentinel://host:26379/mymaster/abc", "is a number"),
        ("redis+sentinel://host:port/mymaster", "host:port"),
        ("redis+sentinel://host,,other/mymaster", "host:port"),
        ("redis://host?ssl_ca_certs=/ca.pem", "starts with rediss://"),
        ("redis+sentinel://host/mymaster?ssl_ca_certs=/ca.pem", "starts with rediss://"),
        ("rediss://host?ssl_cert_reqs=maybe", "none, optional or required"),
    ],
)
def test_a_wrong_url_is_refused_before_anything_is_connected(url: str, says: str) -> None:
    for make in (lambda: create_storage(url), lambda: create_storage("redis", url=url)):
        with pytest.raises(ConfigError, match=says):
            make()


@pytest.mark.parametrize("url", ["u:p@ss/hunter2@h", "u:p?hunter2@h", "u:p#hunter2@h", "u:hunter2/x@h", ":hunter2:x@h/0"])
def test_E1_a_password_that_is_not_escaped_is_shown_by_no_error_and_no_driver(url: str) -> None:
    for scheme in ("redis", "rediss", "redis+sentinel"):
        try:
            shown = repr(RedisDriver(f"{scheme}://{url}"))
        except ConfigError as error:
            shown = f"{error}{error.__cause__}"
        assert "hunter2" not in shown
        assert "ss/" not in shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("REDIS://User:Pass@Host:1/0", "redis://Host:1/0"),
        ("Valkey://host", "valkey://host"),
        ("UNIX:///run/A.sock", "unix:///run/A.sock"),
        ("Redis+Sentinel://:pass@a,b:2/mymaster/3", "redis+sentinel://a,b:2/mymaster/3"),
    ],
)
def test_a_scheme_is_taken_in_any_case(url: str, shown: str) -> None:
    storage = create_storage(url)
    assert repr(storage.get_mount("key").driver) == f"RedisDriver({shown!r}, base='')"


@pytest.mark.parametrize("query", ["bsae=x", "index=maybe", "timeout=soon"])
def test_a_wrong_url_is_refused(query: str) -> None:
    with pytest.raises(ConfigError):
        create_storage(f"redis://localhost?{query}")


@in_loop
async def test_without_an_index_there_is_no_metadata_and_that_is_said(tmp_path: Path) -> None:
    async with opened(tmp_path, index=False) as storage:
        await storage.set_item("key", 1)
        with pytest.raises(UnsupportedOperation):
            await storage.set_meta("key", {"a": 1})
