"""The kit itself: a third party's small driver passes it, and it fails every driver that breaks a promise."""

from __future__ import annotations

import asyncio
import fnmatch
import os
import pkgutil
import re
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.configuration import storage_directory
from hypothesis.stateful import run_state_machine_as_test

import kvstore.testing
from kvstore.clock import now_ms
from kvstore.driver import Capabilities, Driver, Expect, Tell, Write
from kvstore.drivers.memory import MemoryDriver
from kvstore.errors import BackendError
from kvstore.testing import DriverSuite, Store, in_loop, storage_machine

GUIDE = Path(__file__).parent.parent / "docs" / "writing-a-driver.md"


def test_the_drivers_of_the_guide_pass_with_the_test_module_of_the_guide(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "test_guide.py").write_text("".join(blocks))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", "--basetemp=stores", "test_guide.py"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "HYPOTHESIS_STORAGE_DIRECTORY": str(storage_directory())}
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=120, check=False)

    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr
    assert f"{3 * len(_tests())} passed" in ran.stdout
    assert "skipped" not in ran.stdout
    assert "warning" not in ran.stdout


# Drivers with one fault each, and a test that has to notice it.


class LikePrefix(MemoryDriver):
    """Takes `%` and `_` of a prefix for wildcards."""

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        pattern = prefix.replace("%", "*").replace("_", "?") + "*"
        return _page([key for key in self._entries if fnmatch.fnmatchcase(key, pattern)], after, limit, reverse)


class GlobPrefix(MemoryDriver):
    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        return _page([key for key in self._entries if fnmatch.fnmatchcase(key, prefix + "*")], after, limit, reverse)


class CaselessPrefix(MemoryDriver):
    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        return _page([key for key in self._entries if key.lower().startswith(prefix.lower())], after, limit, reverse)


class CaselessOrder(MemoryDriver):
    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        keys = await super().scan(prefix, after=after, limit=10**6, reverse=reverse)
        return sorted(keys, key=str.lower, reverse=reverse)[:limit]


class InclusiveCursor(MemoryDriver):
    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        keys = await super().scan(prefix, after=after, limit=limit, reverse=reverse)
        return [after, *keys][:limit] if after in self._entries and after.startswith(prefix) and reverse else keys


class CursorMustExist(MemoryDriver):
    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        after = None if after is not None and after not in self._entries else after
        return await super().scan(prefix, after=after, limit=limit, reverse=reverse)


class ForgetsTheLimit(MemoryDriver):
    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        return await super().scan(prefix, after=after, limit=limit + 1, reverse=reverse)


class _Renaming(MemoryDriver):
    """Spells keys its own way, and can't tell afterwards which it was."""

    def spell(self, key: str) -> str:
        return key

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        return await super().read([self.spell(key) for key in keys])

    async def has(self, keys: Sequence[str]) -> list[bool]:
        return await super().has([self.spell(key) for key in keys])

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        expect = {self.spell(key): data for key, data in (expect or {}).items()}
        return await super().write([(self.spell(key), *rest) for key, *rest in writes], expect)


class MergesCase(_Renaming):
    def spell(self, key: str) -> str:
        return key.lower()


class StripsSpaces(_Renaming):
    def spell(self, key: str) -> str:
        return key.rstrip(" .")


class MergesUnicode(_Renaming):
    def spell(self, key: str) -> str:
        return unicodedata.normalize("NFC", key)


class CutsLongKeys(_Renaming):
    def spell(self, key: str) -> str:
        return key[:767]


class UnescapesPercent(_Renaming):
    def spell(self, key: str) -> str:
        return key.replace("%3A", ":")


class ExpiresEarly(MemoryDriver):
    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        expired = {key for key, (_, at, _, _) in self._entries.items() if at is not None and at <= self.clock() + 1}
        return [None if key in expired else data for key, data in zip(keys, await super().read(keys), strict=True)]


