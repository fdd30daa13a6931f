"""Watching: the server hands on what each writer tells of its changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from kvstore.driver import Event
from kvstore.drivers._redis.server import Server
from kvstore.drivers._redis.wire import Way


@asynccontextmanager
async def changes(server: Server, channel: str, writer: str, prefix: str) -> AsyncIterator[AsyncIterator[Event]]:
    """Inside the context: those below `prefix` that others than `writer` tell on `channel`."""
    heard: Any = None

    async def subscribe(_: Way) -> None:
        nonlocal heard
        heard = server.client.pubsub()
        await heard.subscribe(channel)
        await heard.get_message(timeout=server.timeout)  # the subscription

    try:
        await server.call(subscribe)
        yield _events(server, heard, writer, prefix)
    finally:
        with suppress(Exception):  # it may be what failed
            await heard.aclose()


async def _events(server: Server, heard: Any, writer: str, prefix: str) -> AsyncIterator[Event]:
    from redis.exceptions import RedisError

    messages = heard.listen()
    while True:
        try:
            message = await anext(messages)
        except (RedisError, OSError) as error:
            raise server.as_kvstore_error(error) from error
        if message["type"] == "message":
            told_by, *told = message["data"].decode().split("\0")
            for change in told if told_by.partition(".")[0] != writer else ():
                if change.startswith(prefix, 1):
                    yield Event("update" if change[0] == "u" else "remove", change[1:])
