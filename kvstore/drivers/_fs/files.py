"""Files below a base: each read whole and replaced in one step, and never through a link that leads out of the base."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from secrets import token_hex

from kvstore.drivers._footer import USUAL_END, Footer, footer_size, parse_footer
from kvstore.drivers._fs.base import FOLDER, Base
from kvstore.errors import BackendError, InvalidKeyError, KVStoreError, UnsupportedOperation

ABSENT = (errno.ENOENT, errno.ENOTDIR)
"""What the system says where there is no such file."""

_TEMPORARY = re.compile(r"[0-9a-f]{16}")


@contextmanager
def kvstore_errors(path: str, key: str | None = None) -> Iterator[None]:
    """What goes wrong inside, as an error of kvstore that names `key`. `path`: where the system does not say."""
    try:
        yield
    except KVStoreError as error:
        raise error.at(None, key) from error.__cause__
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidKeyError("the file system has no room for so long a name", key=key) from error
        where = error.filename if isinstance(error.filename, str) and os.path.isabs(error.filename) else path
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise BackendError(f"{where}: {'the disk is full' if full else error.strerror or error}", key=key) from error


def read(descriptor: int, size: int) -> bytes:
    """The first `size` bytes of an open file."""
    pieces = []
    while size > 0 and (piece := os.read(descriptor, size)):
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_footer(descriptor: int) -> tuple[int, Footer]:
    """The size of the value and the footer, read from the end of an open file alone."""
    total = os.fstat(descriptor).st_size
    end = os.pread(descriptor, USUAL_END, max(0, total - USUAL_END))
    if (size := footer_size(end)) > len(end):
        end = os.pread(descriptor, size, max(0, total - size))
    size, footer = parse_footer(end)
    return total - size, footer


class Files:
    """The files below `base`, each by its names from there. Who writes holds the lock of the base."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._temporary = os.path.join(base.private, "tmp")
        self._swept = False

    def path(self, names: Sequence[str]) -> str:
        return os.path.join(self._base.path, *names)

    @contextmanager
    def opened(self, names: Sequence[str]) -> Iterator[int | None]:
        """The descriptor of a file, None where there is none."""
        path = self.path(names)
        try:
            # Not blocking: a pipe that somebody put here would wait for its other end.
            descriptor: int | None = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise BackendError(f"{path} is no file") from error
            if error.errno not in ABSENT:
                raise
            descriptor = None
        if descriptor is None:
            yield None
            return
        try:
            self._base.check_inside(descriptor, path)
            kind = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
                raise BackendError(f"{path} is no file")
            yield descriptor if stat.S_ISREG(kind) else None
        finally:
            os.close(descriptor)

    def replace(self, names: Sequence[str], pieces: Sequence[bytes], *, absent: bool = False, mtime: int | None = None) -> None:
        """Writes a file in one step. `mtime`: in nanoseconds, instead of now.

        `pieces` are not joined: that would hold the interpreter, and so the event loop, for 20 ms with 30 MB.

        With `absent` it raises `FileExistsError` where there is one, even one of a program that does not know our lock.
        """
        *folders, name = names
        temporary = self._write_temporary(pieces, mtime, self.path(names))
        try:
            parent = self._folder(folders)
            try:
                if absent:
                    os.link(temporary, name, dst_dir_fd=parent)
                    os.unlink(temporary)
                else:
                    os.replace(temporary, name, dst_dir_fd=parent)
                if self._base.fsync:
                    os.fsync(parent)
            finally:
                os.close(parent)
        except BaseException as error:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            if isinstance(error, OSError) and os.path.isdir(self.path(names)):
                raise BackendError(f"{self.path(names)} is a directory") from error
            raise

    def check_room(self, together: Mapping[str, Sequence[str]]) -> None:
        """Raises where one name would be needed for a file and for a directory. `together`: names by key, written as one."""
        taken = {tuple(names) for names in together.values()}
        for key, names in together.items():
            path = self.path(names)
            try:
                in_the_way = any(tuple(names[:depth]) in taken for depth in range(1, len(names)))
                is_folder = stat.S_ISDIR(os.stat(path).st_mode)
            except NotADirectoryError:
                in_the_way = True
            except OSError:  # it is not there yet
                is_folder = False
            if in_the_way:
                raise UnsupportedOperation(
                    f"a file is in the way of {path}; layout='plain' can't keep keys below a key", key=key
                )
            if is_folder:
                raise UnsupportedOperation(
                    f"{path} is a directory; layout='plain' can't keep a key beside keys below it", key=key
                )

    def remove(self, names: Sequence[str]) -> None:
        """Unlinks a file, if it is one, and the directories that it leaves empty."""
        *folders, name = names
        path = self.path(folders)
        try:
            parent = os.open(path, FOLDER)
        except OSError as error:
            if error.errno in ABSENT:
                return
            raise
        try:
            self._base.check_inside(parent, path)
            os.unlink(name, dir_fd=parent)
            if self._base.fsync:
                os.fsync(parent)
        except FileNotFoundError:
            return
        except OSError:
            if os.path.isdir(self.path(names)):
                return
            raise
        finally:
            os.close(parent)
        with suppress(OSError):  # the first that is not empty
            while folders:
                os.rmdir(self.path(folders))
                folders.pop()

    def sweep(self) -> None:
        """Once, before the first write: what is being written while we hold the lock is written by one that is dead."""
        if not self._swept:
            self._swept = True
            with suppress(OSError):  # it is in nobody's way
                for name in os.listdir(self._temporary):
                    if _TEMPORARY.fullmatch(name):
                        os.unlink(os.path.join(self._temporary, name))

    def _write_temporary(self, pieces: Sequence[bytes], mtime: int | None, target: str) -> str:
        path = os.path.join(self._temporary, token_hex(8))
        with self._base.created(path, os.O_EXCL) as descriptor:
            with suppress(OSError):  # whoever was kept from reading the old file is kept from the new one
                os.fchmod(descriptor, os.stat(target).st_mode & 0o777)
            for piece in pieces:
                left = memoryview(piece)
                while left:
                    left = left[os.write(descriptor, left) :]
            # The clock of the file system ticks too slowly to tell two writes apart.
            mtime = time.time_ns() if mtime is None else mtime
            os.utime(descriptor, ns=(mtime, mtime))
        return path

    def _folder(self, names: Sequence[str]) -> int:
        """A descriptor of the directory that a file goes into, which is made where it is missing."""
        path = self.path(names)
        try:
            folder = os.open(path, FOLDER)
        except FileNotFoundError:
            folder = self._make(names)
        try:
            self._base.check_inside(folder, path)
        except KVStoreError:
            os.close(folder)
            raise
        return folder

    def _make(self, names: Sequence[str]) -> int:
        folder = os.open(self._base.path, FOLDER)
        for depth, name in enumerate(names):
            try:
                self._base.check_inside(folder, self.path(names[:depth]))  # before anything is made there
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=folder)
                    if self._base.fsync:
                        os.fsync(folder)
                inner = os.open(name, FOLDER, dir_fd=folder)
            finally:
                os.close(folder)
            folder = inner
        return folder
