"""Errors: one tree, each names what it concerns and chains its cause, and none shows a password."""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import json
import pickle
import time
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from running import in_loop

import kvstore.errors
from kvstore import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ClosedError,
    ConfigError,
    CorruptValueError,
    DriverNotFoundError,
    InvalidKeyError,
    InvalidValueError,
    KVStoreError,
    MissingDependencyError,
    ReadOnlyError,
    Storage,
    UnsupportedOperation,
    create_storage,
    escape_segment,
    join_key,
    open_storage,
    prefix_storage,
    restore_snapshot,
    snapshot,
    unescape_segment,
)
from kvstore.driver import Capabilities, Driver, Expect, Write
from kvstore.drivers.memory import MemoryDriver

PASSWORD = "hunter2"


class Failing(Driver):
    """Every call fails as told."""

    capabilities = Capabilities(atomic=True, conditional=True)

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        raise self.error

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        raise self.error

    async def scan(self, prefix: str, *, after: str | None, limit: int, reverse: bool) -> list[str]:
        raise self.error


def test_there_is_one_tree() -> None:
    for kind in (
        InvalidKeyError,
        InvalidValueError,
        CorruptValueError,
        ReadOnlyError,
        UnsupportedOperation,
        DriverNotFoundError,
        MissingDependencyError,
        ConfigError,
        ClosedError,
        BackendError,
    ):
        assert kind.__bases__ == (KVStoreError,)
    assert BackendUnavailable.__bases__ == BackendTimeout.__bases__ == (BackendError,)
    own = [value for value in vars(kvstore.errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert all(issubclass(kind, KVStoreError) for kind in own)


def test_an_error_says_what_it_concerns() -> None:
    error = BackendError("it broke", operation="set_item", key="a:1", mount="a", driver="memory")

    assert (error.operation, error.key, error.mount, error.driver) == ("set_item", "a:1", "a", "memory")
    assert str(error) == "it broke (set_item, key 'a:1', mount 'a', driver memory)"
    assert str(KVStoreError("alone")) == "alone"
    assert len(str(KVStoreError("long", key="x" * 100_000))) < 300


def test_a_long_message_is_cut_and_takes_no_time_to_look_through() -> None:
    """L2: whatever of a value or a path stands in it."""
    for text in ("x" * 10_000_000, "://:" * 1_000_000, "password" * 1_000_000, "a_token=" * 1_000_000):
        taken = []
        for _ in range(3):
            before = time.process_time()
            assert len(str(KVStoreError(text))) < 2_100
            taken.append(time.process_time() - before)
        assert min(taken) < 0.03


def test_what_an_error_knows_already_is_kept_in_the_copy_that_says_more() -> None:
    cause = OSError("disk")
    error = BackendError("it broke", key="inner")
    error.__cause__ = cause
    copy = error.at("get_item", "outer", "a", "memory")

    assert (copy.operation, copy.key, copy.mount, copy.driver) == ("get_item", "inner", "a", "memory")
    assert type(copy) is BackendError
    assert copy.__cause__ is cause
    assert error.operation is None


@in_loop
async def test_E1_a_backends_error_tells_whether_anything_may_be_written_once_and_wherever_it_goes() -> None:
    for maybe, said in ((None, ""), (True, "; whether anything was written is not known"), (False, "; nothing was written")):
        error = BackendTimeout("no answer", maybe_written=maybe)
        for one in (error, error.at("set_item", "a").at("set_item"), pickle.loads(pickle.dumps(error))):
            assert one.maybe_written is (maybe is not False)
            assert str(one).partition(" (")[0] == f"no answer{said}"
        storage = create_storage(Failing(error))
        for call in (storage.get_item("a"), storage.get_items(["a", "b"]), storage.get_keys(), storage.count()):
            with pytest.raises(BackendTimeout) as caught:
                await call
            assert not caught.value.maybe_written, "a call that only reads writes nothing"
            assert "written" not in str(caught.value)
    assert not InvalidValueError("no value").maybe_written


@in_loop
async def test_every_call_names_itself_its_key_and_its_mount() -> None:
    cause = OSError("disk on fire")
    storage = create_storage().mount("far/away", Failing(cause))
    key = "far:away:1"
    for operation, about, call in (
        ("get_item", key, storage.get_item(key)),
        ("get_item_raw", key, storage.get_item_raw(key)),
        ("set_item", key, storage.set_item(key, 1)),
        ("set_item_raw", key, storage.set_item_raw(key, b"")),
        ("has_item", key, storage.has_item(key)),
        ("remove_item", key, storage.remove_item(key)),
        ("add_item", key, storage.add_item(key, 1)),
        ("compare_and_set", key, storage.compare_and_set(key, 1, 2)),
        ("update_item", key, storage.update_item(key, lambda value: value)),
        ("touch", key, storage.touch(key)),
        ("get_meta", key, storage.get_meta(key)),
        ("get_items", None, storage.get_items([key, key + "2"])),
        ("set_items", None, storage.set_items({key: 1, key + "2": 1})),
        ("remove_items", None, storage.remove_items([key, key + "2"])),
        ("commit", key, storage.commit({key: 1})),
        ("commit", None, storage.commit({key: 1, key + "2": 1})),
        ("get_keys", "far", storage.get_keys("far")),
        ("count", "far", storage.count("far")),
        ("clear", "far", storage.clear("far")),
    ):
        with pytest.raises(BackendError, match="disk on fire") as caught:
            await call
        error = caught.value
        assert (error.operation, error.key) == (operation, about)
        assert (error.mount, error.driver) == ("far:away", "test_errors"), operation
        assert error.__cause__ is cause, operation


@in_loop
async def test_a_step_names_the_call_that_it_is_of_and_the_whole_of_a_storage_has_no_key() -> None:
    storage = create_storage()
    await storage.set_item_raw("raw", b"{")

    async def items() -> None:
        async for _ in storage.iter_items():
            pass

    for operation, key, call in (
        ("iter_items", "raw", items()),
        ("snapshot", "raw", snapshot(storage)),
        ("restore_snapshot", None, restore_snapshot(storage, [1])),  # type: ignore[arg-type]
    ):
        with pytest.raises(KVStoreError) as caught:
            await call
        assert (caught.value.operation, caught.value.key) == (operation, key)
    failing = create_storage(Failing(OSError("disk on fire")))
    for whole in (failing.get_keys(), failing.count(), failing.clear()):
        with pytest.raises(BackendError) as failed:
            await whole
        assert failed.value.key is None
    for name, wrong in (
        ("escape_segment", lambda: escape_segment("\ud800")),
        ("unescape_segment", lambda: unescape_segment("%zz")),
        ("join_key", lambda: join_key("..")),
    ):
        with pytest.raises(InvalidKeyError) as refused:
            wrong()
        assert refused.value.operation == name


@in_loop
async def test_what_makes_no_sense_is_an_error_of_the_tree_that_names_the_call() -> None:
    """E1, T1: before anything is touched."""
    storage = create_storage()
    await storage.set_item("key", {"x": 1})
    nonsense: list[tuple[str, type[KVStoreError], Callable[[], Any]]] = [
        ("set_items", InvalidValueError, lambda: storage.set_items("abc")),  # type: ignore[arg-type]
        ("set_items", InvalidValueError, lambda: storage.set_items({}, ttl=-1)),
        ("get_items", InvalidKeyError, lambda: storage.get_items(5)),  # type: ignore[call-overload]
        ("remove_items", InvalidKeyError, lambda: storage.remove_items("key")),
        ("commit", InvalidValueError, lambda: storage.commit({"key": 1}, expect=[1])),  # type: ignore[arg-type]
        ("commit", InvalidValueError, lambda: storage.commit({"key": 1}, expect={"key": 1, "/key": 1})),
        ("commit", InvalidValueError, lambda: storage.commit({}, removes=["key"], ttl="x")),  # type: ignore[arg-type]
        ("update_item", InvalidValueError, lambda: storage.update_item("key", 5)),  # type: ignore[arg-type]
        ("get_keys", InvalidKeyError, lambda: storage.get_keys("..", limit=0)),
        ("get_mount", InvalidKeyError, lambda: storage.get_mount("..")),
        ("get_mounts", InvalidKeyError, lambda: storage.get_mounts("..")),
        ("prefix_storage", InvalidKeyError, lambda: prefix_storage(storage, "..")),
        ("mount", ConfigError, lambda: storage.mount("", "memory")),
        ("unmount", ConfigError, lambda: storage.unmount("nowhere")),
        ("watch", InvalidKeyError, lambda: storage.watch("..").__aenter__()),
    ]

    async def done(call: Callable[[], Any]) -> None:
        if inspect.isawaitable(result := call()):
            await result

    for operation, kind, call in nonsense:
        with pytest.raises(kind) as caught:
            await done(call)
        assert caught.value.operation == operation
    assert await storage.get_item("key") == {"x": 1}


@in_loop
async def test_the_error_of_a_condition_names_its_own_key() -> None:
    storage = create_storage()
    with pytest.raises(InvalidValueError) as caught:
        await storage.commit({"a": 1}, expect={"b": {1, 2}})
    assert caught.value.key == "b"


@in_loop
async def test_a_key_as_it_was_asked_for_is_the_key_that_is_named() -> None:
    storage = create_storage(Failing(OSError()))
    for call in (storage.get_item("/a//b/"), storage.set_items({"/a//b/": 1})):
        with pytest.raises(BackendError) as caught:
            await call
        assert caught.value.key in ("/a//b/", "a:b")


@pytest.mark.parametrize("error", [BackendUnavailable("down"), BackendTimeout("slow"), CorruptValueError("torn")])
@in_loop
async def test_an_error_of_a_driver_keeps_its_kind(error: KVStoreError) -> None:
    storage = create_storage(Failing(error))
    for call in (storage.get_item("a"), storage.set_item("a", 1), storage.get_keys(), storage.count()):
        with pytest.raises(type(error)) as caught:
            await call
        assert caught.value.driver == "test_errors"


@in_loop
async def test_an_error_of_a_driver_keeps_its_cause() -> None:
    cause = OSError("refused")
    error = BackendUnavailable("down")
    error.__cause__ = cause
    storage = create_storage(Failing(error))
    for call in (
        storage.get_item("a"),
        storage.has_item("a"),
        storage.set_item("a", 1),
        storage.update_item("a", lambda value: value),
        storage.touch("a"),
        storage.get_keys(),
        storage.clear(),
    ):
        with pytest.raises(BackendUnavailable) as caught:
            await call
        assert caught.value.__cause__ is cause


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{PASSWORD}@host:6379/0",
        f"redis://:{PASSWORD}@host:6379/0",
        f"postgresql+asyncpg://me:{PASSWORD}@db.example/app?x=1",
        f"mongodb://a:{PASSWORD}@one:1,two:2/?ssl=true",
        f"mysql://me:{PASSWORD}%40x@host/db",
        f"mysql://me:p/{PASSWORD}@host/db",
        f"mysql://me:p@{PASSWORD}@host/db",
    ],
)
def test_no_error_shows_a_password(url: str) -> None:
    for error in (KVStoreError(f"can't reach {url} now"), ConfigError(f"bad url {url!r}").at("mount")):
        assert PASSWORD not in str(error)
        assert PASSWORD not in repr(error)
        assert "***@" in str(error)
        assert PASSWORD not in repr(error.at("get_item", "key", "a", "redis"))
    with pytest.raises(KVStoreError) as caught:
        create_storage(url.replace("://", "x://"))
    assert PASSWORD not in "".join(traceback.format_exception_only(caught.value))


