"""The state machine agrees with the toy engine and notices engines that break the contract."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from py_chronolog_client.errors import ChronoLogError
from py_chronolog_client.testing import ToyEngine, engine_state_machine
from tests.support.counts import soak
from tests.testing import defects

SETTINGS = settings(
    max_examples=soak(40, 3000),
    stateful_step_count=soak(30, 60),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class ToyMachine(engine_state_machine(ToyEngine, lambda engine: engine.beside())):  # type: ignore[misc, attr-defined]
    """Acknowledges a few events now and then."""

    @rule(count=st.integers(1, 12))
    def deliver(self, count: int) -> None:
        self.engine.deliver(count)


TestToyMachine = ToyMachine.TestCase
TestToyMachine.settings = SETTINGS


@pytest.mark.parametrize(
    "defective",
    [
        defects.DropsTheLastEvent,
        defects.OrdersTiesByChance,
        defects.SwapsTiesOfAClient,
        defects.LosesEmptyRecords,
        defects.ExcludesTheEnd,
        defects.ExcludesTheStart,
        defects.IgnoresSnapshots,
        defects.IgnoresSince,
        defects.FollowsByTime,
        defects.FollowsFromTheStart,
        defects.DestroysWhatIsAcquired,
        defects.DoesNotFlush,
        defects.LetsTimesGoBack,
    ],
)
def test_a_defect_is_noticed(defective: type[ToyEngine]) -> None:
    patient = settings(SETTINGS, max_examples=500, phases=[Phase.generate], derandomize=True, database=None)
    with pytest.raises((AssertionError, pytest.fail.Exception, ChronoLogError)):
        run_state_machine_as_test(engine_state_machine(defective), settings=patient)
