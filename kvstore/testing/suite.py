"""The suite that every driver passes."""

from __future__ import annotations

import asyncio

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from kvstore.testing.conditions import Conditions
from kvstore.testing.expiry import Expiry
from kvstore.testing.keys import Keys
from kvstore.testing.lifetime import Lifetime
from kvstore.testing.listing import DriverCalls, Listing
from kvstore.testing.machine import storage_machine
from kvstore.testing.metadata import Metadata
from kvstore.testing.order import Order
from kvstore.testing.store import Store, in_loop, promised
from kvstore.testing.values import Values
from kvstore.testing.watching import Watching


class DriverSuite(Keys, Values, Expiry, Metadata, Listing, DriverCalls, Conditions, Order, Watching, Lifetime):
    """Every promise of `Storage` and of a driver, as pytest tests. Subclass it and say how your driver is made.

    What a driver can't do it declares in its `capabilities`, and then the suite checks that it refuses. Nothing is skipped.
    """

    @in_loop
    @promised("every_key")
    async def test_any_sequence_of_calls_does_what_a_dict_would(self, store: Store) -> None:
        """All of section 1: Hypothesis looks for calls after which the storage and a model in memory differ."""
        machine = storage_machine(self.make_driver, store.path)
        quick = settings(
            max_examples=store.times(15),
            stateful_step_count=15 if self.slow else 30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        await asyncio.to_thread(run_state_machine_as_test, machine, settings=quick)
