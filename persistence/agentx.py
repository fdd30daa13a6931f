"""Importing stores that AgentX wrote: SQLite in two layouts, a directory, or Redis keys.

The original keeps one JSON text a key: `containers:ID`, `images:ID`, `sessions:ID`, and the messages of a session as one array
under `messages:SESSION`. It rewrites keys, so ids are taken from the records, and a session's messages are looked for under
the rewritten key. Its indexes (`idx:…`) can be wrong and are not read; saving builds new ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from kvstore.clock import now_ms
from kvstore.errors import (
    BackendError,
    ConfigError,
    CorruptValueError,
    InvalidKeyError,
    InvalidValueError,
    KVStoreError,
)
from kvstore.storage import Storage
from kvstore.values import MISSING, decode, encode
from persistence.errors import ConflictError
from persistence.messages import encode_message
from persistence.persistence import Persistence
from persistence.records import Container, Image, Session
from persistence.repository import Repository
from persistence.shape import Shape, created_at

Source = str | os.PathLike[str] | Mapping[str, str] | Storage
"""A SQLite file, a directory, a `.jsonl` file of `{"key", "value"}`, a mapping of keys to texts, or a Storage with the keys."""

_KINDS: dict[str, Shape[Any]] = {"containers": Shape(Container), "images": Shape(Image), "sessions": Shape(Session)}
# What can be wrong with one record or log. Any other error is the source's or the target's, and ends the import.
_ITS_OWN_FAULT = (InvalidKeyError, InvalidValueError, CorruptValueError, ConflictError)
ORIGINAL = frozenset((b"kv_storage", b"unstorage"))
"""The tables of the original."""
_READ = (*_KINDS, "messages")
# Its first group is the base: None, if there can be none, else the shortest that there can be.
_OURS = re.compile(rf"(?:(.*?):)??(?:{'|'.join(_READ)}|idx):")


class Problem(NamedTuple):
    """Something that was not imported."""

    key: str
    """The original's, or that of the record here that differs."""
    reason: str


@dataclass
class AgentXStore:
    """What a store of the original holds, as JSON; lists sorted by id."""

    containers: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    messages: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By session id, in the stored order. Every session has an entry, and so has a list whose session is gone."""
    problems: list[Problem] = field(default_factory=list)


@dataclass
class ImportReport:
    """What an import did."""

    containers: int = 0
    images: int = 0
    sessions: int = 0
    messages: int = 0
    already_there: int = 0
    """Records and messages that were there, as they are in the source."""
    problems: list[Problem] = field(default_factory=list)

    def __str__(self) -> str:
        counts = (
            f"{self.containers} containers, {self.images} images, {self.sessions} sessions, {self.messages} messages imported"
        )
        there = f"; {self.already_there} records and messages were there already" if self.already_there else ""
        return "\n".join([counts + there, *(plain(f"left out: {problem.key}: {problem.reason}") for problem in self.problems)])


def plain(text: str) -> str:
    """Fit for one line of a terminal: control characters, and what is no text, as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


async def import_agentx(
    source: Source, target: Persistence, *, base: str | None = None, overwrite: bool = False, strict: bool = False
) -> ImportReport:
    """Imports a store of the original whole. The source is only read, and may be imported again: nothing is doubled.

    Args:
        base: What stands before every key, such as `agentx` in Redis; by default it is found out.
        overwrite: Replace records here that differ from the source's, rather than report them.
        strict: Raise `CorruptValueError` for the first thing that can't be read, before anything is written, rather than
            report it and import the rest.

    Messages that are here in part are completed, and a log that only went on since is there already; one that went on
    otherwise is reported and left. Where the source or the target fails as a whole, or a file or folder of a directory can't be
    opened, it raises (`BackendError`, `ReadOnlyError`, …), and can be run again.
    """
    if not isinstance(target, Persistence):
        raise ConfigError(f"a store is imported into a Persistence, not {type(target).__name__}", operation="import_agentx")
    store = await read_agentx(source, base=base)
    if strict and store.problems:
        raise CorruptValueError(store.problems[0].reason, operation="import_agentx", key=store.problems[0].key)
    report = ImportReport(problems=list(store.problems))
    for kind, repository in repositories(target).items():
        for document in getattr(store, kind):
            await _import_record(repository, kind, document, report, overwrite)
    for session_id, messages in store.messages.items():
        try:
            await _import_messages(target, session_id, messages, report)
        except _ITS_OWN_FAULT as error:
            report.problems.append(Problem(f"messages:{session_id}", error.message))
    return report


