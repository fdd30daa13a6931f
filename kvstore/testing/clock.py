"""A clock that a test turns by hand."""

from __future__ import annotations

from kvstore.clock import now_ms


class FakeClock:
    """Tells milliseconds since 1970 and stands still until it is turned. `driver.clock = FakeClock()`."""

    def __init__(self, now: int | None = None) -> None:
        self.now = now_ms() if now is None else now
        """In milliseconds since 1970."""

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        """Turns it by `seconds`, back if they are negative."""
        self.now += round(seconds * 1000)
