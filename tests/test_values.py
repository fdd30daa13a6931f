"""Values: JSON in, JSON out, unchanged or refused; and as the types that a program has."""

from __future__ import annotations

import asyncio
import enum
import math
from collections import OrderedDict, UserDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple, TypedDict
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from running import in_loop

from kvstore import CorruptValueError, InvalidValueError, create_storage
from kvstore.testing.values import FAITHFUL_VALUES, same
from kvstore.values import decode, decode_as, encode, same_json

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)


@given(json_values)
@example(-0.0)
@example(5e-324)
@example(2**64 - 1)
def test_json_comes_back_equal_and_of_the_same_type(value: object) -> None:
    assert same(decode(encode(value)), value)


@pytest.mark.parametrize("value", FAITHFUL_VALUES, ids=lambda value: repr(value)[:40])
def test_what_the_kit_asks_for_comes_back(value: object) -> None:
    assert same(decode(encode(value)), value)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 10**30])
def test_an_integer_beyond_what_is_promised_is_exact_or_refused(value: int) -> None:
    try:
        data = encode(value)
    except InvalidValueError:
        return
    assert same(decode(data), value)


def test_integers_of_another_program_are_read_exactly() -> None:
    assert decode(b"123456789012345678901234567890") == 123456789012345678901234567890


def test_nesting_is_kept_to_200_levels_and_beyond_kept_or_refused() -> None:
    for depth in (200, 255, 500, 2_000, 100_000):
        value: object = 1
        for _ in range(depth):
            value = [value]
        try:
            data = encode(value)
            back = decode(data)
        except (InvalidValueError, CorruptValueError):
            assert depth > 200
            continue
        assert encode(back) == data


def test_deep_nesting_that_another_program_stored_is_corrupt() -> None:
    with pytest.raises(CorruptValueError):
        decode(b"[" * 100_000 + b"]" * 100_000)


