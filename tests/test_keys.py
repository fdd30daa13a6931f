"""Keys: one spelling each, nothing else rewritten, what is no key refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import in_loop

from kvstore import InvalidKeyError, create_storage, escape_segment, join_key, normalize_key, unescape_segment
from kvstore.drivers.memory import MemoryDriver
from kvstore.keys import after_all, below, is_key, normalize_base, prefix_end
from kvstore.testing import HOSTILE_KEYS
from kvstore.testing.keys import RESERVED_KEYS

texts = st.text(st.characters(exclude_categories=["Cs"]))
segments = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=":/\0"), min_size=1, max_size=20).filter(
    lambda segment: segment not in (".", "..", "$meta")
)
separators = st.text(":/", min_size=1, max_size=3)


@given(st.lists(segments, min_size=1, max_size=5))
def test_a_normalized_key_is_kept_as_it_is(parts: list[str]) -> None:
    key = ":".join(parts)

    assert normalize_key(key) == key


@given(st.lists(st.tuples(separators, segments), min_size=1, max_size=5), st.text(":/", max_size=3))
def test_separators_fold_and_nothing_else_changes(parts: list[tuple[str, str]], tail: str) -> None:
    spelled = "".join(separator + segment for separator, segment in parts) + tail

    assert normalize_key(spelled) == ":".join(segment for _, segment in parts)


@given(texts)
def test_normalizing_is_done_once_and_for_all(text: str) -> None:
    try:
        key = normalize_key(text)
    except InvalidKeyError:
        return
    assert normalize_key(key) == key
    assert not key.startswith(":")
    assert "::" not in key
    assert "/" not in key
    assert len(key.encode()) <= 1024


@pytest.mark.parametrize("key", HOSTILE_KEYS)
def test_hostile_keys_are_legal_and_kept(key: str) -> None:
    assert normalize_key(key) == key


@pytest.mark.parametrize(
    "key",
    [
        *("", ":", "//", ".", "..", "a:.", "a:..:b", "./a", "a/../b", "\0", "a\0b", "é\0", "\ud800", "a:\udfff:b", "$meta"),
        *("$meta:a", "/$meta/a", "x" * 1025, "é" * 513, "🙂" * 257, "a:" * 600, None, 1, b"a", ["a"], ("a",)),
    ],
    ids=repr,
)
def test_what_is_no_key_is_refused_and_named(key: object) -> None:
    with pytest.raises(InvalidKeyError) as caught:
        normalize_key(key)  # type: ignore[arg-type]
    assert caught.value.key == key


NO_KEYS = ("", ".", "..", ":a", "a:", "a::b", "a/b", "/", "a//b", "a:.", "a:..:b", "..:a", "a\0b", "\0", "\ud800", "x" * 1025)


@pytest.mark.parametrize("text", NO_KEYS, ids=repr)
def test_R3_what_no_program_could_ask_for_is_no_key_that_a_driver_may_list(text: str) -> None:
    assert not is_key(text, at_root=True)
    assert not is_key(text, at_root=False)


@pytest.mark.parametrize("key", [*HOSTILE_KEYS, *RESERVED_KEYS])
def test_K2_a_driver_may_list_each_key_that_is_legal_below_a_mount(key: str) -> None:
    assert is_key(key, at_root=False)
    assert is_key(key, at_root=True) == (key.split(":")[0] != "$meta")


@pytest.mark.parametrize("key", ["x" * 1024, "é" * 512, "🙂" * 256, "$metal", "a:$meta", "...", "a:...", ".a", "a..b", "$"])
def test_what_is_just_a_key_is_taken(key: str) -> None:
    assert normalize_key(key) == key


def test_the_length_is_that_of_the_folded_key() -> None:
    assert normalize_key("/" * 5000 + "x" * 1024 + "/" * 5000) == "x" * 1024


class _Text(str):
    def replace(self, *args: object) -> str:  # type: ignore[override]
        return "fooled"


def test_a_subclass_of_str_is_the_text_that_it_is() -> None:
    key = normalize_key(_Text("a/b"))

    assert (key, type(key)) == ("a:b", str)
    assert type(normalize_key(_Text("a"))) is str


class _Untouched(MemoryDriver):
    async def read(self, keys: object) -> list[bytes | None]:
        raise AssertionError("the backend was touched")

    async def write(self, writes: object, expect: object = None) -> list[bool] | None:
        raise AssertionError("the backend was touched")

    has = stat = touch = set_meta = scan = count = clear = read  # type: ignore[assignment]


@pytest.mark.parametrize("key", ["", "a:..", "\0", "\ud800", "x" * 1025, "$meta:a", 1, None], ids=repr)
@in_loop
async def test_a_key_that_is_none_is_refused_before_a_backend_is_touched(key: str) -> None:
    storage = create_storage(_Untouched())
    for operation, call in {
        "get_item": storage.get_item(key),
        "get_item_raw": storage.get_item_raw(key),
        "set_item": storage.set_item(key, 1),
        "set_item_raw": storage.set_item_raw(key, b""),
        "has_item": storage.has_item(key),
        "remove_item": storage.remove_item(key),
        "get_items": storage.get_items(["a", key]),
        "set_items": storage.set_items({"a": 1, key: 1}),
        "remove_items": storage.remove_items(["a", key]),
        "add_item": storage.add_item(key, 1),
        "compare_and_set": storage.compare_and_set(key, 1, 2),
        "update_item": storage.update_item(key, lambda value: value),
        "commit": storage.commit({key: 1}),
        "touch": storage.touch(key),
        "get_meta": storage.get_meta(key),
        "set_meta": storage.set_meta(key, {}),
        "remove_meta": storage.remove_meta(key),
    }.items():
        with pytest.raises(InvalidKeyError) as caught:
            await call
        assert (caught.value.operation, caught.value.key) == (operation, key)


@pytest.mark.parametrize("several", ["abc", b"abc"])
@in_loop
async def test_one_key_in_place_of_several_is_refused(several: str) -> None:
    storage = create_storage()
    for call in (storage.get_items(several), storage.remove_items(several), storage.commit({}, removes=several)):
        with pytest.raises(InvalidKeyError):
            await call


@given(texts)
def test_an_escaped_segment_is_one_and_is_read_back(text: str) -> None:
    segment = escape_segment(text)

    assert unescape_segment(segment) == text
    if len(segment.encode()) <= 1024:
        assert normalize_key(segment) == segment
        assert ":" not in segment


@given(texts, texts)
def test_no_two_texts_have_the_same_segment(one: str, other: str) -> None:
    assert (escape_segment(one) == escape_segment(other)) is (one == other)


@given(texts)
def test_a_segment_is_escaped_again_and_read_back_twice(text: str) -> None:
    assert unescape_segment(unescape_segment(escape_segment(escape_segment(text)))) == text


@given(st.from_regex(r"[A-Za-z0-9_.-]+", fullmatch=True).filter(lambda text: text not in (".", "..")))
def test_plain_text_is_its_own_segment(text: str) -> None:
    assert escape_segment(text) == text


@pytest.mark.parametrize("text", ["", ".", "..", "$meta", "a:b", "a/b", "%", "%%", "%2E", "\0", "x" * 5000])
def test_texts_that_are_no_segments_become_one(text: str) -> None:
    segment = escape_segment(text)

    assert unescape_segment(segment) == text
    assert normalize_key("k:" + segment[:900]) == "k:" + segment[:900]


@pytest.mark.parametrize("segment", ["%2e", "%41", "a:b", "%zz", "%FF", "$", ".", "", "%25%", None])
def test_what_was_never_escaped_is_refused(segment: str) -> None:
    with pytest.raises(InvalidKeyError):
        unescape_segment(segment)


@pytest.mark.parametrize("text", ["\ud800", None, b"a", 1])
def test_what_is_no_text_is_no_segment(text: str) -> None:
    with pytest.raises(InvalidKeyError):
        escape_segment(text)


def test_joining_leaves_out_what_is_empty_and_keeps_separators() -> None:
    assert join_key("users", "7") == "users:7"
    assert join_key("", "users", "", "7:8", "/") == "users:7:8"
    for parts in ((), ("",), ("a", ".."), ("a", None), ("a", 7)):
        with pytest.raises(InvalidKeyError):
            join_key(*parts)  # type: ignore[arg-type]


def test_an_empty_base_is_everything() -> None:
    assert [normalize_base(base) for base in ("", ":", "//", "a/", "/a:b")] == ["", "", "", "a", "a:b"]
    for base in (None, 1, "a:..", "\0"):
        with pytest.raises(InvalidKeyError):
            normalize_base(base)  # type: ignore[arg-type]


@given(st.lists(segments, min_size=1, max_size=3), st.lists(segments, min_size=1, max_size=3))
def test_a_range_holds_exactly_the_keys_below_a_base(parts: list[str], others: list[str]) -> None:
    base, key = ":".join(parts), ":".join(others)
    prefix = below(base)

    assert (prefix <= key < prefix_end(prefix)) is key.startswith(prefix)
    assert prefix_end("") > key
    assert prefix + key < after_all(prefix) < prefix_end(prefix)
