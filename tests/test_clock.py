"""Where times come from: they never go back, and steps of the wall clock do not move them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.clock import (
    MODEL_BYTES,
    UNKNOWN_WINDOW_NS,
    ClockModel,
    Reading,
    ReadingOver,
    SystemClock,
)
from py_chronolog_client.testing.manual_clock import ManualClock

TICKS = st.integers(-(2**62), 2**62)


@given(st.lists(TICKS, min_size=1), st.integers(-(2**60), 2**60), TICKS)
def test_times_never_go_back(ticks: list[int], offset_ns: int, last_ns: int) -> None:
    feed = iter(ticks)
    reading = Reading(lambda: next(feed), offset_ns, ClockModel()).not_before(last_ns)
    times = [reading.tick() + reading.offset_ns for _ in ticks]
    expected, latest = [], last_ns
    for tick in ticks:
        latest = max(latest, tick + offset_ns)
        expected.append(latest)
    assert times == expected


@given(st.lists(TICKS, min_size=2), TICKS)
def test_a_steady_reading_that_is_late_enough_is_left_alone(ticks: list[int], last_ns: int) -> None:
    ticks.sort()
    feed = iter(ticks)
    reading = Reading(lambda: next(feed), 5, ClockModel(), steady=True)
    kept = reading.not_before(last_ns)
    if ticks[0] + 5 >= last_ns:
        assert kept is reading, "the hot path gets the bare clock"
    else:
        assert all(kept.tick() + kept.offset_ns >= last_ns for _ in ticks[1:])


def test_a_bounded_tick_ends_with_its_reading() -> None:
    now_ns = 100
    reading = Reading(lambda: now_ns, 7, ClockModel(), until=101)
    tick = reading.bounded()
    assert tick() == 100
    now_ns = 101
    assert tick() == 101
    now_ns = 102
    with pytest.raises(ReadingOver):
        tick()
    assert SystemClock().reading().bounded() is time.monotonic_ns


def test_a_steady_reading_that_is_behind_catches_up_and_says_so() -> None:
    now_ns = 100
    model = ClockModel(3, 0, 7, 0.0, 1000, 0.0)
    late = Reading(lambda: now_ns, 7, model, steady=True, until=500).not_before(157)
    assert late.model == ClockModel(3, 0, 7, 0.0, 1050, 0.0)
    assert late.tick() + late.offset_ns == 157
    now_ns = 150
    assert late.tick() <= late.until, "it still stands still"
    now_ns = 151
    assert late.tick() > late.until, "it has caught up: the clock is to be asked again"


def test_not_before_keeps_the_model() -> None:
    model = ClockModel(7, 8, 9)
    clock = ManualClock(5, model)
    reading = clock.reading().not_before(10)
    assert reading.model == model
    assert reading.tick() + reading.offset_ns == 10
    clock.now_ns = 11
    assert reading.tick() + reading.offset_ns == 11
    again = reading.not_before(20)
    assert again.tick() + again.offset_ns == 20


def test_the_clock_of_the_system_is_near_utc() -> None:
    before_ns = time.time_ns()
    reading = SystemClock().reading()
    now_ns = reading.tick() + reading.offset_ns
    assert before_ns - 10**9 < now_ns < time.time_ns() + 10**9
    assert reading.steady
    assert reading.tick is time.monotonic_ns, "one call into C"


def test_steps_of_the_wall_clock_move_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SystemClock()
    reading = clock.reading()
    first_ns = reading.tick() + reading.offset_ns
    for step_ns in (-(10**18), 10**18, -(10**9)):
        wall = time.time_ns()
        with monkeypatch.context() as patch:
            patch.setattr(time, "time_ns", lambda wall=wall, step_ns=step_ns: wall + step_ns)
            for again in (reading, clock.reading()):
                now_ns = again.tick() + again.offset_ns
                assert first_ns <= now_ns < first_ns + 60 * 10**9
                first_ns = now_ns


def test_a_bracket_that_was_interrupted_does_not_spoil_the_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tightest of several brackets counts, not the first or the last."""
    monotonic = iter(range(10**6))
    brackets = [(0, 900), (1000, 1010), (2000, 2900)] + [(3000 + 1000 * n, 3900 + 1000 * n) for n in range(5)]
    monotonic = iter(value for bracket in brackets for value in bracket)
    utc = iter([10**6 + 400, 10**6 + 1005, 10**6 + 9000, *(0 for _ in range(5))])
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(monotonic))
    monkeypatch.setattr(time, "time_ns", lambda: next(utc))
    reading = SystemClock().reading()
    assert (reading.model.base_ns, reading.model.offset_ns) == (1005, 10**6)
    assert reading.offset_ns == 10**6


def test_nobody_knows_the_window_of_the_system() -> None:
    model = SystemClock().reading().model
    assert model.window_ns == UNKNOWN_WINDOW_NS
    assert (model.model_id, model.rate, model.window_rate) == (0, 0.0, 0.0)


@given(
    st.builds(
        ClockModel,
        st.integers(0, 2**64 - 1),
        st.integers(-(2**63), 2**63 - 1),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
        st.integers(0, 2**64 - 1),
        st.floats(allow_nan=False),
    )
)
def test_models_are_48_bytes(model: ClockModel) -> None:
    data = model.pack()
    assert len(data) == MODEL_BYTES == 48
    assert ClockModel.unpack(data) == model
