"""Keys: every legal one works, next to every other."""

from __future__ import annotations

import pytest

from kvstore.errors import InvalidKeyError
from kvstore.testing.store import Contract, Store, in_loop, promised

HOSTILE_KEYS: tuple[str, ...] = (
    # A key beside those below it, and what sorts around the separator.
    "a",
    "a:b",
    "a:b:c",
    "a:b:d",
    "ab",
    "a9",
    "a;",
    "a:\x01",
    "a:~",
    "a:\U0010ffff",
    # Case, and letters whose case is no pair.
    "A",
    "A:b",
    "a:B",
    "Straße",
    "STRASSE",
    "strasse",
    "İ",
    "i",
    "ı",
    "I",
    "É",
    "é",
    "ſ",
    # Spaces and dots at the ends, control characters, line ends.
    "a ",
    " a",
    "a :b",
    " ",
    "x.",
    ".x",
    "...",
    "x .",
    "a\tb",
    "a\nb",
    "a\r\nb",
    "\x7f",
    "\x01",
    "\x85",
    "\u2028",
    # Escapes that are none.
    "a%b",
    "a%3Ab",
    "a%253Ab",
    "a%2Fb",
    "%",
    "%00",
    "a+b",
    "a b",
    "a\\b",
    "\\",
    "\\0",
    "&amp;",
    "\\u0061",
    "=3D",
    # What globs, LIKE, regular expressions, SQL, shells and documents make something of.
    "*",
    "h*llo",
    "h?llo",
    "hallo",
    "hello",
    "h[ae]llo",
    "[a-z]",
    "[^a]",
    "?",
    "**",
    "_",
    "a_c",
    "abc",
    "100%",
    "1000",
    "a.c",
    "^a",
    "a$",
    "$x",
    "$where",
    "${HOME}",
    "(a|b)",
    ".*",
    "'",
    '"',
    "`",
    "' OR 1=1 --",
    "'; DROP TABLE kvstore; --",
    "{}",
    "{a}",
    '{"$gt": ""}',
    "~",
    "-",
    "--help",
    "#",
    "a#b",
    "a&b=c",
    "<a>",
    "a|b",
    ",",
    ";",
    "!",
    "@",
    # Names that files, tables and objects give a meaning.
    "con",
    "CON",
    "nul.txt",
    "aux",
    "a.json",
    "a.json:b",
    ".tmp",
    ".git:config",
    "lost+found",
    "index",
    "_id",
    "meta",
    "$",
    "a:$meta",
    "__proto__",
    "null",
    "0",
    "00",
    "-1",
    "1e3",
    # Unicode: one look in two spellings, both directions, width zero, beyond the first plane, the ends of ranges.
    "caf\u00e9",
    "cafe\u0301",
    "\u212b",
    "\u00c5",
    "ﬁ",
    "fi",
    "１",
    "日本語",
    "日本語:キー",
    "שלום",
    "مرحبا",
    "\u202eabc",
    "a\u200bb",
    "a\u200db",
    "\ufeffa",
    "👩\u200d👩\u200d👧",
    "🙂",
    "a:🙂",
    "\ud7ff",
    "\ue000",
    "\uffff",
    "\U00010000",
    "\U0010ffff",
    # As long and as deep as can be.
    "s" * 900,
    "S" * 900,
    "k" * 1024,
    "k" * 1023,
    "🙂" * 256,
    "ß" * 300,
    " " * 300,
    "%" * 400,
    ":".join("d" * 300),
    ":".join("d" * 512),
    ":".join(["segment"] * 127),
    "p:" + "s" * 900,
    "p:" + "s" * 900 + ":t",
)
"""Keys that every driver has to hold, next to each other. All are normalized."""

RESERVED_KEYS: tuple[str, ...] = (
    *("$meta", "$meta:index", "$meta:expiring", "$meta:written", "$meta:changes", "$meta:of:a", "$meta:part:0"),
    *(".kvstore", ".kvstore:a", ".kvstore:tmp:a", ".kvstore:keys:a", ".kvstore:times:a", "kvstore_schema"),
)
"""What a driver might keep things of its own under. All are keys below a mount."""

HOSTILE_BASES: tuple[str, ...] = (
    "h*llo",
    "h?llo",
    "h[ae]llo",
    "[a-z]",
    "*",
    "?",
    "_",
    "a_c",
    "100%",
    "%",
    ".*",
    "a.c",
    "\\",
    "A",
)
"""Bases that a pattern would take for others as well."""

_LURES = ("hello", "hallo", "b", "abc", "a%c", "1000", "100", "x", "aXc", "a", "\\\\", "AA")


