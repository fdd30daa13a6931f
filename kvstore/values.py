"""Values: JSON in, JSON out, unchanged or refused."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from itertools import chain, islice
from typing import Any, Final, cast, get_origin

import msgspec
import orjson

from kvstore.errors import CorruptValueError, InvalidValueError


class _Sentinel(enum.Enum):
    def __repr__(self) -> str:
        return self.name

    __str__ = __repr__


# Of one member each, so that a type checker knows what is left after `is MISSING`. Sets, so that no encoder takes a sentinel
# for a value.
class Missing(_Sentinel):
    """The type of `MISSING`."""

    MISSING = frozenset({"MISSING"})


class Never(_Sentinel):
    """The type of `NEVER`."""

    NEVER = frozenset({"NEVER"})


MISSING: Final = Missing.MISSING
"""No value: in a condition "the key is not there", from a function of `update_item` "remove it"."""
NEVER: Final = Never.NEVER
"""As a `ttl`: no expiry, whatever the mount's default is."""

decode_json = msgspec.json.Decoder().decode
"""`decode` with the errors of `NOT_JSON`, for where a call more counts: it is a twentieth of a read from memory."""
NOT_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def encode(value: object) -> bytes:
    """`value` as JSON. Raises `InvalidValueError` for what JSON can't say, never changing it silently.

    orjson encodes because it refuses what is not JSON (bytes, sets, keys that are not text); msgspec decodes because it
    keeps integers of any size exact. What is written by orjson as it stands, and so unchecked, is an `orjson.Fragment`.
    """
    try:
        data = orjson.dumps(value, _json_form, _OURS)
    except TypeError as error:
        if isinstance(error.__cause__, InvalidValueError):
            raise error.__cause__ from error
        said = f"{value!r} is no value" if isinstance(value, _Sentinel) else error.__cause__ or error
        raise InvalidValueError(f"the value is not JSON: {said}{_refused_at(value)}") from error
    # orjson writes NaN and infinities as null, so only what holds a null has to be looked through. Of all ways to find one
    # this is the fastest: it takes 0.06 µs less than a regular expression, and that as much less than `in`. But to look
    # through what is made of a few large texts takes less.
    if len(data) > _LARGE and _refuse_unsaid(value, "$", len(data) // _BYTES_A_VALUE):
        return data
    if data.rpartition(b"null")[1] and type(value) is not str:
        _refuse_unsaid(value, "$")
    return data


def decode(data: bytes) -> Any:
    """The JSON value in `data`. Raises `CorruptValueError` where there is none."""
    try:
        return decode_json(data)
    except NOT_JSON as error:
        raise not_json(error) from error


def not_json(error: Exception) -> CorruptValueError:
    """What `error`, one of `NOT_JSON`, says of what is stored."""
    return CorruptValueError(f"what is stored is not JSON: {error}")


def decode_as(data: bytes, type: Any) -> Any:
    """The JSON value in `data`, checked and built as `type`. Raises `CorruptValueError` where it is not one."""
    try:
        decoder = _decoder(type)
    except TypeError as error:  # also for what can't be a key of the cache
        raise InvalidValueError(f"{type!r} is not a type that a value can be read as: {error}") from error
    try:
        return decoder.decode(data)
    except InvalidValueError:
        raise
    except Exception as error:  # of the type's own code too, such as its `__post_init__`
        if isinstance(error, NOT_JSON) and not isinstance(error, msgspec.ValidationError):
            raise not_json(error) from error
        name = type if get_origin(type) else getattr(type, "__name__", type)
        article = "an" if str(name)[0] in "aeiou" else "a"
        raise CorruptValueError(f"what is stored is not {article} {name}: {error}") from error


@functools.lru_cache(maxsize=256)
def _decoder(type: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type, dec_hook=_no_type)


def _no_type(type: Any, _: object) -> Any:
    raise InvalidValueError(
        f"{type!r} is not a type that a value can be read as; a dataclass, a TypedDict or a msgspec.Struct is, for instance"
    )


def same_json(one: bytes, other: bytes) -> bool:
    """Whether both say the same as JSON: 1, 1.0 and True differ, the order of members does not."""
    return _canonical(decode(one)) == _canonical(decode(other))


def _canonical(value: object) -> object:
    # Integers beyond 64 bits, which orjson can't write, may stand in bytes that another program stored.
    return msgspec.json.encode(value, order="deterministic")


def raw_bytes(data: object) -> bytes:
    """`data` as bytes of our own. Raises `InvalidValueError` for what is not bytes-like."""
    if type(data) is bytes:
        return data
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    raise InvalidValueError(f"raw data is bytes, not {type(data).__name__}")


def _refused_at(value: object) -> str:
    """Where in `value` what orjson refuses is, for its error; nothing where that is all of it, or deep inside."""
    path = ""
    with suppress(AttributeError):  # a class, or a field that is missing
        for _ in range(_SHOWN_LEVELS):
            first = islice(_members(value), _LOOKED_AT)
            inner = next(((name, member) for name, member in first if _is_refused(member)), None)
            if inner is None:
                break
            path, value = path + inner[0], inner[1]
        else:
            return ""
    return f" at ${path}" if path else ""


_SHOWN_LEVELS = 32
_LOOKED_AT = 1000
"""Of the members of one: all of a large one would hold the event loop."""


def _is_refused(value: object) -> bool:
    try:
        orjson.dumps(value, _json_form, _OURS)
    except TypeError:
        return True
    return False


# orjson rounds an offset to minutes, and writes whatever a dataclass has besides its fields.
_OURS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS


def _json_form(value: object) -> object:
    kind = type(value)
    if kind is datetime:
        return _time_form(cast(datetime, value))
    if kind is date or (kind is time_of_day and cast(time_of_day, value).tzinfo is None):
        return cast(date | time_of_day, value).isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, msgspec.Struct):
        form = msgspec.to_builtins(value, builtin_types=(datetime, bytes))  # bytes as a key are refused by orjson then
        _refuse_unsaid(value, kind.__name__)
        return form
    hint = "; of a Pydantic model give model_dump(mode='json')" if hasattr(kind, "model_dump") else ""
    raise TypeError(f"no JSON form for {kind.__name__}{hint}")


