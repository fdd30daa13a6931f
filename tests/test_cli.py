"""`python -m persistence`: import, list, show, export, and what it says when something is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_agentx import BAD, SMALL, image, message, sqlite_store, texts

from persistence import create_persistence
from persistence.__main__ import main

Output = pytest.CaptureFixture[str]


@pytest.fixture
def source(tmp_path: Path) -> str:
    sqlite_store(tmp_path / "agentx.db", texts()).close()
    return str(tmp_path / "agentx.db")


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store.db")


def failed(capsys: Output, *arguments: str) -> str:
    """What a command that fails says: one line, and nothing on the standard output."""
    assert main([*arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("persistence: ")
    assert output.err.count("\n") == 1
    return output.err


def test_a_store_is_imported_listed_shown_and_exported(source: str, store: str, capsys: Output) -> None:
    assert main(["import", source, "--into", store]) == 0
    assert capsys.readouterr().out == "2 containers, 2 images, 2 sessions, 2 messages imported\n"
    assert main(["import", source, "--into", store, "--strict"]) == 0
    assert capsys.readouterr().out.endswith("; 8 records and messages were there already\n")

    assert main(["list", "--store", store]) == 0
    listed = capsys.readouterr().out
    assert "container c1\n" in listed
    assert "image i1  name of i1  (container c1)\n" in listed
    assert "session s1  2 messages  (image i1)\n" in listed

    assert main(["show", "s1", "--store", store, "--last", "1"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "session s1: 2 messages, the last 1"
    assert shown[1].split() == ["user", "text", "of", "m2"]

    assert main(["export", "--store", store]) == 0
    assert json.loads(capsys.readouterr().out) == SMALL


def test_what_was_left_out_is_told_and_the_exit_status_is_1(tmp_path: Path, store: str, capsys: Output) -> None:
    sqlite_store(tmp_path / "bad.db", texts() | BAD).close()
    assert main(["import", str(tmp_path / "bad.db"), "--into", store]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 containers, 2 images, 2 sessions, 2 messages imported"
    assert sorted(line.split(": ")[1] for line in lines[1:]) == sorted(BAD)


def test_strict_imports_nothing(tmp_path: Path, store: str, capsys: Output) -> None:
    sqlite_store(tmp_path / "bad.db", texts() | BAD).close()
    assert "import_agentx" in failed(capsys, "import", str(tmp_path / "bad.db"), "--into", store, "--strict")
    assert main(["list", "--store", store]) == 2 or capsys.readouterr().out == ""


def test_overwrite_replaces_what_differs(tmp_path: Path, source: str, store: str, capsys: Output) -> None:
    assert main(["import", source, "--into", store]) == 0
    newer = SMALL | {"images": [image("i1", name="a new name"), SMALL["images"][1]]}
    sqlite_store(tmp_path / "newer.db", texts(newer)).close()
    assert main(["import", str(tmp_path / "newer.db"), "--into", store]) == 1
    assert "images:i1: there is another record with this id" in capsys.readouterr().out
    assert main(["import", str(tmp_path / "newer.db"), "--into", store, "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["list", "--store", store]) == 0
    assert "image i1  a new name" in capsys.readouterr().out


def test_what_is_not_there_is_said_and_not_created(tmp_path: Path, source: str, store: str, capsys: Output) -> None:
    for arguments in (["list"], ["show", "s1"], ["export"]):
        assert f"there is no store {store}" in failed(capsys, *arguments, "--store", store)
    assert f"there is no {tmp_path / 'nothing.db'}" in failed(capsys, "import", str(tmp_path / "nothing.db"), "--into", store)
    assert not Path(store).exists()
    assert main(["import", source, "--into", store]) == 0
    capsys.readouterr()
    assert "there is no session 'nobody'" in failed(capsys, "show", "nobody", "--store", store)


def test_a_store_is_not_imported_into_itself(source: str, tmp_path: Path, capsys: Output) -> None:
    before = Path(source).read_bytes()
    (tmp_path / "link.db").symlink_to(source)
    for into in (source, str(tmp_path / "link.db")):
        assert "is the store to import into" in failed(capsys, "import", source, "--into", into)
    assert Path(source).read_bytes() == before


def test_a_file_that_is_no_store_is_said(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "notes.txt").write_text("buy milk")
    assert "no SQLite file" in failed(capsys, "import", str(tmp_path / "notes.txt"), "--into", str(tmp_path / "new.db"))
    assert "damaged or no SQLite database" in failed(capsys, "list", "--store", str(tmp_path / "notes.txt"))
    assert (tmp_path / "notes.txt").read_text() == "buy milk"
    assert "nothing" in failed(capsys, "list", "--store", "nothing://here")


def test_a_store_that_is_away_is_said_in_a_line(source: str, capsys: Output) -> None:
    for arguments in (["import", source, "--into"], ["list", "--store"], ["export", "--store"]):
        assert "Redis can't be reached" in failed(capsys, *arguments, "redis://127.0.0.1:1/0")


def test_control_characters_of_a_message_do_not_reach_the_terminal(store: str, capsys: Output) -> None:
    async def fill() -> None:
        async with create_persistence("sqlite", path=store) as persistence:
            await persistence.sessions.add_message("s1", message("m1", content="red \x1b[31m bell \a new\nline"))

    asyncio.run(fill())
    assert main(["show", "s1", "--store", store]) == 0
    shown = capsys.readouterr().out
    assert not any(ord(character) < 32 and character != "\n" for character in shown)
    assert shown.count("\n") == 2


@pytest.mark.parametrize("arguments", [[], ["import"], ["show"], ["list", "--nonsense"], ["show", "s1", "--last", "many"]])
def test_wrong_arguments_get_the_usage(arguments: list[str], capsys: Output) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m persistence" in capsys.readouterr().err


def test_as_a_program_it_opens_the_store_of_the_home_and_ends_quietly_when_nobody_reads_on(source: str, tmp_path: Path) -> None:
    environment = os.environ | {"HOME": str(tmp_path)}
    command = [sys.executable, "-m", "persistence"]
    subprocess.run([*command, "import", source], env=environment, check=True, capture_output=True)
    assert (tmp_path / ".agentx" / "data" / "agentx.db").is_file()
    listing = subprocess.Popen([*command, "export"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert listing.stdout is not None
    listing.stdout.close()
    _, said = listing.communicate()
    assert b"Traceback" not in said
