"""Imports a store that AgentX wrote, copies one to another backend, and looks at what is kept."""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import sys
import textwrap
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from kvstore.config import expand
from kvstore.errors import ConfigError, CorruptValueError, KVStoreError
from kvstore.resolve import driver_names, resolve_driver, split_spec
from kvstore.transfer import copy
from persistence.agentx import ORIGINAL, export_order, import_agentx, plain, repositories, sqlite_tables
from persistence.persistence import Persistence, create_persistence, local_persistence
from persistence.shape import Shape

DEFAULT = "~/.agentx/data/agentx.db"
SQLITE_TABLE = "kvstore"


def main(arguments: list[str] | None = None) -> int:
    """Runs a command. Returns the exit status: 0, 1 where something can't be read, 2 for an error."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal need not know every letter
    try:
        return asyncio.run(_run(options))
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except (KVStoreError, OSError) as error:
        _complain(str(error))
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m persistence", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str, store: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.add_argument(
            store,
            dest="store",
            metavar="STORE",
            default=DEFAULT,
            help=f"a SQLite file or a driver's URL, which may be '${{VARIABLE}}' of the environment (default: {DEFAULT})",
        )
        return added

    importing = command("import", "Import a store that AgentX wrote.", "--into")
    importing.add_argument("path", help="its SQLite file, its directory, or a .jsonl dump of its Redis keys")
    importing.add_argument("--base", help="what stands before every key of the source, such as agentx")
    importing.add_argument("--overwrite", action="store_true", help="replace records that differ from the source's")
    importing.add_argument("--strict", action="store_true", help="import nothing unless everything can be read")
    copying = command("copy", "Copy a store to another backend.", "--store")
    copying.add_argument("target", help="a SQLite file or a driver's URL, where nothing is yet")
    command("list", "List containers, images and sessions.", "--store")
    showing = command("show", "Show the end of a session.", "--store")
    showing.add_argument("session")
    showing.add_argument("--last", type=int, default=20, metavar="N", help="how many messages (default: 20)")
    command("export", "Print everything as JSON.", "--store")
    return parser


async def _run(options: argparse.Namespace) -> int:
    for name in ("store", "target"):
        if "${" in getattr(options, name, ""):  # so that a password need not stand where every user of the machine sees it
            setattr(options, name, str(expand(getattr(options, name))))
    _check(options)
    unreadable: list[str] = []
    async with _open(options.store, read_only=options.command != "import") as persistence:
        match options.command:
            case "import":
                report = await import_agentx(
                    options.path, persistence, base=options.base, overwrite=options.overwrite, strict=options.strict
                )
                print(report)
                return 1 if report.problems else 0
            case "copy":
                async with _open(options.target, read_only=False) as target:
                    if await target.storage.get_keys(limit=1):
                        raise ConfigError(f"{options.target} holds something already")
                    print(f"{await copy(persistence.storage, target.storage):,} keys copied")
            case "list":
                unreadable = await _list(persistence)
            case "show":
                await _show(persistence, options.session, options.last)
            case "export":
                export = await exported(persistence)
                unreadable = export.get("unreadable", [])
                sys.stdout.buffer.write(msgspec.json.format(_json(export)) + b"\n")
    for key in unreadable:
        _complain(f"{key} can't be read")
    return 1 if unreadable else 0


def _complain(text: str) -> None:
    print(f"persistence: {plain(text)}", file=sys.stderr)


def _open(store: str, *, read_only: bool) -> Persistence:
    if split_spec(store)[1]:
        return create_persistence(store, read_only=read_only)
    if store == DEFAULT and not read_only:
        return local_persistence()
    return create_persistence("sqlite", path=store, read_only=read_only)


def _check(options: argparse.Namespace) -> None:
    """Before anything is created: what is to be read is there, and is not what is to be written, nor is another program's."""
    for named in (options.store, getattr(options, "target", options.store)):
        if named in driver_names():
            raise ConfigError(f"{named} is a driver; give its URL, or ./{named} for a file of that name")
        if _file(named)[0] is None and split_spec(named)[0] in ("memory", "sqlite"):
            raise ConfigError(f"{named} keeps nothing from one command to the next; a store is a SQLite file or a server")
    store, table = _file(options.store)
    importing = options.command == "import"
    if importing:
        source = Path(options.path).expanduser()
        if not source.exists():
            raise ConfigError(f"there is no {source}")
        if store is not None and store.resolve() == source.resolve():
            raise ConfigError(f"{source} is the store to import into; name another one with --into")
    if store is None or (importing and not store.exists()):
        return
    if store.is_dir():
        url = f"file://{store.resolve()}"
        raise ConfigError(f"{store} is a directory; a store is a SQLite file or a driver's URL, such as {url} for files")
    if not store.is_file():
        raise ConfigError(f"there is no store {store}")
    try:
        tables = sqlite_tables(store)
    except sqlite3.Error:
        return  # the driver says what is wrong with it
    if table.encode() in tables:
        return
    if tables & ORIGINAL:
        raise ConfigError(f"{store} is a store that AgentX wrote; import it into another one: import {store} --into NEW")
    if not importing:
        raise ConfigError(f"{store} is no store: it has no table {table}")


