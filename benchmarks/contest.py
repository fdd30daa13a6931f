"""One piece of work for all peers of a group, in interleaved rounds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from benchmarks.peers.catalogue import Peer
from benchmarks.plan import Settings, Work, is_asked
from benchmarks.processes import NotOffered, PeerError, PeerGone, Worker

Cell = dict[str, Any]
"""`each`: µs a call, one a round; `pauses` and `idle`: ms, one a watched round; or `error`, or `not_offered`."""


class Contestants:
    """The processes of a group that still run, and what became of the others."""

    def __init__(self, peers: tuple[Peer, ...]) -> None:
        self.peers = peers
        self.workers: dict[str, Worker] = {}
        self.failed: dict[str, str] = {}

    def gone(self, name: str, error: PeerGone) -> None:
        self.failed[name] = str(error)
        self.workers.pop(name, None)

    async def close(self) -> None:
        for worker in self.workers.values():
            await worker.close()
        self.workers.clear()


class Contest:
    """One `Work` and its cells. A peer that fails says why in its cell and drops out of this work alone, unless it is gone."""

    def __init__(self, contestants: Contestants, work: Work, settings: Settings) -> None:
        self._contestants = contestants
        self._work = work
        self._settings = settings
        self._calls: dict[str, int] = {}
        self._spent: dict[str, float] = {}
        self._warmed: dict[str, float] = {}
        self._seed = 0
        self.cells: dict[str, Cell] = {}

    async def run(self) -> dict[str, Cell]:
        for peer in self._contestants.peers:
            if not is_asked(peer, self._work):
                self.cells[peer.name] = {"not_offered": True} if not peer.lists else {"left_out": True}
            elif peer.name in self._contestants.workers:
                self.cells[peer.name] = {"each": [], "pauses": [], "idle": []}
                await self._guarded(peer.name, self._prepare)
        for turn in range(self._settings.rounds):
            for name in self._turn(turn):
                if turn < self._settings.least or self._spent[name] < self._settings.limit:
                    await self._guarded(name, self._round)
        for name, warmed in self._warmed.items():
            if "each" in self.cells[name] and not self.cells[name]["each"]:
                self.cells[name]["each"].append(warmed)
        for turn in range(self._settings.watches):
            for name in self._turn(turn):
                if turn < min(1, self._settings.least) or self._spent[name] < self._settings.limit * 1.5:
                    await self._guarded(name, self._watch)
        return self.cells

    def _turn(self, turn: int) -> list[str]:
        """Who is still in it, each round another first."""
        names = [name for name in self._calls if "each" in self.cells[name]]
        start = turn % len(names) if names else 0
        return names[start:] + names[:start]

    async def _guarded(self, name: str, step: Any) -> None:
        try:
            await step(name, self._contestants.workers[name])
        except NotOffered:
            self.cells[name] = {"not_offered": True}
        except PeerGone as error:
            self.cells[name] = {"error": str(error)}
            self._contestants.gone(name, error)
        except PeerError as error:
            self.cells[name] = {"error": str(error)}

    async def _prepare(self, name: str, worker: Worker) -> None:
        """What has to be there, then a first round that warms up and tells how many calls make a round."""
        for do, given in self._work.before:
            await worker.ask(do, **given)
        step = self._work.step
        self._spent[name] = 0.0
        self._calls[name] = step
        taken = await self._ask(name, worker, step)
        self._warmed[name] = taken["seconds"] / taken["calls"] * 1e6
        if not step:
            return
        if step == 1:  # once more, without what is done the first time alone, such as to build an index
            taken = await self._ask(name, worker, step)
        if taken["seconds"] < self._settings.seconds / 20:  # once more, with what can be timed
            step *= max(1, min(20, self._work.most // step))
            taken = await self._ask(name, worker, step)
        fitting = int(self._settings.seconds / max(taken["seconds"] / taken["calls"], 1e-7))
        self._calls[name] = max(1, min(fitting, self._work.most) // self._work.step) * self._work.step

    async def _ask(self, name: str, worker: Worker, calls: int, *, watch: bool = False) -> Cell:
        given: Mapping[str, Any] = self._work.given
        if self._work.step:
            given = {**given, "calls": calls}
        if self._work.do in ("set", "get", "list", "append", "list_records"):
            self._seed += 10_007  # so that each round has values of its own
            given = {**given, "seed": self._seed}
        before = time.perf_counter()
        taken = await worker.ask(self._work.do, **given, watch=watch)
        self._spent[name] += time.perf_counter() - before
        return taken

    async def _round(self, name: str, worker: Worker) -> None:
        taken = await self._ask(name, worker, self._calls[name])
        self.cells[name]["each"].append(taken["seconds"] / taken["calls"] * 1e6)

    async def _watch(self, name: str, worker: Worker) -> None:
        taken = await self._ask(name, worker, self._calls[name], watch=True)
        self.cells[name]["pauses"].append(taken["pause"])
        self.cells[name]["idle"].append(taken["idle"])
