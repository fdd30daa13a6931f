"""A server as a process of the tests' own on loopback, which ends with them."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

_RUNNING: list[Server] = []
_MADE: list[Path] = []


class Server:
    """Starts `command` and waits until `ready` is true. `directory` is its data's, removed at the end."""

    def __init__(
        self,
        command: Sequence[str],
        ready: Callable[[], bool],
        *,
        directory: Path,
        user: int | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self._command = command
        self._ready = ready
        self.directory = directory
        self._user = user
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None
        _RUNNING.append(self)
        self.start()

    def start(self, timeout: float = 60.0) -> None:
        """Starts it, or starts it again on the same data and port."""
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.directory,
                user=self._user,
                start_new_session=True,
                preexec_fn=_end_with_the_parent,
            )
        deadline = time.monotonic() + timeout
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self._command[0]} did not start:\n{(self.directory / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, and waits for the end, of those that it has started as well."""
        family = self._family()
        self._signal(signal.SIGKILL)
        self._end()
        while not all(map(_stands_still, family)):
            time.sleep(0.001)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)
        while not all(map(_stands_still, self._family())):
            time.sleep(0.001)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends it and removes its data."""
        if self._process is not None:
            self._signal(signal.SIGCONT)
            self._signal(self._stop_signal, all_of_it=False)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
            self._end()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _signal(self, number: signal.Signals, *, all_of_it: bool = True) -> None:
        """To the process, and to those that it has started."""
        for pid in self._family()[: None if all_of_it else 1]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _family(self) -> list[int]:
        if self._process is None or self._process.poll() is not None:
            return []
        return [self._process.pid, *_children(self._process.pid)]

    def _end(self) -> None:
        if self._process is not None:
            self._process.wait()
            self._process = None


def _children(pid: int) -> list[int]:
    """On Linux."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def _stands_still(pid: int) -> bool:
    """Whether a signal to stop has reached all threads. Where there is no /proc it is believed to."""
    with suppress(OSError):
        for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
            if stat.read_text().rpartition(")")[2].split()[0] not in "tTZX":
                return False
    return True


def stop_all() -> None:
    while _RUNNING:
        _RUNNING.pop().stop()
    while _MADE:
        shutil.rmtree(_MADE.pop(), ignore_errors=True)


def free_port(*, and_beyond: int = 0) -> int:
    """A loopback port that nobody listens on, nor on the one so far beyond it.

    None of those that systems give to whoever connects: while a server is down, its port would go to another program's
    connection, or to one that tries to reach it and then talks to itself (TCP's simultaneous open).
    """
    while True:
        port = random.SystemRandom().randrange(10_240, 32_000)
        with suppress(OSError), socket.socket() as probe, socket.socket() as other:
            probe.bind(("127.0.0.1", port))
            if and_beyond:
                other.bind(("127.0.0.1", port + and_beyond))
            return port


def listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def new_directory(user: int | None = None) -> Path:
    """A directory for a server's data that `user` can reach, as pytest's own are not. It goes when the tests end."""
    directory = Path(tempfile.mkdtemp(prefix="kvstore-server-"))
    _MADE.append(directory)
    if user is not None:
        os.chown(directory, user, -1)
    return directory


def certificate() -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody has signed, and its key, in a directory of their own."""
    folder = new_directory()
    made, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(made)]
    subprocess.run(command, check=True, capture_output=True)
    return made, key


def _end_with_the_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of Linux
