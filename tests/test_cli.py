"""`python -m persistence`: import, list, show, export, and what it says when something is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from test_agentx import BAD, SMALL, image, message, sqlite_store, texts

from kvstore import create_storage
from persistence import Image, Session, create_persistence
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


def test_a_store_may_be_named_by_a_variable_of_the_environment(
    source: str, store: str, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A URL with a password on the command line is seen by every user of the machine."""
    monkeypatch.setenv("AGENTS_STORE", f"sqlite:///{store}")
    assert main(["import", source, "--into", "${AGENTS_STORE}"]) == 0
    assert main(["copy", "${AGENTS_COPY:-" + str(tmp_path / "copy.db") + "}", "--store", "${AGENTS_STORE}"]) == 0
    capsys.readouterr()
    for named in (store, str(tmp_path / "copy.db")):
        assert main(["list", "--store", named]) == 0
        assert "session s1  2 messages" in capsys.readouterr().out
    assert "environment variable AGENTS_NONE is not set" in failed(capsys, "list", "--store", "${AGENTS_NONE}")


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


def test_a_store_is_copied_to_another_backend_whole(source: str, store: str, tmp_path: Path, capsys: Output) -> None:
    assert main(["import", source, "--into", store]) == 0
    assert main(["export", "--store", store]) == 0
    exported = capsys.readouterr().out.partition("\n")[2]
    target = f"file://{tmp_path}/files"
    assert main(["copy", target, "--store", store]) == 0
    assert capsys.readouterr().out.endswith(" keys copied\n")
    assert main(["export", "--store", target]) == 0
    assert capsys.readouterr().out == exported
    assert "holds something already" in failed(capsys, "copy", target, "--store", store)
    for nowhere in ("memory:", "sqlite:///:memory:"):
        assert "keeps nothing" in failed(capsys, "copy", nowhere, "--store", store)


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


def test_a_session_without_messages_is_shown(store: str, capsys: Output) -> None:
    async def fill() -> None:
        async with create_persistence("sqlite", path=store) as persistence:
            await persistence.sessions.save(Session(session_id="s1", image_id="i1", container_id="c1"))

    asyncio.run(fill())
    assert main(["show", "s1", "--store", store]) == 0
    assert capsys.readouterr().out == "session s1: 0 messages\n"


def test_a_store_is_not_imported_into_itself(source: str, tmp_path: Path, capsys: Output) -> None:
    before = Path(source).read_bytes()
    (tmp_path / "link.db").symlink_to(source)
    for into in (source, str(tmp_path / "link.db")):
        assert "is the store to import into" in failed(capsys, "import", source, "--into", into)
    assert Path(source).read_bytes() == before


def test_a_file_that_is_no_store_is_said(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "notes.txt").write_text("buy milk")
    assert "no SQLite file" in failed(capsys, "import", str(tmp_path / "notes.txt"), "--into", str(tmp_path / "new.db"))
    assert "is no SQLite database" in failed(capsys, "list", "--store", str(tmp_path / "notes.txt"))
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


def test_any_legal_message_is_shown_in_a_line(store: str, capsys: Output) -> None:
    odd: list[dict[str, object]] = [
        {"subtype": "tool-call", "toolCall": "x"},
        {"subtype": "tool-call", "toolCall": {"name": ["n"]}},
        {"subtype": "tool-result", "toolResult": None},
        {"subtype": "tool-result", "toolResult": {"output": "text"}},
        {"subtype": "tool-result", "toolResult": {"output": {}}},
        {"role": ["a"], "content": 5},
        {"subtype": {}, "content": None},
        {},
    ]

    async def fill() -> None:
        async with create_persistence("sqlite", path=store) as persistence:
            await persistence.sessions.add_messages("s1", [one | {"id": f"m{number}"} for number, one in enumerate(odd)])

    asyncio.run(fill())
    assert main(["show", "s1", "--store", store]) == 0
    assert capsys.readouterr().out.count("\n") == 1 + len(odd)


