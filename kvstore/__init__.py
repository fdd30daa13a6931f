"""One small asyncio key-value `Storage`, with mount points in front of any backend.

The names below are imported when they are first used, so that `import kvstore` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvstore.config import open_storage as open_storage
    from kvstore.driver import Batch as Batch
    from kvstore.driver import Capabilities as Capabilities
    from kvstore.driver import Driver as Driver
    from kvstore.driver import Event as Event
    from kvstore.driver import Expect as Expect
    from kvstore.driver import Stat as Stat
    from kvstore.driver import Write as Write
    from kvstore.errors import BackendError as BackendError
    from kvstore.errors import BackendTimeout as BackendTimeout
    from kvstore.errors import BackendUnavailable as BackendUnavailable
    from kvstore.errors import ClosedError as ClosedError
    from kvstore.errors import ConfigError as ConfigError
    from kvstore.errors import CorruptValueError as CorruptValueError
    from kvstore.errors import DriverNotFoundError as DriverNotFoundError
    from kvstore.errors import InvalidKeyError as InvalidKeyError
    from kvstore.errors import InvalidValueError as InvalidValueError
    from kvstore.errors import KVStoreError as KVStoreError
    from kvstore.errors import MissingDependencyError as MissingDependencyError
    from kvstore.errors import ReadOnlyError as ReadOnlyError
    from kvstore.errors import UnsupportedOperation as UnsupportedOperation
    from kvstore.expiry import Ttl as Ttl
    from kvstore.keys import escape_segment as escape_segment
    from kvstore.keys import join_key as join_key
    from kvstore.keys import normalize_key as normalize_key
    from kvstore.keys import unescape_segment as unescape_segment
    from kvstore.meta import Meta as Meta
    from kvstore.mount import Mount as Mount
    from kvstore.resolve import DriverSpec as DriverSpec
    from kvstore.storage import Storage as Storage
    from kvstore.storage import create_storage as create_storage
    from kvstore.storage import prefix_storage as prefix_storage
    from kvstore.transfer import copy as copy
    from kvstore.transfer import restore_snapshot as restore_snapshot
    from kvstore.transfer import snapshot as snapshot
    from kvstore.values import MISSING as MISSING
    from kvstore.values import NEVER as NEVER
    from kvstore.values import Missing as Missing
    from kvstore.values import Never as Never
    from kvstore.watch import Listener as Listener
    from kvstore.wrapper import Wrapper as Wrapper

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