@pytest.mark.parametrize("name", ["password", "PASSWORD", "passwd", "secret", "aws_secret_access_key", "token", "sslpassword"])
def test_no_error_shows_a_password_of_a_query(name: str) -> None:
    error = KVStoreError(f"can't reach 'redis://host:6379/0?db=1&{name}={PASSWORD}&x=1', {name}={PASSWORD}")

    assert PASSWORD not in str(error)
    assert "redis://host:6379/0?db=1&" in str(error)
    assert "&x=1" in str(error)


def test_what_is_no_password_is_shown() -> None:
    for text in ("http://host:8080/a b@c", "sqlite:///a@b.db", "passwords: 7", "s3://bucket/a:b"):
        assert str(KVStoreError(text)) == text


@in_loop
async def test_a_backends_own_error_with_a_password_is_shown_without() -> None:
    storage = create_storage(Failing(OSError(f"no route to redis://me:{PASSWORD}@host")))
    with pytest.raises(BackendError) as caught:
        await storage.get_item("a")
    assert PASSWORD not in str(caught.value)


def test_errors_can_be_pickled_as_others() -> None:
    error = pickle.loads(pickle.dumps(BackendError("it broke", operation="get_item", key="a")))

    assert str(error) == "it broke (get_item, key 'a')"


@in_loop
async def test_an_unknown_option_of_a_mount_or_driver_is_refused_with_the_closest() -> None:
    storage = create_storage()
    with pytest.raises(ConfigError, match="did you mean 'read_only'"):
        storage.mount("a", "memory", read_onyl=True)
    with pytest.raises(ConfigError, match="did you mean 'path'"):
        storage.mount("a", "sqlite", paht="x")
    assert [mount.base for mount in storage.get_mounts()] == [""]


