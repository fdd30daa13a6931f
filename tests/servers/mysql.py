"""MariaDB or MySQL."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache

import pytest

from servers.process import Server, free_port, listening, new_directory

PASSWORD = "geheim"


def start(*options: str, programs: Sequence[str] = ("mariadbd", "mysqld")) -> tuple[Server, int]:
    """A server of the caller's own, and its port, with a database `kvstore` of a user `kvstore`.

    The first of `programs` that is there, but what `KVSTORE_TEST_MYSQLD` names before any.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    named = [os.environ.get("KVSTORE_TEST_MYSQLD"), *(shutil.which(program, path=path) for program in programs)]
    daemon = next(filter(None, named), None)
    if daemon is None:
        pytest.skip("no MySQL server: apt-get install mariadb-server, or brew install mariadb")
    directory = new_directory()
    user = ["--user=root"] if os.geteuid() == 0 else []
    # A directory of its own for temporary tables too: they have the same names in every server that starts.
    (directory / "tmp").mkdir()
    place = ["--no-defaults", f"--datadir={directory}/data", f"--tmpdir={directory}/tmp"]
    if "MariaDB" in subprocess.run([daemon, "--version"], capture_output=True, text=True, check=True).stdout:
        install = shutil.which("mariadb-install-db", path=path) or "mariadb-install-db"
        make = [install, *place, "--auth-root-authentication-method=normal", "--skip-test-db", *user]
    else:
        # Triggers are made by who has no rights on the whole server.
        place += ["--mysqlx=OFF", "--secure-file-priv=NULL", "--log-bin-trust-function-creators"]
        make = [daemon, *place, "--initialize-insecure", *user]
    made = subprocess.run(make, capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(f"{make[0]} failed:\n{made.stdout}{made.stderr}")
    (directory / "init.sql").write_text(
        "CREATE DATABASE IF NOT EXISTS kvstore;\n"
        f"CREATE USER IF NOT EXISTS 'kvstore'@'%' IDENTIFIED BY '{PASSWORD}';\n"
        "GRANT ALL ON kvstore.* TO 'kvstore'@'%';\n"
        "CREATE USER IF NOT EXISTS 'root'@'127.0.0.1';\n"  # MariaDB makes it, MySQL has 'localhost' alone
        "GRANT ALL ON *.* TO 'root'@'127.0.0.1';\n"
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
