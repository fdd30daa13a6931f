"""How a persistence is made, what it imports, and what it lies on (P1, L1)."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import stat
import subprocess
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pytest
from persistence_helpers import Steps, Store, Wrapped, assert_clean, ids, image, message, place_on_a_server, session
from running import in_loop

from kvstore import Capabilities, ClosedError, ConfigError, Driver, UnsupportedOperation, create_storage, prefix_storage
from kvstore.drivers.memory import MemoryDriver
from persistence import Container, Kind, Persistence, Record, create_persistence, local_persistence


async def use(persistence: Persistence) -> None:
    """A bit of everything."""
    await persistence.containers.save(Container(container_id="c1"))
    await persistence.images.save(image("i1", "a"))
    await persistence.images.save(image("i1", "b"))
    await persistence.sessions.save(session("s1"))
    for number in range(5):
        await persistence.sessions.add_message("s1", message(f"m{number}"))
    assert await persistence.sessions.truncate_after("s1", "m2") == 2
    await persistence.sessions.fork("s1", "s2")
    assert ids(await persistence.sessions.get_messages("s2")) == ["m0", "m1", "m2"]
    assert [image.image_id for image in await persistence.images.list(container_id="c1", name="b")] == ["i1"]
    assert not await persistence.images.exists("none")
    report = await persistence.repair()
    assert (report.added_entries, report.removed_entries, report.mended_heads, report.removed_messages) == (0, 0, 0, 0)


@in_loop
async def test_P1_it_is_made_of_a_name_a_url_a_driver_or_a_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for made in (
        create_persistence("memory"),
        create_persistence("memory:"),
        create_persistence(MemoryDriver()),
        create_persistence(create_storage()),
        create_persistence("sqlite", path=str(tmp_path / "named.db")),
        create_persistence(f"sqlite:///{tmp_path}/url.db", synchronous="normal"),
        create_persistence(),
    ):
        async with made as persistence:
            await use(persistence)
    assert {"named.db", "url.db", "agentx.db"} <= set(os.listdir(tmp_path))


@in_loop
async def test_P1_each_driver_has_a_module_with_a_function_that_makes_it(tmp_path: Path) -> None:
    from persistence.drivers.fs import fs_driver
    from persistence.drivers.memory import memory_driver
    from persistence.drivers.sqlite import sqlite_driver

    for driver in (
        memory_driver(),
        sqlite_driver(path=tmp_path / "a.db", synchronous="normal"),
        fs_driver(path=tmp_path / "fs"),
    ):
        async with create_persistence(driver) as persistence:
            await use(persistence)


@pytest.mark.parametrize("kind", ["redis", "mongodb", "mysql", "postgresql"])
@in_loop
async def test_P1_so_has_each_server(kind: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"persistence.drivers.{kind}")
    url, options = place_on_a_server(kind, tmp_path)

    async with create_persistence(getattr(module, f"{kind}_driver")(url, **options)) as persistence:
        await use(persistence)
    async with create_persistence(kind, url=url, **options) as persistence:
        assert await persistence.sessions.count_messages("s2") == 3


URLS = {
    "redis": "redis://localhost:6379/0",
    "mongodb": "mongodb://localhost:27017/db",
    "mysql": "mysql://localhost/db",
    "postgresql": "postgresql://localhost/db",
}


def place(driver: str | Driver, **options: str) -> str:
    return repr(create_persistence(driver, **options).storage.get_mount("images:x").driver)


@pytest.mark.parametrize("name", URLS)
def test_P1_a_name_a_url_and_a_function_lead_to_the_same_place(name: str) -> None:
    url, option = URLS[name], {"redis": "base", "mongodb": "collection"}.get(name, "table")
    made = getattr(importlib.import_module(f"persistence.drivers.{name}"), f"{name}_driver")
    usual = {place(made(url)), place(url), place(name, url=url), place(f"kvstore.drivers.{name}", url=url)}
    assert len(usual) == 1
    assert "agentx" in usual.pop()
    asked = f"{url}?{option}=mine"
    other = {
        place(made(url, **{option: "mine"})),
        place(made(asked)),
        place(url, **{option: "mine"}),
        place(asked),
        place(name, url=url, **{option: "mine"}),
    }
    assert len(other) == 1
    assert "mine" in other.pop()


@pytest.mark.parametrize("name", URLS)
def test_P1_a_function_names_to_a_type_checker_every_option_that_its_driver_takes_with_a_url(name: str) -> None:
    made = getattr(importlib.import_module(f"persistence.drivers.{name}"), f"{name}_driver")
    (options,) = typing.get_args(typing.get_type_hints(made)["options"])
    named = {*inspect.signature(made).parameters, *typing.get_type_hints(options)} - {"options"}
    taken = inspect.signature(type(made(URLS[name]))).parameters.keys()
    assert named == taken - {"client", "engine"}


@pytest.mark.parametrize("name", ["sqlite", "fs", "diskcache"])
def test_P1_a_file_is_the_same_by_name_and_by_function(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = getattr(importlib.import_module(f"persistence.drivers.{name}"), f"{name}_driver")
    assert place(made()) == place(name)
    assert "agentx" in place(name)
    url = {"sqlite": "sqlite:///", "fs": "file://", "diskcache": "diskcache://"}[name] + f"{tmp_path}/mine"
    assert place(made(path=tmp_path / "mine")) == place(name, path=str(tmp_path / "mine")) == place(url)


@in_loop
async def test_P1_the_local_persistence_is_sqlite_below_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for base in (None, tmp_path / "deep" / "er"):
        async with local_persistence() if base is None else local_persistence(base) as persistence:
            await persistence.sessions.add_message("s1", message("m"))
        data = (base or tmp_path / ".agentx") / "data"
        assert (data / "agentx.db").is_file()
        for directory in (data, data.parent):
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    async with local_persistence() as persistence:
        assert await persistence.sessions.count_messages("s1") == 1
    async with create_persistence("memory") as given:
        assert local_persistence(tmp_path / "unused", persistence=given) is given
    assert not (tmp_path / "unused").exists()


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'path'"):
        create_persistence("sqlite", pathh="x")
    with pytest.raises(ConfigError, match="takes no options"):
        create_persistence(create_storage(), path="x")
    with pytest.raises(ConfigError, match="do not expire"):
        create_persistence("memory", ttl=5)
    with pytest.raises(ConfigError, match="there are path, synchronous, table, timeout, read_only ") as refused:
        create_persistence("sqlite", zzz=5)
    assert refused.value.operation == "create_persistence"
    with pytest.raises(ConfigError, match="; there are read_only "):
        create_persistence(MemoryDriver(), ttl_=5)
    with pytest.raises(ConfigError, match="base is a path, not int"):
        local_persistence(5)  # type: ignore[arg-type]
    bad: Any
    for bad in (None, dict, image("i1")):
        with pytest.raises(ConfigError, match="is no class with a __kind__"):
            create_persistence("memory").repository(bad)


def test_a_driver_that_is_not_conditional_is_refused() -> None:
    class Plain(Wrapped):
        def __init__(self) -> None:
            super().__init__(MemoryDriver())
            self.capabilities = Capabilities()

    with pytest.raises(UnsupportedOperation, match="conditional"):
        create_persistence(Plain())
    with pytest.raises(UnsupportedOperation, match="conditional"):
        create_persistence(create_storage().mount("messages:deep", Plain()))
    create_persistence(create_storage().mount("cache", Plain()))


def test_a_driver_that_cannot_keep_every_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"an id may be long.*leave out layout='plain'"):
        create_persistence("fs", path=str(tmp_path), layout="plain")
    files = create_storage().mount("assets", "fs", path=str(tmp_path), layout="plain")
    create_persistence(files)
    with pytest.raises(ConfigError, match=r"every_key.*mount 'messages:s1'"):
        create_persistence(files.mount("messages:s1", "fs", path=str(tmp_path), layout="plain"))


@in_loop
async def test_L1_closing_closes_what_it_was_given_and_nothing_else() -> None:
    storage = create_storage()
    for _ in range(2):
        async with create_persistence(prefix_storage(storage, "agents")) as persistence:
            await persistence.images.save(image("i1"))
        await persistence.aclose()
        with pytest.raises(ClosedError):
            await persistence.images.get("i1")
        with pytest.raises(ClosedError):
            await persistence.sessions.add_message("s1", message("m"))
    assert all(key.startswith("agents:") for key in await storage.get_keys())
    await create_persistence(storage).aclose()
    with pytest.raises(ClosedError):
        await storage.get_keys()


@in_loop
async def test_records_indexes_and_messages_may_lie_on_different_mounts_or_below_a_prefix(tmp_path: Path) -> None:
    storage = create_storage().mount("index:images", "memory").mount("messages", Steps(MemoryDriver()))
    storage.mount("heads", "sqlite", path=str(tmp_path / "heads.db"))
    storage.mount("below", "memory").mount("below:images", "memory")
    for outer in (storage, prefix_storage(storage, "below"), prefix_storage(storage, "else where")):
        made = create_persistence(prefix_storage(outer, ""))
        await use(made)
        calls = [made.sessions.add_message("s1", message(f"x{number}")) for number in range(20)]
        assert await asyncio.gather(*calls) == list(range(3, 23))
        assert await made.containers.delete("c1", cascade=True)
        await made.aclose()
    assert await storage.get_keys() == []
    await storage.aclose()


@in_loop
async def test_a_default_ttl_of_a_mount_is_not_that_of_records_or_messages() -> None:
    storage = create_storage("memory", ttl=0.001)
    async with create_persistence(storage) as persistence:
        await use(persistence)
        await asyncio.sleep(0.01)
        assert await persistence.images.exists("i1")
        for key in await storage.get_keys():
            meta = await storage.get_meta(key)
            assert meta is not None
            assert meta.expires_at is None, key


def test_a_kind_of_records_has_to_fit_its_class() -> None:
    class Base(Record):
        note_id: str

    class NoField(Base):
        __kind__ = Kind("notes", id="id")

    class NoIndex(Base):
        __kind__ = Kind("notes", id="note_id", indexes=("text",))

    class Reserved(Base):
        __kind__ = Kind("messages", id="note_id")

    class NoWord(Base):
        __kind__ = Kind("a:b", id="note_id")

    class Taken(Base):
        __kind__ = Kind("images", id="note_id")

    class One(Base):
        __kind__ = Kind("notes", id="note_id")

    class Two(Base):
        __kind__ = Kind("notes", id="note_id")

    class Limit(Base):
        __kind__ = Kind("others", id="note_id", indexes=("limit",))
        limit: str

    class NoText(Base):
        __kind__ = Kind("others", id="note_id", indexes=("number",))
        number: int | None

    class NumberedId(Record):
        __kind__ = Kind("others", id="number")
        number: int

    class PerhapsId(Record):
        __kind__ = Kind("others", id="name")
        name: str | None

    class Frozen(Base, frozen=True):  # type: ignore[misc]
        __kind__ = Kind("others", id="note_id")

    class Array(Base, array_like=True):
        __kind__ = Kind("others", id="note_id")

    class Tagged(Base, tag=True):
        __kind__ = Kind("others", id="note_id")

    class Unresolved(Base):
        __kind__ = Kind("others", id="note_id")
        what: Nowhere  # type: ignore[name-defined]  # noqa: F821

    class Fits(Base):
        __kind__ = Kind("fits", id="note_id", indexes=("color", "short"))
        color: Literal["red", "blue"] | None
        short: Annotated[str, msgspec.Meta(max_length=5)]

    persistence = create_persistence("memory")
    persistence.repository(One)
    persistence.repository(Fits)
    others = (Limit, NoText, NumberedId, PerhapsId, Frozen, Array, Tagged, Unresolved)
    for bad in (NoField, NoIndex, Reserved, NoWord, Taken, Two, Base, *others):
        with pytest.raises(ConfigError):
            persistence.repository(bad)


class Place(msgspec.Struct, forbid_unknown_fields=True):
    street: str
    next: Place | None = None


class Strict(Record):
    __kind__ = Kind("notes", id="note_id")

    note_id: str
    place: Place
    free: dict[str, Any]


@in_loop
async def test_P2_a_kind_that_would_lose_members_within_its_fields_is_refused() -> None:
    class Address(msgspec.Struct):
        street: str

    holder = msgspec.defstruct("Holder", [("address", Address)], forbid_unknown_fields=True)

    class Typed(TypedDict):
        a: int

    @dataclass
    class Plain:
        a: int

    persistence = create_persistence("memory")
    for inner in (Address, Typed, Plain, holder, list[Address], dict[str, Typed] | None, tuple[int, Plain]):
        bad = msgspec.defstruct("Bad", [("note_id", str), ("inner", inner)], bases=(Record,), kw_only=True)
        bad.__kind__ = Kind("notes", id="note_id")
        with pytest.raises(ConfigError, match="'inner'"):
            persistence.repository(bad)  # type: ignore[type-var]

    notes = persistence.repository(Strict)
    await notes.save(Strict(note_id="n", place=Place(street="s", next=Place(street="t")), free={"a": {"b": 1}}))
    found = await notes.get("n")
    assert found is not None
    assert (found.place.next, found.free) == (Place(street="t"), {"a": {"b": 1}})


def test_importing_persistence_imports_no_driver_and_no_client() -> None:
    code = (
        "import sys; import persistence\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('msgspec', 'orjson', 'sqlite3', 'asyncio')]\n"
        "from persistence import Container, create_persistence, local_persistence\n"
        "bad = [name for name in sys.modules if 'drivers.' in name or name in ('sqlite3', 'redis', 'pymongo', 'sqlalchemy')]\n"
        "assert not bad, bad\n"
        "from persistence.drivers.memory import memory_driver\n"
        "assert 'sqlite3' not in sys.modules\n"
        "assert 'Image' in dir(persistence)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@in_loop
async def test_a_session_works_without_a_record_until_it_has_one(tmp_path: Path) -> None:
    store = Store("memory", tmp_path)
    async with store.open() as persistence:
        await persistence.sessions.add_message("s1", message("m"))
        assert await persistence.sessions.get("s1") is None
        await persistence.repair()
        await persistence.sessions.save(session("s1"))
        assert ids(await persistence.sessions.get_messages("s1")) == ["m"]
    await assert_clean(store)
