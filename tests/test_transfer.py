"""Snapshot, restore and copy."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest
from fakes import Queued
from running import in_loop

from kvstore import (
    Capabilities,
    ConfigError,
    CorruptValueError,
    Driver,
    InvalidKeyError,
    InvalidValueError,
    ReadOnlyError,
    Storage,
    UnsupportedOperation,
    Wrapper,
    copy,
    create_storage,
    prefix_storage,
    restore_snapshot,
    snapshot,
)
from kvstore.drivers.memory import MemoryDriver
from kvstore.testing import FAITHFUL_VALUES, HOSTILE_KEYS, FakeClock
from kvstore.testing.values import same


def _storage(clock: FakeClock | None = None, **capabilities: bool) -> Storage:
    driver = MemoryDriver()
    if clock is not None:
        driver.clock = clock
    if capabilities:
        driver.capabilities = Capabilities(conditional=True, persistent=False, **capabilities)
    return create_storage(driver)


class Mute(Wrapper):
    """Around a driver that does not tell when its keys expire."""

    def __init__(self) -> None:
        class Inner(MemoryDriver):
            stat = Driver.stat

        super().__init__(Inner())


@in_loop
async def test_a_snapshot_holds_the_values_below_a_base_by_key_without_it() -> None:
    storage = create_storage().mount("a:m", "memory")
    await storage.set_items({"a:1": 1, "a:m:2": [2], "a": 0, "ab:1": 1, "b": None})

    assert await snapshot(storage, "a") == {"1": 1, "m:2": [2]}
    assert await snapshot(storage) == {"a": 0, "a:1": 1, "a:m:2": [2], "ab:1": 1, "b": None}
    assert await snapshot(storage, "nothing") == {}


@in_loop
async def test_what_was_in_a_snapshot_is_restored_below_any_base_and_the_rest_stays() -> None:
    storage = create_storage()
    data = {f"v{number}": value for number, value in enumerate(FAITHFUL_VALUES)} | dict.fromkeys(HOSTILE_KEYS[:80], 1)
    await storage.set_items({"kept": 1, "to:kept": 1, "to:v0": "overwritten"})
    await restore_snapshot(storage, data, "to")

    back = await snapshot(storage, "/to/")
    assert same({key: back[key] for key in data}, data)
    assert set(back) == {*data, "kept"}
    assert await storage.get_item("kept") == 1


@in_loop
async def test_a_snapshot_that_can_not_be_restored_changes_nothing() -> None:
    storage = create_storage()
    with pytest.raises(InvalidKeyError):
        await restore_snapshot(storage, {"a": 1, "..": 2})
    assert await storage.get_keys() == []


@in_loop
async def test_a_snapshot_of_what_is_not_json_is_refused() -> None:
    storage = create_storage()
    await storage.set_item_raw("a", b"\xff")
    with pytest.raises(CorruptValueError):
        await snapshot(storage)


@in_loop
async def test_a_copy_keeps_bytes_expiry_and_metadata() -> None:
    clock = FakeClock()
    source, target = _storage(clock), _storage(clock)
    await source.set_item_raw("a:raw", b"\xff\0")
    await source.set_item("a:short", 1, ttl=10)
    await source.set_item("a:marked", {"z": 1, "a": 2}, ttl=timedelta(hours=1))
    await source.set_meta("a:marked", {"owner": "me"})
    await source.set_item("b", "elsewhere")
    await target.set_items({"a:marked": "old", "a:own": 1, "a:raw": "old"})
    for key in ("a:marked", "a:raw"):
        await target.set_meta(key, {"old": True})

    assert await copy(source, target, "a") == 3
    assert await target.get_keys() == ["a:marked", "a:own", "a:raw", "a:short"]
    assert await target.get_item_raw("a:raw") == b"\xff\0"
    one, other = await source.get_meta("a:marked"), await target.get_meta("a:marked")
    assert one is not None
    assert other is not None
    assert (one.custom, one.expires_at, one.size) == (other.custom, other.expires_at, other.size)
    assert (await target.get_meta("a:raw")).custom == {}  # type: ignore[union-attr]
    clock.advance(9.999)
    assert await target.has_item("a:short")
    clock.advance(0.001)
    assert not await target.has_item("a:short")


@in_loop
async def test_a_value_that_is_overwritten_while_it_is_copied_comes_with_its_own_expiry() -> None:
    class Overwritten(Queued):
        """By others, once it was read for the first time."""

        async def read(self, keys: Sequence[str]) -> list[bytes | None]:
            found = await super().read(keys)
            if found == [b'"old"']:
                await MemoryDriver.write(self, [("a", b'"new"', self.clock() + 60_000)])
            return found

    source, target = create_storage(Overwritten()), create_storage()
    await source.set_item("a", "old")
    assert await copy(source, target) == 1
    meta = await target.get_meta("a")
    assert meta is not None
    assert (await target.get_item("a"), meta.expires_at is None) == ("new", False)


@in_loop
async def test_what_is_no_storage_or_no_base_is_refused_with_the_name_of_the_call() -> None:
    storage, wrong = create_storage(), "sqlite:///app.db"
    for call, name in (
        (lambda: copy(wrong, storage), "copy"),  # type: ignore[arg-type]
        (lambda: copy(storage, wrong), "copy"),  # type: ignore[arg-type]
        (lambda: snapshot(wrong), "snapshot"),  # type: ignore[arg-type]
        (lambda: restore_snapshot(wrong, {}), "restore_snapshot"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match=f"a Storage is asked for, not str .{name}"):
            await call()
    with pytest.raises(InvalidKeyError, match=r"not int \(copy, key 5\)"):
        await copy(storage, storage, base=5)  # type: ignore[arg-type]


@in_loop
async def test_a_copy_goes_below_another_base() -> None:
    source, target = _storage(), _storage()
    await source.set_items({"a:1": 1, "a:b:2": 2, "a": 0})

    assert await copy(source, target, "a", into="x:y") == 2
    assert await copy(source, target, "a", into="") == 2
    assert await target.get_keys() == ["1", "b:2", "x:y:1", "x:y:b:2"]
    assert await copy(source, source, "a", into="backup") == 2
    assert await source.get_keys() == ["a", "a:1", "a:b:2", "backup:1", "backup:b:2"]


@in_loop
async def test_a_copy_into_a_base_of_its_own_storage_does_not_copy_what_it_writes() -> None:
    storage = create_storage().mount("far", "memory")
    before = {f"a:{number:04}": number for number in range(2500)} | {"far:1": 1, "z": 2}
    await storage.set_items(before)
    for _ in range(2):  # nor what an earlier one wrote
        assert await copy(storage, storage, into="m") == len(before)
    assert await copy(storage, prefix_storage(storage, "far:m")) == 2 * len(before)

    assert await storage.count() == 4 * len(before)
    assert await snapshot(storage, "m") == before
    assert await copy(storage, storage, "a", into="b") == await copy(storage, storage, "a") == 2500


@in_loop
async def test_a_copy_to_a_base_above_that_would_overwrite_what_it_copies_is_refused_before_anything_is_touched() -> None:
    storage = create_storage()
    await storage.set_items({"a:b:1": 1, "a:b:b": 2})
    assert await copy(storage, storage, "a:b", into="a") == 2
    assert await snapshot(storage) == {"a:1": 1, "a:b": 2, "a:b:1": 1, "a:b:b": 2}

    await storage.set_item("a:b:b:1", "other")
    before = await snapshot(storage)
    with pytest.raises(InvalidValueError) as caught:
        await copy(storage, storage, "a:b", into="a")
    assert (caught.value.operation, caught.value.key) == ("copy", "b:1")
    assert await snapshot(storage) == before


@in_loop
async def test_a_copy_leaves_what_is_there_if_told_so() -> None:
    source, target = _storage(), _storage()
    await source.set_items({"a": "new", "b": "new"})
    await target.set_item("a", "old")

    assert await copy(source, target, overwrite=False) == 1
    assert await target.get_items(["a", "b"]) == {"a": "old", "b": "new"}
    assert await copy(source, target) == 2
    assert await target.get_item("a") == "new"


@in_loop
async def test_a_copy_of_many_pages_is_whole() -> None:
    source, target = _storage(), _storage()
    await source.set_items({f"k{number}": number for number in range(2_500)})

    assert await copy(source, target) == 2_500
    assert await snapshot(target) == await snapshot(source)


@in_loop
async def test_what_can_not_be_copied_is_refused() -> None:
    clock = FakeClock()
    source = _storage(clock)
    await source.set_item("plain", 1)
    await source.set_item("short", 1, ttl=10)
    await source.set_item("marked", 1)
    await source.set_meta("marked", {"a": 1})
    no_expiry, no_metadata = _storage(clock, expiry=False, metadata=True), _storage(clock, expiry=True)

    with pytest.raises(UnsupportedOperation) as caught:
        await copy(source, no_expiry)
    assert caught.value.operation == "copy"
    with pytest.raises(UnsupportedOperation):
        await copy(source, no_metadata)
    await no_metadata.set_item("a", 1, ttl=10)
    await copy(no_metadata, source)
    assert (await source.get_meta("a")).expires_at is not None  # type: ignore[union-attr]
    mute = create_storage(Mute())
    await mute.set_item("a", 1, ttl=10)
    with pytest.raises(UnsupportedOperation, match="can't tell when its keys expire"):
        await copy(mute, source)
    with pytest.raises(ReadOnlyError):
        await copy(source, create_storage(read_only=True))


@in_loop
async def test_a_copy_of_many_keys_goes_in_batches_and_holds_a_few_megabytes() -> None:
    calls: list[int] = []

    class Counting(Queued):
        async def read(self, keys: Sequence[str]) -> list[bytes | None]:
            found = await super().read(keys)
            calls.append(sum(len(data or b"") for data in found))
            return found

        async def before(self, call: str, keys: Sequence[str]) -> None:
            if call == "write":
                calls.append(0)

    source, target = create_storage(Counting()), create_storage(Counting())
    await source.set_items({f"small:{number:04}": number for number in range(2_500)})
    await source.set_items({f"large:{number}": "x" * 3_000_000 for number in range(6)})
    calls.clear()
    assert await copy(source, target) == 2_506
    assert len(calls) <= 20
    assert max(calls) < 10_000_000
    assert await target.count() == 2_506
    assert await copy(source, target, overwrite=False) == 0
    async with source, target:
        pass
