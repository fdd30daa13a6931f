"""MongoDB, or SecantusDB, which speaks its protocol."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from functools import cache
from pathlib import Path

import pytest

from servers.process import Server, free_port, listening, new_directory


def start(
    *,
    replica_set: bool = False,
    durable: bool = False,
    auth: bool = False,
    tls: tuple[Path, Path] | None = None,
    directory: Path | None = None,
) -> tuple[Server, int]:
    """A server of the caller's own, and its port.

    With `auth` it needs a directory in which there are users. `tls`: a certificate and its key.
    """
    port, directory = free_port(), directory or new_directory()
    if found := shutil.which("mongod"):
        command = [found, "--bind_ip", "127.0.0.1", "--port", str(port), "--dbpath", str(directory)]
        command += ["--replSet", "kvstore"] * replica_set + ["--auth"] * auth
        if tls:
            (both := directory / "both.pem").write_bytes(tls[0].read_bytes() + tls[1].read_bytes())
            command += ["--tlsMode", "requireTLS", "--tlsCertificateKeyFile", str(both)]
        server = Server(command, lambda: listening(port), directory=directory)
        if replica_set:
            _initiate(port)
        return server, port
    found = str(Path(sys.executable).parent / "secantusd-py")
    if not os.access(found, os.X_OK):
        pytest.skip(f"no MongoDB server: {sys.executable} -m pip install secantusdb==0.7.0b3, or install mongod")
    command = [found, "--host", "127.0.0.1", "--port", str(port), "--storage-path", str(directory), "--log-level", "WARNING"]
    command += ["--standalone"] * (not replica_set) + ["--sync-on-commit"] * durable + ["--auth"] * auth
    command += ["--tls-cert-file", str(tls[0]), "--tls-key-file", str(tls[1])] if tls else []
    return Server(command, lambda: listening(port), directory=directory, stop_signal=signal.SIGINT), port


def _initiate(port: int) -> None:
    from pymongo import MongoClient  # not before a test asks for it

    address = f"127.0.0.1:{port}"
    with MongoClient(f"mongodb://{address}/?directConnection=true") as client:  # type: ignore[var-annotated]
        client.admin.command("replSetInitiate", {"_id": "kvstore", "members": [{"_id": 0, "host": address}]})
    with MongoClient(f"mongodb://{address}/?replicaSet=kvstore") as client:
        client.admin.command("ping")  # waits for the primary


@cache
def url() -> str:
    """Of the one server that most tests share."""
    if given := os.environ.get("KVSTORE_TEST_MONGODB_URL"):
        return given
    # In the environment, so that the processes that a test starts find the same one.
    return os.environ.setdefault("KVSTORE_TEST_MONGODB_URL", f"mongodb://127.0.0.1:{start()[1]}/kvstore_test")


@cache
def replica_set() -> str:
    """Of a replica set, which has transactions and tells of changes."""
    if given := os.environ.get("KVSTORE_TEST_MONGODB_REPLICA_SET_URL"):
        return given
    _, port = start(replica_set=True)
    return os.environ.setdefault("KVSTORE_TEST_MONGODB_REPLICA_SET_URL", f"mongodb://127.0.0.1:{port}/kvstore_test")
