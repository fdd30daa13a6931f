"""A process that may only read: `only_read_process.py DRIVER PATH`. It says what it finds for each line that it is told."""

from __future__ import annotations

import asyncio
import ctypes
import sys

from kvstore import create_storage


async def main(driver: str, path: str) -> None:
    # No capabilities (capset(2), version 3), for root may write to every file.
    assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
    async with create_storage(driver, path=path, read_only=True) as storage:
        for _ in sys.stdin:
            key, large = (await storage.get_items(["key", "large"])).values()
            print(key, large, await storage.get_keys(), await storage.has_item("key"), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
