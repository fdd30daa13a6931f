"""What this project wants to hold against its peers, and whether a run's figures hold it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median

from benchmarks.quantities import measure
from benchmarks.results import Part, Results, Row
from benchmarks.tried import TRIED

PAUSE = 30.0
GROWTH = 1.5
BEST = "the best"


@dataclass(frozen=True)
class Target:
    """Our median of a row against that of a peer, or against a time. Just one of the limits is given."""

    part: str
    rows: str
    """Names, spaced; one that ends in `*` is the largest that was measured."""
    peer: str = ""
    """`BEST` is the best of all but the raw clients; "": the limit is a time in the row's own unit."""
    at_most: float = 0.0
    """Our time, as a multiple of the peer's."""
    at_least: float = 0.0
    """How many times as fast we are."""
    ours: str = ""
    """Another of ours than the part's first."""
    their_row: str = ""
    """Another row of the peer's."""


TARGETS = (
    Target("memory", "set-200 get-200", "dict + orjson", at_most=1.5),
    Target("memory", "set-200 get-200", "unstorage", at_least=2),
    Target("memory", "set-200 get-200", "py-key-value", at_least=12),
    Target("memory", "list-1000000", "kvstore", at_most=2, their_row="list-10000"),
    Target("mounts", "set-200 get-200", "kvstore, 1", at_most=1.5, ours="kvstore, 200"),
    Target("sqlite-normal", "set-200 get-200", "sqlite3", at_most=1.6),
    Target("sqlite-full", "set-200 get-200", "sqlite3", at_most=2),
    Target("sqlite-full", "set-tasks-1000", "sqlite3", at_least=10),
    Target("sqlite-full", "set-tasks-1000", "aiosqlite", at_least=10),
    Target("sqlite-full", "set-tasks-1000", "SQLAlchemy asyncio", at_least=40),
    Target("sqlite-full", "list-1000000", "kvstore", at_most=2, their_row="list-10000"),
    Target("files", "get-200", "os calls", at_most=1.5),
    Target("files", "set-200", "unstorage fs-lite, atomic", at_least=2),
    Target("files", "list-all-*", "fsspec", at_least=5),
    Target("redis", "set-200 get-200", "redis-py", at_most=1.15),
    Target("redis", "set-tasks-64 get-tasks-64", "redis-py", at_least=8),
    Target("redis", "list-1000000", at_most=2_000),
    Target("redis", "list-1000000", "redis-py", at_least=100),
    Target("postgresql", "set-200 get-200", "asyncpg", at_most=1.15),
    Target("postgresql", "set-tasks-64 get-tasks-64", "asyncpg", at_least=5),
    Target("postgresql", "set-tasks-64 get-tasks-64", "SQLAlchemy asyncio", at_least=8),
    Target("mysql", "set-200 get-200", "asyncmy", at_most=1.15),
    Target("mysql", "set-tasks-64 get-tasks-64", "asyncmy", at_least=5),
    Target("mariadb", "set-200 get-200", "asyncmy", at_most=1.15),
    Target("mariadb", "set-tasks-64 get-tasks-64", "asyncmy", at_least=5),
    Target("sessions-full", "append", "OpenAI SQLiteSession", at_least=1.5),
    Target("sessions-full", "append-64", "OpenAI SQLiteSession", at_least=5),
    Target("sessions-full", "last all", BEST, at_most=1),
    Target("sessions-full", "disk", BEST, at_most=1.5),
    Target("sessions-fast", "last all", BEST, at_most=1),
    Target("sessions-fast", "disk", BEST, at_most=1.5),
    Target("imports", "import", at_most=40, ours="kvstore, nothing of it"),
    Target("imports", "import", at_most=40, ours="persistence, nothing of it"),
)


@dataclass(frozen=True)
class Verdict:
    what: str
    wanted: str
    found: str
    holds: bool | None
    """None: it was not measured, and `found` says why."""
    tried: str = ""


def verdicts(results: Results) -> list[Verdict]:
    """Of the parts that were run."""
    against = [verdict for target in TARGETS for verdict in _held(results, target)]
    return [*against, *_growth(results), *_safety(results), *_errors(results), *_pauses(results)]


def _held(results: Results, target: Target) -> Iterator[Verdict]:
    if part := results.parts.get(target.part):
        for name in target.rows.split():
            told = [text for (named, rows), text in TRIED.items() if named == target.part and name in rows.split()]
            yield replace(_judged(target, part, part.row(name)), tried=" ".join(told))


