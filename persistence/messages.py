"""Messages: typed by their `subtype`, kept and given back exactly as they came.

The members have the names of the JSON. What is stored need not be one of these: any JSON object whose `id` is a text is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NotRequired, TypedDict

from kvstore.errors import InvalidValueError
from kvstore.values import encode


class TextPart(TypedDict):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ThinkingPart(TypedDict):
    """What a model thought."""

    type: Literal["thinking"]
    reasoning: str
    tokenCount: NotRequired[int]


class ImagePart(TypedDict):
    """An image."""

    type: Literal["image"]
    data: str
    mediaType: str
    name: NotRequired[str]


class FilePart(TypedDict):
    """A file."""

    type: Literal["file"]
    data: str
    mediaType: str
    filename: NotRequired[str]


class ToolCallPart(TypedDict):
    """A tool that the model asks for: its name and its input. The `id` is what its result names."""

    type: Literal["tool-call"]
    id: str
    name: str
    input: dict[str, Any]


class ToolOutput(TypedDict):
    """What a tool gave."""

    type: Literal["text", "json", "error-text", "error-json", "content"]
    value: Any


class ExecutionDenied(TypedDict):
    """A tool was not run, for nobody allowed it."""

    type: Literal["execution-denied"]
    reason: NotRequired[str]


class ToolResultPart(TypedDict):
    """What came of a tool that was asked for under the same `id`."""

    type: Literal["tool-result"]
    id: str
    name: str
    output: ToolOutput | ExecutionDenied


class Usage(TypedDict):
    """How many tokens an answer took."""

    inputTokens: int
    outputTokens: int
    totalTokens: NotRequired[int]


class UserMessage(TypedDict):
    """What a user said."""

    id: str
    timestamp: int
    subtype: Literal["user"]
    role: Literal["user"]
    content: str | list[TextPart | ImagePart | FilePart]
    parentId: NotRequired[str]


class AssistantMessage(TypedDict):
    """What the model answered."""

    id: str
    timestamp: int
    subtype: Literal["assistant"]
    role: Literal["assistant"]
    content: str | list[TextPart | ThinkingPart | FilePart | ToolCallPart]
    parentId: NotRequired[str]
    usage: NotRequired[Usage]


class ToolCallMessage(TypedDict):
    """The model asks for a tool."""

    id: str
    timestamp: int
    subtype: Literal["tool-call"]
    role: Literal["assistant"]
    toolCall: ToolCallPart
    parentId: NotRequired[str]


class ToolResultMessage(TypedDict):
    """What came of a tool call; `toolCallId` is the `id` of that call."""

    id: str
    timestamp: int
    subtype: Literal["tool-result"]
    role: Literal["tool"]
    toolResult: ToolResultPart
    toolCallId: str


class ErrorMessage(TypedDict):
    """A turn failed."""

    id: str
    timestamp: int
    subtype: Literal["error"]
    role: Literal["error"]
    content: str
    errorCode: NotRequired[str]
    parentId: NotRequired[str]


KnownMessage = UserMessage | AssistantMessage | ToolCallMessage | ToolResultMessage | ErrorMessage
"""Told apart by `subtype`."""

Message = KnownMessage | dict[str, Any]
"""What is taken: one of the known ones, or any JSON object whose `id` is a text."""


def encode_messages(operation: str, session: str, messages: Iterable[Message]) -> list[bytes]:
    """Messages as JSON. Raises `InvalidValueError`, which says where it is which one."""
    if not isinstance(messages, Iterable):
        raise InvalidValueError(f"messages are a list of them, not {type(messages).__name__}", operation=operation)
    data: list[bytes] = []
    try:
        for message in messages:
            data.append(encode_message(message))
    except InvalidValueError as error:
        which = "" if operation == "add_message" else f"message {len(data)} of those given: "
        raise InvalidValueError(which + error.message, operation=operation, key=f"messages:{session}") from error
    return data


def encode_message(message: Message) -> bytes:
    """The message as JSON. Raises `InvalidValueError` for what is no JSON object, or has no id."""
    if not isinstance(message, dict):
        raise InvalidValueError(f"a message is a JSON object, not {type(message).__name__}")
    if not isinstance(message.get("id"), str):
        raise InvalidValueError(f"a message has an id that is text, not {message.get('id')!r}")
    return encode(message)
