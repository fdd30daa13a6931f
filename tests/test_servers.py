"""What any server may do to its driver: it is not there, it dies, it stands still. One suite for all of them."""

from __future__ import annotations

import asyncio
import gc
import re
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from persistence_helpers import place_on_a_server
from running import in_loop
from servers import mongodb, mysql, postgresql, redis
from servers.process import Server

from kvstore import BackendTimeout, BackendUnavailable, create_storage
from kvstore.testing.pauses import leaves_the_loop_free


@dataclass
class Kind:
    """A server, and how its driver is told of one of a test's own."""

    name: str
    start: Callable[[], tuple[Server, int]]
    login: str = ""
    path: str = ""
    durable: Callable[[], tuple[Server, int]] | None = None
    """Where what is acknowledged does not outlive a kill as it is started for other tests."""
    impatient: dict[str, Any] = field(default_factory=dict)
    """The options for a client that looks for a server again and again."""

    def url(self, port: int, login: str | None = None) -> str:
        return f"{self.name}://{self.login if login is None else login}127.0.0.1:{port}/{self.path}"


KINDS = [
    Kind("redis", redis.start, durable=partial(redis.start, "--appendonly", "yes", "--appendfsync", "always")),
    Kind("postgresql", postgresql.start, login="postgres@", path="postgres"),
    Kind("mysql", mysql.start, login=f"kvstore:{mysql.PASSWORD}@", path="kvstore"),
    Kind(
        "mongodb",
        mongodb.start,
        path="?journal=true",
        durable=partial(mongodb.start, durable=True),
        impatient={"connect_timeout": 0.4, "timeout": 0.7},
    ),
]
each_server = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@each_server
@in_loop
async def test_E1_a_server_that_is_not_there_is_unavailable_and_used_once_it_comes_up(kind: Kind) -> None:
    server, port = await asyncio.to_thread(kind.start)
    server.kill()
    async with create_storage(kind.url(port, "me:hunter2@"), **kind.impatient) as storage:
        async with asyncio.timeout(6):
            with pytest.raises(BackendUnavailable, match=r"(?i)reached|refused|no MongoDB server|can't connect") as caught:
                await storage.get_item("key")
        driver = repr(storage.get_mount("key").driver)
        assert "hunter2" not in f"{caught.value}{caught.value.__cause__}{driver}"
        assert str(port) in driver
    async with create_storage(kind.url(port), **kind.impatient) as storage:
        for value in (1, 2):
            with pytest.raises(BackendUnavailable):
                await storage.get_item("key")
            await asyncio.to_thread(server.start)
            await storage.set_item("key", value)
            assert await storage.get_item("key") == value
            server.kill()


@each_server
@in_loop
async def test_E1_a_refused_connection_says_that_nothing_was_written(kind: Kind) -> None:
    server, port = await asyncio.to_thread(kind.start)
    opened = partial(create_storage, kind.url(port), **kind.impatient)
    async with opened() as used, opened() as new:
        await used.set_item("key", 1)
        server.kill()
        for storage in (new, used):
            for call in (
                partial(storage.add_item, "a", 1),
                partial(storage.update_item, "key", lambda value: 3),
                partial(storage.remove_item, "key"),
            ):
                with suppress(BackendUnavailable, BackendTimeout):
                    await storage.set_item("key", 2)  # what the server has left open is found out
                with pytest.raises(BackendUnavailable, match="nothing was written") as caught:
                    await call()
                assert not caught.value.maybe_written
            with pytest.raises(BackendUnavailable) as caught:
                await storage.get_item("key")
            assert not caught.value.maybe_written
            assert "written" not in str(caught.value)