class Colour(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Unsound(enum.Enum):
    NAN = math.nan


@dataclass
class Point:
    x: float
    y: float


class Place(msgspec.Struct):
    name: str
    size: float = 1.0


class Bag(msgspec.Struct):
    things: Any


@attrs.define
class Crate:
    things: Any


class MomentBag(msgspec.Struct):
    things: datetime


@dataclass
class MomentPoint:
    x: datetime
    y: float


@dataclass
class Disc:
    radius: float
    _kept: int = 7

    @cached_property
    def area(self) -> float:
        return math.nan


@dataclass
class Defaults:
    x: int = 1


class Movie(TypedDict):
    title: str
    year: int


class Pair(NamedTuple):
    one: int
    two: float


@pytest.mark.parametrize(
    "value",
    [
        *(math.nan, math.inf, -math.inf, [math.nan], {"a": {"b": math.inf}}, (1, math.nan), Point(math.nan, 1)),
        *(Place("a", math.inf), Unsound.NAN, [None, {"a": [math.nan]}], {"null": math.nan}, Pair(1, math.nan)),
        *("\ud800", ["a", "\udfff"], {"\ud800": 1}, {1: 1}, {None: 1}, {("a",): 1}, {1.5: 1}, {True: 1}, {b"a": 1}),
        *(b"bytes", bytearray(b"a"), memoryview(b"a"), {1, 2}, frozenset(), object(), 1j, Decimal("1.5"), Path("a"), range(3)),
        *(
            iter([]),
            (number for number in ()),
            len,
            Point,
            UserDict(a=1),
            {"a": b"b"},
            ValueError("a"),
            ...,
            NotImplemented,
            Pair(1, 2.0),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_can_not_say_is_refused(value: object) -> None:
    with pytest.raises(InvalidValueError):
        encode(value)


@pytest.mark.parametrize(
    "value",
    [
        Bag(b"\xff"),
        Bag({1}),
        Bag([frozenset()]),
        Bag({"a": bytearray()}),
        Bag(Bag([b""])),
        Bag(Point(b"", 1)),
        [Bag({1})],
        Bag(Crate(b"")),
        Bag([Crate({1})]),
        Bag(Crate(Crate(math.inf))),
    ],  # type: ignore[arg-type]
    ids=repr,
)
def test_what_json_can_not_say_is_refused_inside_a_struct_too(value: object) -> None:
    """V2: where msgspec would make a text or a list of it."""
    with pytest.raises(InvalidValueError, match=r"at Bag\.things"):
        encode(value)


@pytest.mark.parametrize("inside", [lambda value: value, lambda value: {"a": [value]}, Bag, lambda value: Point(value, 1)])
@pytest.mark.parametrize(
    "moment",
    [
        datetime(1880, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")),
        datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(seconds=-1))),
        datetime(2026, 1, 2, tzinfo=timezone(timedelta(microseconds=1))),
        datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    ],
    ids=str,
)
def test_a_datetime_comes_back_as_the_same_instant(moment: datetime, inside: Callable[[object], object]) -> None:
    """V1, V2: with whatever offset."""
    value = inside(moment)
    kinds = {dict: dict[str, list[datetime]], Bag: MomentBag, Point: MomentPoint, datetime: datetime}
    back: Any = decode_as(encode(value), kinds[type(value)])
    back = back["a"][0] if isinstance(back, dict) else getattr(back, "x", getattr(back, "things", back))
    assert back.astimezone(UTC) == moment.astimezone(UTC)


@pytest.mark.parametrize(
    "moment",
    [datetime(1, 1, 1), datetime(999, 1, 1, 1, 1, 1, 50, UTC), date(99, 1, 1), time(1, 2, 3), time(1, 2, 3, 5)],
    ids=repr,
)
def test_times_have_the_form_that_orjson_gives_them(moment: object) -> None:
    assert encode([moment]) == orjson.dumps([moment])


def test_a_dataclass_is_stored_as_its_fields_and_nothing_else() -> None:
    """V2: neither what it remembers nor what was attached to it, and no field is left out."""
    disc = Disc(2.0)
    assert math.isnan(disc.area)
    disc.stray = b"bytes"  # type: ignore[attr-defined]

    assert decode(encode(disc)) == {"radius": 2.0, "_kept": 7}
    assert decode_as(encode(disc), Disc) == disc
    del disc.radius
    with pytest.raises(InvalidValueError, match="radius"):
        encode([disc])


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": {"b": [1, Decimal(1)]}}, r"Decimal at \$\.a\.b\[1\]$"),
        ([{"a": {1: 2}}], r"str at \$\[0\]\.a$"),
        ({"a": [2**70]}, r"range at \$\.a\[0\]$"),
        (Decimal(1), r"Decimal$"),
    ],
)
def test_what_is_refused_is_told_with_its_place(value: object, place: str) -> None:
    with pytest.raises(InvalidValueError, match=place):
        encode(value)


def test_a_list_that_holds_itself_is_refused() -> None:
    endless: list[object] = []
    endless.append(endless)
    for value in (endless, Bag(endless), [None, Bag([endless, endless])]):
        with pytest.raises(InvalidValueError):
            encode(value)


def test_V3_a_type_that_no_value_can_be_read_as_is_refused_and_not_blamed_on_what_is_stored() -> None:
    class Plain:
        pass

    @dataclass
    class Strict:
        x: int

        def __post_init__(self) -> None:
            {}[self.x]

    for no_type in (Plain, list[Plain], {}, 5):
        with pytest.raises(InvalidValueError, match="not a type that a value can be read as"):
            decode_as(b"[1]" if no_type == list[Plain] else b"{}", no_type)
    with pytest.raises(CorruptValueError, match="not a Strict"):
        decode_as(b'{"x": 1}', Strict)
    with pytest.raises(CorruptValueError, match="not an int: "):
        decode_as(b'"x"', int)
    for data in (b"x", b'"\xff"', b""):
        with pytest.raises(CorruptValueError, match="not JSON"):
            decode_as(data, str)


def test_E1_a_Pydantic_model_is_refused_with_what_to_give_instead() -> None:
    class Model:
        def model_dump(self) -> dict[str, object]:
            return {}

    with pytest.raises(InvalidValueError, match=r"no JSON form for Model; .*model_dump\(mode='json'\)"):
        encode(Model())


@pytest.mark.parametrize("value", [Disc, [{"a": Defaults}], Defaults, Bag(Defaults), Place], ids=repr)
def test_a_class_is_no_value(value: object) -> None:
    """V2: though its fields have defaults."""
    with pytest.raises(InvalidValueError):
        encode(value)


@pytest.mark.parametrize("names", [{b"a": 1}, {"a": 1, b"b": 2}, {1: 1}], ids=repr)
def test_members_whose_names_are_no_text_are_refused_inside_a_struct_too(names: object) -> None:
    """V2."""
    for value in (Bag(names), [Bag([names])], Bag(Crate(names)), Bag(Point(names, 1))):  # type: ignore[arg-type]
        with pytest.raises(InvalidValueError):
            encode(value)


@pytest.mark.parametrize(
    "large",
    ["x" * 50_000, ["y" * 1_000] * 100, [""] * 20_000, {str(number): [None] for number in range(5_000)}],
    ids=["a text", "some texts", "many texts", "many nulls"],
)
def test_V2_what_json_can_not_say_is_found_beside_large_values_and_null_stays(large: object) -> None:
    assert decode(encode({"large": large, "null": None})) == {"large": large, "null": None}
    for unsaid in (math.nan, [1.5, -math.inf], Point(math.inf, 1)):
        with pytest.raises(InvalidValueError, match=r"(nan|inf) at \$\.after"):
            encode({"large": large, "after": unsaid})


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (math.nan, r"nan at \$$"),
        ([1, None, {"a": [1.5, (0, -math.inf)]}], r"-inf at \$\[2\]\.a\[1\]\[1\]$"),
        ({"a": Point(1, math.inf), "b": 1.5}, r"inf at \$\.a\.y$"),
        ([Disc(1.5), Place("a", math.nan)], r"nan at Place\.size$"),
    ],
    ids=repr,
)
def test_what_is_refused_is_found_by_its_path(value: object, where: str) -> None:
    with pytest.raises(InvalidValueError, match=where):
        encode(value)