@in_loop
async def test_a_fault_of_the_callers_own_function_is_not_wrapped() -> None:
    storage = create_storage(MemoryDriver())
    with pytest.raises(ZeroDivisionError):
        await storage.update_item("key", lambda value: 1 / 0)


class NamesItsKeys(MemoryDriver):
    capabilities = Capabilities(atomic=True, conditional=True, persistent=False)

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        for key in keys:
            if key.startswith("bad"):
                raise CorruptValueError("unreadable", key=key)
        return await super().read(keys)

    async def write(self, writes: Sequence[Write], expect: Expect | None = None) -> list[bool] | None:
        for key, _, _ in writes:
            if key.startswith("bad"):
                raise BackendError("unwritable", key=key)
        return await super().write(writes, expect)


@in_loop
async def test_E1_an_error_of_a_driver_names_the_callers_key_in_mounts_and_prefixes() -> None:
    whole = create_storage().mount("c:d", NamesItsKeys())
    async with whole:
        for storage, key in ((whole, "c:d:bad:1"), (prefix_storage(whole, "c"), "d:bad:1")):
            other = key.replace("bad:1", "good")
            calls = [
                storage.get_item(key),
                storage.get_items([other, key]),
                storage.set_item(key, 1),
                storage.set_items({other: 1, key: 1}),
                storage.remove_items([other, key]),
                storage.commit({other: 1, key: 1}),
                storage.add_item(key, 1),
            ]
            for call in calls:
                with pytest.raises(KVStoreError) as caught:
                    await call
                assert (caught.value.key, caught.value.mount) == (key, "c:d")


