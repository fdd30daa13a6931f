"""The directory that a file driver keeps everything below: made where it is missing, and locked by one writer at a time."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from kvstore.drivers._fs.paths import PRIVATE
from kvstore.errors import BackendError, BackendTimeout

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
"""How a directory is opened."""


class Base:
    """The directory `path`. With `fsync` what is made in it is on the disk when the call returns.

    Its descriptor carries the lock, which ends with the process and which a fork would share, so a child opens its own.
    `timeout`: seconds to wait for the lock.
    """

    def __init__(self, path: str, *, fsync: bool, timeout: float) -> None:
        self.path = path
        self.private = os.path.join(path, PRIVATE)
        self.fsync = fsync
        self._timeout = timeout
        self._real = path
        self._descriptor: int | None = None
        self._process = 0  # that opened it

    @property
    def is_open(self) -> bool:
        return self._descriptor is not None

    def open(self, *, make: bool = True) -> None:
        """Makes it and opens it, unless it is open. Raises `BackendError` where that can't be, or it is not there."""
        if self._descriptor is not None:
            if self._process == os.getpid():
                return
            self.close()  # which leaves the parent's lock to the parent
        try:
            if make:
                self.make(self.path)
            self._descriptor, self._process = os.open(self.path, FOLDER), os.getpid()
        except NotADirectoryError as error:
            raise BackendError(f"{self.path} is a file or lies below one, where a directory is needed") from error
        self._real = os.path.realpath(self.path)
        for path in (self.private, os.path.join(self.private, "tmp"), os.path.join(self.private, "expiry")):
            if os.path.islink(path):
                self.close()
                raise BackendError(f"{path} is a link; the driver's own directories can't be elsewhere")

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def make(self, path: str) -> None:
        """Makes the directory `path`, and those around it."""
        if os.path.isdir(path):
            return
        around = os.path.dirname(path)
        self.make(around)
        with suppress(FileExistsError):
            os.mkdir(path)
        self.sync(around)

    @contextmanager
    def created(self, path: str, flags: int) -> Iterator[int]:
        """The descriptor of a new file, in a directory that is made where it is missing. Where that fails, it is gone again."""
        flags |= os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, 0o666)
        except FileNotFoundError:
            self.make(os.path.dirname(path))
            descriptor = os.open(path, flags, 0o666)
        try:
            yield descriptor
            if self.fsync:
                os.fsync(descriptor)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)

    def sync(self, path: str) -> None:
        """Waits until the directory `path` is on the disk, if that is wanted."""
        if self.fsync:
            descriptor = os.open(path, FOLDER)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def check_inside(self, descriptor: int, path: str) -> None:
        """Raises unless what is open lies below the base, whatever links led to it."""
        try:
            real = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:  # no Linux
            real = os.path.realpath(path)
        if real != self._real and not self.holds(real):
            raise BackendError(f"{path} is a link out of {self.path}; it is not followed")

    def has_no_links(self, names: Sequence[str]) -> bool:
        """Whether the directory with these names is no other one by links."""
        return os.path.realpath(os.path.join(self.path, *names)) == os.path.join(self._real, *names)

    def holds(self, real: str) -> bool:
        """Whether a path without links lies below the base."""
        return real.startswith(self._real.rstrip("/") + "/")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One writer at a time among all processes. Raises `BackendTimeout`."""
        deadline = time.monotonic() + self._timeout
        while not self._is_there(descriptor := self._lock(deadline)):
            self.close()  # somebody removed the directory, and maybe made it anew
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _lock(self, deadline: float) -> int:
        self.open()
        assert self._descriptor is not None
        pause = 0.0001
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self._descriptor
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BackendTimeout(
                        f"{self.path} was locked by another process for {self._timeout:g} seconds", maybe_written=False
                    ) from None
                time.sleep(pause)
                pause = min(pause * 2, 0.005)

    def _is_there(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except OSError:  # opening it says why
            return False
