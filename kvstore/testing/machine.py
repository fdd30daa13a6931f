"""A state machine: Hypothesis makes up sequences of calls, and a storage has to answer like a dict."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstore.driver import Driver
from kvstore.errors import CorruptValueError
from kvstore.expiry import Ttl
from kvstore.storage import create_storage
from kvstore.testing.clock import FakeClock
from kvstore.testing.store import LONG, refuses
from kvstore.testing.values import same
from kvstore.values import MISSING, NEVER

T = TypeVar("T")

INNER = "c"
"""Where the second driver is mounted."""

# Few, so that calls meet; next to each other, below each other, and on both sides of the mount.
_KEYS = ("a", "a:b", "a:b:c", "a:%", "A:b", "a ", "ab:b", "a;", "_:b", "é", "e\u0301", "c", "c:a", "c:a:b", "c:*", "d:🙂")
_BASES = ("", "a", "a:b", "A", "_", "c", "c:a", "*", "d")
_keys = st.sampled_from(_KEYS)
_bases = st.sampled_from(_BASES)
_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text("abé", max_size=3), inner, max_size=3)),
    max_leaves=6,
)
_raw = st.sampled_from((b"", b"\0\xff", b"not json", b"[", b"raw " * 5000))
_ttls = st.sampled_from((None, None, 0.001, 1, 60.5, timedelta(minutes=5), NEVER))
_custom = st.dictionaries(st.text("abé", max_size=3), st.integers(0, 9) | st.text(max_size=3), min_size=1, max_size=2)


@dataclass
class _Entry:
    value: Any
    """JSON, or bytes that are not JSON."""
    expires_at: int | None
    custom: dict[str, Any] = field(default_factory=dict)


def storage_machine(make_driver: Callable[[Path], Driver], directory: Path | None = None) -> type[RuleBasedStateMachine]:
    """A machine on the drivers that `make_driver` makes, as `DriverSuite.make_driver` does.

    Their stores lie below `directory`, by default the one for temporary files.
    `storage_machine(make).TestCase` is a test, `run_state_machine_as_test(storage_machine(make), settings=...)` runs it.
    """

    class Machine(StorageMachine):
        parent = directory

        def make_driver(self, path: Path) -> Driver:
            return make_driver(path)

    return Machine


class StorageMachine(RuleBasedStateMachine):
    """A storage with one driver at the root and one at `c`, held against dicts. Subclass it with `make_driver`."""

    parent: Path | None = None
    """Where the stores lie, by default among the temporary files."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory(dir=self.parent)
        self._loop = asyncio.new_event_loop()
        self._clock = FakeClock()
        # What each driver holds, by whole key; what the root holds below `c` is masked while something is mounted there.
        self._held: dict[str, dict[str, _Entry]] = {"": {}, INNER: {}}
        self._mounted = True
        self._drivers = {"": self._open(""), INNER: self._open(INNER)}
        self._capabilities = self._drivers[""].capabilities
        self._arrange()

    def make_driver(self, path: Path) -> Driver:
        """A new driver on the store below `path`; see `DriverSuite.make_driver`."""
        raise NotImplementedError

    def teardown(self) -> None:
        try:
            self._run(self._storage.aclose())
            if not self._mounted and not self._capabilities.persistent:
                self._run(self._drivers[INNER].aclose())
        finally:
            self._run(self._loop.shutdown_default_executor())
            self._loop.close()
            self._directory.cleanup()

    # The model

    def _open(self, base: str) -> Driver:
        path = Path(self._directory.name) / f"store-{base}"
        path.mkdir(exist_ok=True)
        driver = self.make_driver(path)
        if driver.capabilities.own_clock:
            driver.clock = self._clock
        return driver

    def _arrange(self) -> None:
        self._storage = create_storage(self._drivers[""])
        if self._mounted:
            self._storage.mount(INNER, self._drivers[INNER])

    def _run(self, call: Awaitable[T]) -> T:
        return self._loop.run_until_complete(call)

    def _home(self, key: str) -> dict[str, _Entry]:
        return self._held[INNER if self._mounted and key.startswith(INNER + ":") else ""]

    def _there(self, key: str) -> _Entry | None:
        return self._home(key).get(key)

    def _visible(self) -> dict[str, _Entry]:
        return {key: entry for held in self._held.values() for key, entry in held.items() if self._home(key) is held}

    def _put(self, key: str, value: Any, ttl: Ttl = None) -> None:
        old = self._there(key)
        self._home(key)[key] = _Entry(value, self._expires_at(ttl), old.custom if old else {})

    def _drop(self, key: str) -> bool:
        return self._home(key).pop(key, None) is not None

    def _ttl(self, ttl: Ttl) -> Ttl:
        """`ttl`, or what can be asked of a driver that keeps none, or that tells time by a clock that can't be turned."""
        if not self._capabilities.expiry:
            return None
        return ttl if self._capabilities.own_clock or ttl in (None, NEVER) else LONG

    def _expires_at(self, ttl: Ttl) -> int | None:
        if ttl is None or ttl is NEVER:
            return None
        seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
        return self._clock.now + round(float(seconds) * 1000)

    def _near(self, key: str) -> str:
        """A key that is there, for `key` or one that follows it if there is any."""
        there = sorted(self._visible())
        return next((other for other in there if other >= key), there[0] if there else key)

    def _json(self, entry: _Entry | None) -> Any:
        """What `entry` has as an expected value."""
        return MISSING if entry is None else entry.value

    # One key

    @rule(key=_keys, value=_values, ttl=_ttls, existing=st.booleans())
    def set_item(self, key: str, value: Any, ttl: Ttl, existing: bool) -> None:
        key = self._near(key) if existing else key
        ttl = self._ttl(ttl)
        self._run(self._storage.set_item(key, value, ttl=ttl))
        self._put(key, value, ttl)

    @rule(key=_keys, data=_raw, ttl=_ttls)
    def set_item_raw(self, key: str, data: bytes, ttl: Ttl) -> None:
        ttl = self._ttl(ttl)
        self._run(self._storage.set_item_raw(key, data, ttl=ttl))
        self._put(key, data, ttl)

    @rule(key=_keys)
    def get_item(self, key: str) -> None:
        entry = self._there(key)
        if entry is not None and isinstance(entry.value, bytes):
            with pytest.raises(CorruptValueError):
                self._run(self._storage.get_item(key))
            assert self._run(self._storage.get_item_raw(key)) == entry.value
        else:
            assert same(self._run(self._storage.get_item(key, "default")), entry.value if entry else "default")
        assert self._run(self._storage.has_item(key)) is (entry is not None)

    @rule(key=_keys)
    def remove_item(self, key: str) -> None:
        assert self._run(self._storage.remove_item(key)) is self._drop(key)

    @rule(key=_keys, ttl=_ttls, existing=st.booleans())
    def touch(self, key: str, ttl: Ttl, existing: bool) -> None:
        key = self._near(key) if existing else key
        limited = self._capabilities.expiry and not self._capabilities.conditional
        if limited and type(self._drivers[""]).touch is Driver.touch:
            self._run(refuses(self._storage.touch(key)))
            return
        ttl, entry = self._ttl(ttl), self._there(key)
        assert self._run(self._storage.touch(key, ttl=ttl)) is (entry is not None)
        if entry is not None:
            entry.expires_at = self._expires_at(ttl)

    @rule(key=_keys)
    def get_meta(self, key: str) -> None:
        entry, meta = self._there(key), self._run(self._storage.get_meta(key))
        assert (meta is None) is (entry is None)
        if meta is None or entry is None:
            return
        if isinstance(entry.value, bytes):
            assert meta.size == len(entry.value)
        if self._capabilities.metadata:
            assert meta.custom == entry.custom
            if self._capabilities.own_clock:
                since = datetime.fromtimestamp(0, UTC)
                expires_at = meta.expires_at and (meta.expires_at - since) // timedelta(milliseconds=1)
                assert expires_at == entry.expires_at

    @rule(key=_keys, custom=st.none() | _custom, existing=st.booleans())
    def set_meta(self, key: str, custom: dict[str, Any] | None, existing: bool) -> None:
        key = self._near(key) if existing else key
        call = self._storage.remove_meta(key) if custom is None else self._storage.set_meta(key, custom)
        if not self._capabilities.metadata:
            self._run(refuses(call))
            return
        entry = self._there(key)
        assert self._run(call) is (entry is not None)
        if entry is not None:
            entry.custom = custom or {}

    # Conditions

    @rule(key=_keys, value=_values, ttl=_ttls)
    def add_item(self, key: str, value: Any, ttl: Ttl) -> None:
        ttl = self._ttl(ttl)
        call = self._storage.add_item(key, value, ttl=ttl)
        if not self._capabilities.conditional:
            self._run(refuses(call))
            return
        added = self._there(key) is None
        assert self._run(call) is added
        if added:
            self._put(key, value, ttl)

    @rule(key=_keys, expected=st.none() | _values, right=st.booleans(), new=st.just(MISSING) | _values)
    def compare_and_set(self, key: str, expected: Any, right: bool, new: Any) -> None:
        held = self._json(self._there(key))
        if isinstance(held, bytes):
            return
        expected = held if right else expected
        call = self._storage.compare_and_set(key, expected, new)
        if not self._capabilities.conditional:
            self._run(refuses(call))
            return
        holds = _equal(held, expected)
        assert self._run(call) is holds
        if holds:
            self._drop_or_put(key, new)

    @rule(key=_keys, new=st.just(MISSING) | _values, default=_values, ttl=_ttls)
    def update_item(self, key: str, new: Any, default: Any, ttl: Ttl) -> None:
        held = self._json(self._there(key))
        if isinstance(held, bytes):
            return
        seen = []
        ttl = self._ttl(ttl)

        def change(value: Any) -> Any:
            seen.append(value)
            return new

        call = self._storage.update_item(key, change, default, ttl=ttl)
        if not self._capabilities.conditional:
            self._run(refuses(call))
            return
        assert self._run(call) is new
        assert len(seen) == 1
        assert same(seen[0], default if held is MISSING else held)
        self._drop_or_put(key, new, ttl)

    @rule(items=st.dictionaries(_keys, _values, max_size=3), removes=st.sets(_keys, max_size=2), right=st.booleans())
    def commit(self, items: dict[str, Any], removes: set[str], right: bool) -> None:
        removes -= set(items)
        homes = {id(self._home(key)) for key in (*items, *removes)}
        expect = {key: self._json(self._there(key)) for key in (*items, *removes)}
        if any(isinstance(held, bytes) for held in expect.values()):
            return
        if not right and expect:
            expect[min(expect)] = "something else entirely"
        call = self._storage.commit(items, removes, expect=expect)
        allowed = self._capabilities.atomic and self._capabilities.conditional and len(homes) < 2
        if not allowed and expect:
            self._run(refuses(call))
            return
        holds = right or not expect
        assert self._run(call) is holds
        if holds:
            for key, value in items.items():
                self._put(key, value)
            for key in removes:
                self._drop(key)

    def _drop_or_put(self, key: str, new: Any, ttl: Ttl = None) -> None:
        if new is MISSING:
            self._drop(key)
        else:
            self._put(key, new, ttl)

    # Many keys

    @rule(items=st.dictionaries(_keys, _values, max_size=5), ttl=_ttls)
    def set_items(self, items: dict[str, Any], ttl: Ttl) -> None:
        ttl = self._ttl(ttl)
        self._run(self._storage.set_items(items, ttl=ttl))
        for key, value in items.items():
            self._put(key, value, ttl)

    @rule(keys=st.lists(_keys, max_size=6))
    def get_items(self, keys: list[str]) -> None:
        keys = [key for key in keys if not isinstance(self._json(self._there(key)), bytes)]
        found = self._run(self._storage.get_items(keys, "default"))
        assert list(found) == list(dict.fromkeys(keys))
        for key, value in found.items():
            entry = self._there(key)
            assert same(value, entry.value if entry else "default")

    @rule(keys=st.lists(_keys, max_size=4))
    def remove_items(self, keys: list[str]) -> None:
        assert self._run(self._storage.remove_items(keys)) == sum(self._drop(key) for key in set(keys))

    @rule(base=_bases)
    def clear(self, base: str) -> None:
        below = [key for key in self._visible() if _below(key, base)]
        assert self._run(self._storage.clear(base)) == len(below)
        for key in below:
            self._drop(key)

    @rule(key=_keys, kinds=st.lists(st.sampled_from(("set", "remove", "get", "has", "clear")), min_size=2, max_size=6))
    def gather(self, key: str, kinds: list[str]) -> None:
        """Calls on one key at once take effect in their order."""
        calls: list[Callable[[], Awaitable[Any]]] = []
        answers: list[Any] = []
        for number, kind in enumerate(kinds):
            there = self._there(key)
            if isinstance(self._json(there), bytes) and kind == "get":
                continue
            if kind == "set":
                calls.append(lambda number=number: self._storage.set_item(key, number))  # type: ignore[misc]
                answers.append(None)
                self._put(key, number)
            elif kind == "remove":
                calls.append(lambda: self._storage.remove_item(key))
                answers.append(self._drop(key))
            elif kind == "get":
                calls.append(lambda: self._storage.get_item(key, "default"))
                answers.append(there.value if there else "default")
            elif kind == "has":
                calls.append(lambda: self._storage.has_item(key))
                answers.append(there is not None)
            else:
                below = [other for other in self._visible() if _below(other, "a")]
                calls.append(lambda: self._storage.clear("a"))
                answers.append(len(below))
                for other in below:
                    self._drop(other)

        async def at_once() -> list[Any]:
            return await asyncio.gather(*(call() for call in calls))

        assert same(self._run(at_once()), answers)

    # Listing

    @rule(
        base=_bases,
        after=st.none() | _keys,
        limit=st.none() | st.integers(0, 5),
        reverse=st.booleans(),
        max_depth=st.none() | st.integers(0, 2),
    )
    def get_keys(self, base: str, after: str | None, limit: int | None, reverse: bool, max_depth: int | None) -> None:
        found = self._run(self._storage.get_keys(base, after=after, limit=limit, reverse=reverse, max_depth=max_depth))
        cut = len(base) + 1 if base else 0
        left = [
            key
            for key in sorted(self._visible(), reverse=reverse)
            if _below(key, base)
            and (after is None or (key < after if reverse else key > after))
            and (max_depth is None or key[cut:].count(":") <= max_depth)
        ]
        assert found == left[:limit]

    @rule(base=_bases)
    def count(self, base: str) -> None:
        assert self._run(self._storage.count(base)) == sum(_below(key, base) for key in self._visible())

    @rule(base=_bases)
    def iter_keys(self, base: str) -> None:
        async def listed() -> list[str]:
            return [key async for key in self._storage.iter_keys(base)]

        assert self._run(listed()) == sorted(key for key in self._visible() if _below(key, base))

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        visible = self._visible()
        assert self._run(self._storage.get_keys()) == sorted(visible)
        json = {key: entry.value for key, entry in visible.items() if not isinstance(entry.value, bytes)}
        assert same(self._run(self._storage.get_items(json)), json)
        for key, entry in visible.items():
            if isinstance(entry.value, bytes):
                assert self._run(self._storage.get_item_raw(key)) == entry.value
            if entry.custom:
                self.get_meta(key)

    # Time, mounts, the next program

    @precondition(lambda self: self._capabilities.own_clock)
    @rule(seconds=st.sampled_from((0.001, 0.999, 1.0, 60.0, 400.0)), sweep=st.booleans())
    def time_goes_by(self, seconds: float, sweep: bool) -> None:
        self._clock.advance(seconds)
        for held in self._held.values():
            for key, entry in list(held.items()):
                if entry.expires_at is not None and entry.expires_at <= self._clock.now:
                    del held[key]
        if sweep:
            self._run(self._drivers[""].sweep())

    @rule()
    def mount_or_unmount(self) -> None:
        persistent = self._capabilities.persistent
        if self._mounted:
            self._run(self._storage.unmount(INNER, close=persistent))
        else:
            if persistent:
                self._drivers[INNER] = self._open(INNER)
            self._storage.mount(INNER, self._drivers[INNER])
        self._mounted = not self._mounted

    @precondition(lambda self: self._capabilities.persistent)
    @rule()
    def reopen(self) -> None:
        self._run(self._storage.aclose())
        self._drivers = {"": self._open(""), INNER: self._open(INNER) if self._mounted else self._drivers[INNER]}
        self._arrange()


def _below(key: str, base: str) -> bool:
    return not base or key.startswith(base + ":")


def _equal(held: object, expected: object) -> bool:
    """Equal as JSON: 1, 1.0 and True differ, the order of members does not count."""
    if isinstance(held, Mapping) and isinstance(expected, Mapping):
        return held.keys() == expected.keys() and all(_equal(held[name], expected[name]) for name in held)
    if isinstance(held, list) and isinstance(expected, list):
        return len(held) == len(expected) and all(map(_equal, held, expected))
    return same(held, expected)
