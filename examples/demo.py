"""A scripted agent at work on this checkout, killed in the middle, and taken up again by another process.

    python examples/demo.py

The agent has real tools (list files, read a file, run a command). Every message, tool call and tool result is stored in
SQLite the moment it happens, in `.demo/agents.db`. The script stands in for the language model; all else is real.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

from kvstore import create_storage
from persistence import Container, Image, Persistence, Session, create_persistence
from persistence.drivers.sqlite import sqlite_driver

CHECKOUT = Path(__file__).resolve().parent.parent
STORE = CHECKOUT / ".demo" / "agents.db"
SESSION = "sess_demo"

TASKS: list[tuple[str, list[tuple[str, dict[str, str]]], str]] = [
    (
        "What is in this checkout?",
        [("list_files", {"folder": "."}), ("list_files", {"folder": "kvstore"}), ("list_files", {"folder": "persistence"})],
        "Two packages: kvstore, the storage layer, and persistence, what an agent runtime keeps on top of it.",
    ),
    (
        "What does a backend have to do?",
        [("read_file", {"path": "kvstore/driver.py"}), ("run", {"command": "grep -n 'async def' kvstore/driver.py"})],
        "Three calls say it all: read, write and scan. The others have defaults that are built on them.",
    ),
    (
        "How many lines is it, does it compile, and is it documented?",
        [
            ("run", {"command": "find kvstore persistence -name '*.py' -exec cat {} + | wc -l"}),
            ("run", {"command": f"{sys.executable} -m compileall -q kvstore persistence && echo compiles"}),
            ("run", {"command": "ls docs"}),
        ],
        "The first result counts the lines. It compiles, and docs/ documents it.",
    ),
]


def use_tool(name: str, arguments: dict[str, str]) -> dict[str, Any]:
    """Runs a tool for real. What goes wrong is a result too."""
    try:
        if name == "list_files":
            return {"type": "json", "value": sorted(p.name for p in (CHECKOUT / arguments["folder"]).iterdir())}
        if name == "read_file":
            return {"type": "text", "value": (CHECKOUT / arguments["path"]).read_text("utf-8")}
        ran = subprocess.run(
            arguments["command"], shell=True, cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False
        )
        return {"type": "json", "value": {"exitCode": ran.returncode, "stdout": ran.stdout, "stderr": ran.stderr}}
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"type": "error-text", "value": str(error)}


def script() -> Iterator[dict[str, Any]]:
    """The messages of the whole conversation, less ids, times and results, in order."""
    calls_made = count(1)
    for question, calls, answer in TASKS:
        yield {"role": "user", "subtype": "user", "content": question}
        for name, arguments in calls:
            call = {"type": "tool-call", "id": f"call_{next(calls_made)}", "name": name, "input": arguments}
            yield {"role": "assistant", "subtype": "tool-call", "toolCall": call}
            yield {"role": "tool", "subtype": "tool-result"}
        yield {"role": "assistant", "subtype": "assistant", "content": answer}


async def work(persistence: Persistence, stored_one: Callable[[dict[str, Any]], None]) -> None:
    """The agent: looks where the session stands and goes on from there. `stored_one` gets each message once it is stored."""
    if not await persistence.sessions.exists(SESSION):
        await persistence.containers.save(Container(container_id="workshop", config={"owner": "demo"}))
        await persistence.images.save(
            Image(image_id="img_demo", container_id="workshop", session_id=SESSION, name="Code reader", model="scripted")
        )
        await persistence.sessions.save(Session(session_id=SESSION, image_id="img_demo", container_id="workshop"))
    stored = await persistence.sessions.get_messages(SESSION)
    for position, message in enumerate(script()):
        if position < len(stored):
            continue
        message |= {"id": f"msg_{uuid4().hex[:12]}", "timestamp": time.time_ns() // 1_000_000}
        if message["subtype"] == "tool-result":
            call = stored[-1]["toolCall"]
            output = await asyncio.to_thread(use_tool, call["name"], call["input"])
            result = {"type": "tool-result", "id": call["id"], "name": call["name"], "output": output}
            message |= {"toolCallId": call["id"], "toolResult": result}
        await persistence.sessions.add_message(SESSION, message)
        stored.append(message)
        stored_one(message)
        await asyncio.sleep(0.05)  # a model takes its time


def brief(value: object, width: int = 84) -> str:
    return textwrap.shorten(str(value), width, placeholder=" …")


def shown(message: dict[str, Any]) -> str:
    """One message as a person would want to read it."""
    match message["subtype"]:
        case "user":
            return f"  you        {message['content']}"
        case "tool-call":
            arguments = " ".join(str(value) for value in message["toolCall"]["input"].values())
            return f"  agent  →   {message['toolCall']['name']} {brief(arguments, 70)}"
        case "tool-result":
            value = message["toolResult"]["output"]["value"]
            if isinstance(value, dict):
                value = value["stdout"] or value["stderr"]
            return f"         ←   {brief(', '.join(value) if isinstance(value, list) else value)}"
        case _:
            return f"  agent      {message['content']}"


async def show(persistence: Persistence) -> None:
    """Containers, images and the tail of the session."""
    for container in (await persistence.containers.list()).items:
        print(f"container {container.container_id}")
        for image in (await persistence.images.list(container_id=container.container_id)).items:
            total = await persistence.sessions.count_messages(image.session_id)
            print(f"  image {image.image_id} “{image.name}”, session {image.session_id}: {total} messages, the last:")
            for message in await persistence.sessions.get_messages(image.session_id, last=5):
                print("  " + shown(message))


async def resume(acknowledged: list[str]) -> None:
    """The second process: nothing is lost, and the work goes on."""
    async with create_persistence(sqlite_driver(path=STORE)) as persistence:
        await show(persistence)
        kept = [message["id"] for message in await persistence.sessions.get_messages(SESSION)]
        if kept[: len(acknowledged)] != acknowledged or len(kept) > len(acknowledged) + 1:
            sys.exit(f"LOST: {len(acknowledged)} messages were acknowledged, {len(kept)} are there")
        print(f"\n{len(acknowledged)} messages were acknowledged before the kill, {len(kept)} are there. Going on:\n")
        await work(persistence, lambda message: print(shown(message), flush=True))
        total = await persistence.sessions.count_messages(SESSION)
        if total != len(list(script())):
            sys.exit(f"WRONG: {total} messages, not {len(list(script()))}")
        print(f"\nDone: {total} messages, each once, in order.")


async def mounts() -> None:
    """Other backends beside the same store: memory for what may go, files for what people look at."""
    storage = create_storage("sqlite", path=STORE)
    storage.mount("cache", "memory", ttl=60).mount("notes", "fs", path=STORE.parent / "notes")
    async with storage:
        await storage.set_item("cache:greeting", "hello")
        await storage.set_item("notes:todo:first", {"text": "read the README"})
        print("\nOne storage, three backends:")
        for mount in storage.get_mounts():
            keys = await storage.get_keys(mount.base, limit=2) if mount.base else await storage.get_keys("images", limit=2)
            print(f"  {mount.base or '(root)':8} {mount.driver.name:8} {', '.join(keys)}")
    files = sorted(p.relative_to(STORE.parent) for p in (STORE.parent / "notes").rglob("*.json"))
    print("  on disk: " + ", ".join(f".demo/{path}" for path in files))
    print("\nLook for yourself: .venv/bin/python -m persistence show sess_demo --store .demo/agents.db")


def main() -> None:
    """Starts the agent as a process of its own, kills it with SIGKILL in the middle, and has another one go on."""
    shutil.rmtree(STORE.parent, ignore_errors=True)
    STORE.parent.mkdir()
    print(f"An agent starts to work; what it does is kept in {STORE.relative_to(CHECKOUT)}.")
    agent = subprocess.Popen([sys.executable, __file__, "work"], stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None
    acknowledged = [agent.stdout.readline().strip() for _ in range(len(list(script())) // 2)]
    os.kill(agent.pid, signal.SIGKILL)
    rest, _ = agent.communicate()
    acknowledged += rest.split()
    if agent.returncode != -signal.SIGKILL or not acknowledged[-1]:
        sys.exit("the agent ended before it was killed")
    print(f"It was killed (SIGKILL) after {len(acknowledged)} messages. A second process opens the store:\n", flush=True)
    subprocess.run([sys.executable, __file__, "resume", *acknowledged], check=True)


async def run(command: str, arguments: list[str]) -> None:
    if command == "work":
        async with create_persistence(sqlite_driver(path=STORE)) as persistence:
            # Acknowledged: from here on it must never be lost.
            await work(persistence, lambda message: print(message["id"], flush=True))
    else:
        await resume(arguments)
        await mounts()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(run(sys.argv[1], sys.argv[2:]))
    else:
        main()
