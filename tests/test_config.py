"""Naming drivers and mounts: by name, module, class, entry point and URL; from TOML, a mapping and the environment."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pymongo
import pytest
import redis
import sqlalchemy

from kvstore import (
    ConfigError,
    DriverNotFoundError,
    InvalidKeyError,
    KVStoreError,
    MissingDependencyError,
    Storage,
    create_storage,
    open_storage,
)
from kvstore.drivers.memory import MemoryDriver
from kvstore.resolve import driver_names


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def _bases(storage: Storage) -> dict[str, str]:
    return {mount.base: mount.driver.name for mount in storage.get_mounts()}


@pytest.mark.parametrize(
    ("url", "name"),
    [
        *(("MEMORY:", "memory"), ("SQLite:///a.db", "sqlite"), ("FILE:///a", "fs"), ("Diskcache:///a", "diskcache")),
        *(("REDIS://h", "redis"), ("Valkey://h", "redis"), ("PostgreSQL://h/x", "postgresql"), ("MariaDB://h/x", "mysql")),
        *(("MongoDB://h/x", "mongodb"), ("S3://bucket/x", "fsspec")),
    ],
)
def test_the_scheme_of_a_url_is_taken_in_any_case(url: str, name: str) -> None:
    assert _bases(create_storage(url)) == {"": name}


# From where mounts come


def test_a_toml_file_names_the_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA", "data")
    path = _write(
        tmp_path / "kvstore.toml",
        """
        [mounts]
        "" = "sqlite:///app.db"
        cache = { driver = "memory", ttl = 60 }
        "a/b" = { driver = "sqlite", path = "${DATA}.db", timeout = 5, read_only = true }
        """,
    )
    storage = open_storage(path)

    assert _bases(storage) == {"a:b": "sqlite", "cache": "memory", "": "sqlite"}
    assert _bases(open_storage(str(path))) == _bases(storage)
    mounts = {mount.base: mount for mount in storage.get_mounts()}
    assert (mounts["cache"].ttl, mounts["a:b"].read_only, mounts[""].ttl) == (60, True, None)
    assert "data.db" in repr(mounts["a:b"].driver)

    async def use() -> None:
        async with storage:
            await storage.set_items({"x": 1, "cache:y": 2})
            assert await storage.get_keys("cache") == ["cache:y"]

    asyncio.run(use())
    assert (tmp_path / "app.db").exists()


@pytest.mark.parametrize(
    "mapping",
    [
        {"mounts": {"": "memory", "cache": {"driver": "memory"}}},
        {"": "memory", "cache": {"driver": "memory"}},
        {"": "memory:", "/cache/": "kvstore.drivers.memory:MemoryDriver"},
    ],
)
def test_a_mapping_names_them_likewise(mapping: Mapping[str, Any]) -> None:
    assert _bases(open_storage(mapping)) == {"cache": "memory", "": "memory"}


def test_the_environment_names_a_file_or_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSTORE_CONFIG", str(_write(tmp_path / "a.toml", '[mounts]\nx = "memory"\n')))
    assert _bases(open_storage()) == {"x": "memory"}
    monkeypatch.setenv("KVSTORE_CONFIG", "memory:")
    assert _bases(open_storage()) == {"": "memory"}
    monkeypatch.setenv("KVSTORE_CONFIG", f"sqlite:///{tmp_path}/a.db")
    assert _bases(open_storage()) == {"": "sqlite"}
    for unset in ("", None):
        monkeypatch.delenv("KVSTORE_CONFIG") if unset is None else monkeypatch.setenv("KVSTORE_CONFIG", unset)
        with pytest.raises(ConfigError, match="KVSTORE_CONFIG"):
            open_storage()


def test_what_is_wrong_under_the_environment_variable_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = _write(tmp_path / "bad.toml", '[mounts]\nx = "nowhere"\n')
    for value, said in (
        ("nowhere://x", "KVSTORE_CONFIG: there is no driver 'nowhere'"),
        (str(bad), f"KVSTORE_CONFIG: {bad}: there is no driver 'nowhere'"),
        (str(tmp_path / "none.toml"), f"KVSTORE_CONFIG: {tmp_path}/none.toml can't be read"),
    ):
        monkeypatch.setenv("KVSTORE_CONFIG", value)
        with pytest.raises(KVStoreError) as caught:
            open_storage()
        assert caught.value.message.startswith(said)


def test_variables_are_replaced_in_every_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "mem")
    monkeypatch.setenv("WHERE", str(tmp_path))
    monkeypatch.delenv("NOTHING", raising=False)
    storage = open_storage(
        {
            "a": "${NAME}ory",
            "b": {"driver": "sqlite", "path": "${WHERE}/${NOTHING:-default}/$${NAME}.db"},
            "c": {"driver": "sqlite", "path": "${NOTHING:-}x.db"},
        }
    )

    mounts = {mount.base: repr(mount.driver) for mount in storage.get_mounts()}
    assert f"{tmp_path}/default/${{NAME}}.db" in mounts["b"]
    assert mounts["c"].endswith("x.db')")
    with pytest.raises(ConfigError, match="NOTHING") as caught:
        open_storage({"a": {"driver": "sqlite", "path": "${NOTHING}"}})
    assert caught.value.mount == "a"


def test_an_option_that_is_nothing_but_a_variable_may_be_a_number_or_true_or_false(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TIMEOUT", "2.5")
    monkeypatch.setenv("NAME", "123")
    monkeypatch.setenv("READ_ONLY", "true")
    monkeypatch.setenv("NONSENSE", "soon")
    mount = {"driver": "sqlite", "path": "${NAME}", "timeout": "${TIMEOUT}", "ttl": "${TTL:-60}", "read_only": "${READ_ONLY}"}
    found = open_storage({"a": mount}).get_mount("a:b")
    assert (found.ttl, found.read_only) == (60.0, True)
    assert repr(found.driver).endswith("/123')")
    for option in ("timeout", "ttl", "read_only"):
        with pytest.raises(ConfigError, match=option):
            open_storage({"a": mount | {option: "${NONSENSE}"}})
    with pytest.raises(ConfigError, match="timeout"):
        open_storage({"a": mount | {"timeout": "2.5"}})


def test_a_url_is_a_configuration_too() -> None:
    assert _bases(open_storage("sqlite:///app.db")) == {"": "sqlite"}
    with pytest.raises(ConfigError, match="a URL is given twice"):
        create_storage("redis://localhost", url="redis://localhost")
    with pytest.raises(ConfigError, match="the mounts stand in a table `mounts`"):
        open_storage({"mount": {"": "memory"}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[mounts\n", "is not TOML"),
        ("", "no mounts"),
        ("[mounts]\n", "no mounts"),
        ('[mount]\n"" = "memory"\n', "'mount'"),
        ('mounts = "memory"\n', "no mounts"),
        ('[mounts]\n"" = 7\n', "a mount is"),
        ('[mounts]\n"" = { path = "a.db" }\n', "names no `driver`"),
        ('[mounts]\n"" = "nothing"\n', "'nothing'"),
        ('[mounts]\n"" = { driver = "memory", tll = 60 }\n', "'ttl'"),
        ('[mounts]\n"" = { driver = "memory", ttl = "60" }\n', "ttl"),
        ('[mounts]\n"" = { driver = "memory", read_only = "yes" }\n', "read_only"),
        ('[mounts]\n"" = { driver = "sqlite", path = 7 }\n', "got `int`"),
        ('[mounts]\n"" = { driver = "sqlite", pth = "a.db" }\n', "'path'"),
        ('[mounts]\n"" = "sqlite"\n', "path"),
        ('[mounts]\na = "memory"\n"/a/" = "memory"\n', "mounted here already"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_the_file(tmp_path: Path, text: str, said: str) -> None:
    path = _write(tmp_path / "kvstore.toml", text)
    with pytest.raises(KVStoreError) as caught:
        open_storage(path)

    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, ConfigError | DriverNotFoundError)


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(ConfigError, match=str(path)) as caught:
            open_storage(path)
        assert isinstance(caught.value.__cause__, OSError)
    (tmp_path / "latin").write_bytes(b'[mounts]\n"\xe9" = "memory"\n')
    with pytest.raises(ConfigError, match="latin"):
        open_storage(tmp_path / "latin")


def test_a_base_that_is_no_key_is_refused_with_its_name() -> None:
    with pytest.raises(InvalidKeyError) as caught:
        open_storage({"a:..": "memory"})
    assert caught.value.mount == "a:.."


# How a driver is named


@pytest.mark.parametrize(
    "name", ["memory", "kvstore.drivers.memory", "kvstore.drivers.memory:MemoryDriver", "memory:", "memory://"]
)
def test_a_built_in_driver_has_several_names(name: str) -> None:
    assert isinstance(create_storage(name).get_mount("a").driver, MemoryDriver)


def test_an_instance_is_a_driver_and_takes_no_options() -> None:
    driver = MemoryDriver()

    assert create_storage(driver, ttl=5).get_mount("a").driver is driver
    with pytest.raises(ConfigError, match="path"):
        create_storage(driver, path="x")
    for wrong in (MemoryDriver, 7, None, {"driver": "memory"}):
        with pytest.raises(ConfigError):
            create_storage(wrong)  # type: ignore[arg-type]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of packages that can be imported, as if they were installed."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("acme_drivers", "acme_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    _write(
        tmp_path / "acme_drivers.py",
        "from kvstore.drivers.memory import MemoryDriver\n"
        "class One(MemoryDriver):\n"
        "    url_schemes = ('acme',)\n"
        "    def __init__(self, size: int = 1, *, colour: str = 'red') -> None:\n"
        "        super().__init__()\n"
        "        self.size, self.colour = size, colour\n"
        "    @classmethod\n"
        "    def from_url(cls, url, **options):\n"
        "        return cls(len(url), **options)\n"
        "class _Hidden(MemoryDriver):\n"
        "    pass\n",
    )
    _write(tmp_path / "acme_broken.py", "import a_client_that_is_not_installed\n")
    _write(
        tmp_path / "acme-1.0.dist-info" / "entry_points.txt",
        "[kvstore.drivers]\nacme = acme_drivers:One\nacmemodule = acme_drivers\nacmegone = acme_gone:One\n",
    )
    _write(tmp_path / "acme-1.0.dist-info" / "METADATA", "Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    return tmp_path


def test_a_driver_of_another_package_is_named_by_module_class_or_entry_point(packages: Path) -> None:
    for name in ("acme_drivers:One", "acme", "acmemodule"):
        driver = create_storage(name, size=3, colour="blue").get_mount("a").driver
        assert (type(driver).__name__, driver.name) == ("One", "acme_drivers")
        assert (driver.size, driver.colour) == (3, "blue")  # type: ignore[attr-defined]
    assert {"acme", "acmemodule", "memory", "sqlite"} <= set(driver_names())


def test_an_entry_point_whose_module_is_not_there_is_said(packages: Path) -> None:
    with pytest.raises(DriverNotFoundError, match="no driver 'acmegone': no module 'acme_gone' can be imported"):
        create_storage("acmegone")


def test_a_driver_of_another_package_is_named_by_url(packages: Path) -> None:
    driver = create_storage("acme://x", colour="blue").get_mount("a").driver

    assert (driver.size, driver.colour) == (8, "blue")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("memori", "'memory'"),
        ("sqlit", "'sqlite'"),
        ("", "no driver"),
        (" ", "no driver"),
        ("no_such", "no driver"),
        ("_private", "no driver"),
        ("../memory", "no driver"),
        ("nowhere://x", "no driver"),
        ("no.such.module", "no driver 'no.such.module': no module 'no' can be imported"),
        ("no_such_module:Class", "no module 'no_such_module' can be imported"),
        ("kvstore.nothing", "no module 'kvstore.nothing' can be imported"),
        ("textwrap", "named with its driver class, as 'textwrap:Class'"),
        ("sqlite3", "did you mean 'sqlite'"),
        ("kvstore.drivers.memory:Nothing", "Nothing"),
        ("kvstore.errors", "0 public drivers"),
        ("os:path", "no driver class"),
        ("http://host/x", "there is no driver 'http'; there are diskcache, fs,"),
        ("/tmp/app.db", "a file is an option, as in 'sqlite', path='/tmp/app.db'"),
        ("sqlite:app.db", "a file is an option, as in 'sqlite', path='app.db'"),
    ],
)
def test_a_driver_that_is_none_is_not_found(name: str, said: str) -> None:
    with pytest.raises(DriverNotFoundError, match="driver") as caught:
        create_storage(name)
    assert said in str(caught.value)


def test_a_client_that_is_not_installed_is_said_with_the_line_that_helps(packages: Path) -> None:
    for name in ("acme_broken:Driver",):
        with pytest.raises(MissingDependencyError, match="pip install") as caught:
            create_storage(name)
        assert isinstance(caught.value.__cause__, ModuleNotFoundError)


# Options


@pytest.mark.parametrize(
    ("driver", "options", "said"),
    [
        ("memory", {"tll": 60}, "did you mean 'ttl'"),
        ("memory", {"readonly": True}, "did you mean 'read_only'"),
        ("sqlite", {"pth": "a"}, "did you mean 'path'"),
        ("sqlite", {"path": "a", "synchronos": "full"}, "did you mean 'synchronous'"),
        ("sqlite", {"path": "a", "zzz": 1}, "there is no option 'zzz'"),
        ("sqlite", {}, "'path' is missing"),
        ("sqlite", {"path": "a", "timeout": "5"}, "timeout"),
        ("sqlite", {"path": 5}, "option 'path' is wrong: Expected `str | PathLike`, got `int`"),
        ("fs", {"path": None}, "option 'path' is wrong: Expected `str | PathLike`, got `NoneType`"),
        ("sqlite", {"path": "a", "synchronous": "off"}, "synchronous"),
        ("sqlite:///a.db", {"pth": "a"}, "did you mean 'path'"),
        ("memory:", {"x": 1}, "there is no option 'x'"),
        ("memory://somewhere", {}, "memory"),
    ],
)
def test_a_wrong_option_is_refused_by_name_with_the_closest(driver: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_storage(driver, **options)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("option", "said"), [("tll", "did you mean 'ttl'"), ("readonly", "did you mean 'read_only'"), ("x", "'x'; there are")]
)
def test_E2_an_option_beside_an_instance_is_refused_with_the_closest_of_a_mount(option: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        create_storage(MemoryDriver(), **{option: 5})
    assert caught.value.driver == "memory"


NONSENSE: list[Any] = [
    *(5, 1.5, True, b"x.toml", b"redis://h", [], (), object(), type, float("nan"), 10**400, "\ud800", "a\0b", "", "a..b", "a."),
    *("kvstore.driver:Driver", "builtins:int", "memory:x", "é://x", "1://", "sqlite://", "x" * 5000),
    *("~nobody-of-this-name/x", "[", "a\nb://c", lambda: 1, {"a": 5}, {5: "x"}),
]


def test_E1_nonsense_in_a_configuration_raises_an_error_of_the_tree() -> None:
    for wrong in NONSENSE:
        for driver, options in (
            *(("sqlite", ("path", "table", "synchronous", "timeout")), ("fs", ("path", "layout", "fsync", "timeout"))),
            *(("diskcache", ("path", "timeout", "size_limit")), ("redis", ("url", "client", "index", "timeout"))),
            *(("postgresql", ("url", "engine", "table", "connections")), ("mysql", ("url", "engine", "schema", "timeout"))),
            *(("mongodb", ("url", "client", "replica_set")), ("fsspec", ("url", "fs", "storage_options", "timeout"))),
        ):
            for option in options:
                with suppress(KVStoreError):
                    create_storage(driver, **{option: wrong})
                if option in ("client", "engine", "fs"):
                    with pytest.raises(ConfigError):
                        create_storage(driver, **{option: wrong})
        calls: list[Callable[[], object]] = [
            lambda: open_storage(wrong),  # noqa: B023
            lambda: open_storage({"mounts": wrong}),  # noqa: B023
            lambda: open_storage({"mounts": {"x": {"driver": wrong}}}),  # noqa: B023
            lambda: create_storage(wrong),  # noqa: B023
            lambda: create_storage(read_only=5 if wrong is True else wrong),  # noqa: B023
        ]
        for call in calls:
            with pytest.raises(KVStoreError):
                call()
        for perhaps in (lambda: create_storage().mount(wrong, "memory"), lambda: create_storage(ttl=wrong)):  # noqa: B023
            with suppress(KVStoreError):
                perhaps()


def test_a_client_that_is_not_for_asyncio_is_refused() -> None:
    for driver, option, client in (
        ("redis", "client", redis.Redis()),
        ("mongodb", "client", pymongo.MongoClient("mongodb://127.0.0.1:1", connect=False)),
        ("postgresql", "engine", sqlalchemy.create_engine("sqlite://")),
    ):
        with pytest.raises(ConfigError, match=rf"{option} is an .*[Aa]sync.*, not {type(client).__module__}"):
            create_storage(driver, **{option: client})


def test_what_is_wrong_under_a_mount_or_a_file_names_the_operation(tmp_path: Path) -> None:
    for wrong in ({"x": "nowhere"}, tmp_path / "none.toml", {"mounts": 5}, 5):
        with pytest.raises(KVStoreError) as caught:
            open_storage(wrong)  # type: ignore[arg-type]
        assert caught.value.operation == "open_storage"


# URLs


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p#w@h/db?table=mine", "PostgresqlDriver('postgresql://h/db', table='\"mine\"')"),
        ("postgresql://u:p/w@h:5/db?schema=s", "PostgresqlDriver('postgresql://h:5/db', table='\"s\".\"kvstore\"')"),
        ("mysql://me@server:p:[w]@h/db", "MysqlDriver('mysql://h/db', table='\"kvstore\"')"),
        ("postgresql://me@/db?host=/run/a@b", "PostgresqlDriver('postgresql:///db', table='\"kvstore\"')"),
        ("postgresql://[::1]:5432/db", "PostgresqlDriver('postgresql://[::1]:5432/db', table='\"kvstore\"')"),
        ("redis://u:p@ss:w@h:1/2", "RedisDriver('redis://h:1/2', base='')"),
        ("redis://localhost:6379/0?base=me@here", "RedisDriver('redis://localhost:6379/0', base='me@here:')"),
        ("unix:///run/a@b.sock", "RedisDriver('unix:///run/a@b.sock', base='')"),
        ("unix://u:pw@/run/a.sock", "RedisDriver('unix:///run/a.sock', base='')"),
        ("redis+sentinel://u:p@[::1]:1,b/main/3", "RedisDriver('redis+sentinel://[::1]:1,b/main/3', base='')"),
        ("mongodb://u:p%40[w]#@a:1,b:2/db?collection=a@b", "MongodbDriver('a:1,b:2/db', collection='a@b', base='')"),
        ("mongodb://%2Ftmp%2Fm.sock/db", "MongodbDriver('%2Ftmp%2Fm.sock/db', collection='kvstore', base='')"),
        ("s3://bucket/a@b", "FsspecDriver('s3://bucket/a@b')"),
        ("s3://arn:aws:s3:eu-west-1:1:accesspoint/x/y", "FsspecDriver('s3://arn:aws:s3:eu-west-1:1:accesspoint/x/y')"),
        ("abfs://container@account.dfs.core.windows.net/x", "FsspecDriver('abfs://account.dfs.core.windows.net/x')"),
        ("sftp://me@host/a@b", "FsspecDriver('sftp://host/a@b')"),
    ],
)
def test_a_mark_that_makes_nothing_unclear_may_stand_in_a_url(url: str, shown: str) -> None:
    assert repr(create_storage(url).get_mount("key").driver) == shown


@pytest.mark.parametrize(
    "url",
    [
        *("postgresql://u:p@w@h/db", "postgresql://u:p@s/w@h/db", "mysql://u:p?w@h/db", "mysql://u:p?table=w@h/db"),
        *(
            "redis://u:p/w@h",
            "redis://u:p?w@h",
            "redis://u:p#w@h",
            "redis://u:p[w]@h",
            "redis://u:p@h/0@1",
            "unix://u:p/w@/run/a",
        ),
        *(
            "mongodb://u:p@w@h",
            "mongodb://u:p:w@h",
            "mongodb://u:p/w@h",
            "mongodb://u:p?w@h",
            "mongodb://u:p%zz@h",
            "mongodb://u:p%@h",
        ),
        *("sftp://u:p/w@h/x", "sftp://u:p?w@h/x", "sftp://u:p@h/x@y", "sftp://u:p[w]@h/x", "s3://k:s/x@bucket/x"),
    ],
)
def test_E1_a_mark_that_makes_a_login_unclear_is_refused_with_what_to_do(url: str) -> None:
    scheme = url.partition(":")[0]
    driver = {"unix": "redis", "sftp": "fsspec", "s3": "fsspec"}.get(scheme, scheme)
    for make in (lambda: create_storage(url), lambda: create_storage(driver, url=url)):
        with pytest.raises(ConfigError, match="percent-encoded") as caught:
            make()
        assert caught.value.driver == driver
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None or caught.value.__context__.__context__ is None  # the same without its call


def test_what_is_nearly_a_driver_is_refused_with_what_was_meant() -> None:
    for spec, said in (
        ("file", "did you mean 'fs'"),
        ("mariadb", "did you mean 'mysql'"),
        ("app.db", "a file is an option, as in 'sqlite', path='app.db'"),
    ):
        with pytest.raises(DriverNotFoundError, match=said):
            create_storage(spec)
    with pytest.raises(ConfigError, match="MemoryDriver is a class: give an instance"):
        create_storage(MemoryDriver)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["redis:/u:p@h", "redis:u:p@h", "redis//u:p@h", "postgresql:u:p@h", "mysql/x", "redis:x"])
def test_a_url_without_its_slashes_is_refused_with_what_to_do(url: str) -> None:
    scheme = re.split("[:/]", url)[0]
    with pytest.raises(DriverNotFoundError, match=f"a URL of {scheme} starts with {scheme}://"):
        create_storage(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://h/db?timeout=soon", "timeout is a number of seconds"),
        ("mysql://h/db?connections=few", "connections is a whole number"),
        ("redis://h?index=maybe", "index is true or false"),
        ("sqlite:///x.db?timeout=soon", "timeout is a number of seconds"),
        ("s3://bucket?timeout=soon", "timeout is a number of seconds"),
    ],
)
def test_E1_an_option_of_a_url_that_is_wrong_is_said_with_the_driver(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        create_storage(url)
    assert caught.value.driver is not None


def test_nothing_is_connected_or_made_before_the_first_call(tmp_path: Path) -> None:
    create_storage("sqlite", path=str(tmp_path / "a" / "b.db")).mount("m", f"sqlite:///{tmp_path}/c.db")

    assert list(tmp_path.iterdir()) == []


def test_a_driver_that_this_platform_has_no_module_for_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("kvstore.drivers.fs", "kvstore.drivers._fs.base"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    with pytest.raises(MissingDependencyError, match=f"'fs' does not run on {sys.platform}: it needs fcntl"):
        create_storage("fs", path="x")