class Keys(Contract):
    """K1 to K3 of the contract."""

    @in_loop
    @promised("every_key")
    async def test_hostile_keys_all_work_next_to_each_other(self, store: Store) -> None:
        """K3: every legal key works, next to every other."""
        storage = store.storage
        values = {key: f"value of {key!r}" for key in HOSTILE_KEYS}
        for key in HOSTILE_KEYS[::2]:
            await storage.set_item(key, values[key])
        await storage.set_items({key: values[key] for key in HOSTILE_KEYS[1::2]})

        assert await storage.get_items(HOSTILE_KEYS) == values
        for key in HOSTILE_KEYS:
            assert await storage.get_item(key) == values[key], key
            assert await storage.has_item(key), key

    @in_loop
    @promised("every_key")
    async def test_hostile_keys_are_listed_by_code_point(self, store: Store) -> None:
        """K3, R3: as they are, each once, sorted by code point."""
        storage = store.storage
        await storage.set_items(dict.fromkeys(HOSTILE_KEYS, 1))

        assert await storage.get_keys() == sorted(HOSTILE_KEYS)
        assert await storage.get_keys(reverse=True) == sorted(HOSTILE_KEYS, reverse=True)
        assert await storage.count() == len(HOSTILE_KEYS)

    @in_loop
    @promised("every_key")
    async def test_a_hostile_key_is_a_cursor(self, store: Store) -> None:
        """R3: a listing goes on behind any key, in both directions."""
        storage = store.storage
        await storage.set_items(dict.fromkeys(HOSTILE_KEYS, 1))
        ordered = sorted(HOSTILE_KEYS)

        for place, key in list(enumerate(ordered))[:: 20 if store.suite.slow else 2]:
            assert await storage.get_keys(after=key, limit=2) == ordered[place + 1 : place + 3], key
            assert await storage.get_keys(after=key, limit=2, reverse=True) == ordered[max(0, place - 2) : place][::-1], key

    @in_loop
    @promised("every_key")
    async def test_a_hostile_key_is_removed_alone(self, store: Store) -> None:
        """K3: removing one leaves every other."""
        storage = store.storage
        await storage.set_items(dict.fromkeys(HOSTILE_KEYS, 1))
        left = set(HOSTILE_KEYS)

        for key in HOSTILE_KEYS[::3]:
            assert await storage.remove_item(key) is True, key
            assert await storage.remove_item(key) is False, key
            left.remove(key)
        assert await storage.get_keys() == sorted(left)
        assert list(await storage.get_items(sorted(left))) == sorted(left)

    @in_loop
    @promised("every_key")
    async def test_a_hostile_key_is_overwritten_alone(self, store: Store) -> None:
        """K3: overwriting one changes no other."""
        storage = store.storage
        await storage.set_items(dict.fromkeys(HOSTILE_KEYS, "old"))
        new = HOSTILE_KEYS[::3]

        for key in new:
            await storage.set_item(key, "new")
        assert await storage.get_items(HOSTILE_KEYS) == {key: "new" if key in new else "old" for key in HOSTILE_KEYS}

    @in_loop
    @promised("every_key")
    async def test_hostile_keys_outlive_the_program(self, store: Store) -> None:
        """K3: what was escaped is read back by the next program."""
        await store.storage.set_items({key: key for key in HOSTILE_KEYS})

        storage = await store.reopened()
        assert await storage.get_items(HOSTILE_KEYS) == {key: key for key in HOSTILE_KEYS}
        assert await storage.get_keys() == sorted(HOSTILE_KEYS)

    @in_loop
    @promised("every_key")
    async def test_what_is_reserved_at_the_root_is_a_key_like_any_other_below_a_mount(self, store: Store) -> None:
        """K2, K3: of a mounted driver's keys the first segment may be `$meta`, and is not the driver's own."""
        storage = store.mounted("c")
        keys = sorted([*(f"c:{key}" for key in (*RESERVED_KEYS, "a", "a:$meta", "$metal", "$meta!", "$meta;", "$", "#", "b"))])
        for key in keys[::2]:
            await storage.set_item(key, key)
        await storage.set_items({key: key for key in keys[1::2]})
        if store.promises("metadata"):
            await storage.set_meta("c:a", {"of": "a"})

        assert await storage.get_items(keys) == {key: key for key in keys}
        assert await storage.get_keys() == keys
        assert await storage.get_keys("c", reverse=True) == keys[::-1]
        assert await storage.get_keys("c:$meta") == [key for key in keys if key.startswith("c:$meta:")]
        for place, key in enumerate(keys):
            assert await storage.get_keys("c", after=key, limit=2) == keys[place + 1 : place + 3], key
        assert await storage.count("c") == len(keys)
        if store.promises("metadata"):
            assert {key: (await storage.get_meta(key)).custom for key in keys} == {  # type: ignore[union-attr]
                key: {"of": "a"} if key == "c:a" else {} for key in keys
            }
        assert await storage.remove_item("c:a") is True
        keys.remove("c:a")
        assert await storage.get_items(keys) == {key: key for key in keys}
        assert await storage.clear("c:$meta") == sum(key.startswith("c:$meta:") for key in keys)
        assert await storage.get_keys() == [key for key in keys if not key.startswith("c:$meta:")]

    @in_loop
    async def test_a_prefix_is_literal(self, store: Store) -> None:
        """K3: no glob, LIKE or regex character of a base matches anything but itself, nor does case."""
        storage = store.storage
        kept = {f"{base}:{leaf}" for base in HOSTILE_BASES + _LURES for leaf in ("x", "*", "y:z")}
        await storage.set_items(dict.fromkeys(kept, 1))

        for base in HOSTILE_BASES:
            below = sorted(key for key in kept if key.startswith(base + ":"))
            assert await storage.get_keys(base) == below, base
            assert await storage.count(base) == len(below), base
        for base in HOSTILE_BASES:
            assert await storage.clear(base) == 3, base
            kept = {key for key in kept if not key.startswith(base + ":")}
            assert await storage.get_keys() == sorted(kept), base

    @in_loop
    async def test_spellings_of_one_key_are_one_key(self, store: Store) -> None:
        """K1: `/` separates too, and separators fold."""
        storage = store.storage
        await storage.set_item("/users//1/", "one")

        for spelling in ("users:1", "users/1", ":users:/1:", "//users:1"):
            assert await storage.get_item(spelling) == "one", spelling
        assert await storage.get_keys() == ["users:1"]

    @in_loop
    async def test_what_is_no_key_is_refused(self, store: Store) -> None:
        """K2: refused, and nothing is stored."""
        storage = store.storage
        for key in ("", ":", "a:..:b", ".", "a\0b", "\ud800", "x" * 1025, "🙂" * 257, "$meta", "$meta:a"):
            with pytest.raises(InvalidKeyError):
                await storage.set_item(key, 1)
        assert await storage.get_keys() == []
