'''The conformance kit: what the project's own drivers pass, for those of others. Needs `kvstore[testing]`.

A test module for a driver is a subclass of `DriverSuite` that says how the driver is made:

    from pathlib import Path

    from kvstore.testing import DriverSuite
    from my_package.my_module import MyDriver


    class TestMyDriver(DriverSuite):
        """Everything that a driver promises."""

        def make_driver(self, path: Path) -> MyDriver:
            return MyDriver(path / "store")

`pytest` runs it as any other test, without a plugin. What a driver can't do it declares in `Driver.capabilities`; the
suite then checks that it is refused. A driver that tells time by `Driver.clock` is tested to the millisecond and without
waiting; one whose server tells the time sets `own_clock=False` and is waited for.
'''

from kvstore.errors import install

try:
    import hypothesis  # noqa: F401
    import pytest
except ModuleNotFoundError as error:
    raise ImportError(f"kvstore.testing needs pytest and Hypothesis: {install('testing')}", name=error.name) from error

# So that a failed assert of the kit shows its values, as in a test module. Before the modules are imported.
_PARTS = "conditions expiry keys lifetime listing machine metadata order store values watching"
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in _PARTS.split()))

from kvstore.testing.clock import FakeClock  # noqa: E402
from kvstore.testing.keys import HOSTILE_KEYS  # noqa: E402
from kvstore.testing.machine import StorageMachine, storage_machine  # noqa: E402
from kvstore.testing.pauses import leaves_the_loop_free  # noqa: E402
from kvstore.testing.store import Store, in_loop, promised  # noqa: E402
from kvstore.testing.suite import DriverSuite  # noqa: E402
from kvstore.testing.values import FAITHFUL_BYTES, FAITHFUL_VALUES  # noqa: E402

__all__ = [
    "FAITHFUL_BYTES",
    "FAITHFUL_VALUES",
    "HOSTILE_KEYS",
    "DriverSuite",
    "FakeClock",
    "StorageMachine",
    "Store",
    "in_loop",
    "leaves_the_loop_free",
    "promised",
    "storage_machine",
]
