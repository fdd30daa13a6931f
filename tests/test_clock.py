"""The clock that expiry goes by."""

from __future__ import annotations

import time

import pytest

from kvstore.clock import Clock


def test_it_tells_this_machines_time_until_a_server_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    assert abs(clock() - time.time() * 1000) < 1000
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert clock() == 0
    clock.set(5_000_000)
    assert 5_000_000 <= clock() < 5_010_000


def test_an_inexact_answer_moves_it_no_further_than_is_sure() -> None:
    """T1: so what it tells gets better with each answer."""
    clock = Clock()
    clock.set(5_000_000)
    clock.set(4_999_500, within=1000)
    assert 5_000_000 <= clock() < 5_010_000
    clock.set(5_000_500, within=1000)
    assert 5_000_500 <= clock() < 5_010_500
    clock.set(4_000_000, within=1000)
    assert 4_001_000 <= clock() < 4_011_000