def _file(store: str) -> tuple[Path | None, str]:
    """The SQLite file that a store is, or None, and the table in it."""
    name, is_url = split_spec(store)
    if not is_url:
        if not store:
            raise ConfigError("no store is named: it is a SQLite file or a driver's URL")
        return Path(store).expanduser(), SQLITE_TABLE
    if name != "sqlite":
        return None, SQLITE_TABLE
    resolve_driver(store, {})  # raises for what is no URL of a file
    url = urlsplit(store)
    if url.path == "/:memory:":
        return None, SQLITE_TABLE
    return Path(unquote(url.path[1:])).expanduser(), parse_qs(url.query).get("table", [SQLITE_TABLE])[0]


async def _list(persistence: Persistence) -> list[str]:
    """Returns the keys of what can't be read."""
    containers, images = await persistence.containers.list(), await persistence.images.list()
    sessions = await persistence.sessions.list()
    for container in containers:
        print(plain(f"container {container.container_id}"))
    for image in images:
        print(plain(f"image {image.image_id}  {image.name}  (container {image.container_id})"))
    for session in sessions:
        count = await _count(persistence, session.session_id)
        print(plain(f"session {session.session_id}  {count} messages  (image {session.image_id})"))
    for session_id in await persistence.sessions.logs():
        if not await persistence.sessions.exists(session_id):
            print(plain(f"no session {session_id}  {await _count(persistence, session_id)} messages"))
    return [*containers.unreadable, *images.unreadable, *sessions.unreadable]


async def _count(persistence: Persistence, session_id: str) -> str:
    try:
        return str(await persistence.sessions.count_messages(session_id))
    except CorruptValueError:
        return "unreadable"


async def _show(persistence: Persistence, session_id: str, last: int) -> None:
    total = await persistence.sessions.count_messages(session_id)
    if not total and not await persistence.sessions.exists(session_id):
        raise ConfigError(f"there is no session {session_id!r}")
    messages = await persistence.sessions.get_messages(session_id, last=last)
    print(plain(f"session {session_id}: {total} messages") + (f", the last {len(messages)}" if len(messages) < total else ""))
    for message in messages:
        print(line(message))


def line(message: Any) -> str:
    """One message, any JSON object, in a line of a terminal."""
    match message:
        case {"subtype": "tool-call", "toolCall": {"name": name, **call}}:
            return f"  tool →     {_brief(name)} {_brief(call.get('input'))}"
        case {"subtype": "tool-result", "toolResult": {"output": {**output}}}:
            return f"  tool ←     {_brief(output.get('value'))}"
        case {"content": content}:
            return f"  {_brief(message.get('role') or message.get('subtype') or '?'):10} {_brief(content)}"
        case _:
            return f"  {'?':10} {_brief(message)}"


def _brief(value: object) -> str:
    text = value if isinstance(value, str) else _json(value).decode()
    return textwrap.shorten("".join(c if c.isprintable() else " " for c in text), 100, placeholder=" …")


_json = msgspec.json.encode  # what was read may hold integers of any size, which orjson can't write


async def exported(persistence: Persistence) -> dict[str, Any]:
    """Everything as JSON, messages without a session too; with `unreadable`, where there are, the keys of what is left out."""
    export: dict[str, Any] = {}
    unreadable: list[str] = []
    for name, repository in repositories(persistence).items():
        shape = repository.table.shape
        documents, _, left_out = await repository.table.page(partial(_checked, shape), {}, None, None)
        unreadable += left_out
        export[name] = export_order(documents, shape)
    export["messages"] = {}
    for session_id in sorted({*(session["sessionId"] for session in export["sessions"]), *await persistence.sessions.logs()}):
        try:
            export["messages"][session_id] = await persistence.sessions.get_messages(session_id)
        except CorruptValueError as error:
            unreadable.append(str(error.key))
    return export | ({"unreadable": unreadable} if unreadable else {})


def _checked(shape: Shape[Any], key: str, document: Any) -> Any:
    shape.record(key, document)
    return document


if __name__ == "__main__":
    sys.exit(main())
