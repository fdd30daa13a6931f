"""OpenSSH, for files by SFTP."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from servers.process import Server, free_port, listening, new_directory


def start() -> tuple[Server, str, dict[str, object]]:
    """A server of the caller's own, the URL of a directory, and the `storage_options` that it takes."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    daemon = shutil.which("sshd", path=path)
    if daemon is None:
        pytest.skip("no SSH server: apt-get install openssh-server")
    directory = new_directory()
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        subprocess.run(command, check=True, capture_output=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # without which it does not start, as where systemd makes it
    port = free_port()
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": directory / "host",
        "AuthorizedKeysFile": directory / "user.pub",
        "PidFile": directory / "pid",
        "Subsystem": "sftp internal-sftp",
        "StrictModes": "no",
        "PermitRootLogin": "yes",
        "PasswordAuthentication": "yes",
        "UsePAM": "no",
        "MaxStartups": 100,
    }
    (directory / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    server = Server([daemon, "-D", "-e", "-f", f"{directory}/sshd_config"], lambda: listening(port), directory=directory)
    url = f"sftp://{getpass.getuser()}@127.0.0.1{directory}/files"
    return server, url, {"port": port, "key_filename": str(directory / "user"), "look_for_keys": False, "allow_agent": False}


@cache
def shared() -> tuple[str, dict[str, object]]:
    """Of the one server that most tests share."""
    # In the environment, so that the processes that a test starts find the same one.
    url, options = json.loads(os.environ.get("KVSTORE_TEST_SFTP") or json.dumps(start()[1:]))
    os.environ["KVSTORE_TEST_SFTP"] = json.dumps([url, options])
    return url, options
