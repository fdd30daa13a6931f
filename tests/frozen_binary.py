"""A program that imports one driver, frozen by PyInstaller: it runs, and holds no client library of another driver.

A script, not a test, because it takes half a minute: `make binary`. Needs the client libraries installed beside it, for
what is not there can't be picked up by mistake.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

FOREIGN = ("redis", "pymongo", "bson", "sqlalchemy", "hypothesis", "pytest", "_pytest")

PROGRAM = """
import asyncio
import sys

from persistence import Session, create_persistence
from persistence.drivers.sqlite import sqlite_driver


async def main() -> None:
    async with create_persistence(sqlite_driver(path=sys.argv[1])) as persistence:
        await persistence.sessions.save(Session(session_id="s1", image_id="i1", container_id="c1"))
        await persistence.sessions.add_message("s1", {"id": "m1", "role": "user", "subtype": "user", "content": "hi"})
        print([message["id"] for message in await persistence.sessions.get_messages("s1")])


asyncio.run(main())
"""


def main() -> None:
    absent = [name for name in FOREIGN if importlib.util.find_spec(name) is None]
    if absent:
        sys.exit(f"install {', '.join(absent)} first: what is not there can't be left out")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program.py")
        program.write_text(PROGRAM)
        options = ["--onedir", "--noconfirm", "--log-level", "ERROR", "--distpath", folder, "--workpath", f"{folder}/build"]
        subprocess.run(
            [sys.executable, "-m", "PyInstaller", *options, "--specpath", folder, str(program)], check=True, cwd=folder
        )
        binary = Path(folder, "program", "program")
        printed = subprocess.run([binary, f"{folder}/a.db"], check=True, capture_output=True, text=True, cwd=folder).stdout
        if printed.strip() != "['m1']":
            sys.exit(f"the binary printed {printed!r}")
        archived = subprocess.run(
            [sys.executable, "-m", "PyInstaller.utils.cliutils.archive_viewer", "--list", "--recursive", "--brief", binary],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        held = {line.strip().strip("'\"").split(".")[0] for line in archived.splitlines()}
        held |= {path.name.split(".")[0] for path in Path(folder, "program").rglob("*")}
        if "persistence" not in held or "kvstore" not in held:
            sys.exit("the list of what the binary holds could not be read")
        carried = sorted(held & set(FOREIGN))
        if carried:
            sys.exit(f"the binary carries {', '.join(carried)}")
        size = sum(path.stat().st_size for path in Path(folder, "program").rglob("*") if path.is_file())
        print(f"the binary runs, holds none of {', '.join(FOREIGN)}, and takes {size / 2**20:.0f} MB")


if __name__ == "__main__":
    main()
