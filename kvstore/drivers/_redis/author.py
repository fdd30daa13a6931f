"""Who writes, so that a write which was given up never lands on a later one."""

from __future__ import annotations

from secrets import token_hex

from kvstore.drivers._redis.server import Server
from kvstore.errors import BackendError

_SECONDS = 86_400
"""For which a server refuses what is late. What lies in its sockets it reads as soon as it runs."""


class Author:
    """The name that a driver's scripts write under. `own` stands before what is kept for it.

    A write that was given up may lie on its way to a server that stands still, and be carried out at any time. So the writes
    after it go under another name, and only once the server refuses the first.
    """

    def __init__(self, server: Server, own: str) -> None:
        self.token = token_hex(8)
        """What all its names begin with, up to a point."""
        self._server = server
        self._own = own
        self._count = 0
        self._has_written = False  # under the name that it has
        self._late: set[str] = set()

    @property
    def name(self) -> str:
        return f"{self.token}.{self._count}"

    async def sign(self) -> str:
        """The name for a write that is sent now."""
        if self._server.lost() and self._has_written:
            self._late.add(self.name)
            self._count += 1
            self._has_written = False
        while self._late:
            name = next(iter(self._late))
            try:
                await self._server.command("SET", f"{self._own}:{name}", 1, "EX", _SECONDS)
            except BackendError as error:
                raise error.at().tell(maybe_written=False) from error.__cause__  # for it was not sent yet
            self._late.discard(name)
        self._has_written = True
        return self.name
