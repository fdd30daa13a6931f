"""The session stores: a long session appended one by one and read, a crowd of sessions, processes that write at once."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.contest import Contestants
from benchmarks.peers.catalogue import Group, Peer
from benchmarks.plan import MESSAGES_PER_ROUND, Work
from benchmarks.processes import PeerError, PeerGone, Worker
from benchmarks.stage import Stage

LONG = "long"
WRITERS = 4
CROWD = 64


async def run_sessions(stage: Stage, group: Group) -> dict[str, Any]:
    settings, size = stage.settings, stage.settings.messages
    contestants = await stage.open(group.name, group.peers)
    rows = [await _grow(stage, contestants)]
    await _each(contestants, "close")  # so that what lies on the disk is all there is
    rows.append(_disk(stage, group, contestants))
    await _each(contestants, "open")
    listing = {"owners": settings.owners, "count": settings.records}
    for work in (
        Work(f"append-{CROWD}", f"append, {CROWD} sessions at once, a message", "append", {"sessions": CROWD}, step=CROWD),
        Work("last", f"the last 50 of {size:,}", "last", {"session": LONG, "count": 50, "size": size}, step=1, most=500),
        Work("all", f"all {size:,} messages", "all", {"session": LONG, "size": size}),
        Work("truncate", "truncate by 20", "truncate", {"session": LONG, "size": size, "drop": 20}),
        Work("fork", f"fork with {settings.forked:,} messages", "fork", {"session": LONG, "count": settings.forked}),
        Work(
            "records",
            f"list {settings.records // settings.owners} records of one of {settings.owners} owners",
            "list_records",
            listing,
            step=1,
            most=200,
            before=(("records", listing),),
        ),
    ):
        rows.append(await stage.work(contestants, work))
    contended = {}
    for peer in group.peers:
        if peer.name in contestants.workers and (settings.thorough or peer.role == "ours"):
            contended[peer.name] = await _contended(stage, peer, contestants.workers[peer.name], stage.place(group.name, peer))
    await contestants.close()
    stage.forget(group.name)
    return {"work": rows, "contended": contended, "failed": contestants.failed}


async def _each(contestants: Contestants, do: str) -> None:
    for name, worker in list(contestants.workers.items()):
        try:
            await worker.ask(do)
        except PeerError as error:
            contestants.gone(name, PeerGone(str(error)))


async def _grow(stage: Stage, contestants: Contestants) -> dict[str, Any]:
    """One session, message by message. A peer that takes too long gets the rest in batches, which are not timed."""
    settings = stage.settings
    cells: dict[str, Any] = {peer.name: {"each": [], "at": [], "pauses": [], "idle": []} for peer in contestants.peers}
    for name, worker in list(contestants.workers.items()):
        try:
            await worker.ask("append_grow", session="warm", start=0, calls=5)
        except PeerError as error:
            contestants.gone(name, PeerGone(str(error)))
            cells[name] = {"error": str(error)}
    at = dict.fromkeys(contestants.workers, 0)
    spent = dict.fromkeys(contestants.workers, 0.0)
    step = min(MESSAGES_PER_ROUND, settings.messages // 10)
    for turn in range(settings.messages // step):
        names = list(contestants.workers)
        for name in names[turn % len(names) :] + names[: turn % len(names)] if names else []:
            if spent[name] > settings.append_limit:
                continue
            watch = turn % 10 == 9
            try:
                taken = await contestants.workers[name].ask(
                    "append_grow", session=LONG, start=at[name], calls=step, watch=watch
                )
            except PeerError as error:
                contestants.gone(name, PeerGone(str(error)))
                cells[name] = {"error": str(error)}
                continue
            at[name] += step
            if watch:
                cells[name]["pauses"].append(taken["pause"])
                cells[name]["idle"].append(taken["idle"])
            else:
                spent[name] += taken["seconds"]
                cells[name]["each"].append(taken["seconds"] / taken["calls"] * 1e6)
                cells[name]["at"].append(at[name])
    for name, worker in list(contestants.workers.items()):
        try:
            await worker.ask("append_many", session=LONG, start=at[name], count=settings.messages - at[name])
        except PeerError as error:
            contestants.gone(name, PeerGone(str(error)))
            cells[name] = {"error": str(error)}
    title = f"append one after another, to {settings.messages:,} messages of 1 KB"
    cells = {name: cell for name, cell in cells.items() if "error" in cell or cell["each"]}
    stage.progress.done(title, cells)
    return {"name": "append", "title": title, "unit": "µs", "cells": cells}


def _disk(stage: Stage, group: Group, contestants: Contestants) -> dict[str, Any]:
    cells = {}
    for peer in group.peers:
        if peer.name not in contestants.failed:
            cells[peer.name] = {"each": [_bytes(stage.place(group.name, peer)) / 1e6]}
    title = f"on the disk, with {stage.settings.messages:,} messages of 1 KB"
    stage.progress.done(title, cells)
    return {"name": "disk", "title": title, "unit": "MB", "cells": cells}


def _bytes(folder: Path) -> int:
    """Blocks on the disk, as many small files take more than they hold."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


async def _contended(stage: Stage, peer: Peer, first: Worker, place: Path) -> dict[str, Any]:
    """Processes that append to one session at the same time: what is there afterwards, against what was said to be."""
    calls, others = stage.settings.contended, list[Worker]()
    try:
        await first.ask("append_many", session="shared", start=0, count=1)
        starting = (Worker.start(peer, place, "", stage.pool) for _ in range(WRITERS - 1))
        started = await asyncio.gather(*starting, return_exceptions=True)
        others = [worker for worker in started if isinstance(worker, Worker)]
        for failure in started:
            if isinstance(failure, BaseException):
                raise failure
        answers = await asyncio.gather(
            *(worker.ask("contend", session="shared", writer=at, calls=calls) for at, worker in enumerate([first, *others]))
        )
        await first.ask("close")
        await first.ask("open")
        ids = (await first.ask("found", session="shared"))["ids"]
    except PeerError as error:
        return {"error": str(error)}
    finally:
        for worker in others:
            await worker.close()
    found = _compared([name for name in ids if name.startswith("w")], answers, calls)
    stage.progress.said(
        f"{WRITERS} processes, {peer.name}: {', '.join(f'{value} {what}' for what, value in found.items() if value)}"
    )
    return found


def _compared(ids: list[str], answers: list[dict[str, Any]], calls: int) -> dict[str, Any]:
    """What is there, against what the writers were told."""
    promised = [name for answer in answers for name in answer["acknowledged"]]
    out_of_order = 0
    for writer in range(WRITERS):
        own = [int(name.partition("-")[2]) for name in dict.fromkeys(ids) if name.startswith(f"w{writer}-")]
        out_of_order += sum(later < earlier for earlier, later in pairwise(own))
    return {
        "wanted": WRITERS * calls,
        "stored": len(set(ids)),
        "lost": len(set(promised) - set(ids)),
        "refused": sum(answer["refused"] for answer in answers),
        "doubled": len(ids) - len(set(ids)),
        "out_of_order": out_of_order,
        "reason": next((answer["reason"] for answer in answers if answer["reason"]), ""),
    }