def _judged(target: Target, part: Part, row: Row) -> Verdict:
    ours, peer = target.ours or part.ours, target.peer
    their_row = part.row(target.their_row) if target.their_row else row
    what = f"{part.title}: {row.title}{target.ours and f', {target.ours}'}"
    if peer == BEST and (best := _best(part, row)):
        peer = best
        what += f", against the best, {best}"
    elif peer:
        what += f", against {their_row.title if target.their_row else peer}"
    if not peer:
        wanted = f"at most {measure(target.at_most, row.unit)}"
    elif target.at_least:
        wanted = f"at least {target.at_least:g} times as fast"
    else:
        wanted = f"at most {target.at_most:g} times the {'size' if row.unit == 'MB' else 'time'}"
    own, theirs = row.median(ours), their_row.median(peer)
    if own is None or (peer and theirs is None):
        return Verdict(what, wanted, _why(part, row, ours) if own is None else _why(part, their_row, peer), None)
    if theirs is None:
        return Verdict(what, wanted, measure(own, row.unit), own <= target.at_most)
    if target.at_least:
        return Verdict(what, wanted, f"{theirs / own:.2f} times", theirs / own >= target.at_least)
    return Verdict(what, wanted, f"{own / theirs:.2f} times", own / theirs <= target.at_most)


def _why(part: Part, row: Row, peer: str) -> str:
    if not row.cells:
        return "not in this run"
    return f"{peer}: {part.failed.get(peer) or row.cells.get(peer, {}).get('error', 'it has no such call')}"


def _best(part: Part, row: Row) -> str | None:
    measured = {peer: time for peer in part.named("peer") if (time := row.median(peer)) is not None}
    return min(measured, key=lambda peer: measured[peer], default=None)


def _growth(results: Results) -> Iterator[Verdict]:
    """An append costs the same however long the session is."""
    for part in results.parts.values():
        for peer in part.named("ours"):
            each = part.row("append").cells.get(peer, {}).get("each", [])
            if len(each) < 8:
                continue
            few = len(each) // 4
            times = median(each[-few:]) / median(each[:few])
            what = f"{part.title}: append, {peer}, the last quarter of a long session against its first"
            yield Verdict(what, f"at most {GROWTH:g} times the time", f"{times:.2f} times", times <= GROWTH)


def _safety(results: Results) -> Iterator[Verdict]:
    for part in results.parts.values():
        for peer in part.named("ours"):
            if peer not in part.contended:
                continue
            found, what = part.contended[peer], f"{part.title}: 4 processes on one session, {peer}"
            wanted = "none lost, doubled or reordered"
            if "error" in found:
                yield Verdict(what, wanted, found["error"], False)
                continue
            wrong = found["lost"] + found["doubled"] + found["out_of_order"]
            text = f"{found['stored']} of {found['wanted']} stored, {found['lost']} lost, {found['doubled']} doubled, "
            text += f"{found['out_of_order']} out of order, {found['refused']} refused"
            yield Verdict(what, wanted, text, wrong == 0)


def _errors(results: Results) -> Iterator[Verdict]:
    """What is read is checked against what was written, so that a message lost, doubled or reordered is an error, too."""
    ours = [(part, peer) for part in results.parts.values() for peer in part.named("ours")]
    errors = [f"{part.title}: {part.failed[peer]}" for part, peer in ours if peer in part.failed]
    for part, peer in ours:
        for row in part.rows.values():
            if "error" in row.cells.get(peer, {}):
                errors.append(f"{part.title}, {row.title}: {row.cells[peer]['error']}")
    if ours:
        what = "All parts: calls of kvstore that fail, or read what was not written"
        yield Verdict(what, "none", "; ".join(errors) or "none", not errors)


def _pauses(results: Results) -> Iterator[Verdict]:
    for part in results.parts.values():
        pauses = [
            (pause, peer, row)
            for peer in part.named("ours")
            for row in part.rows.values()
            if (pause := row.pause(peer)) is not None
        ]
        if pauses:
            pause, peer, row = max(pauses, key=lambda found: found[0])
            found = f"{pause:.1f} ms, {peer}, {row.title} (a loop that does nothing: {row.idle(peer):.1f} ms)"
            yield Verdict(f"{part.title}: longest pause of the event loop", f"at most {PAUSE:g} ms", found, pause <= PAUSE)
