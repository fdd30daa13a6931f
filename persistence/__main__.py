"""Imports a store that AgentX wrote, and looks at what is kept."""

from __future__ import annotations

import argparse
import asyncio
import sys
import textwrap
from pathlib import Path
from typing import Any

import orjson

from kvstore.errors import ConfigError, KVStoreError
from persistence.agentx import export_order, import_agentx
from persistence.persistence import Persistence, create_persistence, local_persistence
from persistence.repository import Repository

DEFAULT = "~/.agentx/data/agentx.db"


def main(arguments: list[str] | None = None) -> int:
    """Runs a command. Returns the exit status: 0, 1 where an import left something out, 2 for an error."""
    options = _parser().parse_args(arguments)
    try:
        return asyncio.run(_run(options))
    except KVStoreError as error:
        print(f"persistence: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m persistence", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str, store: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.add_argument(
            store, dest="store", metavar="STORE", default=DEFAULT, help=f"a SQLite file or a driver's URL (default: {DEFAULT})"
        )
        return added

    importing = command("import", "Import a store that AgentX wrote.", "--into")
    importing.add_argument("path", help="its SQLite file, its directory, or a .jsonl dump of its Redis keys")
    importing.add_argument("--base", help="what stands before every key of the source, such as agentx")
    importing.add_argument("--overwrite", action="store_true", help="replace records that differ from the source's")
    importing.add_argument("--strict", action="store_true", help="import nothing unless everything can be read")
    command("list", "List containers, images and sessions.", "--store")
    showing = command("show", "Show the end of a session.", "--store")
    showing.add_argument("session")
    showing.add_argument("--last", type=int, default=20, metavar="N", help="how many messages (default: 20)")
    command("export", "Print everything as JSON.", "--store")
    return parser


async def _run(options: argparse.Namespace) -> int:
    _check(options)
    async with _open(options.store) as persistence:
        match options.command:
            case "import":
                report = await import_agentx(
                    options.path, persistence, base=options.base, overwrite=options.overwrite, strict=options.strict
                )
                print(report)
                return 1 if report.problems else 0
            case "list":
                await _list(persistence)
            case "show":
                await _show(persistence, options.session, options.last)
            case "export":
                sys.stdout.write(orjson.dumps(await exported(persistence), option=orjson.OPT_INDENT_2).decode() + "\n")
    return 0


def _open(store: str) -> Persistence:
    if store == DEFAULT:
        return local_persistence()
    return create_persistence(store) if "://" in store else create_persistence("sqlite", path=store)


def _check(options: argparse.Namespace) -> None:
    """Before anything is created: what is to be read is there, and is not what is to be written."""
    store = None if "://" in options.store else Path(options.store).expanduser()
    if options.command != "import":
        if store is not None and not store.is_file():
            raise ConfigError(f"there is no store {store}")
        return
    source = Path(options.path).expanduser()
    if not source.exists():
        raise ConfigError(f"there is no {source}")
    if store is not None and store.resolve() == source.resolve():
        raise ConfigError(f"{source} is the store to import into; name another one with --into")


async def _list(persistence: Persistence) -> None:
    for container in (await persistence.containers.list()).items:
        print(f"container {container.container_id}")
    for image in (await persistence.images.list()).items:
        print(f"image {image.image_id}  {image.name}  (container {image.container_id})")
    for session in (await persistence.sessions.list()).items:
        count = await persistence.sessions.count_messages(session.session_id)
        print(f"session {session.session_id}  {count} messages  (image {session.image_id})")


async def _show(persistence: Persistence, session_id: str, last: int) -> None:
    total = await persistence.sessions.count_messages(session_id)
    if not total and not await persistence.sessions.exists(session_id):
        raise ConfigError(f"there is no session {session_id!r}")
    messages = await persistence.sessions.get_messages(session_id, last=last)
    print(f"session {session_id}: {total} messages" + (f", the last {len(messages)}" if len(messages) < total else ""))
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


def _brief(value: object, width: int = 100) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return textwrap.shorten("".join(c if c.isprintable() else " " for c in text), width, placeholder=" …")


async def exported(persistence: Persistence) -> dict[str, Any]:
    export: dict[str, Any] = {}
    kinds: dict[str, Repository[Any]] = {
        "containers": persistence.containers,
        "images": persistence.images,
        "sessions": persistence.sessions,
    }
    for name, repository in kinds.items():
        shape = repository.table.shape
        documents = [shape.document(record) for record in (await repository._page(None, None)).items]
        export[name] = export_order(documents, {"containers": "containerId", "images": "imageId"}.get(name, "sessionId"))
    ids = [session["sessionId"] for session in export["sessions"]]
    export["messages"] = {session_id: await persistence.sessions.get_messages(session_id) for session_id in ids}
    return export


if __name__ == "__main__":
    sys.exit(main())
