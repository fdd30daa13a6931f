"""The work of a run: what is asked of every store, in which order and how often."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers.catalogue import Group, Peer

MESSAGES_PER_ROUND = 200


@dataclass(frozen=True)
class Settings:
    thorough: bool
    """Whether all kinds of work are done."""
    rounds: int
    seconds: float
    """What a round of one peer should take."""
    least: int
    """Rounds that every peer gets; with 0 the round that warms up counts for one that is too slow for more."""
    limit: float
    """Seconds that one peer may spend on one kind of work; then fewer rounds have to do."""
    watches: int
    """Rounds in which the event loop is watched instead of the clock."""
    keys: int
    """Small values that are written and read in turn."""
    cleared: int
    largest: int
    """Keys to list from, at most."""
    footprint: int
    messages: int
    append_limit: float
    """Seconds that one peer may spend on appending a long session one by one; the rest is appended in batches."""
    forked: int
    owners: int
    records: int
    contended: int
    imports: int


FULL = Settings(
    thorough=True,
    rounds=7,
    seconds=0.1,
    least=2,
    limit=1.5,
    watches=2,
    keys=1_000,
    cleared=2_000,
    largest=1_000_000,
    footprint=1_000_000,
    messages=10_000,
    append_limit=15.0,
    forked=1_000,
    owners=100,
    records=10_000,
    contended=200,
    imports=6,
)
QUICK = Settings(
    thorough=False,
    rounds=3,
    seconds=0.01,
    least=0,
    limit=0.15,
    watches=1,
    keys=1_000,
    cleared=500,
    largest=2_000,
    footprint=100_000,
    messages=400,
    append_limit=0.4,
    forked=50,
    owners=10,
    records=100,
    contended=20,
    imports=1,
)


@dataclass(frozen=True)
class Work:
    """One row of a table: what is asked, and what has to be done before."""

    name: str
    title: str
    do: str
    given: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    """`calls` is a multiple of this, as large as a round allows; 0: the request has no `calls`."""
    most: int = 20_000
    before: tuple[tuple[str, dict[str, Any]], ...] = ()
    keys: int = 0
    """For work that needs so many keys in groups: a peer that lists no keys, or not so many, is not asked."""
    unit: str = "µs"


SIZES = ((200, "200 B"), (4_000, "4 KB"), (1_000_000, "1 MB"))
LARGE = 100_000
CONCURRENCY = (8, 64, 1_000)
SKIPPED_WHEN_QUICK = ("-batch", "-tasks-8", "-4000")


def one_by_one(size: int, label: str, settings: Settings, *, mounts: int = 0) -> list[Work]:
    given: dict[str, Any] = {"size": size, "keys": 8 if size > LARGE else settings.keys}
    if mounts:
        given["mounts"] = mounts
    most = 40 if size > LARGE else 20_000
    return [
        Work(f"set-{size}", f"set, {label}", "set", given, step=1, most=most, before=(("fill", given),)),
        Work(f"get-{size}", f"get, {label}", "get", given, step=1, most=most),
    ]


def stores(group: Group, settings: Settings) -> list[Work]:
    small: dict[str, Any] = {"size": 200, "keys": settings.keys}
    work = one_by_one(*SIZES[0], settings)
    for do in ("set", "get"):
        work.append(Work(f"{do}-batch", f"{do}, batches of 100, a key", do, {**small, "batch": 100}, step=100))
    for tasks in CONCURRENCY:
        for do in ("set", "get"):
            title = f"{do}, {tasks:,} tasks at once, a call"
            work.append(Work(f"{do}-tasks-{tasks}", title, do, {**small, "tasks": tasks}, step=tasks))
    for size in SIZES[1:]:
        work += one_by_one(*size, settings)
    work.append(Work("clear", f"clear {settings.cleared:,} keys, a key", "clear", {"count": settings.cleared}))
    start = 0
    for count in sorted({min(count, settings.largest) for count in group.listing}):
        before = (("grow", {"start": start, "count": count}),)
        title = f"list 100 keys of {count:,}"
        work.append(Work(f"list-{count}", title, "list", {"count": count}, step=1, most=500, before=before, keys=count))
        start = count
        if count <= 100_000:
            title = f"list all {count:,} keys, a key"
            work.append(Work(f"list-all-{count}", title, "list_all", {"count": count}, keys=count))
    return [row for row in work if settings.thorough or not row.name.endswith(SKIPPED_WHEN_QUICK)]


def is_asked(peer: Peer, work: Work) -> bool:
    return work.keys == 0 or (peer.lists and work.keys <= peer.largest)
