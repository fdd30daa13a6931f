"""What is known of a key besides its value."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kvstore.driver import Stat
from kvstore.errors import CorruptValueError
from kvstore.expiry import as_datetime
from kvstore.values import decode


@dataclass(frozen=True, slots=True)
class Meta:
    """What is known of a key besides its value."""

    size: int
    """Of the stored bytes."""
    mtime: datetime | None
    """The last write, aware, in UTC; None where the driver does not know."""
    expires_at: datetime | None
    """Aware, in UTC; None: never, or a driver of your own does not tell."""
    etag: str
    """Differs whenever the value was written in between; without `capabilities.metadata`, whenever the value differs."""
    custom: dict[str, Any]
    """What `set_meta` kept."""


def meta_of(stat: Stat) -> Meta:
    """What a driver says of a key, as a program sees it. Raises `CorruptValueError` where that can't be."""
    custom = {} if stat.custom is None else decode(stat.custom)
    try:
        return Meta(stat.size, as_datetime(stat.mtime), as_datetime(stat.expires_at), stat.etag, custom)
    except (TypeError, OverflowError) as error:
        raise CorruptValueError(f"what is kept as a time of this key is none: {error}") from error
