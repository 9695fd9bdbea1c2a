"""The clocks of the benchmarks: the system's, one that all ranks read, and one that had to be measured."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace

from chronolog_hpc.clientlib import Clock, SystemClock
from chronolog_hpc.clocksync import SyncedClock

DRIFT = 5e-5
"""Of the clock that was measured: as much as a bad oscillator, so its offset is refreshed every millisecond."""


def shared() -> SyncedClock:
    """Return the clock of a rank that reads rank 0's."""
    clock = SyncedClock(None)
    clock.sync()
    return clock


def measured() -> SyncedClock:
    """Return a clock with the models of a rank that drifts, at two synchronisations."""
    clock = shared()
    first = replace(clock.models[0], rate=DRIFT, window_ns=1000, window_rate=1e-7)
    later_ns = 10**10
    second = replace(
        first, model_id=2, base_ns=first.base_ns + later_ns, offset_ns=first.offset_ns + int(DRIFT * later_ns)
    )
    clock.models[:] = [first, second]
    clock._steer(second)
    return clock


def nows() -> dict[str, Callable[[], int]]:
    """Return what is asked for the time."""
    return {"time_ns": time.time_ns, "shared": shared().now, "measured": measured().now}


def for_stories() -> dict[str, Clock]:
    """Return the clocks of a story."""
    return {"system": SystemClock(), "shared": shared(), "measured": measured()}


def call_often(call: Callable[[], int], times: int) -> None:
    """Call something again and again."""
    for _ in itertools.repeat(None, times):
        call()
