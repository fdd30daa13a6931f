"""The process of a peer, and the servers, as the runner sees them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

from benchmarks.environments import NODE, ROOT, failure, python
from benchmarks.peers.catalogue import Peer

TIMEOUT = 240.0
"""Seconds for one answer; then the peer is ended and named as failed."""


def _parted() -> tuple[set[int], set[int]]:
    if not hasattr(os, "sched_getaffinity"):
        return set(), set()
    all_of_them = sorted(os.sched_getaffinity(0))
    half = len(all_of_them) // 2
    return set(all_of_them[half:]), set(all_of_them[:half])


_PROCESSORS = _parted()
"""Those of the clients of a server, and those of the servers.

A call of a client that has woken up on its server's processor takes half the time of one that has not, and which it is stays
as it is for thousands of calls.
"""


def _run_on(processors: set[int]) -> None:
    if processors:
        os.sched_setaffinity(0, processors)


class PeerError(Exception):
    """What a peer said of a request. It can be asked another."""


class PeerGone(PeerError):
    """The process of a peer could not be started, has ended, or does not answer."""


class NotOffered(Exception):
    """The peer has no such call."""


class Worker:
    """A process that serves one peer."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    @classmethod
    async def start(cls, peer: Peer, folder: Path, url: str, pool: Path) -> Self:
        """Raises `PeerGone` where the peer did not install, or does not open."""
        if reason := failure(peer.environment):
            raise PeerGone(reason)
        log = _log_of(folder)
        if peer.environment == "node":
            command = ["node", "--expose-gc", "--max-old-space-size=8192", str(NODE / "worker.mjs")]
        else:
            command = [str(python(peer.environment)), "-m", "benchmarks.worker"]
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
                limit=1 << 26,
                preexec_fn=partial(_run_on, _PROCESSORS[0]) if url else None,
            )
        finally:
            os.close(file)
        worker = cls(process, log)
        await worker._ask({
            "peer": peer.peer, "folder": str(folder), "url": url, "options": peer.options, "pool": str(pool),
        })  # fmt: skip
        return worker

    async def ask(self, do: str, **given: Any) -> dict[str, Any]:
        return await self._ask({"do": do, **given})

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            await self._process.stdin.drain()
            line = await asyncio.wait_for(self._process.stdout.readline(), TIMEOUT)
        except TimeoutError:
            await self.kill()
            raise PeerGone(f"no answer to {request.get('do', 'open')} in {TIMEOUT:.0f} seconds") from None
        except (BrokenPipeError, ConnectionResetError):
            line = b""
        if not line:
            status = await self._process.wait()
            said = self._log.read_text(errors="replace").strip().splitlines()
            why = [line for line in said if "Error" in line] or said  # Node's last line is its version
            raise PeerGone(f"the process ended with status {status}: {''.join(why[-1:])[:300]}")
        answer = json.loads(line)
        if "not_offered" in answer:
            raise NotOffered
        if "error" in answer:
            raise PeerGone(answer["error"]) if "peer" in request else PeerError(answer["error"])
        return dict(answer["ok"])

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 30)
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


def _log_of(folder: Path) -> Path:
    """Beside the folder, which is made: what a peer keeps is all that lies in it."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder.with_name(f"{folder.name}.log")


class Servers:
    """The private servers of the tests, started when one is first wanted."""

    def __init__(self) -> None:
        self._urls: dict[str, str] = {}
        self._databases = 0
        if (tests := str(ROOT / "tests")) not in sys.path:
            sys.path.append(tests)

    def url(self, kind: str) -> str:
        """Of a server, or of a Redis database that nobody else has. Raises `PeerGone` where the machine has none."""
        import pytest

        if kind not in self._urls:
            _run_on(_PROCESSORS[1])  # which it inherits
            try:
                self._urls[kind] = self._start(kind)
            except (pytest.skip.Exception, Exception) as error:  # whatever a server says, the other peers go on
                raise PeerGone(f"there is no server: {' '.join(str(error).split())[:300]}") from error
            finally:
                _run_on(_PROCESSORS[0] | _PROCESSORS[1])
        if kind == "redis":
            self._databases += 1
            return f"{self._urls[kind]}/{self._databases}"
        return self._urls[kind]

    def _start(self, kind: str) -> str:
        """Durable as they are when nothing is said, but for Redis."""
        if kind == "redis":
            from servers import redis

            return f"redis://127.0.0.1:{redis.start('--databases', '64')[1]}"
        if kind == "postgresql":
            from servers import postgresql

            return f"postgresql://postgres@127.0.0.1:{postgresql.start()[1]}/postgres"
        from servers import mysql

        program = "mariadbd" if kind == "mariadb" else str(ROOT / ".mysql" / "mysqld")
        return f"mysql://kvstore:{mysql.PASSWORD}@127.0.0.1:{mysql.start(programs=[program])[1]}/kvstore"

    def stop(self) -> None:
        from servers.process import stop_all

        stop_all()
