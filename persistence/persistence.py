"""Persistence: containers, images, sessions and kinds of an app's own on one Storage."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from kvstore.driver import Driver
from kvstore.errors import BackendError, ConfigError, UnsupportedOperation
from kvstore.keyspace import during
from kvstore.resolve import resolve_driver
from kvstore.storage import Storage, create_storage
from persistence.places import placed
from persistence.repair import RepairReport, repair
from persistence.repositories import Containers, Images
from persistence.repository import Records
from persistence.sessions import Sessions
from persistence.shape import INDEX, R, Shape


class Persistence:
    """What an agent runtime keeps. Made by `create_persistence` or `local_persistence`, used with `async with`.

    Every call may raise an error under `kvstore.KVStoreError`: `InvalidKeyError` and `InvalidValueError` before a backend
    is touched, `CorruptValueError`, `BackendError` for what a backend says, and the `RecordNotFoundError` and
    `ConflictError` of this package.

    `storage` is what it lies in, to be copied for instance.
    """

    def __init__(self, storage: Storage) -> None:
        _check(storage, (INDEX, "heads", "messages", "containers", "images", "sessions"))
        self.storage = storage
        self.sessions = Sessions(storage)
        self.images = Images(storage, self.sessions)
        self.containers = Containers(storage, self.images, self.sessions)
        self._own: dict[str, tuple[type[Any], Records[Any]]] = {}

    def __repr__(self) -> str:
        mounts = self.storage.get_mounts()
        places = [repr(mount.driver) if mount.base == "" else f"{mount.base!r}: {mount.driver!r}" for mount in mounts]
        return f"<Persistence: {', '.join(reversed(places))}>"

    def repository(self, type: type[R]) -> Records[R]:
        """The repository of a record class of your own; see `Record`.

        Raises `ConfigError` for a class whose `__kind__` does not fit it, or has the name of another's.
        """
        with during("repository"):
            shape = Shape(type)
            if shape.name in ("containers", "images", "sessions") or self._own.get(shape.name, (type,))[0] is not type:
                raise ConfigError(f"there is another kind of records named {shape.name!r}")
            if shape.name not in self._own:
                _check(self.storage, (shape.name,))
                self._own[shape.name] = (type, Records(self.storage, type))
        return self._own[shape.name][1]

    async def repair(self) -> RepairReport:
        """Sweeps up what crashes left: index entries without their record or the other way round, half-written logs,
        messages that are part of no log any more. Nothing that a reader sees changes but lists that lacked a record.

        Others may read and write meanwhile; a fork or an import that is under way begins anew. If it is stopped itself, run it
        again. It reads every key, of the kinds that this instance has a repository for. What it does not do: mend or
        remove what can't be read (see the report), remove images of no container, sessions of no image or messages of no
        session (see the report), all of which are legal, or give back what was deleted.
        """
        own = [repository for _, repository in self._own.values()]
        return await repair(self.storage, [self.containers, self.images, self.sessions, *own], self.sessions)

    async def aclose(self) -> None:
        """Closes the storage. Once more does nothing."""
        await self.storage.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


def create_persistence(driver: str | Driver | Storage = "sqlite", /, **options: Any) -> Persistence:
    """Persistence on one driver, or on a Storage with mounts of your own.

    `driver` is named as for `kvstore.create_storage`: a name, a URL, an instance; `options` are the driver's. A name or a URL
    that does not say where means what the driver's function in `persistence.drivers` does: the file `agentx.db` in the working
    directory, the table, collection or base `agentx` on a server. An instance of a driver or a Storage belongs to the
    persistence from now on and is closed with it; to keep a Storage open, give `prefix_storage(storage, base)`.

    A record and its entries in the lists change at one moment where they lie on one mount whose driver is `atomic`; else in
    steps of which every one leaves a store that reads right. Raises `UnsupportedOperation` for a driver that is not
    `conditional`, and `ConfigError` for one that can't keep any id and for an unknown option.
    """
    if isinstance(driver, Storage):
        if options:
            raise ConfigError(f"a storage that is made already takes no options ({', '.join(options)})")
        return Persistence(driver)
    if "ttl" in options:
        raise ConfigError("records do not expire: a persistence has no option 'ttl'", operation="create_persistence")
    read_only = options.pop("read_only", False)
    with during("create_persistence"):
        made = resolve_driver(driver, placed(driver, options) if isinstance(driver, str) else options, ("read_only",))
    return Persistence(create_storage(made, read_only=read_only))


def local_persistence(base: str | os.PathLike[str] = "~/.agentx", *, persistence: Persistence | None = None) -> Persistence:
    """The persistence of a runtime on this machine: SQLite at `<base>/data/agentx.db`, or the one that is given instead.

    The directories are created, readable by their owner only. Raises `BackendError` where they can't be.
    """
    if persistence is not None:
        return persistence
    if not isinstance(base, str | os.PathLike):
        raise ConfigError(f"base is a path, not {type(base).__name__}", operation="local_persistence")
    data = Path(base).expanduser() / "data"
    try:
        for directory in (data.parent, data):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(f"the directory {data} can't be made: {error.strerror}", operation="local_persistence") from error
    return create_persistence("sqlite", path=str(data / "agentx.db"))


def _check(storage: Storage, bases: Iterable[str]) -> None:
    for base in bases:
        for mount in {*storage.get_mounts(base), storage.get_mount(f"{base}:x")}:
            if not mount.capabilities.conditional:
                raise UnsupportedOperation(
                    "persistence needs a driver that holds conditions against other writers (capabilities.conditional)",
                    operation="create_persistence",
                    mount=mount.base,
                    driver=mount.driver.name,
                )
            if not mount.capabilities.every_key:
                raise ConfigError(
                    "persistence needs a driver that keeps any key (capabilities.every_key), for an id may be long and of any"
                    " text" + ("; leave out layout='plain'" if mount.driver.name == "fs" else ""),
                    operation="create_persistence",
                    mount=mount.base,
                    driver=mount.driver.name,
                )