# Passwords in URLs

SECRETS = ("s3cret", "hunter")
PASSWORDS = [
    *(
        f"S3cRet{mark}hunTer"
        for mark in ("", *"@?#/[]:%\\&;,= '\"|{", "%zz", "%41", "@@", "://", "\t", "é", "／", "?x=1&", "@x/")
    ),
    *(f"1{mark}hunTer" for mark in "@?#/[]:%,"),
    *("[S3cRet]", "[::1]hunTer", "x?S3cRet=1", "x?timeout=hunTer", "1?timeout=hunTer", "x%40S3cRet?sslmode=hunTer", "@S3cRet"),
    *("1?table=hunTer", "x@y/hunTer?S3cRet", "x?ssl_cert_reqs=hunTer", "/S3cRet", "?hunTer", "#S3cRet"),
]
SHAPES = [
    *("{}://user:{}@127.0.0.1:1/1", "{}://:{}@127.0.0.1:1", "{}://user:{}@127.0.0.1:port/1", "{}://user:{}@[::1/1"),
    *("{}://user:{}@127.0.0.1:1/1?nope=1", "{}://user:{}@127.0.0.1:1/1?timeout=soon", "{}://user@x:{}@127.0.0.1:1/1"),
    *("{}://user:{}@[127.0.0.1]/1", "{}://user:{}@127.0.0.1:1/1/a@b"),
    *("{}:/user:{}@host/1", "{}:user:{}@host", "{}//user:{}@host", " {}://user:{}@host", "{}//:{}@host", "{}/user:{}@host"),
]
WITHOUT_HOST = ["{}://user:{}", "{}://:{}/1"]


def _shown(error: BaseException) -> str:
    """All that may be printed of an error, and of what it is linked to. What else a traceback has is lines of code."""
    links: list[BaseException] = [error]
    for link in links:
        links += [one for one in (link.__cause__, link.__context__) if one is not None and one not in links]
    return "".join(f"{link}{link!r}{link.args}{getattr(link, '__notes__', ())}" for link in links)


