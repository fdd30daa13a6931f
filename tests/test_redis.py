"""The Redis driver against the real server: the kit, and what is Redis's own."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest
from outside import leaves_the_loop_free
from redis.asyncio import Redis
from running import in_loop
from servers import redis as servers
from servers.process import certificate, free_port, new_directory

from kvstore import (
    BackendTimeout,
    BackendUnavailable,
    ConfigError,
    CorruptValueError,
    Event,
    KVStoreError,
    Storage,
    UnsupportedOperation,
    create_storage,
)
from kvstore.drivers.redis import RedisDriver
from kvstore.testing import DriverSuite
from persistence import create_persistence
from persistence.drivers.redis import redis_driver


def base(path: Path) -> str:
    """A name space of a test's own."""
    return "kvstore-test-" + hashlib.sha256(str(path).encode()).hexdigest()[:16]


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


def test_values_are_plain_strings_that_other_programs_read(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
        async with opened(tmp_path) as storage, Redis.from_url(servers.url()) as client:
            await storage.set_item("a:b", {"x": 1}, ttl=100)
            assert await client.get(f"{base(tmp_path)}:a:b") == b'{"x":1}'
            assert 99_000 < await client.pttl(f"{base(tmp_path)}:a:b") <= 100_000

    main()


def test_R4_what_is_not_below_the_base_is_never_touched_and_the_base_is_literal(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
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

    main()


def test_keys_of_another_program_are_listed_once_the_index_is_rebuilt(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
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

    main()


def test_another_type_under_a_key_is_corrupt_by_its_name_and_left(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
        async with opened(tmp_path) as storage, Redis.from_url(servers.url()) as client:
            await client.rpush(f"{base(tmp_path)}:list", b"x")  # type: ignore[misc]
            await storage.set_item("good", 1)
            for call in (storage.get_item("list"), storage.get_items(["good", "list"])):
                with pytest.raises(CorruptValueError) as caught:
                    await call
                assert (caught.value.key, caught.value.driver) == ("list", "redis")
            assert await client.lrange(f"{base(tmp_path)}:list", 0, -1) == [b"x"]  # type: ignore[misc]

    main()


def test_W1_changes_by_another_process_are_told_once_and_in_order(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
        async with opened(tmp_path) as mine, opened(tmp_path) as other, mine.watch("a") as events:
            await other.set_items({"a:1": 1, "b": 1})
            await other.remove_item("a:1")
            await other.remove_item("a:1")
            await other.set_item("a:end", 1)
            async with asyncio.timeout(10):
                told = [await anext(events) for _ in range(3)]
            assert told == [Event("update", "a:1"), Event("remove", "a:1"), Event("update", "a:end")]

    main()


def test_L1_a_client_that_was_handed_in_stays_open(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
        async with Redis.from_url(servers.url()) as client:
            async with create_storage("redis", client=client, base=base(tmp_path)) as storage:
                await storage.set_item("key", 1)
            assert await client.get(f"{base(tmp_path)}:key") == b"1"

    main()


def test_a_client_that_decodes_is_refused() -> None:
    with pytest.raises(ConfigError, match="decode_responses=False"):
        RedisDriver(client=Redis(decode_responses=True))


# Faults


def test_a_thousand_tasks_are_all_served(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
        async with opened(tmp_path) as storage:

            async def one(number: int) -> None:
                await storage.set_item(f"key:{number}", number)
                assert await storage.get_item(f"key:{number}") == number

            await leaves_the_loop_free(lambda: asyncio.gather(*map(one, range(1000))))
            assert await storage.count() == 1000

    main()


def test_a_server_that_is_not_there_is_unavailable_and_used_once_it_comes_up() -> None:
    @in_loop
    async def main() -> None:
        server, port = servers.start()
        server.kill()
        async with create_storage(f"redis://:hunter2@127.0.0.1:{port}") as storage:
            async with asyncio.timeout(5):
                with pytest.raises(BackendUnavailable, match="can't be reached") as caught:
                    await storage.get_item("key")
            assert "hunter2" not in f"{caught.value}{caught.value.__cause__}{storage.get_mount('key').driver!r}"
        server.start()
        async with create_storage(f"redis://127.0.0.1:{port}") as storage:
            await storage.set_item("key", 1)
            server.kill()
            with pytest.raises(BackendUnavailable):
                await storage.get_item("key")
            server.start()
            await storage.set_item("key", 2)
            assert await storage.get_item("key") == 2
        server.stop()

    main()


def test_a_server_killed_amid_writes_loses_nothing_acknowledged_and_nobody_hangs() -> None:
    @in_loop
    async def main() -> None:
        server, port = servers.start("--appendonly", "yes", "--appendfsync", "always")
        acknowledged: dict[str, int] = {}
        async with create_storage(f"redis://127.0.0.1:{port}", timeout=5.0) as storage:

            async def one(task: int) -> None:
                for number in range(30):
                    try:
                        await storage.set_item(f"{task}:{number}", number)
                        acknowledged[f"{task}:{number}"] = number
                    except (BackendUnavailable, BackendTimeout) as error:
                        assert "not known" in str(error) or "can't be reached" in str(error)  # noqa: PT017
                        await asyncio.sleep(0.02)

            async def kill() -> None:
                while len(acknowledged) < 200:
                    await asyncio.sleep(0.001)
                server.kill()
                await asyncio.to_thread(server.start)

            async with asyncio.timeout(60):
                await asyncio.gather(kill(), *map(one, range(64)))
            assert await storage.get_items(acknowledged) == acknowledged
        server.stop()

    main()


def test_a_server_that_stands_still_is_a_timeout_and_the_event_loop_goes_on() -> None:
    @in_loop
    async def main() -> None:
        server, port = servers.start()
        async with create_storage(f"redis://127.0.0.1:{port}", timeout=0.3) as storage:
            await storage.set_item("key", 1)
            server.pause()

            async def wait() -> None:
                with pytest.raises(BackendTimeout, match="whether anything was written is not known") as caught:
                    await storage.set_item("key", 2)
                assert (caught.value.key, caught.value.operation) == ("key", "set_item")

            await leaves_the_loop_free(wait)
            server.resume()
            await storage.set_item("key", 3)
            assert await storage.get_item("key") == 3
        server.stop()

    main()


def test_a_wrong_password_is_unavailable_and_never_shown() -> None:
    @in_loop
    async def main() -> None:
        server, port = servers.start("--requirepass", "right-one")
        for url in (f"redis://:hunter2@127.0.0.1:{port}", f"redis://127.0.0.1:{port}"):
            async with create_storage(url) as storage:
                with pytest.raises(BackendUnavailable) as caught:
                    await storage.get_item("key")
                assert "hunter2" not in str(caught.value)
        async with create_storage(f"redis://:right-one@127.0.0.1:{port}") as storage:
            await storage.set_item("key", 1)
        server.stop()

    main()


def test_a_unix_socket_and_a_user_of_few_rights() -> None:
    @in_loop
    async def main() -> None:
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

    main()


def test_TLS_is_checked(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
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

    main()


def test_Sentinel_leads_to_the_master_and_to_the_next_one() -> None:
    @in_loop
    async def main() -> None:
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

    main()


def test_a_slot_of_the_cluster_that_is_moved_amid_writes_loses_nothing(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
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

    main()


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


def test_a_database_that_is_not_there_is_unavailable_and_said() -> None:
    @in_loop
    async def main() -> None:
        async with create_storage(servers.url().rpartition("/")[0] + "/9999") as storage:
            with pytest.raises(BackendUnavailable, match="DB index"):
                await storage.get_item("key")

    main()


# Options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "either a url or a client"),
        ({"url": "http://x"}, "starts with redis://"),
        ({"url": "redis://x", "timeout": 0}, "positive"),
        ({"url": "redis://x", "bsae": "x"}, "did you mean 'base'"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        create_storage("redis", **options)


@pytest.mark.parametrize("query", ["bsae=x", "index=maybe", "timeout=soon"])
def test_a_wrong_url_is_refused(query: str) -> None:
    with pytest.raises(ConfigError):
        create_storage(f"redis://localhost?{query}")


def test_without_an_index_there_is_no_metadata_and_that_is_said(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
        async with opened(tmp_path, index=False) as storage:
            await storage.set_item("key", 1)
            with pytest.raises(UnsupportedOperation):
                await storage.set_meta("key", {"a": 1})

    main()


def test_persistence_keeps_a_session_in_redis(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
        async with create_persistence(redis_driver(servers.url(), base=base(tmp_path))) as persistence:
            for number in range(20):
                await persistence.sessions.add_message("s1", {"id": f"m{number}"})
            assert [message["id"] for message in await persistence.sessions.get_messages("s1", last=3)] == ["m17", "m18", "m19"]

    main()
