"""What is large goes in pieces: as one it would hold the event loop while it is sent or parsed.

And before the script that writes it, for the server's Lua takes five times as long with a large value as a plain command.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from secrets import token_hex
from typing import Any

from kvstore.driver import Expect, Write
from kvstore.drivers._redis import scripts
from kvstore.drivers._redis.server import Server
from kvstore.errors import BackendError

PIECE = 2**21
"""Bytes of a value that are sent or read at once."""
TRIES = 3
"""With a large value, whose pieces another write or the server's memory may come between."""

_APART = 2**16
"""Bytes of a value from which on a round trip of its own is worth it."""
_ROOM = 2**22
"""Bytes of values that one command carries. What is beyond is sent apart, before."""
_PART_SECONDS = 600


class Pieces:
    """Of the values behind `prefix`. What was sent and not yet written lies behind `own`."""

    def __init__(self, server: Server, prefix: str, own: str) -> None:
        self._server = server
        self._prefix = prefix
        self._own = own

    async def read(self, key: str) -> bytes | None:
        """A large value. By their hash its pieces are of one."""
        name = self._prefix + key
        for _ in range(TRIES):
            pieces: list[bytes] = []
            digest = hashlib.sha1(usedforsecurity=False)
            while not pieces or len(pieces[-1]) == PIECE:
                at = len(pieces) * PIECE
                pieces.append(await self._server.command("GETRANGE", name, at, at + PIECE - 1, about=[key]))
                digest.update(pieces[-1])
            is_all = await self._server.run(scripts.IS, (name,), digest.hexdigest(), about=[key])
            if is_all is None:
                return None
            if is_all:
                return b"".join(pieces)
        # Others write it all the time. In one step, which costs the server more, and has one timeout for all.
        found: list[bytes] | None = await self._server.run(scripts.PIECES, (name,), PIECE, about=[key])
        return None if found is None else b"".join(found)

    async def send(self, data: bytes | bytearray) -> str:
        """Returns the name that `data` lies under."""
        part = f"{self._own}part:{token_hex(8)}"
        await self._server.command("SET", part, bytes(data[:PIECE]), "EX", _PART_SECONDS, writes=True)
        for start in range(PIECE, len(data), PIECE):
            piece = bytes(memoryview(data)[start : start + PIECE])
            if await self._server.command("APPEND", part, piece, writes=True) != start + len(piece):
                await self._server.command("DEL", part, writes=True)
                raise BackendError(scripts.LOST, maybe_written=False)
        return part

    async def packed(self, writes: Sequence[Write], expect: Expect) -> tuple[list[Any], list[str]]:
        """What `scripts.WRITE` takes, once all that is large was sent, and the keys in the order in which it answers."""
        conditions: list[Any] = []
        plain: list[Any] = []
        others: list[Any] = []
        apart, room = bytearray(), _ROOM

        def put_apart(data: bytes) -> str:
            start = len(apart)
            apart.extend(data)
            return f"{start} {len(apart) - 1}"

        for key, wanted in expect.items():
            if wanted is None:
                conditions += (key, "0", b"")
            elif len(wanted) > room:
                conditions += (key, "2", put_apart(wanted))
            else:
                conditions += (key, "1", wanted)
                room -= len(wanted)
        for key, data, expires_at in writes:
            at = "" if expires_at is None else expires_at
            if data is None:
                others += (key, "r", b"", "")
            elif len(data) > _APART:
                others += (key, "m", await self.send(data), at)
            elif len(data) > room:
                others += (key, "p", put_apart(data), at)
            else:
                room -= len(data)
                if expires_at is None:
                    plain += (key, data)
                else:
                    others += (key, "s", data, at)
        head = (len(conditions) // 3, len(plain) // 2, await self.send(apart) if apart else "")
        return [*head, *conditions, *plain, *others], [*plain[::2], *others[::4]]
