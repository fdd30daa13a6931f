"""Hypothesis draws the same examples in every run, so that a run that passed passes again.

The tests' files lie in memory where there is room, which halves the time; `PYTEST_DEBUG_TEMPROOT=/tmp` puts them on the disk.
With `KVSTORE_TEST_NO_SKIP` set, as in CI, a test that is skipped has failed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings
from servers.process import stop_all

if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")

settings.register_profile("same", deadline=None, derandomize=True, database=None)
settings.load_profile("same")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get("KVSTORE_TEST_NO_SKIP"):
        reason: Any = report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {reason[2] if isinstance(reason, tuple) else reason}"
    return report


def pytest_sessionfinish() -> None:
    stop_all()


SERVERS = ("mongodb", "mysql", "postgresql", "redis", "s3", "sftp")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(re.search(rf"test_{name}\.py|\[{name}|::Test{name}", item.nodeid, re.IGNORECASE) for name in SERVERS):
            item.add_marker("server")