class SecondsOnly(MemoryDriver):
    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        return await super().write([(key, data, at and -(-at // 1000) * 1000) for key, data, at in writes], expect)


class ListsTheExpired(MemoryDriver):
    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        return _page([key for key in self._entries if key.startswith(prefix)], after, limit, reverse)


class CountsTheExpired(MemoryDriver):
    async def count(self, prefix: str) -> int:
        return len([key for key in self._entries if key.startswith(prefix)])


class RemovesTheExpired(MemoryDriver):
    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        there = [key in self._entries for key, _, _ in writes]
        return there if await super().write(writes, expect) is not None else None


class KeepsTheOldExpiry(MemoryDriver):
    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        old = {key: entry[1] for key, entry in self._entries.items()}
        return await super().write([(key, data, at or old.get(key)) for key, data, at in writes], expect)


class NeverSweeps(MemoryDriver):
    def _expire(self) -> bool:
        return False

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        return _page([key for key in self._entries if key.startswith(prefix) and self._live(key)], after, limit, reverse)

    async def count(self, prefix: str) -> int:
        return len(await self.scan(prefix, after=None, limit=10**6, reverse=False))

    async def clear(self, prefix: str) -> int:
        return await Driver.clear(self, prefix)


class EmptyIsMissing(MemoryDriver):
    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        return [data or None for data in await super().read(keys)]


class TextOnly(MemoryDriver):
    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        return [data and data.decode("utf-8", "replace").encode() for data in await super().read(keys)]


class StripsValues(MemoryDriver):
    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        return await super().write([(key, data and data.strip(), at) for key, data, at in writes], expect)


class FakesConditions(MemoryDriver):
    """Shares one store between all of its kind; looks, and writes a moment later."""

    capabilities = Capabilities(atomic=True, conditional=True, metadata=True, shared=True)
    _store = MemoryDriver()

    def __init__(self) -> None:
        super().__init__()
        self._entries = self._store._entries

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        if expect:
            held = await self.read(list(expect))
            await asyncio.sleep(0)
            if held != list(expect.values()):
                return None
        return await super().write(writes)


class ForgetsExpect(MemoryDriver):
    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        return await super().write(writes, {key: data for key, data in (expect or {}).items() if data is not None})


class HalfBatches(MemoryDriver):
    """Says `atomic` and writes one after another."""

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        found = []
        for write in writes:
            found += await super().write([write], expect) or []
            await asyncio.sleep(0)
        return found


class NeverInline(MemoryDriver):
    """Says that it never waits, and does."""

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        await asyncio.sleep(0.0001 if len(writes[0][1] or b"") % 2 else 0)
        return await super().write(writes, expect)


class WritesLate(MemoryDriver):
    """Goes on with a write whose caller was cancelled, some time later, and says that it is over."""

    cancellable = True
    capabilities = Capabilities(atomic=True, conditional=True, metadata=True, persistent=False)

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            write = super().write
            asyncio.get_running_loop().call_later(0.005, lambda: asyncio.ensure_future(write(writes, expect)))
            raise
        return await super().write(writes, expect)

    async def settle(self) -> None:
        pass


class LosesMetadata(MemoryDriver):
    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        for key, _, _ in writes:
            if key in self._entries:
                self._entries[key] = (*self._entries[key][:3], None)
        return await super().write(writes, expect)


class KeepsMetadata(MemoryDriver):
    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, bytes | None] = {}

    async def set_meta(self, key: str, custom: bytes | None) -> bool:
        self.kept[key] = custom
        return await super().set_meta(key, custom)

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        found = await super().write(writes, expect)
        for key, data, _ in writes:
            if data is not None and self.kept.get(key) is not None:
                self._entries[key] = (*self._entries[key][:3], self.kept[key])
        return found


class ClearsNeighbours(MemoryDriver):
    async def clear(self, prefix: str) -> int:
        return await Driver.clear(self, prefix.rstrip(":"))


class SaysNothingWasThere(MemoryDriver):
    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        found = await super().write(writes, expect)
        return found and [False] * len(found)


class HoldsTheLoop(MemoryDriver):
    """Waits for its backend without letting others run."""

    capabilities = Capabilities(atomic=True, conditional=True, metadata=True, persistent=False)

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        time.sleep(0.16)  # noqa: ASYNC251
        return await super().read(keys)


class TakesEmptyForMissing(MemoryDriver):
    """Compares a condition by truth."""

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        expect = expect or {}
        if [data or None for data in await self.read(list(expect))] != [data or None for data in expect.values()]:
            return None
        return await super().write(writes)


class SweepsOnce(NeverSweeps):
    """Does not say when the next key expires."""

    async def sweep(self) -> int | None:
        await super().sweep()
        for key in [key for key in self._entries if not self._live(key)]:
            del self._entries[key]
        return None


class GivesViews(MemoryDriver):
    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        return [data and memoryview(data) for data in await super().read(keys)]  # type: ignore[misc]


class GivesBytearrays(MemoryDriver):
    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        return [data and bytearray(data) for data in await super().read(keys)]  # type: ignore[misc]


class GivesText(MemoryDriver):
    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        return [data and data.decode() for data in await super().read(keys)]  # type: ignore[misc]


class ClearsWhatIsHidden(MemoryDriver):
    async def clear_and_tell(self, prefix: str, masked: tuple[str, ...], tell: Tell) -> int:
        return await super().clear_and_tell(prefix, (), tell)


class ForgetsToReturn(MemoryDriver):
    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        await super().write(writes, expect)
        return None


class LeavesOutTheMissing(MemoryDriver):
    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        return [data for data in await super().read(keys) if data is not None]


class BoastsOfPersistence(MemoryDriver):
    capabilities = Capabilities(atomic=True, conditional=True, metadata=True, persistent=True)


class BoastsOfSharing(MemoryDriver):
    capabilities = Capabilities(atomic=True, conditional=True, metadata=True, persistent=True, shared=True)


class BoastsOfMetadata(MemoryDriver):
    async def stat(self, keys: Sequence[str]) -> list[object]:  # type: ignore[override]
        return await Driver.stat(self, keys)  # type: ignore[return-value]


class BoastsOfWatching(MemoryDriver):
    async def _nothing(self) -> None: ...

    def watch(self, prefix: str) -> object:  # type: ignore[override]
        return asyncio.timeout(None)  # a context, at least


def _page(keys: list[str], after: str | None, limit: int, reverse: bool) -> list[str]:
    return [key for key in sorted(keys, reverse=reverse) if after is None or (key < after if reverse else key > after)][:limit]


BROKEN: dict[type[MemoryDriver], str] = {
    LikePrefix: "test_a_prefix_is_literal",
    GlobPrefix: "test_a_prefix_is_literal",
    CaselessPrefix: "test_a_prefix_is_literal",
    CaselessOrder: "test_hostile_keys_are_listed_by_code_point",
    InclusiveCursor: "test_a_hostile_key_is_a_cursor",
    CursorMustExist: "test_a_scan_starts_behind_any_text",
    ForgetsTheLimit: "test_a_scan_starts_behind_any_text",
    MergesCase: "test_hostile_keys_all_work_next_to_each_other",
    StripsSpaces: "test_hostile_keys_all_work_next_to_each_other",
    MergesUnicode: "test_hostile_keys_all_work_next_to_each_other",
    CutsLongKeys: "test_hostile_keys_all_work_next_to_each_other",
    UnescapesPercent: "test_hostile_keys_all_work_next_to_each_other",
    ExpiresEarly: "test_nothing_expires_early_or_stays_late",
    SecondsOnly: "test_nothing_expires_early_or_stays_late",
    ListsTheExpired: "test_an_expired_key_is_gone_for_every_read",
    CountsTheExpired: "test_clearing_a_base_does_not_count_the_expired",
    RemovesTheExpired: "test_removing_an_expired_key_removes_nothing",
    KeepsTheOldExpiry: "test_a_write_without_a_ttl_clears_it",
    NeverSweeps: "test_the_space_of_expired_keys_is_taken_back",
    EmptyIsMissing: "test_bytes_are_kept_unchanged",
    TextOnly: "test_bytes_are_kept_unchanged",
    StripsValues: "test_bytes_are_kept_unchanged",
    FakesConditions: "test_one_of_many_wins",
    ForgetsExpect: "test_add_stores_only_what_was_absent",
    HalfBatches: "test_no_reader_sees_half_a_batch",
    NeverInline: "test_calls_on_one_key_take_effect_in_the_order_they_were_gathered",
    WritesLate: "test_a_cancelled_write_never_overtakes_a_later_one",
    LosesMetadata: "test_custom_metadata_stays_over_an_overwrite",
    KeepsMetadata: "test_custom_metadata_goes_with_its_key",
    ClearsNeighbours: "test_clear_removes_exactly_what_lies_below",
    SaysNothingWasThere: "test_removing_says_whether_the_key_was_there",
    HoldsTheLoop: "test_a_large_value_does_not_hold_the_event_loop",
    TakesEmptyForMissing: "test_an_empty_value_is_not_missing_to_conditions",
    SweepsOnce: "test_a_sweep_says_when_the_next_key_expires",
    GivesViews: "test_bytes_are_kept_unchanged",
    GivesBytearrays: "test_a_driver_reads_in_the_order_asked",
    GivesText: "test_a_driver_reads_in_the_order_asked",
    ClearsWhatIsHidden: "test_clear_spares_what_another_mount_hides",
    ForgetsToReturn: "test_a_driver_says_of_each_write_whether_the_key_was_there",
    LeavesOutTheMissing: "test_a_driver_reads_in_the_order_asked",
    BoastsOfPersistence: "test_the_next_program_finds_everything",
    BoastsOfSharing: "test_what_was_written_is_read_at_once",
    BoastsOfMetadata: "test_custom_metadata_is_kept_with_its_key",
    BoastsOfWatching: "test_changes_by_others_are_told_where_that_is_promised",
}


def _tests() -> list[str]:
    return [name for name in dir(DriverSuite) if name.startswith("test_")]


def _suite(driver: Callable[[], Driver]) -> DriverSuite:
    class Suite(DriverSuite):
        def make_driver(self, path: Path) -> Driver:
            return driver()

    return Suite()


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_driver_that_breaks_a_promise_fails(broken: type[MemoryDriver], tmp_path: Path) -> None:
    test = getattr(_suite(broken), BROKEN[broken])
    with pytest.raises((AssertionError, TypeError, BackendError, pytest.fail.Exception)):
        test(tmp_path)


class ServersClock(MemoryDriver):
    """Tells time by a clock that no test can turn."""

    capabilities = Capabilities(atomic=True, conditional=True, metadata=True, persistent=False, own_clock=False)


class ServersClockIsFast(ServersClock):
    def __init__(self) -> None:
        super().__init__()
        self.clock = now_ms

    def _live(self, key: str) -> Any:
        entry = super()._live(key)
        return None if entry and entry[1] is not None and entry[1] <= now_ms() + 200 else entry


@pytest.mark.parametrize("name", ["test_nothing_expires_early_or_stays_late", "test_an_expired_key_is_gone_for_every_read"])
def test_a_server_that_tells_the_time_is_waited_for(name: str, tmp_path: Path) -> None:
    getattr(_suite(ServersClock), name)(tmp_path)


def test_a_servers_clock_that_is_fast_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        _suite(ServersClockIsFast).test_nothing_expires_early_or_stays_late(tmp_path)


@pytest.mark.parametrize("broken", [LikePrefix, MergesCase, ExpiresEarly, EmptyIsMissing, ForgetsExpect, NeverInline])
def test_the_state_machine_finds_broken_promises_too(broken: type[MemoryDriver]) -> None:
    quick = settings(
        max_examples=200,
        stateful_step_count=30,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run_state_machine_as_test(storage_machine(lambda path: broken()), settings=quick)


def test_every_test_of_the_kit_names_its_promise() -> None:
    for name in _tests():
        doc = getattr(DriverSuite, name).__doc__ or ""
        assert re.match(r"(([KVTRAWEL]\d|Section 2)(, |: | to )?)+|All of section 1: ", doc), name


def test_every_part_of_the_kit_shows_the_values_of_a_failed_assert() -> None:
    parts = {part.name for part in pkgutil.iter_modules(kvstore.testing.__path__)}

    assert parts - set(kvstore.testing._PARTS.split()) == {"clock", "limit", "pauses", "processes", "suite"}


class WaitsForEver(MemoryDriver):
    capabilities = Capabilities(atomic=True, conditional=True, metadata=True, persistent=False)

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        await asyncio.Event().wait()
        return []


class BlocksForEver(WaitsForEver):
    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        time.sleep(10**6)  # noqa: ASYNC251
        return []


class SpinsForEver(WaitsForEver):
    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        while True:
            pass


class WaitsForEverToList(WaitsForEver):
    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        await asyncio.Event().wait()
        return []


class NeverCloses(MemoryDriver):
    async def aclose(self) -> None:
        await asyncio.Event().wait()


BATCHES = "test_batches_keep_the_order_asked"
LISTS = "test_a_base_ends_at_a_segment"
MACHINE = "test_any_sequence_of_calls_does_what_a_dict_would"
LOOPS = "test_a_storage_is_used_from_several_event_loops_in_turn"


@pytest.mark.parametrize(
    ("driver", "name", "call"),
    [
        (WaitsForEver, BATCHES, "WaitsForEver.read did not return, at test_kit.py:.*: await asyncio.Event"),
        (BlocksForEver, BATCHES, r"BlocksForEver.read did not return, at test_kit.py:.*: time.sleep\(10"),
        (SpinsForEver, LISTS, "SpinsForEver.scan did not return, at test_kit.py:"),
        (WaitsForEverToList, LISTS, "WaitsForEverToList.scan did not return, at test_kit.py:"),
        (BlocksForEver, MACHINE, "BlocksForEver.read did not return, at test_kit.py:"),
        (WaitsForEver, LOOPS, "WaitsForEver.read did not return, at test_kit.py:"),
        (NeverCloses, BATCHES, "NeverCloses.aclose did not return, at test_kit.py:"),
    ],
)
def test_a_driver_that_does_not_return_fails_and_the_call_is_named(
    driver: type[MemoryDriver], name: str, call: str, tmp_path: Path
) -> None:
    suite = _suite(driver)
    suite.time_limit = 0.5
    with pytest.raises(pytest.fail.Exception, match=f"^stopped after 0.5 seconds: {call}"):
        getattr(suite, name)(tmp_path)


def test_a_test_that_waits_for_no_driver_says_where(tmp_path: Path) -> None:
    class Waits(DriverSuite):
        time_limit = 0.2

        def make_driver(self, path: Path) -> Driver:
            return MemoryDriver()

        @in_loop
        async def test_waiting(self, store: Store) -> None:
            await asyncio.Event().wait()

    with pytest.raises(pytest.fail.Exception, match=r"no call of a driver is under way, and the test waits at test_kit.py:"):
        Waits().test_waiting(tmp_path)


def test_what_is_simple_is_tested_first() -> None:
    """As pytest collects them: the tests of the last base first."""
    bases = [base.__name__ for base in reversed(DriverSuite.__mro__) if any(name.startswith("test_") for name in vars(base))]

    assert bases[:2] == ["DriverCalls", "Values"]
    assert bases[-1] == "DriverSuite"