def test_a_name_or_an_id_can_neither_forge_a_line_nor_speak_to_the_terminal(store: str, capsys: Output) -> None:
    hostile = "\x1b]0;pwned\x07\nimage x\u202e"

    async def fill() -> None:
        async with create_persistence("sqlite", path=store) as persistence:
            await persistence.images.save(Image(image_id=hostile, container_id=hostile, session_id=hostile, name=hostile))
            await persistence.sessions.add_message(hostile, message("m1"))

    asyncio.run(fill())
    for command in (["list"], ["show", hostile]):
        assert main([*command, "--store", store]) == 0
        shown = capsys.readouterr().out
        assert shown.count("\n") == 2
        assert shown.replace("\n", "").isprintable()
        assert "\\x1b]0;pwned\\x07\\nimage x\\u202e" in shown


def test_messages_without_a_session_are_listed_and_exported(store: str, capsys: Output) -> None:
    async def fill() -> None:
        async with create_persistence("sqlite", path=store) as persistence:
            await persistence.sessions.add_message("gone", message("m1"))

    asyncio.run(fill())
    assert main(["list", "--store", store]) == 0
    assert capsys.readouterr().out == "no session gone  1 messages\n"
    assert main(["export", "--store", store]) == 0
    assert json.loads(capsys.readouterr().out)["messages"] == {"gone": [message("m1")]}


def test_what_cannot_be_read_is_told_and_the_rest_listed_and_exported(source: str, store: str, capsys: Output) -> None:
    assert main(["import", source, "--into", store]) == 0
    capsys.readouterr()

    async def spoil() -> None:
        async with create_storage("sqlite", path=store) as storage:
            await storage.set_item("images:i1", {"imageId": "i1"} | await storage.get_item("images:i1") | {"thinking": "max"})
            (entry, *_) = await storage.get_keys("messages:s1")
            await storage.set_item_raw(entry, b"{")

    asyncio.run(spoil())
    assert main(["list", "--store", store]) == 1
    output = capsys.readouterr()
    assert "image i2" in output.out
    assert output.err == "persistence: images:i1 can't be read\n"
    assert main(["export", "--store", store]) == 1
    exported = json.loads(capsys.readouterr().out)
    assert [image["imageId"] for image in exported["images"]] == ["i2"]
    assert exported["messages"] == {"s2": []}
    assert [key[:12] for key in exported["unreadable"]] == ["images:i1", "messages:s1:"]


def test_whatever_another_program_stored_is_shown_and_exported_or_told(store: str, capsys: Output) -> None:
    big = 10**20

    async def fill() -> None:
        async with create_persistence("sqlite", path=store) as persistence:
            await persistence.images.save(Image(image_id="i1", container_id="c1", session_id="s1", name="n"))
            for session_id in ("s1", "s2"):
                await persistence.sessions.add_message(session_id, message("m1"))
        async with create_storage("sqlite", path=store) as storage:
            data = await storage.get_item_raw("images:i1", b"")
            await storage.set_item_raw("images:i1", data.replace(b'"name":"n"', b'"name":"n","n":%d' % big))
            (key,) = await storage.get_keys("messages:s1")
            await storage.set_item_raw(key, b'{"at":0,"messages":[{"id":"m1","content":%d}]}' % big)
            await storage.set_item_raw("heads:s2", b'{"generation":"/"}')

    asyncio.run(fill())
    assert main(["show", "s1", "--store", store]) == 0
    assert str(big) in capsys.readouterr().out
    assert main(["export", "--store", store]) == 1
    exported = json.loads(capsys.readouterr().out)
    assert exported["images"][0]["n"] == exported["messages"]["s1"][0]["content"] == big
    assert exported["unreadable"] == ["heads:s2"]
    assert main(["list", "--store", store]) == 0
    assert "no session s2  unreadable messages" in capsys.readouterr().out
    assert "clear_messages" in failed(capsys, "show", "s2", "--store", store)


