"""Records: typed, checked, stored as camelCase JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NotRequired, TypedDict

import msgspec

AT_SAVE: Final = -1
"""As a time of a record: set it when the record is saved."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a record class says of itself as its `__kind__`."""

    name: str
    """The first segment of its keys, such as `images`."""
    id: str
    """The field that identifies a record, a str."""
    indexes: tuple[str, ...] = ()
    """The fields that lists can be asked by, those that tell more records apart first: str, or None for "in no list"."""


class Record(msgspec.Struct, kw_only=True, rename="camel"):
    """Base of what a repository keeps.

    A kind of your own is a class with a `__kind__`:

        class Note(Record):
            __kind__ = Kind("notes", id="note_id", indexes=("container_id",))

            note_id: str
            container_id: str
            text: str

        notes = persistence.repository(Note)

    A field that is None, and None if nothing is given, is left out of the JSON. JSON objects within a record are
    `dict[str, Any]`, which keeps members that this version does not know, or a `msgspec.Struct` with
    `forbid_unknown_fields=True`, which refuses them; a type that would lose them is a `ConfigError`.
    """

    __kind__: ClassVar[Kind]

    created_at: int = AT_SAVE
    """Milliseconds since 1970. Left out: that of the stored record, else the time of the save."""
    updated_at: int = AT_SAVE
    """Milliseconds since 1970. Left out: the time of the save."""
    extra: dict[str, Any] = msgspec.field(default_factory=dict, name="*")
    """The members of the stored JSON that this class has no field for. They are stored beside the others."""


class Container(Record):
    """Where images and sessions belong to."""

    __kind__ = Kind("containers", id="container_id")

    container_id: str
    config: dict[str, Any] | None = None


class StdioServer(TypedDict):
    """An MCP server that is a program."""

    type: NotRequired[Literal["stdio"]]
    command: str
    args: NotRequired[list[str]]
    env: NotRequired[dict[str, str]]


class RemoteServer(TypedDict):
    """An MCP server at a URL."""

    type: Literal["sse", "http"]
    url: str
    headers: NotRequired[dict[str, str]]


class SdkServer(TypedDict):
    """An MCP server in the agent's own process."""

    type: Literal["sdk"]
    name: str
    instance: Any


# A typed dict that is decoded loses the members that its type does not name; a JSON object keeps them.
if TYPE_CHECKING:
    McpServer = StdioServer | RemoteServer | SdkServer
else:
    McpServer = dict[str, Any]


class Image(Record):
    """An agent: how it is set up, and the session that it talks in."""

    __kind__ = Kind("images", id="image_id", indexes=("name", "container_id"))

    image_id: str
    container_id: str
    session_id: str
    name: str
    description: str | None = None
    system_prompt: str | None = None
    parent_image_id: str | None = None
    mcp_servers: dict[str, McpServer] | None = None
    metadata: dict[str, Any] | None = None
    role_id: str | None = None
    os_id: str | None = None
    model: str | None = None
    thinking: Literal["disabled", "low", "medium", "high"] | None = None
    provider_options: dict[str, Any] | None = None
    prototype_id: str | None = None
    custom_data: dict[str, Any] | None = None


class Session(Record):
    """A conversation of an image. Its messages are kept apart."""

    __kind__ = Kind("sessions", id="session_id", indexes=("image_id", "container_id"))

    session_id: str
    image_id: str
    container_id: str