def _time_form(value: datetime) -> str:
    """As in RFC 3339, which knows offsets of whole minutes; with another, as local mean times have, the same time in UTC."""
    offset = value.utcoffset()
    return (value.astimezone(UTC) if offset is not None and offset % timedelta(minutes=1) else value).isoformat()


_LARGE = 16_384
_BYTES_A_VALUE = 128
"""That it takes as long to search as to look at a value."""
_ALWAYS_SAID = {str, int, bool, type(None)}


def _refuse_unsaid(value: object, root: str, most: int = sys.maxsize) -> bool:
    """Refuses what an encoder would write as something else: NaN and infinities, in a `msgspec.Struct` bytes and sets too.

    False: it holds more than `most` values, and was not looked through.
    """
    level = [value]
    while level:  # level by level and type by type, for one by one it takes ten times as long
        most -= len(level)
        if most < 0:
            return False
        inner: list[object] = []
        for kind in set(map(type, level)) - _ALWAYS_SAID:
            some: list[Any] = [one for one in level if type(one) is kind]
            unsaid = False
            if kind is dict:
                inner += chain.from_iterable(map(dict.values, some))
            elif kind is list or kind is tuple:
                inner += chain.from_iterable(some)
            elif kind is float:
                unsaid = not all(map(math.isfinite, some))
            else:
                unsaid = any(map(_is_unsaid, some))
                inner += [member for one in some for _, member in _members(one)]
            if unsaid:
                raise InvalidValueError(f"the value is not JSON: {next(_unsaid(value, root))}")
        level = inner
    return True


def _is_unsaid(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(value, set | frozenset | bytes | bytearray | memoryview) and not isinstance(value, enum.Enum)


def _unsaid(value: object, path: str) -> Iterator[str]:
    """What is not said, and where, for its error."""
    if _is_unsaid(value):
        yield f"{value if isinstance(value, float) else type(value).__name__} at {path}"
    for name, member in _members(value):
        yield from _unsaid(member, path + name)


def _members(value: object) -> Iterable[tuple[str, object]]:
    """What an encoder writes of `value`, by the way there."""
    if isinstance(value, Mapping):
        return ((f".{name}", member) for name, member in value.items())
    if isinstance(value, list | tuple):
        return ((f"[{index}]", member) for index, member in enumerate(value))
    if isinstance(value, enum.Enum):
        return (("", value.value),)
    if isinstance(value, msgspec.Struct):
        names: Iterable[str] = value.__struct_fields__
    elif dataclasses.is_dataclass(value):
        names = (field.name for field in dataclasses.fields(value))
    else:
        names = (field.name for field in getattr(value, "__attrs_attrs__", ()))
    return ((f".{name}", getattr(value, name)) for name in names)
