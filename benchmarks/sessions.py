"""A session's log of messages on SQLite, short and long."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Figure, medians, ratio
from persistence import create_persistence

LONG, SHORT, CALLS = 10_000, 100, 50


def message(number: int) -> dict[str, Any]:
    return {"id": f"m{number}", "subtype": "user", "role": "user", "content": f"{number:0150d}", "timestamp": number}


async def figures(*, quick: bool) -> list[Figure]:
    rounds, fresh = 5 if quick else 15, count()
    with TemporaryDirectory(dir=".") as folder:
        async with create_persistence("sqlite", path=Path(folder, "agents.db")) as persistence:
            sessions = persistence.sessions

            async def grown(session: str, size: int) -> str:
                for start in range(0, size, 50):
                    await sessions.add_messages(session, [message(start + at) for at in range(50)][: size - start])
                return session

            async def grown_singly(session: str, size: int) -> str:
                for number in range(size):
                    await sessions.add_message(session, message(number))
                return session

            async def appends(session: str) -> None:
                for _ in range(CALLS):
                    await sessions.add_message(session, message(next(fresh)))

            async def appends_to_short() -> None:
                await appends(await grown(f"short{next(fresh)}", SHORT))

            async def only_grow() -> None:
                await grown(f"short{next(fresh)}", SHORT)

            async def tail() -> None:
                for _ in range(CALLS):
                    assert len(await sessions.get_messages("long", last=50)) == 50

            async def whole() -> None:
                assert len(await sessions.get_messages("whole")) == LONG

            await grown_singly("long", LONG)
            await sessions.write_messages("whole", [message(number) for number in range(LONG)])
            times = await medians(
                rounds, CALLS, long=lambda: appends("long"), short_and_growing=appends_to_short, growing=only_grow
            )
            append = {"long": times["long"], "short": times["short_and_growing"] - times["growing"]}
            last = (await medians(rounds, CALLS, last_50=tail))["last_50"]
            full = (await medians(rounds, 1, whole=whole))["whole"]
    return [
        ratio(f"append at {LONG:,} messages, against at {SHORT}", append, "long", "short", 1.5),
        ratio(f"the last 50 of {LONG:,}, against all", {"last_50": last, "all": full}, "last_50", "all", 0.1),
    ]
