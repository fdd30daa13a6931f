"""MariaDB or MySQL."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache

import pytest

from servers.process import Server, free_port, listening, new_directory

PASSWORD = "geheim"


def start(*options: str) -> tuple[Server, int]:
    """A server of the caller's own, and its port, with a database `kvstore` of a user `kvstore`."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    daemon, install = shutil.which("mariadbd", path=path), shutil.which("mariadb-install-db", path=path)
    if daemon is None or install is None:
        pytest.skip("no MySQL server: apt-get install mariadb-server, or brew install mariadb")
    directory = new_directory()
    user = ["--user=root"] if os.geteuid() == 0 else []
    # A directory of its own for temporary tables too: they have the same names in every server that starts.
    (directory / "tmp").mkdir()
    place = ["--no-defaults", f"--datadir={directory}/data", f"--tmpdir={directory}/tmp"]
    how = ["--auth-root-authentication-method=normal", "--skip-test-db", *user]
    made = subprocess.run([install, *place, *how], capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(f"mariadb-install-db failed:\n{made.stdout}{made.stderr}")
    (directory / "init.sql").write_text(
        "CREATE DATABASE IF NOT EXISTS kvstore;\n"
        f"CREATE USER IF NOT EXISTS 'kvstore'@'%' IDENTIFIED BY '{PASSWORD}';\n"
        "GRANT ALL ON kvstore.* TO 'kvstore'@'%';\n"
    )
    port = free_port()
    command = [daemon, *place, f"--port={port}", "--bind-address=127.0.0.1", f"--socket={directory}/s"]
    command += [f"--pid-file={directory}/pid", f"--init-file={directory}/init.sql", "--skip-name-resolve"]
    command += ["--max-allowed-packet=64M", *user, *options]
    return Server(command, lambda: listening(port), directory=directory), port


@cache
def url() -> str:
    """Of the one server that most tests share."""
    if given := os.environ.get("KVSTORE_TEST_MYSQL_URL"):
        return given
    # In the environment, so that the processes that a test starts find the same one. What the disk does is tested elsewhere.
    port = start("--innodb-flush-log-at-trx-commit=0", "--max-connections=300")[1]
    return os.environ.setdefault("KVSTORE_TEST_MYSQL_URL", f"mysql://kvstore:{PASSWORD}@127.0.0.1:{port}/kvstore")
