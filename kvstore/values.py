"""Values: JSON in, JSON out, unchanged or refused. And how long they live."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from typing import Any, Final, Literal, cast, get_origin

import msgspec
import orjson

from kvstore.errors import CorruptValueError, InvalidValueError


class _Sentinel(enum.Enum):
    # Sets, so that no encoder takes a sentinel for a value.
    MISSING = frozenset({"MISSING"})
    NEVER = frozenset({"NEVER"})

    def __repr__(self) -> str:
        return self.name

    __str__ = __repr__


MISSING: Final = _Sentinel.MISSING
"""No value: in a condition "the key is not there", from a function of `update_item` "remove it"."""
NEVER: Final = _Sentinel.NEVER
"""As a `ttl`: no expiry, whatever the mount's default is."""

Missing = Literal[_Sentinel.MISSING]
Ttl = float | timedelta | Literal[_Sentinel.NEVER] | None

decode_json = msgspec.json.Decoder().decode
"""`decode` with the errors of `NOT_JSON`, for where a call more counts: it is a twentieth of a read from memory."""
NOT_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_null = re.compile(b"null").search  # `in` takes 0.2 µs more


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
        raise InvalidValueError(f"the value is not JSON: {said}") from error
    # orjson writes NaN and infinities as null, so only what holds a null has to be looked through.
    if type(value) is not str and _null(data):
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
        return _decoder(type).decode(data)
    except NOT_JSON as error:
        name = type if get_origin(type) else getattr(type, "__name__", type)
        raise CorruptValueError(f"what is stored is not a {name}: {error}") from error


@functools.lru_cache(maxsize=256)
def _decoder(type: Any) -> msgspec.json.Decoder[Any]:
    try:
        return msgspec.json.Decoder(type)
    except TypeError as error:
        raise InvalidValueError(f"{type!r} is not a type that a value can be read as: {error}") from error


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


# orjson rounds an offset to minutes, and writes whatever a dataclass has besides its fields.
_OURS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS


def _json_form(value: object) -> object:
    kind = type(value)
    if kind is datetime:
        return _time_form(cast(datetime, value))
    if kind is date or (kind is time_of_day and cast(time_of_day, value).tzinfo is None):
        return cast(date | time_of_day, value).isoformat()
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, msgspec.Struct):
        _refuse_unsaid(value, kind.__name__)
        return msgspec.to_builtins(value, builtin_types=(datetime,))
    raise TypeError(f"no JSON form for {kind.__name__}")


def _time_form(value: datetime) -> str:
    """As in RFC 3339, which knows offsets of whole minutes; with another, as local mean times have, the same time in UTC."""
    offset = value.utcoffset()
    return (value.astimezone(UTC) if offset is not None and offset % timedelta(minutes=1) else value).isoformat()


_ALWAYS_SAID = {str, int, bool, type(None)}


def _refuse_unsaid(value: object, path: str) -> None:
    """Refuses what an encoder would write as something else: NaN and infinities, in a `msgspec.Struct` bytes and sets too."""
    members: Iterable[tuple[str, object]] = ()
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidValueError(f"the value is not JSON: {value} at {path}")
    elif isinstance(value, set | frozenset | bytes | bytearray | memoryview) and not isinstance(value, enum.Enum):
        raise InvalidValueError(f"the value is not JSON: {type(value).__name__} at {path}")
    elif isinstance(value, Mapping):
        members = ((f"{path}.{name}", member) for name, member in value.items())
    elif isinstance(value, list | tuple):
        members = ((f"{path}[{index}]", member) for index, member in enumerate(value))
    elif isinstance(value, msgspec.Struct):
        members = ((f"{path}.{name}", getattr(value, name)) for name in value.__struct_fields__)
    elif isinstance(value, enum.Enum):
        members = ((path, value.value),)
    elif dataclasses.is_dataclass(value):
        members = ((f"{path}.{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value))
    for inner, member in members:
        if type(member) not in _ALWAYS_SAID:
            _refuse_unsaid(member, inner)


LAST_EXPIRY = 253_402_300_799_999
"""The end of the year 9999 in milliseconds since 1970, the last time that `datetime` can say."""


def check_ttl(ttl: Ttl) -> Ttl:
    """`ttl` as it was given. Raises `InvalidValueError` unless it is positive and finite, a timedelta, `NEVER` or None."""
    if ttl is None or ttl is NEVER:
        return ttl
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise InvalidValueError(f"ttl is a number of seconds, a timedelta or NEVER, not {ttl!r}")
    if seconds <= 0 or (isinstance(seconds, float) and not math.isfinite(seconds)):
        raise InvalidValueError(f"ttl is a positive, finite number of seconds, not {ttl!r}")
    return ttl


def expiry(ttl: Ttl, default: Ttl, now: int) -> int | None:
    """When a value written at `now` (milliseconds since 1970) with `ttl` expires, rounded up; None: never."""
    if ttl is None:
        ttl = default
    if check_ttl(ttl) is None or ttl is NEVER:
        return None
    seconds = cast(float, ttl.total_seconds() if isinstance(ttl, timedelta) else ttl)
    # A time beyond what can be said is cut to the last that can; min() first, since a huge float has no ceil that fits.
    return min(now + math.ceil(min(seconds * 1000, LAST_EXPIRY)), LAST_EXPIRY)


def as_datetime(milliseconds: int | None) -> datetime | None:
    """Milliseconds since 1970 as an aware datetime in UTC."""
    return None if milliseconds is None else datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=milliseconds)
