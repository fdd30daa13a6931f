"""One asyncio key-value `Storage`, with mount points in front of any backend.

The names below are imported when they are first used, so that `import kvstore` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvstore.config import open_storage
    from kvstore.driver import Batch, Capabilities, Driver, Event, Expect, Stat, Write
    from kvstore.errors import (
        BackendError,
        BackendTimeout,
        BackendUnavailable,
        ClosedError,
        ConfigError,
        CorruptValueError,
        DriverNotFoundError,
        InvalidKeyError,
        InvalidValueError,
        KVStoreError,
        MissingDependencyError,
        ReadOnlyError,
        UnsupportedOperation,
    )
    from kvstore.expiry import Ttl
    from kvstore.keys import escape_segment, join_key, normalize_key, unescape_segment
    from kvstore.meta import Meta
    from kvstore.mount import Mount
    from kvstore.resolve import DriverSpec
    from kvstore.storage import Storage, create_storage, prefix_storage
    from kvstore.transfer import copy, restore_snapshot, snapshot
    from kvstore.values import MISSING, NEVER, Missing, Never
    from kvstore.watch import Listener
    from kvstore.wrapper import Wrapper

    __version__: str

_PLACES = {
    "config": ("open_storage",),
    "driver": ("Batch", "Capabilities", "Driver", "Event", "Expect", "Stat", "Write"),
    "errors": (
        "BackendError",
        "BackendTimeout",
        "BackendUnavailable",
        "ClosedError",
        "ConfigError",
        "CorruptValueError",
        "DriverNotFoundError",
        "InvalidKeyError",
        "InvalidValueError",
        "KVStoreError",
        "MissingDependencyError",
        "ReadOnlyError",
        "UnsupportedOperation",
    ),
    "expiry": ("Ttl",),
    "keys": ("escape_segment", "join_key", "normalize_key", "unescape_segment"),
    "mount": ("Mount",),
    "meta": ("Meta",),
    "resolve": ("DriverSpec",),
    "storage": ("Storage", "create_storage", "prefix_storage"),
    "transfer": ("copy", "restore_snapshot", "snapshot"),
    "values": ("MISSING", "NEVER", "Missing", "Never"),
    "watch": ("Listener",),
    "wrapper": ("Wrapper",),
}
_PLACE = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [  # a literal, for type checkers
    "MISSING",
    "NEVER",
    "BackendError",
    "BackendTimeout",
    "BackendUnavailable",
    "Batch",
    "Capabilities",
    "ClosedError",
    "ConfigError",
    "CorruptValueError",
    "Driver",
    "DriverNotFoundError",
    "DriverSpec",
    "Event",
    "Expect",
    "InvalidKeyError",
    "InvalidValueError",
    "KVStoreError",
    "Listener",
    "Meta",
    "Missing",
    "MissingDependencyError",
    "Mount",
    "Never",
    "ReadOnlyError",
    "Stat",
    "Storage",
    "Ttl",
    "UnsupportedOperation",
    "Wrapper",
    "Write",
    "copy",
    "create_storage",
    "escape_segment",
    "join_key",
    "normalize_key",
    "open_storage",
    "prefix_storage",
    "restore_snapshot",
    "snapshot",
    "unescape_segment",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("kvstore")
        if name not in _PLACE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_PLACE[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
