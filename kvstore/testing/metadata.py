"""Metadata, which goes with its key."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from kvstore.meta import Meta
from kvstore.storage import Storage
from kvstore.testing.expiry import expired
from kvstore.testing.store import LONG, SHORT, Contract, Store, in_loop, promised


async def _meta(storage: Storage, key: str) -> Meta:
    meta = await storage.get_meta(key)
    assert meta is not None
    return meta


class Metadata(Contract):
    """`get_meta` and custom metadata, by T2 of the contract."""

    @in_loop
    @promised("metadata")
    async def test_meta_shows_when_a_key_expires(self, store: Store) -> None:
        """T2: `expires_at` is an aware datetime, or None for never."""
        storage = store.storage
        await storage.set_item("never", 1)
        assert (await _meta(storage, "never")).expires_at is None
        if not store.promises("expiry"):
            return
        before = store.driver.clock()
        await storage.set_item("key", 1, ttl=LONG)
        after = store.driver.clock() + 1  # of a clock that goes on, whose millisecond has begun
        expires_at = (await _meta(storage, "key")).expires_at
        assert expires_at is not None
        assert expires_at.utcoffset() == timedelta(0)
        milliseconds = (expires_at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
        assert before <= milliseconds - LONG * 1000 <= after

        if store.promises("touch"):
            await storage.touch("key")
            assert (await _meta(storage, "key")).expires_at is None

    @in_loop
    @promised("metadata")
    async def test_meta_tells_the_time_of_the_last_write(self, store: Store) -> None:
        """R1: `mtime` is an aware datetime."""
        await store.storage.set_item("key", 1)
        mtime = (await _meta(store.storage, "key")).mtime

        assert mtime is not None
        assert abs(mtime - datetime.now(UTC)) < timedelta(minutes=1)

    @in_loop
    @promised("metadata")
    async def test_the_etag_differs_when_the_same_value_was_written_again(self, store: Store) -> None:
        """R1: and after a removal and a new write."""
        storage = store.storage
        etags = set()
        for _ in range(20):
            await storage.set_item("key", "same")
            etags.add((await _meta(storage, "key")).etag)
        assert len(etags) == 20

    @in_loop
    @promised("metadata")
    async def test_custom_metadata_is_kept_with_its_key(self, store: Store) -> None:
        """R1: a JSON object, replaced as a whole; False for a missing key."""
        storage = store.storage
        await storage.set_item("key", 1)
        assert (await _meta(storage, "key")).custom == {}

        assert await storage.set_meta("key", {"owner": "ü", "z": [1, 2.0], "a": None}) is True
        assert (await _meta(storage, "key")).custom == {"owner": "ü", "z": [1, 2.0], "a": None}
        assert await storage.set_meta("key", {"size": 1}) is True
        assert (await _meta(storage, "key")).custom == {"size": 1}
        assert await storage.remove_meta("key") is True
        assert (await _meta(storage, "key")).custom == {}
        assert await storage.set_meta("missing", {"a": 1}) is False
        assert await storage.remove_meta("missing") is False
        assert await storage.get_item("key") == 1
        assert await storage.get_keys() == ["key"]

    @in_loop
    @promised("metadata")
    async def test_custom_metadata_stays_over_an_overwrite(self, store: Store) -> None:
        """T2: single, batch, raw, conditional and touch alike."""
        storage = store.storage
        await storage.set_item("key", 1)
        await storage.set_meta("key", {"a": 1})
        await storage.set_item("key", 2)
        await storage.set_items({"key": 3})
        await storage.set_item_raw("key", b"4")
        if store.promises("conditional"):
            await storage.compare_and_set("key", 4, 5)
            await storage.update_item("key", lambda value: 6)
        if store.promises("touch"):
            await storage.touch("key")

        assert (await _meta(storage, "key")).custom == {"a": 1}

    @in_loop
    @promised("metadata")
    async def test_custom_metadata_goes_with_its_key(self, store: Store) -> None:
        """T2: removed, cleared or expired; a key of the same name has none of it."""
        storage = store.storage

        async def marked() -> None:
            await storage.set_item("key", 1, ttl=SHORT if store.promises("expiry") else None)
            await storage.set_meta("key", {"a": 1})

        async def unmarked() -> None:
            await storage.set_item("key", 2)
            assert (await _meta(storage, "key")).custom == {}

        await marked()
        await storage.remove_item("key")
        await unmarked()
        await marked()
        await storage.remove_items(["key", "missing"])
        await unmarked()
        await marked()
        await storage.clear()
        await unmarked()
        if store.promises("expiry"):
            await marked()
            await store.pass_time(SHORT)
            await unmarked()

    @in_loop
    @promised("metadata")
    async def test_custom_metadata_goes_with_a_key_that_is_removed_and_set_at_once(self, store: Store) -> None:
        """T2, A3: gathered, by single calls and by batches, they leave what they leave one after another."""
        storage = store.storage
        for is_batch in (False, True):
            await storage.set_item("key", 1)
            await storage.set_meta("key", {"a": 1})
            _, removed, _ = await asyncio.gather(
                storage.set_item("other", 1),
                storage.remove_items(["key", "missing"]) if is_batch else storage.remove_item("key"),
                storage.set_items({"key": 2, "new": 3}) if is_batch else storage.set_item("key", 2),
            )
            assert removed == 1
            assert (await _meta(storage, "key")).custom == {}

    @in_loop
    @promised("metadata", "expiry")
    async def test_an_expired_key_takes_no_metadata(self, store: Store) -> None:
        """T2: it is gone for `set_meta` too."""
        storage = await expired(store)

        assert await storage.set_meta("key", {"a": 1}) is False
        await storage.set_item("key", 2)
        assert (await _meta(storage, "key")).custom == {}

    @in_loop
    @promised("metadata")
    async def test_metadata_is_no_key(self, store: Store) -> None:
        """R3: neither listed nor counted, and cleared with its key."""
        storage = store.storage
        await storage.set_items({"a:1": 1, "b": 2})
        await storage.set_meta("a:1", {"a": 1})

        assert await storage.get_keys() == ["a:1", "b"]
        assert await storage.count() == 2
        assert await storage.clear("a") == 1
        assert await storage.count() == 1

    @in_loop
    @promised("metadata")
    async def test_metadata_outlives_the_program(self, store: Store) -> None:
        """T2: it is stored with its key."""
        await store.storage.set_item("key", 1)
        await store.storage.set_meta("key", {"a": 1})
        before = await _meta(store.storage, "key")

        after = await _meta(await store.reopened(), "key")
        assert (after.custom, after.etag, after.mtime) == ({"a": 1}, before.etag, before.mtime)
