"""What `import` gives: the names, to a program and to a type checker, and soon."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import textwrap
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import kvstore
from kvstore.errors import install

ROOT = Path(__file__).parent.parent


def run(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *flags, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)


def checked(program: str, path: Path) -> str:
    """What mypy says to it."""
    (path / "program.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", str(path / "program.py")]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout


@pytest.mark.parametrize("package", ["kvstore", "persistence"])
def test_what_is_named_for_type_checkers_is_what_is_loaded_when_it_is_used(package: str) -> None:
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__ or "").read_text())
    (literal,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    places = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(package)
        for alias in node.names
    }
    assert {name: f"{package}.{place}" for name, place in module._PLACE.items()} == places
    assert set(literal) == places.keys()
    assert dir(module) == sorted([*literal, *(["__version__"] if package == "kvstore" else [])])
    for name in literal:
        assert getattr(module, name) is getattr(importlib.import_module(places[name]), name)


@pytest.mark.parametrize("package", ["kvstore", "persistence"])
def test_a_star_import_gives_every_name_to_a_type_checker(package: str, tmp_path: Path) -> None:
    name = {"kvstore": "create_storage", "persistence": "create_persistence"}[package]
    said = checked(f"from {package} import *\n\nstore = {name}()\nstore.nonsense\n", tmp_path)
    assert "Found 1 error" in said
    assert 'has no attribute "nonsense"' in said


@pytest.mark.parametrize("package", ["kvstore", "persistence"])
def test_a_name_that_is_none_is_told_by_a_type_checker(package: str, tmp_path: Path) -> None:
    assert 'has no attribute "nonsense"' in checked(f"from {package} import nonsense\n", tmp_path)


PROGRAM = """
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Optional, Sequence

from kvstore import MISSING, DriverSpec, Listener, Missing, Never, Storage, Ttl
from persistence import Image, Kind, Persistence, Record, create_persistence
from persistence.drivers.sqlite import sqlite_driver


@dataclass
class User:
    name: str


class Note(Record):
    __kind__ = Kind("notes", id="note_id")

    note_id: str
    text: str = ""


def increased(number: int) -> int:
    return number + 1


async def increased_soon(number: int) -> int:
    return number + 1


def taken(number: int) -> int | Missing:
    return number - 1 if number else MISSING


async def name_of(storage: Storage, listener: Listener, spec: DriverSpec, ttl: Ttl, never: Never) -> str:
    storage.mount("c", spec, ttl=ttl)
    user = await storage.get_item("a", MISSING, type=User)
    if user is MISSING:
        return ""
    users = await storage.get_items(["a"], MISSING, type=User)
    return user.name + "".join(one.name for one in users.values() if one is not MISSING)


async def main(storage: Storage, persistence: Persistence) -> None:
    user: User | None = await storage.get_item("a", type=User)
    numbers: list[int] = await storage.get_item("b", [], type=list[int])
    either: User | int | None = await storage.get_item("c", type=User | int)
    users: dict[str, User | None] = await storage.get_items(["a"], type=User)
    counts: dict[str, int] = await storage.get_items(["a"], 0, type=int)
    either = (await storage.get_items(["a"], type=User | int))["a"]
    names: list[str] = [user.name async for _, user in storage.iter_items(type=User)]
    lengths: list[int] = [len(value) async for _, value in storage.iter_items()]
    number: int = await storage.update_item("n", increased, 0)
    number = await storage.update_item("n", increased_soon, 0)
    left: int | Missing = await storage.update_item("n", taken, 0)
    letter: Any = await storage.get_item("e", type=Literal["a"])
    letter = await storage.get_item("e", "a", type=Optional[int])
    letter = await storage.get_items(["e"], type=Annotated[int, "positive"])
    letter = [value async for _, value in storage.iter_items(type=Sequence[int])]
    async with aclosing(storage.iter_keys()) as keys, aclosing(storage.iter_items()) as items:
        names += [key async for key in keys] + [key async for key, _ in items]
    image: Image | None = await persistence.images.get("i1")
    notes: list[Note] = (await persistence.repository(Note).list()).items
    message = {"id": "m1", "content": "hi"}
    await persistence.sessions.add_messages("s1", [message, {"id": "m2", "n": 1}])
    await storage.get_item(5, type=int)


made = create_persistence(sqlite_driver(path="app.db"))
"""


def test_a_program_of_a_user_passes_a_strict_type_checker_but_for_its_fault(tmp_path: Path) -> None:
    said = checked(PROGRAM, tmp_path)
    assert "Found 1 error" in said, said
    assert 'No overload variant of "get_item"' in said


def test_what_only_errors_and_entry_points_need_is_not_imported_for_a_driver_that_is_built_in() -> None:
    done = run(
        """
        import sys
        from kvstore import create_storage
        create_storage("sqlite", path="app.db"), create_storage("memory:")
        print({"importlib.metadata", "difflib"} & sys.modules.keys())
        """
    )
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


@pytest.mark.parametrize("missing", ["pytest", "hypothesis"])
def test_the_kit_without_its_extra_says_what_to_install(missing: str) -> None:
    done = run(f"import sys; sys.modules[{missing!r}] = None; import kvstore.testing")
    assert done.stderr.splitlines()[-1].startswith("ImportError: kvstore.testing needs")
    assert install("testing") in done.stderr


def test_what_is_missing_is_said_by_the_packages_of_its_extra_whose_names_are_nobody_elses() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for extra, packages in extras.items():
        if packages:
            assert sorted(install(extra).split()[2:]) == sorted(f'"{package}"' for package in packages)


def test_where_the_sources_are_only_on_the_path_their_directory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", unknown)
    assert install("redis") == f'pip install "{ROOT}[redis]"'


def test_the_version_is_that_of_the_distribution() -> None:
    assert kvstore.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
