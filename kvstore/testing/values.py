"""Values: given back as they were taken, or refused."""

from __future__ import annotations

import math

import pytest

from kvstore.errors import CorruptValueError, InvalidValueError
from kvstore.testing.store import Contract, Store, in_loop


def _nested(depth: int) -> object:
    value: object = "core"
    for level in range(depth):
        value = [value] if level % 2 else {"in": value}
    return value


FAITHFUL_VALUES: tuple[object, ...] = (
    None,
    True,
    False,
    *(0, 1, -1, 2**31, 2**53 + 1, 2**60, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)),
    *(0.0, -0.0, 1.0, -1.5, 0.1, 1e308, -1e308, 5e-324, 1.7976931348623157e308, 2.0**53, 1e22, 1 / 3),
    *("", "123", "1.0", "true", "null", "[]", "{}", '"', "\\", "\0", "a\0b", "\n\r\t", "\x7f", "\u2028", "\ufeff", "\uffff"),
    *(
        "日本語",
        "cafe\u0301",
        "caf\u00e9",
        "שלום",
        "👩\u200d👩\u200d👧",
        "\U0010ffff",
        " padded ",
        "x" * 100_000,
        "🙂" * 10_000,
    ),
    *([], {}, [[]], [{}], {"": ""}, {"a": None}, [None, True, 1, 1.0, "1"], {"a": [], "b": {}, "c": ""}),
    {"z": 1, "a": 2, "m": {"y": 1, "b": 2}, "": 3, "10": 4, "9": 5, "É": 6, "é": 7},
    list(range(5_000)),
    {f"member {number}": number for number in range(2_000)},
    _nested(200),
)
"""JSON values that every driver has to give back equal and of the same type."""

FAITHFUL_BYTES: tuple[bytes, ...] = (
    b"",
    b"\0",
    b"\0\0\0",
    b"null",
    b'{"a": 1}',
    b"not json",
    b" padded ",
    b"\r\n",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    bytes(range(256)),
    bytes(range(256)) * 4096,
)
"""Raw values that every driver has to keep unchanged."""