@each_server
@in_loop
async def test_A1_a_server_killed_amid_writes_loses_nothing_acknowledged_and_nobody_hangs(kind: Kind) -> None:
    server, port = await asyncio.to_thread(kind.durable or kind.start)
    acknowledged: dict[str, int] = {}
    over = False
    async with create_storage(kind.url(port), connect_timeout=1.0, timeout=5.0) as storage:

        async def one(task: int) -> None:
            number = 0
            while not over:
                number += 1
                try:
                    await storage.set_item(f"{task}:{number}", number)
                    acknowledged[f"{task}:{number}"] = number
                except (BackendUnavailable, BackendTimeout) as error:
                    assert re.search("not known|nothing was written", str(error)), error  # noqa: PT017
                    await asyncio.sleep(0.05)

        async def kill() -> None:
            nonlocal over
            while len(acknowledged) < 200:
                await asyncio.sleep(0.001)
            server.kill()
            await asyncio.to_thread(server.start)
            over = True

        async with asyncio.timeout(90):
            await asyncio.gather(kill(), *map(one, range(64)))
            assert await storage.get_items(acknowledged) == acknowledged
    await asyncio.to_thread(server.stop)


@each_server
@in_loop
async def test_L2_a_server_that_stands_still_is_a_timeout_and_the_event_loop_goes_on(kind: Kind) -> None:
    server, port = await asyncio.to_thread(kind.start)
    async with create_storage(kind.url(port), timeout=0.4, connect_timeout=2.0) as storage:
        await storage.set_item("key", 1)
        server.pause()

        async def wait() -> None:
            async with asyncio.timeout(5):
                with pytest.raises((BackendTimeout, BackendUnavailable)) as caught:
                    await storage.set_item("key", 2)
            assert (caught.value.key, caught.value.operation) == ("key", "set_item")

        with pytest.raises(BackendTimeout, match="whether anything was written is not known") as caught:
            await storage.set_item("key", 2)
        assert caught.value.maybe_written
        await leaves_the_loop_free(wait)
        server.resume()
        await storage.set_item("key", 3)
        assert await storage.get_item("key") == 3
    await asyncio.to_thread(server.stop)


@each_server
@in_loop
async def test_L2_to_close_while_the_server_stands_still_takes_no_longer_than_a_call(kind: Kind) -> None:
    server, port = await asyncio.to_thread(kind.start)
    storage = create_storage(kind.url(port), timeout=0.5)
    await asyncio.gather(*(storage.set_item(f"{number}", 1) for number in range(9)))
    await asyncio.gather(*(storage.get_mount("key").driver.count("") for _ in range(4)))  # on several connections
    server.pause()
    began = time.monotonic()
    await storage.aclose()
    assert time.monotonic() - began < 2
    server.resume()
    await asyncio.to_thread(server.stop)


@each_server
def test_L1_an_event_loop_leaves_nothing_open_and_the_next_one_goes_on(kind: Kind, tmp_path: Path) -> None:
    url, options = place_on_a_server(kind.name, tmp_path)
    storage = create_storage(kind.name, url=url, **options)

    async def use(number: int) -> None:
        await asyncio.gather(*(storage.add_item(f"{number}:{task}", task) for task in range(20)))
        assert await storage.count() == 20 * (number + 1)

    gc.collect()  # of other tests
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for number in range(3):
            asyncio.run(use(number))
        asyncio.run(storage.aclose())
        gc.collect()
    assert [str(warning.message) for warning in told if warning.category is ResourceWarning] == []


@each_server
@in_loop
async def test_L2_a_thousand_tasks_are_all_served_and_the_event_loop_goes_on(kind: Kind, tmp_path: Path) -> None:
    url, options = place_on_a_server(kind.name, tmp_path)
    async with create_storage(kind.name, url=url, timeout=60.0, **options) as storage:

        async def one(number: int) -> None:
            await storage.set_item(f"key:{number}", number)
            assert await storage.get_item(f"key:{number}") == number
            assert await storage.add_item(f"other:{number}", number)

        async def thousand() -> None:
            await storage.clear("other")
            await asyncio.gather(*map(one, range(1000)))

        await leaves_the_loop_free(thousand)
        assert await storage.count() == 2000