def repositories(persistence: Persistence) -> dict[str, Repository[Any]]:
    """Those of the kinds of records that the original has."""
    return {"containers": persistence.containers, "images": persistence.images, "sessions": persistence.sessions}


class _AlreadyThereError(Exception):
    """A record is there as it is in the source."""


async def _import_record(
    repository: Repository[Any], kind: str, document: dict[str, Any], report: ImportReport, overwrite: bool
) -> None:
    shape = repository.table.shape
    key = shape.key(document[shape.id_member])
    now = now_ms()
    try:
        record = shape.record(key, document)

        def imported(there: Any) -> dict[str, Any]:
            created = created_at(there, now)
            if there == shape.document(record, createdAt=created, updatedAt=created_at(there, now, "updatedAt")):
                raise _AlreadyThereError
            if there is not MISSING and not overwrite:
                raise ConflictError("there is another record with this id; it was left as it is")
            return shape.document(record, createdAt=created, updatedAt=now)

        await repository._change(document[shape.id_member], imported)
        setattr(report, kind, getattr(report, kind) + 1)
    except _AlreadyThereError:
        report.already_there += 1
    except _ITS_OWN_FAULT as error:
        report.problems.append(Problem(key, error.message))


async def _import_messages(target: Persistence, session_id: str, messages: list[dict[str, Any]], report: ImportReport) -> None:
    imported, begun = 0, False
    while True:
        there = await target.sessions.get_messages(session_id, limit=len(messages))
        if there != messages[: len(there)]:
            report.problems.append(Problem(f"messages:{session_id}", "there are other messages; they were left as they are"))
            break
        if len(there) == len(messages):
            report.already_there += len(messages) - imported
            break
        try:
            if not there and not begun:
                await target.sessions.write_messages(session_id, messages)
                imported = len(messages)
            for count in range(len(there) or imported, len(messages)):
                await target.sessions.add_messages(session_id, messages[count : count + 1], expected_count=count)
                imported += 1
        except ConflictError:  # another import, or an app; or a log that was begun and is empty yet
            begun = True
    report.messages += imported


# Reading


async def read_agentx(source: Source, *, base: str | None = None) -> AgentXStore:
    """What a store of the original holds. What can't be read is among the problems.

    Raises `ConfigError` for a source that is none, and `BackendError` for one that can't be read at all.
    """
    if isinstance(source, Storage):
        keys = _below([key async for key in source.iter_keys()], base)
        return _sorted_out(
            {name: _text(await source.get_item_raw(key)) if _is_read(name) else None for name, key in keys.items()}
        )
    if isinstance(source, Mapping):
        for key in source:
            if not isinstance(key, str):
                raise ConfigError(f"a source is a mapping of keys to texts, but the key {key!r} is {type(key).__name__}")
        texts: Mapping[str, str | None] = source
    elif isinstance(source, str | os.PathLike) and os.fspath(source):
        texts = await asyncio.to_thread(_read_path, Path(source), base)
    else:
        given = "an empty text" if source == "" else type(source).__name__
        raise ConfigError(f"a source is a path, a mapping of keys to texts or a Storage, not {given}")
    return _sorted_out({name: texts[key] for name, key in _below(texts, base).items()})


def export_order(records: Iterable[dict[str, Any]], shape: Shape[Any]) -> list[dict[str, Any]]:
    """By id, as `AgentXStore` has them."""
    return sorted(records, key=lambda record: str(record[shape.id_member]))


def rewritten(key: str) -> str:
    """`key` as the original's storage (unstorage) spells it."""
    return re.sub(":+", ":", re.sub(r"[/\\]", ":", key.partition("?")[0])).strip(":")