def same(one: object, other: object) -> bool:
    """Equal and of the same type throughout, members in the same order, 0.0 told from -0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return one == other


class Values(Contract):
    """V1 to V5 of the contract."""

    @in_loop
    async def test_json_comes_back_equal_and_of_the_same_type(self, store: Store) -> None:
        """V1: one by one and in batches."""
        storage = store.storage
        for value in FAITHFUL_VALUES:
            await storage.set_item("one", value)
            assert same(await storage.get_item("one", "missing"), value), repr(value)[:200]

        items = {f"many:{place}": value for place, value in enumerate(FAITHFUL_VALUES)}
        await storage.set_items(items)
        assert same(await storage.get_items(items, "missing"), items)

    @in_loop
    async def test_json_comes_back_in_the_next_program(self, store: Store) -> None:
        """V1, A1: what was stored is still there, of the same type."""
        items = {f"many:{place}": value for place, value in enumerate(FAITHFUL_VALUES)}
        await store.storage.set_items(items)

        storage = await store.reopened()
        assert same(await storage.get_items(items, "missing"), items)

    @in_loop
    async def test_a_stored_null_is_no_missing_key(self, store: Store) -> None:
        """V3: a missing key gives the default; a stored null gives None."""
        storage = store.storage
        await storage.set_item("null", None)

        assert await storage.get_item("null", "default") is None
        assert await storage.get_item("missing", "default") == "default"
        assert await storage.get_items(["null", "missing"], "default") == {"null": None, "missing": "default"}
        assert await storage.has_item("null")

    @in_loop
    async def test_bytes_are_kept_unchanged(self, store: Store) -> None:
        """V4: empty ones, those that are no text, and many."""
        storage = store.storage
        for place, data in enumerate(FAITHFUL_BYTES):
            await storage.set_item_raw(f"raw:{place}", data)
            found = await storage.get_item_raw(f"raw:{place}")
            assert found == data
            assert type(found) is bytes
            assert await storage.has_item(f"raw:{place}")
        for place, data in enumerate(FAITHFUL_BYTES):
            assert await storage.get_item_raw(f"raw:{place}") == data, place
        assert await storage.get_item_raw("missing") is None
        assert await storage.get_item_raw("missing", b"default") == b"default"

    @in_loop
    async def test_bytes_come_back_in_the_next_program(self, store: Store) -> None:
        """V4, A1: unchanged."""
        for place, data in enumerate(FAITHFUL_BYTES):
            await store.storage.set_item_raw(f"raw:{place}", data)

        storage = await store.reopened()
        for place, data in enumerate(FAITHFUL_BYTES):
            assert await storage.get_item_raw(f"raw:{place}") == data, place

    @in_loop
    async def test_json_and_raw_are_two_views_of_the_same_bytes(self, store: Store) -> None:
        """V4: what one stores the other reads."""
        storage = store.storage
        await storage.set_item("key", {"a": [1, 2.0, "ü"]})
        assert await storage.get_item_raw("key") == '{"a":[1,2.0,"ü"]}'.encode()

        await storage.set_item_raw("key", b' { "b" : [ ] } ')
        assert await storage.get_item("key") == {"b": []}
        assert await storage.get_item_raw("key") == b' { "b" : [ ] } '

    @in_loop
    async def test_bytes_that_are_not_json_are_corrupt_and_left_alone(self, store: Store) -> None:
        """V4, E1: `get_item` raises, naming the key and the driver, and nothing is guessed at, emptied or deleted."""
        storage = store.storage
        for data in (b"not json", b"", b"\xff\xfe", b"{", b"[1,]", b"NaN", b'"\xed\xa0\x80"'):
            await storage.set_item_raw("users:1", data)
            for call in (storage.get_item("users:1", "default"), storage.get_items(["users:1", "other"], "default")):
                with pytest.raises(CorruptValueError) as caught:
                    await call
                assert (caught.value.key, caught.value.driver) == ("users:1", store.driver.name)
            assert await storage.get_item_raw("users:1") == data
            assert await storage.get_keys() == ["users:1"]

    @in_loop
    async def test_what_json_can_not_say_is_refused_and_the_stored_value_stays(self, store: Store) -> None:
        """V2: never silently changed, alone or in a batch."""
        storage = store.storage
        await storage.set_item("key", "kept")
        for value in (math.nan, math.inf, {"a": [-math.inf]}, "\ud800", {1: 2}, b"bytes", {1, 2}, object()):
            with pytest.raises(InvalidValueError):
                await storage.set_item("key", value)
            with pytest.raises(InvalidValueError):
                await storage.set_items({"other": 1, "key": value})
        with pytest.raises(InvalidValueError):
            await storage.set_item_raw("key", "text")  # type: ignore[arg-type]

        assert await storage.get_item("key") == "kept"
        assert await storage.get_keys() == ["key"]

    @in_loop
    async def test_what_is_stored_is_no_object_of_the_callers(self, store: Store) -> None:
        """V5: changing an object after a set, or what a get returned, changes nothing stored."""
        storage = store.storage
        given, raw = {"list": [1]}, bytearray(b"raw")
        await storage.set_item("key", given)
        await storage.set_item_raw("raw", raw)
        given["list"].append(2)
        raw[:] = b"XXX"

        got = await storage.get_item("key")
        assert got == {"list": [1]}
        got["list"].clear()
        assert await storage.get_item("key") == {"list": [1]}
        assert await storage.get_item_raw("raw") == b"raw"

    @in_loop
    async def test_meta_tells_the_size_and_an_etag(self, store: Store) -> None:
        """R1: `get_meta` on every driver; None for a missing key."""
        storage = store.storage
        await storage.set_item_raw("key", b"12345")
        one = await storage.get_meta("key")
        await storage.set_item_raw("key", b"123456")
        two = await storage.get_meta("key")

        assert one is not None
        assert two is not None
        assert (one.size, two.size) == (5, 6)
        assert one.etag != two.etag
        assert two.etag == (await storage.get_meta("key") or one).etag
        assert await storage.get_meta("missing") is None
