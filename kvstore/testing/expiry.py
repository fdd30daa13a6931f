"""Time to live."""

from __future__ import annotations

import asyncio
import math
import time
from datetime import timedelta

import pytest

from kvstore.errors import InvalidValueError
from kvstore.storage import Storage
from kvstore.testing.store import LONG, SHORT, Contract, Store, in_loop, promised
from kvstore.values import MISSING, NEVER


async def expired(store: Store, key: str = "key") -> Storage:
    """The storage, in which `key` has just expired and `other` is there."""
    await store.storage.set_items({key: "value"}, ttl=SHORT)
    await store.storage.set_item("other", 1)
    await store.pass_time(SHORT)
    return store.storage


class Expiry(Contract):
    """T1 and T2 of the contract."""

    @in_loop
    @promised("expiry")
    async def test_nothing_expires_early_or_stays_late(self, store: Store) -> None:
        """T1: to the millisecond where the driver tells the time, and never early by the wall clock where a server does."""
        storage = store.storage
        begun = time.monotonic()
        await storage.set_item("key", 1, ttl=SHORT)
        if store.capabilities.own_clock:
            store.clock.advance(SHORT - 0.001)
            assert await storage.get_item("key") == 1
            assert await storage.has_item("key")
            assert await storage.get_keys() == ["key"]
            assert await storage.count() == 1
            store.clock.advance(0.001)
        else:
            while await storage.has_item("key"):
                assert time.monotonic() - begun < SHORT + 5
                await asyncio.sleep(0.005)
            assert time.monotonic() - begun >= SHORT - 0.001
        assert await storage.get_item("key") is None

    @in_loop
    @promised("expiry")
    async def test_every_write_takes_a_ttl(self, store: Store) -> None:
        """T1: on every write, as seconds or as a timedelta."""
        storage = store.storage
        await storage.set_item("set", 1, ttl=SHORT)
        await storage.set_item("timedelta", 1, ttl=timedelta(seconds=SHORT))
        await storage.set_items({"many:1": 1, "many:2": 2}, ttl=SHORT)
        await storage.set_item_raw("raw", b"1", ttl=SHORT)
        written = {"set", "timedelta", "many:1", "many:2", "raw"}
        if store.promises("conditional"):
            await storage.add_item("add", 1, ttl=SHORT)
            await storage.compare_and_set("cas", MISSING, 1, ttl=SHORT)
            await storage.update_item("update", lambda value: 1, ttl=SHORT)
            written |= {"add", "cas", "update"}
        if store.promises("atomic"):
            await storage.commit({"commit": 1}, ttl=SHORT)
            written |= {"commit"}

        if store.capabilities.own_clock:
            assert await storage.get_keys() == sorted(written)
        await store.pass_time(SHORT)
        assert await storage.get_keys() == []

    @in_loop
    @promised("expiry")
    async def test_a_part_of_a_millisecond_is_rounded_up(self, store: Store) -> None:
        """T1: never early."""
        storage = store.storage
        await storage.set_item("key", 1, ttl=1.0001)
        if store.capabilities.own_clock:
            store.clock.advance(1.0)
            assert await storage.has_item("key")
            store.clock.advance(0.001)
            assert not await storage.has_item("key")

    @in_loop
    @promised("expiry")
    async def test_a_ttl_beyond_the_end_of_time_is_no_error(self, store: Store) -> None:
        """T1: any positive, finite number of seconds."""
        storage = store.storage
        for ttl in (1e10, 1e300, 10**400, timedelta.max):
            await storage.set_item("key", 1, ttl=ttl)
            assert await storage.get_item("key") == 1, ttl

    @in_loop
    @promised("expiry")
    async def test_a_ttl_that_is_none_is_refused(self, store: Store) -> None:
        """T1: not positive, not finite, no number; and what is stored stays as it was."""
        storage = store.storage
        await storage.set_item("key", "kept")
        for ttl in (0, -1, math.nan, math.inf, True, "60", timedelta(0), timedelta(seconds=-1)):
            for call in (
                storage.set_item("key", 1, ttl=ttl),  # type: ignore[arg-type]
                storage.set_items({"key": 1}, ttl=ttl),  # type: ignore[arg-type]
                storage.set_item_raw("key", b"1", ttl=ttl),  # type: ignore[arg-type]
                storage.touch("key", ttl=ttl),  # type: ignore[arg-type]
            ):
                with pytest.raises(InvalidValueError):
                    await call
        assert await storage.get_item("key") == "kept"

    @in_loop
    @promised("expiry")
    async def test_an_expired_key_is_gone_for_every_read(self, store: Store) -> None:
        """T2: get, has, meta, batches, listing and count."""
        storage = await expired(store)

        assert await storage.get_item("key", "default") == "default"
        assert await storage.get_item_raw("key") is None
        assert await storage.get_items(["key", "other"]) == {"key": None, "other": 1}
        assert await storage.has_item("key") is False
        assert await storage.get_meta("key") is None
        assert await storage.get_keys() == ["other"]
        assert await storage.get_keys(reverse=True) == ["other"]
        assert [key async for key in storage.iter_keys()] == ["other"]
        assert await storage.count() == 1

    @in_loop
    @promised("expiry")
    async def test_removing_an_expired_key_removes_nothing(self, store: Store) -> None:
        """T2, R2: it was not there."""
        storage = await expired(store)

        assert await storage.remove_item("key") is False
        storage = await expired(store)
        assert await storage.remove_items(["key", "other"]) == 1
        storage = await expired(store)
        assert await storage.clear() == 1

    @in_loop
    @promised("expiry")
    async def test_clearing_a_base_does_not_count_the_expired(self, store: Store) -> None:
        """T2, R4: they were not there."""
        storage = await expired(store, "base:key")
        await storage.set_item("base:other", 1)

        assert await storage.count("base") == 1
        assert await storage.clear("base") == 1
        assert await storage.get_keys() == ["other"]

    @in_loop
    @promised("conditional", "expiry")
    async def test_an_expired_key_is_missing_to_conditions(self, store: Store) -> None:
        """T2, A2: it can be added, expected to be missing, and is updated from the default."""
        storage = await expired(store)
        assert await storage.compare_and_set("key", "value", "new") is False
        assert await storage.add_item("key", "added") is True
        assert await storage.get_item("key") == "added"

        storage = await expired(store)
        assert await storage.compare_and_set("key", MISSING, "set") is True
        storage = await expired(store)
        assert await storage.update_item("key", lambda value: value + 1, 0) == 1
        if store.promises("atomic"):
            storage = await expired(store)
            assert await storage.commit({"other": 2}, expect={"key": "value"}) is False
            assert await storage.commit({"other": 2}, expect={"key": MISSING}) is True

    @in_loop
    @promised("expiry")
    async def test_a_write_without_a_ttl_clears_it(self, store: Store) -> None:
        """T1: every write sets the expiry afresh, batches and conditions included."""
        storage = store.storage
        keys = ["set", "many", "raw"]
        await storage.set_items(dict.fromkeys([*keys, "cas", "update", "commit"], 1), ttl=SHORT)
        await storage.set_item("set", 2)
        await storage.set_items({"many": 2})
        await storage.set_item_raw("raw", b"2")
        if store.promises("conditional"):
            await storage.compare_and_set("cas", 1, 2)
            await storage.update_item("update", lambda value: 2)
            keys += ["cas", "update"]
        if store.promises("atomic"):
            await storage.commit({"commit": 2})
            keys += ["commit"]

        await store.pass_time(SHORT)
        assert await storage.get_items(keys) == dict.fromkeys(keys, 2)
        assert await storage.count() == len(keys)

    @in_loop
    @promised("expiry")
    async def test_a_write_with_a_ttl_sets_it_afresh(self, store: Store) -> None:
        """T1: a shorter and a longer one."""
        storage = store.storage
        await storage.set_items({"longer": 1}, ttl=SHORT)
        await storage.set_items({"shorter": 1}, ttl=LONG)
        await storage.set_item("longer", 2, ttl=LONG)
        await storage.set_item("shorter", 2, ttl=SHORT)

        await store.pass_time(SHORT)
        assert await storage.get_keys() == ["longer"]

    @in_loop
    @promised("expiry")
    async def test_a_mounts_ttl_is_the_default_and_never_overrides_it(self, store: Store) -> None:
        """T1: its `ttl`, else the mount's; `NEVER` means none."""
        storage = store.open(ttl=SHORT)
        clocked = storage.get_mounts()[0].capabilities.own_clock
        await storage.set_items({"default": 1})
        await storage.set_item_raw("raw", b"1")
        await storage.set_item("longer", 1, ttl=LONG)
        await storage.set_item("never", 1, ttl=NEVER)
        if clocked:
            store.clock.advance(SHORT)
        else:
            await asyncio.sleep(SHORT + 0.1)

        assert await storage.get_keys() == ["longer", "never"]

    @in_loop
    @promised("touch")
    async def test_touch_sets_the_expiry_and_leaves_the_value(self, store: Store) -> None:
        """T2: as a write would: to its ttl, else to none."""
        storage = store.storage
        await storage.set_items({"longer": [1], "none": [2]}, ttl=SHORT if store.promises("expiry") else None)
        await storage.set_items({"shorter": [3]})
        if store.promises("expiry"):
            assert await storage.touch("longer", ttl=LONG) is True
            assert await storage.touch("shorter", ttl=SHORT) is True
        assert await storage.touch("none") is True
        assert await storage.touch("missing") is False

        await store.pass_time(SHORT)
        left = {"longer": [1], "none": [2]} if store.promises("expiry") else {"longer": [1], "none": [2], "shorter": [3]}
        assert dict([item async for item in storage.iter_items()]) == left

    @in_loop
    @promised("touch", "expiry")
    async def test_touching_an_expired_key_brings_nothing_back(self, store: Store) -> None:
        """T2: it is gone for `touch` too."""
        storage = await expired(store)

        assert await storage.touch("key", ttl=LONG) is False
        assert await storage.get_item("key") is None

    @in_loop
    @promised("expiry")
    async def test_a_ttl_outlives_the_program(self, store: Store) -> None:
        """T1: in the next program it goes on, no shorter and no longer."""
        await store.storage.set_items({"short": 1}, ttl=SHORT)
        await store.storage.set_items({"long": 1}, ttl=LONG)

        storage = await store.reopened()
        if store.capabilities.own_clock:
            store.clock.advance(SHORT - 0.001)
            assert await storage.get_keys() == ["long", "short"]
            store.clock.advance(0.001)
        else:
            await store.pass_time(SHORT)
        assert await storage.get_keys() == ["long"]

    @in_loop
    @promised("expiry")
    async def test_the_space_of_expired_keys_is_taken_back(self, store: Store) -> None:
        """T2: not only hidden. Once swept, or after the next calls, they are not there even for a clock that went back."""
        storage = store.storage
        await storage.set_items({f"gone:{number}": number for number in range(50)}, ttl=SHORT)
        await storage.set_items({"kept": 1}, ttl=LONG)
        await store.pass_time(SHORT)
        await store.driver.sweep()
        await storage.set_item("next", 1)
        await storage.get_keys()
        if store.capabilities.own_clock:
            store.clock.advance(-SHORT)

        assert await storage.get_keys() == ["kept", "next"]
        assert await storage.has_item("gone:7") is False

    @in_loop
    @promised("expiry")
    async def test_a_sweep_says_when_the_next_key_expires(self, store: Store) -> None:
        """T2: or what expires later is never swept. A backend that takes the space back by itself need not."""
        storage = store.storage
        await storage.set_items({"sooner": 1}, ttl=SHORT)
        await storage.set_items({"later": 1}, ttl=2 * SHORT)
        if not store.capabilities.own_clock:  # a clock that can't be turned back shows nothing of what is only hidden
            return
        begun = store.clock()
        store.clock.advance(SHORT)
        for _ in range(10):
            due = await store.driver.sweep()
            if due is None:  # then nobody calls it again
                break
            store.clock.now = max(store.clock(), due)
        store.clock.now = begun + round(3000 * SHORT)
        await storage.get_keys()
        store.clock.now = begun

        assert await storage.get_keys() == [], "what expired later was not swept: `sweep` returns when the next key expires"

    @in_loop
    @promised("expiry")
    async def test_sweeping_spares_what_was_written_since(self, store: Store) -> None:
        """T2: a key that was overwritten, touched or written anew lives on."""
        storage = store.storage
        await storage.set_items({"again": 1, "anew": 1, "touched": 1}, ttl=SHORT)
        await storage.set_item("again", 2)
        await storage.remove_item("anew")
        await storage.set_item("anew", 2, ttl=LONG)
        if store.promises("touch"):
            await storage.touch("touched", ttl=LONG)
        else:
            await storage.set_item("touched", 1, ttl=LONG)
        await store.pass_time(SHORT)

        due = await store.driver.sweep()
        assert due is None or due > store.clock()
        assert await storage.get_items(["again", "anew", "touched"]) == {"again": 2, "anew": 2, "touched": 1}