def _sorted_out(texts: Mapping[str, str | None]) -> AgentXStore:
    store = AgentXStore()
    lists: dict[str, str | None] = {}
    found: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in _KINDS}
    for key, text in sorted(texts.items()):
        kind = key.partition(":")[0]
        if key.endswith("$") and kind not in _KINDS and kind != "messages":
            continue  # unstorage's own metadata
        if kind in _KINDS:
            try:
                document = _record(text, _KINDS[kind])
                if found[kind].setdefault(document[_KINDS[kind].id_member], document) is not document:
                    raise CorruptValueError("another record has the same id")
            except _ITS_OWN_FAULT as error:
                store.problems.append(Problem(key, error.message))
        elif kind == "messages":
            lists[key] = text
        elif kind != "idx":
            store.problems.append(Problem(key, "keys of this kind are not known"))
    for kind, records in found.items():
        setattr(store, kind, export_order(records.values(), _KINDS[kind]))
    logs = {session_id: rewritten(f"messages:{session_id}") for session_id in sorted(found["sessions"])}
    for key in lists.keys() - logs.values():
        logs.setdefault(key.partition(":")[2], key)
    for session_id, key in sorted(logs.items()):
        store.messages[session_id] = _messages(key, lists[key], store.problems) if key in lists else []
    # A list that two sessions share is read twice.
    store.problems = list(dict.fromkeys(store.problems))
    return store


def _record(text: str | None, shape: Shape[Any]) -> dict[str, Any]:
    document, member = _json(text), shape.id_member
    if not isinstance(document, dict) or not isinstance(document.get(member), str):
        raise CorruptValueError(f"the value is no object with a text {member!r}")
    encode(document)
    shape.record(shape.key(document[member]), document)
    return document


