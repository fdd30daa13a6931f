"""Time to live: what a user says, and when a value expires."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import cast

from kvstore.errors import InvalidValueError
from kvstore.values import NEVER, Never

Ttl = float | timedelta | Never | None
"""A time to live: seconds, a timedelta, `NEVER`, or None for the mount's."""

LAST_EXPIRY = 253_402_300_799_999
"""The end of the year 9999 in milliseconds since 1970, the last time that `datetime` can say."""


def check_ttl(ttl: Ttl) -> Ttl:
    """`ttl` as it was given. Raises `InvalidValueError` unless it is positive and finite, a timedelta, `NEVER` or None."""
    if ttl is None or ttl is NEVER:
        return ttl
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise InvalidValueError(f"ttl is a number of seconds, a timedelta or NEVER, not {ttl!r}")
    if seconds <= 0 or (isinstance(seconds, float) and not math.isfinite(seconds)):
        raise InvalidValueError(f"ttl is a positive, finite number of seconds, not {ttl!r}")
    return ttl


def expiry(ttl: Ttl, default: Ttl, now: int) -> int | None:
    """When a value written at `now` (milliseconds since 1970) with `ttl` expires, rounded up; None: never."""
    if ttl is None:
        ttl = default
    if check_ttl(ttl) is None or ttl is NEVER:
        return None
    seconds = cast(float, ttl.total_seconds() if isinstance(ttl, timedelta) else ttl)
    # A time beyond what can be said is cut to the last that can; min() first, since a huge float has no ceil that fits.
    return min(now + math.ceil(min(seconds * 1000, LAST_EXPIRY)), LAST_EXPIRY)


def as_datetime(milliseconds: int | None) -> datetime | None:
    """Milliseconds since 1970 as an aware datetime in UTC."""
    return None if milliseconds is None else datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=milliseconds)
