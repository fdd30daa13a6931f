"""What an AI-agent runtime keeps: containers, images, sessions and their messages, on any driver of `kvstore`.

The names below are imported when they are first used, so that `import persistence` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persistence.agentx import import_agentx
    from persistence.errors import ConflictError, RecordNotFoundError
    from persistence.messages import (
        AssistantMessage,
        ErrorMessage,
        KnownMessage,
        Message,
        ToolCallMessage,
        ToolResultMessage,
        UserMessage,
    )
    from persistence.persistence import Persistence, create_persistence, local_persistence
    from persistence.records import Container, Image, Kind, McpServer, Record, Session
    from persistence.repair import RepairReport
    from persistence.repositories import Containers, Images
    from persistence.repository import Page, Records, Repository
    from persistence.sessions import Sessions

_PLACES = {
    "agentx": ("import_agentx",),
    "errors": ("ConflictError", "RecordNotFoundError"),
    "messages": (
        "AssistantMessage",
        "ErrorMessage",
        "KnownMessage",
        "Message",
        "ToolCallMessage",
        "ToolResultMessage",
        "UserMessage",
    ),
    "persistence": ("Persistence", "create_persistence", "local_persistence"),
    "records": ("Container", "Image", "Kind", "McpServer", "Record", "Session"),
    "repair": ("RepairReport",),
    "repositories": ("Containers", "Images"),
    "repository": ("Page", "Records", "Repository"),
    "sessions": ("Sessions",),
}
_PLACE = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [  # a literal, for type checkers
    "AssistantMessage",
    "ConflictError",
    "Container",
    "Containers",
    "ErrorMessage",
    "Image",
    "Images",
    "Kind",
    "KnownMessage",
    "McpServer",
    "Message",
    "Page",
    "Persistence",
    "Record",
    "RecordNotFoundError",
    "Records",
    "RepairReport",
    "Repository",
    "Session",
    "Sessions",
    "ToolCallMessage",
    "ToolResultMessage",
    "UserMessage",
    "create_persistence",
    "import_agentx",
    "local_persistence",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _PLACE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_PLACE[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
