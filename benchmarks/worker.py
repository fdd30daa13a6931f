"""A process of one peer: reads a request a line, does the work, answers with a line. `node/worker.mjs` is the same for Node.

It is run with the Python of the peer's own environment, so it needs nothing but the standard library and the peer.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.contract import NotOffered, Place
from benchmarks.workloads import sessions, stores
from benchmarks.workloads.values import Pool

WORK: dict[str, Callable[..., Awaitable[dict[str, Any] | None]]] = {
    "fill": stores.fill,
    "set": stores.set_,
    "get": stores.get,
    "grow": stores.grow,
    "list": stores.list_,
    "list_all": stores.list_all,
    "clear": stores.clear,
    "footprint": stores.footprint,
    "append": sessions.append,
    "append_grow": sessions.append_grow,
    "append_many": sessions.append_many,
    "last": sessions.last,
    "all": sessions.all_,
    "truncate": sessions.truncate,
    "fork": sessions.fork,
    "records": sessions.records,
    "list_records": sessions.list_records,
    "contend": sessions.contend,
    "found": sessions.found,
}


async def serve(answers: Any) -> None:
    def answer(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    given = json.loads(sys.stdin.readline())
    module, _, name = given["peer"].partition(":")
    place = Place(Path(given["folder"]), given["url"])
    try:
        peer = getattr(importlib.import_module(f"benchmarks.peers.{module}"), name)
        store = await peer.open(place, **given["options"])
    except Exception as error:
        return answer(error=describe(error))
    pool = Pool(Path(given["pool"]))
    gc.freeze()  # so that a collection before each round does not go through all that was imported
    answer(ok={})
    while line := await asyncio.to_thread(sys.stdin.readline):
        request = json.loads(line)
        do = request.pop("do")
        try:
            if do == "close":
                await store.close()
                done = None
            elif do == "open":
                store = await peer.open(place, **given["options"])
                done = None
            else:
                done = await WORK[do](store, pool, **request)
        except NotOffered:
            answer(not_offered=True)
        except Exception as error:
            answer(error=describe(error))
        else:
            answer(ok=done or {})
    await store.close()
    return None


def describe(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what a library prints is no answer
        asyncio.run(serve(answers))