def test_what_is_no_place_for_a_store_is_said_and_what_to_name_instead(source: str, tmp_path: Path, capsys: Output) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for command in (["list", "--store"], ["import", source, "--into"]):
        assert f"{folder} is a directory; a store is a SQLite file or a driver's URL, such as file://{folder}" in failed(
            capsys, *command, str(folder)
        )
        for memory in ("memory:", "memory://", "sqlite:///:memory:"):
            assert "keeps nothing from one command to the next" in failed(capsys, *command, memory)
        assert "a SQLite URL is sqlite:///relative.db" in failed(capsys, *command, "sqlite://a.db")
        assert "no store is named" in failed(capsys, *command, "")
        assert "redis is a driver; give its URL, or ./redis for a file" in failed(capsys, *command, "redis")
        for broken in ("redis://[::1", "sqlite://[x"):
            assert "this URL" in failed(capsys, *command, broken)
    assert "an empty text" in failed(capsys, "import", "", "--into", str(tmp_path / "new.db"))
    assert main(["import", source, "--into", f"file://{folder}"]) == 0
    assert main(["list", "--store", f"file://{folder}"]) == 0
    assert "container c1" in capsys.readouterr().out


@pytest.mark.parametrize("base", ["nope", "agentx:"])
def test_a_base_that_no_key_stands_below_is_said(base: str, store: str, tmp_path: Path, capsys: Output) -> None:
    dump = tmp_path / "dump.jsonl"
    dump.write_text("".join(json.dumps({"key": f"agentx:{key}", "value": text}) + "\n" for key, text in texts().items()))
    said = failed(capsys, "import", str(dump), "--into", store, "--base", base)
    assert f"no key stands below the base '{base}'" in said
    assert "agentx" in said.replace(base, "")
    assert main(["import", str(dump), "--into", store, "--base", "agentx"]) == 0


@pytest.mark.parametrize("url", [False, True])
def test_nothing_is_added_to_a_file_that_is_no_store_of_ours(source: str, tmp_path: Path, capsys: Output, url: bool) -> None:
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE notes (text)")
    before = other.read_bytes(), Path(source).read_bytes()
    for command in (["list"], ["show", "s1"], ["export"]):
        said = failed(capsys, *command, "--store", f"sqlite:///{other}" if url else str(other))
        assert f"{other} is no store: it has no table kvstore" in said
        said = failed(capsys, *command, "--store", f"sqlite:///{source}" if url else source)
        assert f"{source} is a store that AgentX wrote; import it into another one" in said
        assert "there is no store" in failed(capsys, *command, "--store", f"sqlite:///{tmp_path}/none.db")
    copy = tmp_path / "copy.db"
    copy.write_bytes(before[1])
    assert "that AgentX wrote" in failed(capsys, "import", source, "--into", str(copy))
    assert (other.read_bytes(), Path(source).read_bytes()) == before
    assert copy.read_bytes() == before[1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["agentx.db", "copy.db", "other.db"]


def test_reading_a_store_leaves_it_as_it_is(source: str, store: str, capsys: Output) -> None:
    assert main(["import", source, "--into", store]) == 0
    before = Path(store).read_bytes()
    for command in (["list"], ["show", "s1"], ["export"]):
        assert main([*command, "--store", store]) == 0
    assert Path(store).read_bytes() == before


def test_as_a_program_it_says_what_is_wrong_in_a_line_on_any_terminal(tmp_path: Path) -> None:
    (tmp_path / ".agentx").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "i1").write_text(json.dumps(image("i1", name="🦊")))
    (tmp_path / os.fsdecode(b"images/\xff")).write_text("{}")
    into = str(tmp_path / "store.db")

    def run(*arguments: str, encoding: str = "ascii:strict") -> tuple[int, bytes, bytes]:
        environment = os.environ | {"HOME": str(tmp_path), "PYTHONIOENCODING": encoding}
        command = [sys.executable, "-m", "persistence", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        return done.returncode, done.stdout, done.stderr

    for encoding in ("utf-8:strict", "ascii:strict"):
        status, out, err = run("import", str(tmp_path), "--into", into, encoding=encoding)
        assert (status, err) == (1, b"")
        assert b"images:\\udcff" in out
    assert run("list", "--store", into)[0] == 0
    status, out, err = run("export", "--store", into)
    assert (status, json.loads(out)["images"][0]["name"]) == (0, "🦊")
    status, out, err = run("import", str(tmp_path))
    assert (status, out, err.count(b"\n")) == (2, b"", 1)
    assert err.startswith(b"persistence: the directory ")


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
