"""Where a run takes place: its folder, its servers, its settings."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

from benchmarks.contest import Contest, Contestants
from benchmarks.peers.catalogue import Peer
from benchmarks.plan import Settings, Work
from benchmarks.processes import PeerGone, Servers, Worker
from benchmarks.progress import Progress
from benchmarks.workloads.values import make_pool


class Stage:
    def __init__(self, folder: Path, settings: Settings, progress: Progress) -> None:
        self.folder = folder
        self.settings = settings
        self.progress = progress
        self.servers = Servers()
        self.pool = folder / "pool.txt"
        make_pool(self.pool)

    async def open(self, group: str, peers: tuple[Peer, ...], server: str = "") -> Contestants:
        """Starts a process for each peer. Who can't start is named in `failed`."""
        contestants = Contestants(peers)

        async def start(peer: Peer) -> None:
            try:
                url = self.servers.url(server) if server else ""
                contestants.workers[peer.name] = await Worker.start(peer, self.place(group, peer), url, self.pool)
            except PeerGone as error:
                contestants.gone(peer.name, error)
                self.progress.failed(peer.name, str(error))

        await asyncio.gather(*map(start, peers))
        return contestants

    def place(self, group: str, peer: Peer, what: str = "") -> Path:
        return self.folder / group / f"{what}{peer.peer.replace(':', '-')}-{peer.name.replace(' ', '-').replace(',', '')}"

    async def work(self, contestants: Contestants, work: Work) -> dict[str, Any]:
        cells = await Contest(contestants, work, self.settings).run()
        self.progress.done(work.title, cells)
        return {"name": work.name, "title": work.title, "unit": work.unit, "cells": cells}

    def forget(self, group: str) -> None:
        shutil.rmtree(self.folder / group, ignore_errors=True)
