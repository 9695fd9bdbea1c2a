"""The window of a learned model holds the truth, whatever the messages did."""

import math
import random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chronolog_hpc.clientlib import WANDER, ClockModel
from chronolog_hpc.clocksync.bounds import RATE_LIMIT, Burst, are_clean, best_of, learn, refine
from tests.hpc.clocksync.worlds import Affine, bursts, true_model

OFFSETS = st.integers(-(10**9), 10**9)
DRIFTS = st.floats(-5e-5, 5e-5)
CLOCKS = st.builds(Affine, OFFSETS, DRIFTS)
SECOND = 1_000_000_000


def error_ns(model: ClockModel, local: Affine, true_ns: int) -> tuple[int, int]:
    """Return how wrong a model is, and its window."""
    raw_ns = local.at(true_ns)
    return abs(model.time_at(raw_ns) - true_ns), model.half_at(raw_ns)


@given(CLOCKS, CLOCKS, st.integers(1, 12), st.integers(0, 10**6), st.integers(2_000, 10**7))
def test_the_window_covers_the_truth_at_any_time(
    local: Affine, reference: Affine, count: int, seed: int, slowest_ns: int
) -> None:
    found = bursts(random.Random(seed), local, reference, count, exchanges=3, slowest_ns=slowest_ns)
    learned = learn(found, true_model(reference))
    assert learned.consistent
    for true_ns in (-60 * SECOND, 0, SECOND // 2, SECOND, 10 * SECOND, 600 * SECOND):
        error, window = error_ns(learned.model, local, true_ns)
        assert error <= window + 2, f"at {true_ns} ns"


@given(CLOCKS, CLOCKS, CLOCKS, st.integers(0, 10**6))
def test_windows_add_up_along_a_path(root: Affine, middle: Affine, leaf: Affine, seed: int) -> None:
    chance = random.Random(seed)
    first = learn(bursts(chance, middle, root, 8), true_model(root)).model
    second = learn(bursts(chance, leaf, middle, 8), first).model
    assert second.window_ns > first.window_ns
    for true_ns in (0, SECOND, 100 * SECOND):
        error, window = error_ns(second, leaf, true_ns)
        assert error <= window + 2


@given(CLOCKS, CLOCKS, st.integers(0, 10**6))
def test_an_earlier_model_narrows_the_slope_and_not_the_truth(
    local: Affine, reference: Affine, seed: int
) -> None:
    chance = random.Random(seed)
    first = learn(bursts(chance, local, reference, 8), true_model(reference)).model
    later = bursts(chance, local, reference, 4, span_ns=10**7, begin_ns=100 * SECOND)
    second = learn(later, true_model(reference, 2)).model
    better = refine(second, first)
    assert (better.base_ns, better.offset_ns, better.window_ns) == (
        second.base_ns,
        second.offset_ns,
        second.window_ns,
    )
    assert better.window_rate < second.window_rate / 10
    for true_ns in (100 * SECOND, 200 * SECOND):
        error, window = error_ns(better, local, true_ns)
        assert error <= window + 2


def test_best_of_takes_each_direction_for_itself() -> None:
    before, after = np.array([0, 100, 200]), np.array([13, 115, 212])
    reached, answered = np.array([9, 103, 208]), np.array([10, 104, 209])
    burst = best_of(before, reached, answered, after)
    assert (burst.before_ns, burst.reached_ns) == (100, 103)
    assert (burst.answered_ns, burst.after_ns) == (10, 13)
    assert burst.round_trip_ns == 11


@given(CLOCKS, CLOCKS, st.integers(0, 10**6))
def test_bursts_that_take_long_are_judged_without_their_drift(
    local: Affine, reference: Affine, seed: int
) -> None:
    found = bursts(random.Random(seed), local, reference, 6, exchanges=30, slowest_ns=400_000_000)
    clean = are_clean(found)
    assert clean.any()
    assert learn(found, true_model(reference)).clean == clean.sum()


def test_a_single_burst_leaves_the_slope_open() -> None:
    local, reference = Affine(5, 0.0), Affine(0, 0.0)
    learned = learn(bursts(random.Random(1), local, reference, 1), true_model(reference))
    assert learned.model.window_rate >= RATE_LIMIT
    assert (learned.clean, learned.consistent) == (1, True)


def test_a_clock_that_jumps_is_noticed_and_its_window_is_wide() -> None:
    chance, reference = random.Random(7), Affine(0, 0.0)
    found = bursts(chance, Affine(0, 0.0), reference, 5, span_ns=SECOND)
    found += bursts(chance, Affine(10**6, 0.0), reference, 5, span_ns=SECOND, begin_ns=2 * SECOND)
    found += bursts(chance, Affine(0, 0.0), reference, 5, span_ns=SECOND, begin_ns=4 * SECOND)
    learned = learn(found, true_model(reference))
    assert not learned.consistent
    assert learned.model.window_ns > 300_000


@given(st.floats(0, 2 * math.pi), st.floats(0.3, 3), st.floats(0.02, 0.98), st.integers(0, 10**6))
@example(0.38, 1.26, 0.98, 18035)
@example(4.14, 1.61, 0.02, 6625)
def test_a_rate_that_wanders_while_it_is_measured_is_part_of_the_window(
    phase: float, periods: float, there: float, seed: int
) -> None:
    """A minute of bursts, and a rate that leaves its mean by half of what is promised."""
    chance, span_ns = random.Random(seed), 60 * SECOND
    period_ns = span_ns * periods

    def theta(raw_ns: int) -> float:
        return (
            WANDER
            / 2
            * period_ns
            / math.tau
            * (math.cos(phase) - math.cos(math.tau * raw_ns / period_ns + phase))
        )

    found = []
    for place in range(20):
        before_ns = span_ns * place // 19
        reached_ns = before_ns + round(2000 * there) + chance.randrange(100)
        after_ns = reached_ns + round(2000 * (1 - there)) + chance.randrange(100)
        seen_ns = round(reached_ns + theta(reached_ns))
        found.append(Burst(before_ns, seen_ns, seen_ns, after_ns, after_ns - before_ns))
    model = learn(found, ClockModel(1, 0, 0, 0.0, 0, 0.0)).model
    error_ns = abs(model.time_at(model.base_ns) - model.base_ns - theta(model.base_ns))
    assert error_ns <= model.half_at(model.base_ns)


@pytest.mark.parametrize("count", [2, 20])
def test_outliers_do_not_move_the_model(count: int) -> None:
    local, reference = Affine(10**8, 4e-5), Affine(-(10**7), -3e-5)
    found = bursts(random.Random(3), local, reference, count, exchanges=50)
    slow = bursts(random.Random(4), local, reference, 1, exchanges=2, slowest_ns=10**9, begin_ns=SECOND // 2)
    learned = learn([found[0], *slow, *found[1:]], true_model(reference))
    assert error_ns(learned.model, local, SECOND)[0] < 300
    assert learned.clean <= count


def test_ten_days_cost_no_nanosecond() -> None:
    model = ClockModel(1, 10**15, 1_790_000_000 * 10**9, 5e-5, 0, 0.0)
    ten_days_ns = 10 * 86_400 * 10**9
    assert (
        model.time_at(10**15 + ten_days_ns)
        == 10**15 + ten_days_ns + model.offset_ns + 5 * ten_days_ns // 10**5
    )
