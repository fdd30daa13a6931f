"""Answers: a driver that answers too few, too many or something else hangs nobody, and the error says which call was wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from fakes import Queued
from running import in_loop

from kvstore import BackendError, Storage, create_storage
from kvstore.driver import PAGE, Batch, Driver, Expect, Stat, Tell, Write
from kvstore.errors import KVStoreError


class Wrong(Queued):
    """Answers the call `method` with what `change` makes of the answer."""

    cancellable = True

    def __init__(self, method: str, change: Callable[[list[Any]], Any]) -> None:
        super().__init__()
        self._method = method
        self._change = change

    async def settle(self) -> None: ...

    def _changed(self, method: str, answers: Any) -> Any:
        return self._change(answers) if method == self._method and answers is not None else answers

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        await asyncio.sleep(0)
        return self._changed("read", await super().read(keys))  # type: ignore[no-any-return]

    async def has(self, keys: Sequence[str]) -> list[bool]:
        return self._changed("has", await super().has(keys))  # type: ignore[no-any-return]

    async def stat(self, keys: Sequence[str]) -> list[Stat | None]:
        return self._changed("stat", await super().stat(keys))  # type: ignore[no-any-return]

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        await asyncio.sleep(0)
        return self._changed("write", await super().write(writes, expect))  # type: ignore[no-any-return]

    async def write_many(self, batches: Sequence[Batch]) -> list[list[bool] | KVStoreError | None]:
        return self._changed("write_many", await super().write_many(batches))  # type: ignore[no-any-return]


class WrongAndShielded(Wrong):
    """Whose writes run in a task of their own."""

    cancellable = False


class WrongInline(Wrong):
    """Which is called directly, and says that it never waits."""

    capabilities = replace(Queued.capabilities, inline=True)


KINDS = pytest.mark.parametrize("kind", [Wrong, WrongAndShielded, WrongInline])
CHANGES: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "None": (lambda answers: None, "answered None"),
    "too few": (lambda answers: answers[1:], r"answered \d of \d"),
    "too many": (lambda answers: [*answers, answers[0]], r"answered \d of \d"),
    "a dict": (lambda answers: dict(enumerate(answers)), "answered with dict"),
}
CHANGED = pytest.mark.parametrize("change", CHANGES)


async def _refuses(call: Awaitable[object], method: str, change: str) -> None:
    async with asyncio.timeout(5):
        with pytest.raises(BackendError, match=rf"the driver's {method} {CHANGES[change][1]}: it returns a list") as caught:
            await call
    assert caught.value.operation is not None


@KINDS
@CHANGED
@in_loop
async def test_a_write_that_answers_wrongly_hangs_no_caller(kind: type[Wrong], change: str) -> None:
    storage = create_storage(kind("write", CHANGES[change][0]))

    await _refuses(storage.set_item_raw("a", b"1"), "write", change)
    await _refuses(storage.remove_item("a"), "write", change)
    await _refuses(storage.set_items({"a": 1, "b": 2}), "write", change)
    await _refuses(storage.commit({"a": 1, "b": 2}), "write", change)
    await asyncio.gather(*(_refuses(storage.remove_item(key), "write", change) for key in "abc"))
    await asyncio.gather(*(_refuses(storage.set_items({key: 1, "x": 1}), "write", change) for key in "abc"))
    await storage.aclose()


@pytest.mark.parametrize("kind", [Wrong, WrongAndShielded])
@CHANGED
@in_loop
async def test_a_write_that_answers_wrongly_hangs_no_caller_where_somebody_watches(kind: type[Wrong], change: str) -> None:
    storage = create_storage(kind("write", CHANGES[change][0]))
    async with storage.watch():
        await asyncio.gather(*(_refuses(storage.remove_item(key), "write", change) for key in "abc"))


@KINDS
@CHANGED
@in_loop
async def test_a_read_that_answers_wrongly_hangs_no_caller(kind: type[Wrong], change: str) -> None:
    storage = create_storage(kind("read", CHANGES[change][0]))
    await storage.set_items({"a": 1, "b": 2})

    await _refuses(storage.get_item_raw("a"), "read", change)
    await _refuses(storage.get_items(["a", "missing", "b"]), "read", change)
    await _refuses(storage.update_item("a", lambda value: 1), "read", change)
    await asyncio.gather(*(_refuses(storage.get_item_raw(key), "read", change) for key in "axyz"))
    await asyncio.gather(*(_refuses(storage.get_items([key, "a"]), "read", change) for key in "axyz"))
    await storage.aclose()


@KINDS
@CHANGED
@in_loop
async def test_a_has_or_a_stat_that_answers_wrongly_hangs_no_caller(kind: type[Wrong], change: str) -> None:
    storage = create_storage(kind("has", CHANGES[change][0]))
    await _refuses(storage.has_item("a"), "has", change)
    await asyncio.gather(*(_refuses(storage.has_item(key), "has", change) for key in "abc"))

    storage = create_storage(kind("stat", CHANGES[change][0]))
    await _refuses(storage.get_meta("a"), "stat", change)


@CHANGED
@in_loop
async def test_a_write_many_that_answers_wrongly_hangs_no_caller(change: str) -> None:
    storage = create_storage(Wrong("write_many", CHANGES[change][0]))
    await storage.get_item("connect")

    adding = [storage.add_item(key, 1) for key in "abcd"]  # the first goes alone, the others are one `write_many`
    outcomes = await asyncio.wait_for(asyncio.gather(*adding, return_exceptions=True), 5)
    assert outcomes[0] is True
    assert {type(outcome) for outcome in outcomes[1:]} == {BackendError}
    assert "the driver's write_many answered" in str(outcomes[1])


@in_loop
async def test_a_condition_that_a_driver_never_lets_hold_ends_an_update_and_a_touch() -> None:
    """The slip is a `write` that returns nothing where `expect` is given, which says that it does not hold."""

    class Never(Wrong):
        async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
            return await super().write(writes) if expect is None else None

        async def touch(self, key: str, expires_at: int | None) -> bool:
            return await Driver.touch(self, key, expires_at)

    class NeverInline(Never):
        capabilities = WrongInline.capabilities

    for kind in (Never, NeverInline):
        storage: Storage = create_storage(kind("", lambda answers: answers))
        await storage.set_item("a", {"one": 1})
        for call in (
            storage.update_item("a", lambda value: value),
            storage.compare_and_set("a", {"one": 1}, 2),
            storage.touch("a"),
        ):
            async with asyncio.timeout(30):
                with pytest.raises(BackendError, match="answered None 10,000 times on end"):
                    await call


class Unmoving(Queued):
    """Pays no heed to where a page is to start, or to `reverse` there."""

    def __init__(self, change: Callable[[str | None, bool], tuple[str | None, bool]]) -> None:
        super().__init__()
        self._change = change

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        behind, inclusive = self._change(after, reverse)
        keys = sorted((key for key in self._entries if key.startswith(prefix)), reverse=reverse)
        if behind is not None:
            keys = [key for key in keys if (key < behind if reverse else key > behind) or (inclusive and key == behind)]
        return keys[:limit]

    async def count(self, prefix: str) -> int:
        return await Driver.count(self, prefix)

    async def clear(self, prefix: str) -> int:
        return await Driver.clear(self, prefix)

    async def clear_and_tell(self, prefix: str, masked: tuple[str, ...], tell: Tell) -> int:
        return await Driver.clear_and_tell(self, prefix, masked, tell)


async def _stands_still(call: Awaitable[object], gave: str) -> None:
    with pytest.raises(BackendError, match=rf"the driver's scan\(after=.*\) gave '{gave}', which does not lie behind that"):
        await asyncio.wait_for(call, 5)


@pytest.mark.parametrize("change", [lambda after, reverse: (after, True), lambda after, reverse: (None, False)])
@in_loop
async def test_R3_a_page_that_does_not_move_on_ends_a_listing_and_a_count(
    change: Callable[[str | None, bool], tuple[str | None, bool]],
) -> None:
    storage = create_storage(Unmoving(change))
    keys = [f"k{number:04}" for number in range(PAGE)]
    await storage.set_items(dict.fromkeys(keys, 1))

    await _stands_still(storage.count(), "k....")
    await _stands_still(storage.get_keys(), "k....")
    await _stands_still(storage.get_keys(reverse=True), "k....")
    assert await storage.get_keys(limit=3) == keys[:3]


@in_loop
async def test_R4_a_page_that_does_not_move_on_ends_a_clear() -> None:
    """Where something stays, such as what another mount hides."""
    storage = create_storage(Unmoving(lambda after, reverse: (None, False)))
    await storage.set_items({"a": 1, "c:hidden": 1})
    storage.mount("c", "memory")

    await _stands_still(storage.clear(), "c:hidden")


@pytest.mark.parametrize(("page", "kind"), [(None, "NoneType"), ([b"a"], "a list of bytes"), (("a",), "tuple")])
@in_loop
async def test_R3_what_is_no_page_is_told_of(page: Any, kind: str) -> None:
    class NoPage(Unmoving):
        async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
            return page  # type: ignore[no-any-return]

    storage = create_storage(NoPage(lambda after, reverse: (after, False)))
    for call in (storage.get_keys(), storage.count(), storage.clear()):
        with pytest.raises(BackendError, match=f"the driver's scan answered with {kind}: it returns a list of str"):
            await call


@pytest.mark.parametrize("outcome", [ZeroDivisionError(), []], ids=["an error", "nothing"])
@in_loop
async def test_every_call_of_a_batch_is_answered_whatever_happens(outcome: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even by a fault of the coalescer itself."""

    async def carry_out(*_: object) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # which is told of it too
    monkeypatch.setattr("kvstore.coalesce.carry_out", carry_out)
    storage = create_storage(Wrong("", lambda answers: answers))
    calls = asyncio.gather(*(storage.remove_item(key) for key in "abc"), return_exceptions=True)
    assert {type(answer) for answer in await asyncio.wait_for(calls, 5)} == {BackendError}
