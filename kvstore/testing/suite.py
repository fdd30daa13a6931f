"""The suite that every driver passes."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from kvstore.driver import Driver
from kvstore.testing.conditions import Conditions
from kvstore.testing.expiry import Expiry
from kvstore.testing.keys import Keys
from kvstore.testing.lifetime import Lifetime
from kvstore.testing.limit import limited
from kvstore.testing.listing import DriverCalls, Listing
from kvstore.testing.machine import storage_machine
from kvstore.testing.metadata import Metadata
from kvstore.testing.order import Order
from kvstore.testing.store import Store
from kvstore.testing.values import Values
from kvstore.testing.watching import Watching


# pytest begins with the last one: with what is simple, so that it is told of first.
class DriverSuite(Lifetime, Watching, Order, Conditions, Metadata, Expiry, Listing, Keys, Values, DriverCalls):
    """Every promise of `Storage` and of a driver, as pytest tests. Subclass it and say how your driver is made.

    What a driver can't do it declares in its `capabilities`, and then the suite checks that it refuses. Nothing is skipped.
    """

    def test_any_sequence_of_calls_does_what_a_dict_would(self, tmp_path: Path) -> None:
        """All of section 1: Hypothesis looks for calls after which the storage and a model in memory differ."""
        store = Store(self, tmp_path)
        if not store.promises("every_key"):  # other tests see to it that it refuses
            return
        quick = settings(
            max_examples=store.times(15),
            stateful_step_count=15 if self.slow else 30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        with limited(self.time_limit) as begin_anew:

            def make_driver(path: Path) -> Driver:
                begin_anew()  # with each sequence: to find the shortest one that fails may take many
                return self.make_driver(path)

            run_state_machine_as_test(storage_machine(make_driver, store.path), settings=quick)
