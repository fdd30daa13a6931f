"""What an AI-agent runtime keeps: containers, images, sessions and their messages, on any driver of `kvstore`.

The names below are imported when they are first used, so that `import persistence` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persistence.agentx import import_agentx as import_agentx
    from persistence.errors import ConflictError as ConflictError
    from persistence.errors import RecordNotFoundError as RecordNotFoundError
    from persistence.messages import AssistantMessage as AssistantMessage
    from persistence.messages import ErrorMessage as ErrorMessage
    from persistence.messages import KnownMessage as KnownMessage
    from persistence.messages import Message as Message
    from persistence.messages import ToolCallMessage as ToolCallMessage
    from persistence.messages import ToolResultMessage as ToolResultMessage
    from persistence.messages import UserMessage as UserMessage
    from persistence.persistence import Persistence as Persistence
    from persistence.persistence import create_persistence as create_persistence
    from persistence.persistence import local_persistence as local_persistence
    from persistence.records import Container as Container
    from persistence.records import Image as Image
    from persistence.records import Kind as Kind
    from persistence.records import McpServer as McpServer
    from persistence.records import Record as Record
    from persistence.records import Session as Session
    from persistence.repair import RepairReport as RepairReport
    from persistence.repositories import Containers as Containers
    from persistence.repositories import Images as Images
    from persistence.repository import Page as Page
    from persistence.repository import Records as Records
    from persistence.repository import Repository as Repository
    from persistence.sessions import Sessions as Sessions

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