def _messages(key: str, text: str | None, problems: list[Problem]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    try:
        values = _json(text)
        if not isinstance(values, list):
            raise CorruptValueError("the value is no array of messages")
    except _ITS_OWN_FAULT as error:
        problems.append(Problem(key, error.message))
        return messages
    for place, value in enumerate(values):
        try:
            encode_message(value)
            messages.append(value)
        except _ITS_OWN_FAULT as error:
            problems.append(Problem(key, f"message {place}: {error.message}"))
    return messages


def _json(text: str | None) -> Any:
    """What may hold half a character, as JavaScript's `slice` leaves it: who stores it finds that it can't be stored."""
    if not isinstance(text, str):
        raise CorruptValueError("the value is no text")
    try:
        return decode(text.encode("utf-8", "surrogatepass"))
    except CorruptValueError as error:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise error from error.__cause__


def _text(data: bytes | None) -> str | None:
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        return None


def _below(keys: Collection[str], base: str | None) -> dict[str, str]:
    """The keys below the base, which is found out if it is None, by what they are called there."""
    prefix = f"{base}:" if (base := _find_base(keys) if base is None else base) else ""
    below = {key[len(prefix) :]: key for key in keys if key.startswith(prefix)}
    if keys and not below:
        there = ", ".join(sorted(name or "no base" for name in _bases(keys)))
        raise ConfigError(f"no key stands below the base {base!r}; of AgentX's keys there are those below: {there or 'none'}")
    return below


def _is_read(name: str) -> bool:
    return name.partition(":")[0] in _READ


def _bases(keys: Iterable[str]) -> set[str]:
    return {match[1] or "" for match in map(_OURS.match, keys) if match is not None}


def _find_base(keys: Iterable[str]) -> str:
    bases = _bases(keys)
    if "" in bases or not bases:
        return ""
    if len(bases) > 1:
        raise ConfigError(f"the keys stand below several bases; name the one that is meant: {', '.join(sorted(bases))}")
    return bases.pop()


def _read_path(path: Path, base: str | None) -> dict[str, str | None]:
    path = path.expanduser()
    try:
        if path.is_dir():
            return _read_directory(path, base)
        with path.open("rb") as file:
            if file.read(16) == b"SQLite format 3\0":
                return _read_sqlite(path)
        if path.suffix == ".jsonl":
            return _read_lines(path)
    except OSError as error:
        raise BackendError(f"{error.filename or path} can't be read: {error.strerror}", operation="import_agentx") from error
    raise ConfigError(f"{path} is no SQLite file, no directory and no .jsonl dump")


def _read_lines(path: Path) -> dict[str, str | None]:
    try:
        lines = [decode(line) for line in path.read_bytes().splitlines() if line.strip()]
        if any(not isinstance(line["key"], str) for line in lines):
            raise TypeError("a key is no text")
        return {line["key"]: line["value"] for line in lines}
    except (KVStoreError, TypeError, KeyError) as error:
        raise ConfigError(f'{path} is no dump of lines like {{"key": …, "value": …}}: {error}') from error


def _read_directory(path: Path, base: str | None) -> dict[str, str | None]:
    """Names first: what is no store, or another program's, may be large."""
    files = {":".join(file.relative_to(path.absolute()).parts): file for file in _files(path.absolute())}
    if not any(map(_OURS.match, files)):
        raise ConfigError(f"{path} has no key of the original, such as the file images/ID")
    return {key: _read_file(files[key]) if _is_read(name) else None for name, key in _below(files, base).items()}


def _files(path: Path) -> Iterator[Path]:
    """All below a folder, through links too. Raises `OSError` for a folder that can't be read."""

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(path, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not _leads_back(Path(folder, name))]
        yield from (Path(folder, name) for name in names)


def _leads_back(folder: Path) -> bool:
    """Whether it is a link to a folder that it lies in, so that following it would never end."""
    return folder.is_symlink() and folder.resolve() in map(Path.resolve, folder.parents)


def _read_file(file: Path) -> str | None:
    return _text(file.read_bytes()) if stat.S_ISREG(file.stat().st_mode) else None  # a pipe would be waited for


def _rows(rows: Iterable[tuple[bytes | None, bytes | None]]) -> Iterator[tuple[str, str | None]]:
    """As text: a key that is none as the name of a file that is none would be, with a lone surrogate."""
    return (((key or b"").decode(errors="surrogateescape"), _text(value)) for key, value in rows)


def sqlite_tables(path: Path) -> set[bytes]:
    """The tables of a SQLite file, which is left as it is. Raises `sqlite3.Error` for what is none."""
    with _sqlite(path) as connection:
        return _tables(connection)


def _tables(connection: sqlite3.Connection) -> set[bytes]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _sqlite(path: Path) -> closing[sqlite3.Connection]:
    """A file of another program, to be read only."""
    with path.open("rb") as file:
        wal = file.read(20)[18:20] == b"\2\2"
    # Read-only access to a file in WAL mode leaves files beside it; where no log is there, nothing but the file counts.
    mode = "immutable=1" if wal and not path.with_name(path.name + "-wal").exists() else "mode=ro"
    connection = sqlite3.connect(f"file:{quote(str(path.resolve()))}?{mode}", uri=True)
    connection.text_factory = bytes  # what is not UTF-8 is the fault of its row alone
    return closing(connection)


def _read_sqlite(path: Path) -> dict[str, str | None]:
    texts: dict[str, str | None] = {}
    try:
        with _sqlite(path) as connection:
            tables = _tables(connection)
            if not tables & ORIGINAL:
                raise ConfigError(f"{path} has neither table of the original, kv_storage or unstorage")
            if b"unstorage" in tables:  # the older one, so the other wins
                columns = {row[1] for row in connection.execute("PRAGMA table_info(unstorage)")}
                value = "coalesce(value, blob)" if b"blob" in columns else "value"
                texts.update(_rows(connection.execute(f"SELECT CAST(key AS TEXT), CAST({value} AS TEXT) FROM unstorage")))
            if b"kv_storage" in tables:
                texts.update(_rows(connection.execute("SELECT CAST(key AS TEXT), CAST(value AS TEXT) FROM kv_storage")))
    except sqlite3.Error as error:
        raise BackendError(f"{path} can't be read: {error}", operation="import_agentx") from error
    return texts