def _check(shown: str, url: str) -> None:
    assert not [secret for secret in SECRETS if secret in shown.lower()], (url, shown)


async def _check_first_call(url: str, storage: Storage) -> None:
    async with storage:
        _check(f"{storage!r}{storage.get_mounts()!r}", url)
        try:
            await storage.get_item("key")
        except KVStoreError as error:
            _check(_shown(error), url)


@pytest.mark.parametrize(
    ("scheme", "driver"),
    [
        *(("redis", "redis"), ("rediss", "redis"), ("redis+sentinel", "redis"), ("unix", "redis"), ("sqlite", "sqlite")),
        *(("postgresql", "postgresql"), ("postgresql+psycopg", "postgresql"), ("mysql", "mysql"), ("mongodb", "mongodb")),
        *(("mongodb+srv", "mongodb"), ("s3", "fsspec"), ("gs", "fsspec"), ("sftp", "fsspec"), ("http", "fsspec")),
        *(("file", "fs"), ("diskcache", "diskcache"), ("memory", "memory")),
    ],
)
@in_loop
async def test_E1_no_part_of_a_password_is_shown_however_a_url_is_mistyped(
    scheme: str, driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [shape.format(scheme, password) for shape in SHAPES for password in PASSWORDS]
    # Where there is no host, what begins like a port or follows an `@` is taken for one.
    urls += [
        shape.format(scheme, text) for shape in WITHOUT_HOST for text in PASSWORDS if "@" not in text and text[0] not in "1/?#"
    ]
    file = tmp_path / "kvstore.toml"
    monkeypatch.setattr("importlib.metadata.entry_points", cache(importlib.metadata.entry_points))  # asked thousands of times
    called = ("redis", "postgresql", "postgresql+psycopg", "mysql", "mongodb")
    calls = []
    for number, url in enumerate(urls):
        file.write_text(f"[mounts]\nx = {json.dumps(url)}\n", "utf-8")
        monkeypatch.setenv("KVSTORE_CONFIG", url)
        ways: list[Callable[[str], Storage]] = [
            lambda url: create_storage("fsspec", url=url) if driver == "fsspec" else create_storage(url),
            lambda url: create_storage(driver, url=url),
            lambda url: open_storage({"x": url}),
            lambda url: open_storage(file),
            lambda url: open_storage(),
            lambda url: open_storage(url),
            lambda url: open_storage(Path(url)),
        ]
        for way in ways if number % 7 == 0 else ways[:2]:
            try:
                storage = way(url)
            except KVStoreError as error:
                _check(_shown(error), url)
            else:
                _check(f"{storage.get_mounts()[0].driver!r}", url)
                if way is ways[0] and (
                    (scheme in called and number % 3 == 0) or (scheme == "http" and number < len(PASSWORDS))
                ):
                    calls.append(_check_first_call(url, storage))

    await asyncio.gather(*calls)


def test_E1_a_configuration_with_a_url_in_place_of_a_base_or_a_setting_shows_no_password(tmp_path: Path) -> None:
    url = "redis://user:S3cRet@host"
    (tmp_path / "x.toml").write_text(f'"{url}" = "x"', "utf-8")
    (tmp_path / "latin.toml").write_bytes(f'mounts = "{url}\xe9"'.encode("latin-1"))
    for source in ({url: "cache"}, tmp_path / "x.toml", tmp_path / "latin.toml"):
        with pytest.raises(KVStoreError) as caught:
            open_storage(source)  # type: ignore[arg-type]
        _check(_shown(caught.value), url)


@in_loop
async def test_E1_a_password_of_an_s3_endpoint_is_shown_by_no_error() -> None:
    for password in ("S3cRet", "S3cRet/hunTer", "S3cRet@hunTer", "S3cRet%40hunTer"):
        url = f"s3://bucket/x?endpoint_url=http://user:{password}@127.0.0.1:1"
        async with create_storage(url, storage_options={"key": "k", "secret": "s"}) as storage:
            with pytest.raises(KVStoreError) as caught:
                await storage.get_item("key")
            _check(f"{_shown(caught.value)}{storage!r}{storage.get_mounts()!r}", url)
