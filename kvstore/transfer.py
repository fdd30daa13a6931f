"""Whole parts of a storage at once: snapshot, restore, copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvstore.driver import PAGE
from kvstore.storage import Storage, prefix_storage


async def snapshot(storage: Storage, base: str = "") -> dict[str, Any]:
    """The JSON values below `base`, by key without it."""
    return {key: value async for key, value in prefix_storage(storage, base).iter_items()}


async def restore_snapshot(storage: Storage, data: Mapping[str, Any], base: str = "") -> None:
    """Stores what `snapshot` gave below `base`. Other keys there stay."""
    await prefix_storage(storage, base).set_items(data)


async def copy(source: Storage, target: Storage, base: str = "", *, into: str | None = None, overwrite: bool = True) -> int:
    """Copies the keys below `base` with their bytes, expiry and custom metadata. Returns how many were copied.

    They come below `into`, by default `base`, in `target`. Without `overwrite`, a key that is there stays as it is.
    Each value comes with the expiry and metadata that it had, while others write too.

    Raises `UnsupportedOperation` where a driver can't tell or keep an expiry or custom metadata that is to be copied.
    """
    origin = prefix_storage(source, base)
    goal = prefix_storage(target, base if into is None else into)
    copied = 0
    after = None
    while page := await origin.get_keys(limit=PAGE, after=after):
        after = page[-1]
        copied += await goal._put_entries(await origin._entries(page), overwrite=overwrite)
    return copied
