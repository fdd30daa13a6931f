"""Shape: what a record class says of its JSON, its keys and its entries in the indexes.

An index entry is a key that says it all, `index:<kind>:<member>:<token of its value>:<createdAt>:<id>`, and one without a
token, under `createdAt`, is in the list of all records. So a list is a range of keys, and whether an entry is right can be
seen from the record that it names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

import msgspec
from msgspec import inspect

from kvstore.errors import ConfigError, CorruptValueError, InvalidKeyError, InvalidValueError, closest
from kvstore.keys import escape_segment, unescape_segment
from kvstore.values import decode, encode
from persistence.records import AT_SAVE, Kind, Record

R = TypeVar("R", bound=Record)

MAX_ID_BYTES = 512
MAX_TIME = 2**53
INDEX = "index"

_MAX_TOKEN_BYTES = 64
_TIMES = ("createdAt", "updatedAt")
_RESERVED = (INDEX, "heads", "messages")


class Shape(Generic[R]):
    """Of one record class. Raises `ConfigError` for a `__kind__` that does not fit the class."""

    def __init__(self, type: type[R]) -> None:
        kind = getattr(type, "__kind__", None)
        if not isinstance(kind, Kind) or not hasattr(type, "__name__"):
            raise ConfigError(f"{getattr(type, '__name__', type)} is no class with a __kind__; see Record")
        self.type = type
        self.name = kind.name
        self.id_field = kind.id
        types = _types(type)
        # The JSON's names by the fields'. That of `extra` is no member: what it holds are members.
        fields = [field for field in msgspec.structs.fields(type) if field.name != "extra"]
        self._members = {field.name: field.encode_name for field in fields}
        self._names = frozenset(self._members.values())
        self._left_out = {field.encode_name for field in fields if field.default is None}
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", kind.name) or kind.name in _RESERVED:
            raise ConfigError(f"a kind has a plain word for its name, not {kind.name!r}, and none of {', '.join(_RESERVED)}")
        for field in (kind.id, *kind.indexes):
            if field not in self._members or field in ("created_at", "updated_at"):
                raise ConfigError(f"{type.__name__} has no field {field!r} to be found by")
            if field in ("limit", "cursor"):
                raise ConfigError(f"{type.__name__} can't be found by {field!r}, which a list takes for something else")
            if not _is_text(types[field], or_none=field != kind.id):
                raise ConfigError(f"{type.__name__} can't be found by {field!r}: it is not declared as text")
        for field, its_type in types.items():
            if any(map(_loses_members, _within(its_type))):
                raise ConfigError(
                    f"a type within the field {field!r} of {type.__name__} would lose the members that it does not name;"
                    " dict[str, Any] keeps them, a Struct with forbid_unknown_fields=True refuses them"
                )
        self.id_member = self._members[kind.id]
        self.indexes = {field: self._members[field] for field in kind.indexes}

    # Keys

    def key(self, record_id: str, operation: str | None = None) -> str:
        """The key of a record. Raises `InvalidKeyError` for an id that is not text or too long."""
        return f"{self.name}:{id_segment(record_id, operation)}"

    def id(self, key: str) -> str:
        """The id of the record that a key is that of."""
        return unescape_segment(key.partition(":")[2])

    def entries(self, key: str, document: Any) -> set[str]:
        """The index entries that what is stored at a key calls for; none for `MISSING`, or what is not its record."""
        place = self.place(key, document)
        if place is None:
            return set()
        values = [(member, document.get(member)) for member in self.indexes.values()]
        bases = [self.base(), *(self.base(member, value) for member, value in values if isinstance(value, str))]
        return {f"{base}:{place}" for base in bases}

    def place(self, key: str, document: Any) -> str | None:
        """Where what is stored at a key stands in every list that it belongs to: what its entries end with.

        None: it is not the record of this key. One with the id of another would take that one's entries along.
        """
        record_id = document.get(self.id_member) if isinstance(document, dict) else None
        segment = key.partition(":")[2]
        if not isinstance(record_id, str) or escape_segment(record_id) != segment:
            return None
        return f"{created_at(document, 0):016d}:{segment}"

    def base(self, member: str = "createdAt", value: str | None = None) -> str:
        """What the entries of a list start with: all records, or those with `value`."""
        return f"{INDEX}:{self.name}:{member}" + ("" if value is None else f":{token(value)}")

    def entered(self, entry: str) -> str:
        """The key of the record that an entry names."""
        return f"{self.name}:{entry.rpartition(':')[2]}"

    def filters(self, given: Mapping[str, str | None]) -> dict[str, str]:
        """What is asked for by JSON member, in the order of the indexes. Raises `InvalidValueError` for what has no index."""
        for field, value in given.items():
            if field not in self.indexes:
                raise InvalidValueError(
                    f"{self.name} have no list by {field!r}{closest(field, self.indexes)}", operation="list"
                )
            if value is not None and not isinstance(value, str):
                raise InvalidValueError(f"{field} is text, not {value!r}", operation="list")
        return {member: value for field, member in self.indexes.items() if (value := given.get(field)) is not None}

    # JSON

    def document(self, record: R, operation: str = "save", **times: int) -> dict[str, Any]:
        """The JSON of a record, of its own, with those of `times` that are left out. Raises `InvalidValueError`."""
        if not isinstance(record, self.type):
            raise InvalidValueError(f"{self.name} keep {self.type.__name__}, not {type(record).__name__}", operation=operation)
        key = self.key(getattr(record, self.id_field), operation)
        try:
            return self._document(key, record, times)
        except InvalidValueError as error:  # `during` would take 1.5 µs, twice a save
            raise error.at(operation, key) from error.__cause__

    def _document(self, key: str, record: R, times: Mapping[str, int]) -> dict[str, Any]:
        members = {member: getattr(record, field) for field, member in self._members.items()}
        if not isinstance(record.extra, dict) or not members.keys().isdisjoint(record.extra):
            raise InvalidValueError("extra is a JSON object of members that have no field")
        for time in _TIMES:
            if members[time] == AT_SAVE:
                members[time] = times[time]
        known = {member: value for member, value in members.items() if value is not None or member not in self._left_out}
        document: dict[str, Any] = decode(encode_members(known | record.extra))
        try:
            self.record(key, document)
        except CorruptValueError as error:
            raise InvalidValueError(f"this is no {self.type.__name__}: {error.__cause__}") from error
        if not all(type(members[time]) is int and 0 <= members[time] <= MAX_TIME for time in _TIMES):
            raise InvalidValueError("times are milliseconds since 1970, from 0 to 2**53")
        return document

    def record(self, key: str, document: Any) -> R:
        """The record that is stored. Raises `CorruptValueError`, which names the key."""
        members = self._names
        if not isinstance(document, dict):
            raise CorruptValueError(f"what is stored is no {self.type.__name__}: it is no JSON object", key=key)
        try:
            known = {member: value for member, value in document.items() if member in members}
            record = msgspec.convert(known, self.type)
            its_key = self.key(getattr(record, self.id_field))
        except (msgspec.ValidationError, InvalidKeyError) as error:
            raise CorruptValueError(f"what is stored is no {self.type.__name__}: {error}", key=key) from error
        if its_key != key:
            raise CorruptValueError(f"the {self.type.__name__} that is stored has another id", key=key)
        record.extra = {member: value for member, value in document.items() if member not in members}
        return record


def _types(type: type[Record]) -> dict[str, inspect.Type]:
    """The types of the fields."""
    config = type.__struct_config__
    if config.frozen or config.array_like or config.tag is not None:
        raise ConfigError(f"{type.__name__} is no plain record: it is frozen, array_like or tagged")
    try:
        return {field.name: field.type for field in cast(inspect.StructType, inspect.type_info(type)).fields}
    except (TypeError, NameError, AttributeError) as error:
        raise ConfigError(f"the fields of {type.__name__} have types that can't be made out: {error}") from error


def _is_text(type: inspect.Type, *, or_none: bool) -> bool:
    match type:
        case inspect.UnionType(types):
            return all(_is_text(one, or_none=or_none) for one in types)
        case inspect.LiteralType(values):
            return all(isinstance(value, str) for value in values)
    return isinstance(type, inspect.StrType) or (or_none and isinstance(type, inspect.NoneType))


def _within(type: inspect.Type) -> Iterator[inspect.Type]:
    """A type, and those that it is made of."""
    todo: list[Any] = [type]
    seen: set[int] = set()
    while todo:
        part = todo.pop()
        if isinstance(part, tuple):
            todo += part
        elif isinstance(part, inspect.Type | inspect.Field) and id(part) not in seen:
            seen.add(id(part))
            todo += [getattr(part, name) for name in part.__struct_fields__]
            if isinstance(part, inspect.Type):
                yield part


def _loses_members(type: inspect.Type) -> bool:
    if isinstance(type, inspect.StructType):
        return not type.cls.__struct_config__.forbid_unknown_fields
    return isinstance(type, inspect.TypedDictType | inspect.DataclassType)


def created_at(document: Any, default: int, member: str = "createdAt") -> int:
    """When a stored record was created, or at another of its times; `default` for what is no record, or does not say."""
    time = document.get(member) if isinstance(document, dict) else None
    return time if type(time) is int and 0 <= time <= MAX_TIME else default


def encode_members(members: dict[str, Any]) -> bytes:
    """As JSON. Raises `InvalidValueError`, which says which member is not."""
    try:
        return encode(members)
    except InvalidValueError:
        for member, value in members.items():
            try:
                encode({member: value})
            except InvalidValueError as error:
                raise InvalidValueError(f"member {member!r}: {error.message}") from error
        raise


def id_segment(record_id: str, operation: str | None = None) -> str:
    """An id as one segment of a key. Raises `InvalidKeyError` for what is not text or too long."""
    try:
        segment = escape_segment(record_id)
    except InvalidKeyError as error:
        text = error.message.replace("a segment", "an id")
        raise InvalidKeyError(text, operation=operation, key=record_id) from error.__cause__
    size = len(segment.encode())
    if size > MAX_ID_BYTES:
        text = f"an id has at most {MAX_ID_BYTES} bytes once escaped, not {size:,}"
        raise InvalidKeyError(text, operation=operation, key=record_id)
    return segment


def token(text: str) -> str:
    """A text of any length as a short segment. Long ones are hashed; who reads an entry looks at its record anyway."""
    try:
        segment = escape_segment(text)
    except InvalidKeyError as error:
        raise InvalidValueError(f"{text!r} is not JSON: it holds a lone surrogate", operation="list") from error
    if len(segment.encode()) <= _MAX_TOKEN_BYTES:
        return segment
    return f"%~{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"  # `%~` is in no escaped segment
