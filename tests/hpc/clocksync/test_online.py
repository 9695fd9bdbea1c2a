"""now() never goes back: not across models, not across threads, not for whoever interrupts it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronolog_hpc.clientlib import TOLERANCE_NS, ClockModel
from chronolog_hpc.clocksync.online import online
from tests.store.opcodes import Interruption
from tests.support.counts import soak

SECOND = 10**9
MODEL = ClockModel(1, 0, 7 * SECOND, 5e-5, 1000, 1e-7)


class Stepped:
    """A raw clock that goes on by so much whenever it is read."""

    def __init__(self, step_ns: int) -> None:
        self.raw_ns = 0
        self.step_ns = step_ns

    def read(self) -> int:
        self.raw_ns += self.step_ns
        return self.raw_ns


@given(st.floats(-1e-3, 1e-3), st.lists(st.integers(1, 3 * SECOND), min_size=1, max_size=30))
def test_times_follow_the_model_within_the_tolerance(rate: float, steps: list[int]) -> None:
    clock = Stepped(0)
    now, steer = online(clock.read)
    model = replace(MODEL, rate=rate)
    steer(model)
    last_ns = 0
    for step_ns in steps:
        clock.raw_ns += step_ns
        time_ns = now()
        assert abs(time_ns - model.time_at(clock.raw_ns)) <= TOLERANCE_NS + 2
        assert time_ns >= last_ns
        last_ns = time_ns


@given(st.lists(st.tuples(st.integers(-3000, 3000), st.floats(-1e-4, 1e-4), st.integers(0, 20)), max_size=8))
def test_time_stands_still_where_a_model_would_put_it_back(
    changes: list[tuple[int, float, int]],
) -> None:
    clock = Stepped(100)
    now, steer = online(clock.read)
    steer(MODEL)
    times = [now()]
    for number, (jump_ns, rate, calls) in enumerate(changes):
        offset_ns = MODEL.offset_ns + jump_ns
        steer(ClockModel(number + 2, clock.raw_ns, offset_ns, rate, 1000, 1e-7))
        times += [now() for _ in range(calls)]
        clock.raw_ns += 1_000_000  # so long the model before may still be used
        times.append(now())
        assert times[-1] >= clock.raw_ns + offset_ns - TOLERANCE_NS - 102
    assert times == sorted(times)


@pytest.mark.parametrize("change_ns", [-5_000, 5_000])
@pytest.mark.parametrize(
    ("interrupted", "comes"), [("now", "now"), ("now", "steer"), ("first now", "now"), ("steer", "now")]
)
def test_who_comes_in_between_gets_the_time_and_spoils_nothing(
    interrupted: str, comes: str, change_ns: int
) -> None:
    """At every bytecode, as a signal handler would, or another thread."""
    for number in range(1, 1_000):
        clock = Stepped(1_000)
        now, steer = online(clock.read)
        steer(MODEL)
        times = [now()]
        changed = replace(MODEL, model_id=2, offset_ns=MODEL.offset_ns + change_ns)
        true = changed if "steer" in (interrupted, comes) else MODEL

        def come_in_between(
            now: Callable[[], int] = now,
            steer: Callable[[ClockModel], None] = steer,
            times: list[int] = times,
            changed: ClockModel = changed,
        ) -> None:
            times.append(now())
            if comes == "steer":
                steer(changed)
            times.extend([now(), now()])

        if interrupted != "now":
            clock.raw_ns += SECOND  # the offset is long over
        with Interruption(come_in_between, number.__eq__) as interruption:
            ended_ns = steer(changed) if interrupted == "steer" else now()
        if not interruption.fired:
            break
        times += [now() for _ in range(20)]
        assert times == sorted(times), interruption.where
        assert ended_ns is None or ended_ns <= times[-1]
        clock.raw_ns += SECOND
        assert abs(now() - true.time_at(clock.raw_ns)) <= TOLERANCE_NS + 2, interruption.where
    assert number > 3


@pytest.mark.slow
@pytest.mark.timeout(soak(60, 180))
def test_threads_never_see_time_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that are switched as often as can be, while the models change by more than a switch takes."""
    now, steer = online(time.monotonic_ns)
    steps: list[int] = []
    done = threading.Event()

    def read_on() -> None:
        last_ns = 0
        while not done.is_set():
            time_ns = now()
            if time_ns < last_ns:
                steps.append(last_ns - time_ns)
            last_ns = time_ns

    def model(number: int) -> ClockModel:
        ahead_ns = number % 2 * 200_000
        return ClockModel(number, time.monotonic_ns(), SECOND + ahead_ns, (-1) ** number * 5e-5, 1000, 1e-6)

    steer(model(1))
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=read_on) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        end_s = time.monotonic() + soak(2.0, 60.0)
        number = 1
        while time.monotonic() < end_s:
            number += 1
            steer(model(number))
            done.wait(0.0002)
    finally:
        done.set()
        sys.setswitchinterval(interval_s)
        for thread in threads:
            thread.join()
    assert steps == []