def test_a_large_value_that_holds_nulls_is_looked_through_in_a_fraction_of_a_second() -> None:
    """L2: a loop over each member took thirty times as long as the encoding."""

    def taken(value: object) -> float:
        before = process_time()
        encode(value)
        return process_time() - before

    plain, nulls = ([{"a": one, "b": "x" * 20, "c": 0.5} for _ in range(100_000)] for one in (1, None))
    assert min(taken(nulls) for _ in range(3)) < 10 * min(taken(plain) for _ in range(3))


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ((1, (2, 3)), [1, [2, 3]]),
        (Point(1.0, 2.0), {"x": 1.0, "y": 2.0}),
        (Place("here"), {"name": "here", "size": 1.0}),
        ({"place": [Place("here")]}, {"place": [{"name": "here", "size": 1.0}]}),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05+00:00"),
        (date(2026, 1, 2), "2026-01-02"),
        (UUID(int=7), str(UUID(int=7))),
        (Colour.RED, "red"),
        (Number.ONE, 1),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        ("", ""),
    ],
    ids=repr,
)
def test_what_has_a_json_form_is_kept_as_it(value: object, form: object) -> None:
    assert same(decode(encode(value)), form)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Point(1.0, 2.0), Point),
        (Place("here", 2.5), Place),
        ({"title": "M", "year": 1931}, Movie),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), datetime),
        (UUID(int=7), UUID),
        (Colour.RED, Colour),
        ([Point(1.0, 2.0)], list[Point]),
        ((1, "a"), tuple[int, str]),
        (None, int | None),
        (7, Any),
    ],
    ids=repr,
)
def test_with_a_type_it_comes_back_as_itself(value: object, kind: Any) -> None:
    async def stored() -> Any:
        storage = create_storage()
        await storage.set_items({"key": value})
        assert (await storage.get_items(["key"], type=kind)) == {"key": value}
        assert [item async for item in storage.iter_items(type=kind)] == [("key", value)]
        return await storage.get_item("key", type=kind)

    assert asyncio.run(stored()) == value


@in_loop
async def test_a_value_of_another_type_is_corrupt_and_left_alone() -> None:
    storage = create_storage()
    await storage.set_item("key", {"x": "text"})
    for call in (
        storage.get_item("key", type=Point),
        storage.get_item("key", type=int),
        storage.get_items(["key"], type=Movie),
    ):
        with pytest.raises(CorruptValueError) as caught:
            await call
        assert caught.value.key == "key"
        assert caught.value.__cause__ is not None
    assert await storage.get_item("missing", "default", type=Point) == "default"
    assert await storage.get_item("key") == {"x": "text"}


def test_what_is_no_type_is_refused() -> None:
    with pytest.raises(InvalidValueError):
        decode_as(b"1", "no type")


@pytest.mark.parametrize(
    "data", [b"", b" ", b"nul", b"NaN", b"Infinity", b"[1,]", b"{'a':1}", b"\xff", b'"\xed\xa0\x80"', b"1 2"]
)
def test_bytes_that_are_not_json_are_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptValueError):
        decode(data)
    with pytest.raises(CorruptValueError):
        decode_as(data, str)


@settings(max_examples=40)
@given(json_values, json_values)
def test_comparing_as_json_tells_types_apart_and_ignores_the_order_of_members(one: object, other: object) -> None:
    assert same_json(encode(one), encode(one))
    assert same_json(encode(_turned(one)), encode(one))
    assert same_json(encode(one), encode(other)) is same(_sorted(one), _sorted(other))


def _turned(value: object) -> object:
    """Its members the other way round."""
    if isinstance(value, dict):
        return {name: _turned(value[name]) for name in reversed(value)}
    return [_turned(member) for member in value] if isinstance(value, list) else value


def _sorted(value: object) -> object:
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(member) for member in value] if isinstance(value, list) else value


@pytest.mark.parametrize("data", ["text", 1, None, [1], object()], ids=lambda data: type(data).__name__)
@in_loop
async def test_raw_data_is_bytes(data: bytes) -> None:
    with pytest.raises(InvalidValueError):
        await create_storage().set_item_raw("key", data)


@in_loop
async def test_bytes_like_data_is_taken() -> None:
    storage = create_storage()
    for data in (b"abc", bytearray(b"abc"), memoryview(b"abc"), memoryview(b"axbxc")[::2]):
        await storage.set_item_raw("key", data)
        assert await storage.get_item_raw("key") == b"abc"
