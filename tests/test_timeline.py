"""Times between synchronisations are interpolated; they rise, meet the knots, and stay in their windows."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chronolog_hpc.clientlib import ClockModel
from chronolog_hpc.clocksync.bounds import learn
from py_chronolog_client.timeline import correct, surprise
from tests.hpc.clocksync.worlds import Affine, bursts, true_model

SECOND = 1_000_000_000
CLOCKS = st.builds(Affine, st.integers(-(10**9), 10**9), st.floats(-5e-5, 5e-5))


def models_of(local: Affine, reference: Affine, seed: int, count: int) -> list[ClockModel]:
    chance = random.Random(seed)
    return [
        learn(
            bursts(chance, local, reference, 6, begin_ns=100 * SECOND * k), true_model(reference, k + 1)
        ).model
        for k in range(count)
    ]


@given(CLOCKS, CLOCKS, st.integers(0, 10**6), st.integers(1, 4))
def test_the_truth_is_in_the_window(local: Affine, reference: Affine, seed: int, count: int) -> None:
    models = models_of(local, reference, seed, count)
    chance = random.Random(seed)
    true = np.array([chance.randrange(-10 * SECOND, 100 * count * SECOND) for _ in range(200)], np.int64)
    raw = np.array([local.at(int(t)) for t in true], np.int64)
    times, halves = correct(models, raw)
    assert np.all(np.abs(times - true) <= halves + 2)
    inside = (raw > models[0].base_ns) & (raw < models[-1].base_ns)
    assert np.all(halves[inside] < 60_000), (
        "interpolated windows do not grow with the distance as extrapolated ones do"
    )


@given(CLOCKS, CLOCKS, st.integers(0, 10**6))
def test_order_is_kept_and_knots_are_met(local: Affine, reference: Affine, seed: int) -> None:
    models = models_of(local, reference, seed, 3)
    bases = [model.base_ns for model in models]
    around = [base + step for base in bases for step in range(-40, 41)]
    times, _ = correct(models, np.array(around, np.int64))
    assert np.all(np.diff(times) >= 0)
    met, halves = correct(models, np.array(bases, np.int64))
    assert met.tolist() == [model.time_at(model.base_ns) for model in models]
    assert np.all(halves <= [model.window_ns + 1 for model in models])


@given(st.lists(st.integers(-(10**12), 10**12), max_size=30), st.integers(0, 10**6))
def test_any_order_of_raw_times_gives_the_same(raw: list[int], seed: int) -> None:
    models = models_of(Affine(5, 2e-5), Affine(0, 0.0), seed % 10, 3)
    times, halves = correct(models, np.array(raw, np.int64))
    for place, value in enumerate(raw):
        alone = correct(models, np.array([value], np.int64))
        assert (times[place], halves[place]) == (alone[0][0], alone[1][0])


def test_the_reference_itself_has_no_window() -> None:
    models = [ClockModel(k, k * SECOND, 7, 0.0, 0, 0.0) for k in (1, 2)]
    times, halves = correct(models, np.arange(0, 3 * SECOND, SECOND // 7, dtype=np.int64))
    assert not halves.any()
    assert np.all(times == np.arange(0, 3 * SECOND, SECOND // 7) + 7)


@given(
    CLOCKS, st.sampled_from([-1, 1]), st.integers(2 * 10**5, 10**9), st.floats(0, 1), st.integers(0, 10**6)
)
def test_a_clock_that_jumped_between_two_models_is_covered_before_and_behind(
    local: Affine, sign: int, jump_ns: int, place: float, seed: int
) -> None:
    chance = random.Random(seed)
    reference, jumped = Affine(0, 0.0), Affine(local.offset_ns + sign * jump_ns, local.drift)
    first = learn(bursts(chance, local, reference, 8), true_model(reference)).model
    later = bursts(chance, jumped, reference, 8, begin_ns=10 * SECOND)
    second = learn(later, true_model(reference, 2)).model
    assert not surprise(first, second)[1]
    at_ns = SECOND + round(place * 9 * SECOND)
    true = np.array([chance.randrange(SECOND, 10 * SECOND) for _ in range(100)], np.int64)
    raw = np.array([(local if t < at_ns else jumped).at(t) for t in true.tolist()], np.int64)
    inside = (raw >= first.base_ns) & (raw < second.base_ns)
    times, halves = correct([first, second], raw[inside])
    assert np.all(np.abs(times - true[inside]) <= halves + 2)
