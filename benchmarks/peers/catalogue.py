"""Who is compared with whom. Within a group all promise the same when a call returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Peer:
    name: str
    peer: str
    """`module:Class` of this package, or `node:DRIVER` for unstorage."""
    environment: str = "base"
    role: str = "peer"
    """`ours`, `raw`, or `peer`."""
    options: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    lists: bool = True
    """Whether it can list keys by their prefix."""
    largest: int = 100_000
    """Keys to list from, at most: more take others too long to write."""


@dataclass(frozen=True)
class Group:
    name: str
    title: str
    durability: str
    peers: tuple[Peer, ...]
    server: str = ""
    """`redis`, `postgresql`, `mysql` or `mariadb`, if one is needed."""
    kind: str = "stores"
    listing: tuple[int, ...] = (10_000, 100_000)
    """The numbers of keys to list from."""


def described(peers: tuple[Peer, ...]) -> list[dict[str, str]]:
    return [{"name": peer.name, "role": peer.role, "note": peer.note} for peer in peers]


def _kvstore(**options: Any) -> Peer:
    return Peer("kvstore", "ours:Kvstore", role="ours", options=options, largest=1_000_000)


def _unstorage(driver: str, note: str = "", name: str = "unstorage", largest: int = 100_000, **options: Any) -> Peer:
    return Peer(name, f"node:{driver}", "node", options=options, note=note, largest=largest)


def _sqlite(level: str) -> tuple[Peer, ...]:
    level_of_ours = level.lower()
    return (
        _kvstore(driver="sqlite", path="kvstore.db", synchronous=level_of_ours),
        Peer(
            "sqlite3",
            "raw:Sqlite",
            role="raw",
            options={"synchronous": level},
            note="called in the event loop",
            largest=1_000_000,
        ),
        Peer("aiosqlite", "sql:Aiosqlite", "sql", options={"synchronous": level}),
        Peer("SQLAlchemy asyncio", "sql:SqlAlchemy", "sql", options={"synchronous": level}, note="on aiosqlite"),
        Peer(
            "py-key-value disk",
            "pykeyvalue:PyKeyValue",
            "pykeyvalue",
            options={"kind": "disk", "synchronous": level},
            note="diskcache; it has no listing",
            lists=False,
        ),
        _unstorage("db0", "better-sqlite3, WAL", synchronous=level),
    )


def _sessions(level: str) -> tuple[Peer, Peer]:
    ours = {"driver": "sqlite", "path": "kvstore.db", "synchronous": level.lower()}
    return (
        Peer("kvstore", "ours:Sessions", role="ours", options=ours),
        Peer("sqlite3", "raw:Sessions", role="raw", options={"synchronous": level}, note="one table, called in the event loop"),
    )


GROUPS = (
    Group(
        "memory",
        "Memory",
        "Nothing outlives the process.",
        (
            _kvstore(driver="memory"),
            Peer("dict + orjson", "raw:Memory", role="raw", note="async functions around a dict", largest=1_000_000),
            Peer("py-key-value", "pykeyvalue:PyKeyValue", "pykeyvalue", options={"kind": "memory"}),
            _unstorage("memory"),
            Peer("aiocache", "caches:Aiocache", "caches", note="with a serializer of orjson; it has no listing", lists=False),
            Peer("cashews", "caches:Cashews", "caches", note="handed bytes of JSON"),
        ),
        listing=(10_000, 100_000, 1_000_000),
    ),
    Group(
        "sqlite-full",
        "SQLite, each write on the disk",
        "WAL with synchronous=FULL: a write survives a power cut once the call returns.",
        _sqlite("FULL"),
        listing=(10_000, 100_000, 1_000_000),
    ),
    Group(
        "sqlite-normal",
        "SQLite, synchronous=NORMAL",
        "WAL with synchronous=NORMAL: a power cut may take the last moments.",
        _sqlite("NORMAL"),
        listing=(10_000,),
    ),
    Group(
        "files",
        "Files",
        "Each write replaces its file in one step, unless noted; nobody waits for the disk.",
        (
            _kvstore(driver="fs", path="files"),
            Peer("os calls", "raw:Files", role="raw", options={"fsync": False}, note="in the event loop"),
            _unstorage("fs-lite", "writes in place: a reader may see half a value", "unstorage fs-lite"),
            _unstorage("fs-lite-atomic", "made atomic here, by a rename", "unstorage fs-lite, atomic", largest=10_000),
            Peer("fsspec", "files:Fsspec", "files", note="writes in place, in threads"),
            Peer("obstore", "files:Obstore", "files"),
            Peer("opendal", "files:Opendal", "files", note="with atomic_write_dir", largest=10_000),
        ),
    ),
    Group(
        "files-fsync",
        "Files, each write on the disk",
        "Each write replaces its file in one step and waits for the disk (py-key-value for the file, not its directory).",
        (
            _kvstore(driver="fs", path="files", fsync=True),
            Peer("os calls", "raw:Files", role="raw", options={"fsync": True}, note="in the event loop"),
            Peer("py-key-value file tree", "pykeyvalue:PyKeyValue", "pykeyvalue", options={"kind": "filetree"}),
        ),
        listing=(),
    ),
    Group(
        "redis",
        "Redis",
        "One server on loopback that keeps nothing on the disk.",
        (
            _kvstore(driver="redis"),
            Peer("redis-py", "clients:Redis", role="raw", note="a pool of 50 connections, listing by SCAN", largest=1_000_000),
            Peer("redis-py, pipelined", "clients:Redis", role="raw", options={"pipelined": True}, note="one pipeline a pass"),
            Peer("py-key-value", "pykeyvalue:PyKeyValue", "pykeyvalue", options={"kind": "redis"}),
            _unstorage("redis", "ioredis"),
            Peer("aiocache", "caches:Aiocache", "caches", note="with a serializer of orjson; it has no listing", lists=False),
            Peer("cashews", "caches:Cashews", "caches", note="handed bytes of JSON"),
        ),
        server="redis",
        listing=(10_000, 100_000, 1_000_000),
    ),
    Group(
        "postgresql",
        "PostgreSQL",
        "One server on loopback with fsync on: a write survives a power cut once the call returns.",
        (
            _kvstore(driver="postgresql"),
            Peer("asyncpg", "clients:Postgresql", role="raw", note="a pool of 10 connections"),
            Peer("SQLAlchemy asyncio", "sql:SqlAlchemy", "sql", note="on asyncpg"),
            Peer(
                "py-key-value",
                "pykeyvalue:PyKeyValue",
                "pykeyvalue",
                options={"kind": "postgresql"},
                note="it has no listing",
                lists=False,
            ),
        ),
        server="postgresql",
    ),
    *(
        Group(
            server,
            title,
            f"One {title} on loopback as installed: a write survives a power cut once the call returns.",
            (_kvstore(driver="mysql"), Peer("asyncmy", "clients:Mysql", role="raw", note="a pool of 10 connections")),
            server=server,
        )
        for server, title in (("mysql", "MySQL"), ("mariadb", "MariaDB"))
    ),
    Group(
        "sessions-full",
        "Sessions, each message on the disk",
        "SQLite with synchronous=FULL everywhere; the journal is what each peer sets up: WAL, but for LangGraph and ADK, which "
        "leave SQLite's default.",
        (
            *_sessions("FULL"),
            Peer("OpenAI SQLiteSession", "openai:Sqlite", "openai"),
            Peer("OpenAI AsyncSQLiteSession", "openai:AsyncSqlite", "openai"),
            Peer("OpenAI SQLAlchemySession", "openai:SqlAlchemy", "openai", note="on aiosqlite"),
            Peer("LangGraph AsyncSqliteStore", "langgraph:Langgraph", "langgraph", note="an item a message"),
            Peer("ADK SqliteSessionService", "adk:Adk", "adk"),
            Peer("Agno AsyncSqliteDb", "agno:Agno", "agno", note="a run a message, in its table of runs"),
        ),
        kind="sessions",
    ),
    Group(
        "sessions-fast",
        "Sessions, not waiting for the disk",
        "A power cut may take the last moments: SQLite with synchronous=NORMAL, and files that are renamed without fsync.",
        (
            *_sessions("NORMAL"),
            Peer("kvstore on files", "ours:Sessions", role="ours", options={"driver": "fs", "path": "files"}),
            Peer("Strands FileSessionManager", "strands:Strands", "strands", note="a file a message"),
        ),
        kind="sessions",
    ),
)

MOUNTS = tuple(
    peer
    for count in (1, 10, 200)
    for peer in (
        Peer(f"kvstore, {count}", "ours:Kvstore", role="ours", options={"driver": "memory", "mounts": count}),
        Peer(f"unstorage, {count}", "node:memory", "node", options={"mounts": count}),
    )
)
"""So many mounts in memory, and keys that are spread over them."""

IMPORTS = (
    ("kvstore", "base", "from kvstore import create_storage"),
    ("persistence", "base", "from persistence import create_persistence"),
    ("kvstore, nothing of it", "base", "import kvstore"),
    ("persistence, nothing of it", "base", "import persistence"),
    ("asyncio", "base", "import asyncio"),
    ("sqlite3 + orjson", "base", "import sqlite3, orjson"),
    ("redis.asyncio", "base", "import redis.asyncio"),
    ("asyncpg", "base", "import asyncpg"),
    ("py-key-value, memory", "pykeyvalue", "from key_value.aio.stores.memory import MemoryStore"),
    ("aiocache", "caches", "import aiocache"),
    ("cashews", "caches", "import cashews"),
    ("aiosqlite", "sql", "import aiosqlite"),
    ("SQLAlchemy asyncio", "sql", "import sqlalchemy.ext.asyncio"),
    ("fsspec", "files", "import fsspec"),
    ("obstore", "files", "import obstore"),
    ("opendal", "files", "import opendal"),
    ("OpenAI SQLiteSession", "openai", "from agents import SQLiteSession"),
    ("LangGraph AsyncSqliteStore", "langgraph", "from langgraph.store.sqlite.aio import AsyncSqliteStore"),
    ("ADK SqliteSessionService", "adk", "from google.adk.sessions.sqlite_session_service import SqliteSessionService"),
    ("Strands FileSessionManager", "strands", "from strands.session.file_session_manager import FileSessionManager"),
    ("Agno AsyncSqliteDb", "agno", "from agno.db.sqlite import AsyncSqliteDb"),
    ("unstorage", "node", 'import("unstorage")'),
)
"""Name, environment, and what is timed over a bare interpreter of that environment: what a program imports.

asyncio has a row of its own, for it is in most of the others; and so has what `import kvstore` loads before any name is used.
"""
