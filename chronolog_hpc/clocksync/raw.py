"""The clock that a rank reads, and which ranks read the same one.

CLOCK_MONOTONIC, which no step of the wall clock moves. Two processes read the same clock if their kernel, their time
namespace and the clock's id are the same; the name of a host says nothing about it.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

_ATTEMPTS = 8
_SLEW_SPAN_NS = 1_000_000_000
_SLEW_LIMIT = 1e-6
_STEP_LIMIT_NS = 1_000_000


class RawClock(NamedTuple):
    """A clock before any correction."""

    read: Callable[[], int]
    """Returns the raw time, ns; never decreases."""
    identity: str
    """Equal on two ranks if they read the same clock."""
    of_monotonic: Callable[[int], int] = int
    """Returns what `read` returns when CLOCK_MONOTONIC shows a time."""


class Health(NamedTuple):
    """The kernel's clocks at one moment, in ns: they show whether NTP stepped or slewed one of them."""

    monotonic_ns: int
    monotonic_raw_ns: int
    realtime_ns: int

    @classmethod
    def now(cls) -> Health:
        """Read them, as near to each other as a few attempts allow."""
        hardware = getattr(time, "CLOCK_MONOTONIC_RAW", time.CLOCK_MONOTONIC)
        attempts = []
        for _ in range(_ATTEMPTS):
            health = cls(time.monotonic_ns(), time.clock_gettime_ns(hardware), time.time_ns())
            attempts.append((time.monotonic_ns() - health.monotonic_ns, health))
        return min(attempts)[1]

    def slew(self, earlier: Health) -> float:
        """Return the relative rate of CLOCK_MONOTONIC against the hardware since `earlier`."""
        passed_ns = self.monotonic_raw_ns - earlier.monotonic_raw_ns
        return (self.monotonic_ns - earlier.monotonic_ns) / passed_ns - 1 if passed_ns > 0 else 0.0

    def step_ns(self, earlier: Health) -> int:
        """Return by how much the wall clock was moved against CLOCK_MONOTONIC since `earlier`."""
        return (self.realtime_ns - earlier.realtime_ns) - (self.monotonic_ns - earlier.monotonic_ns)


def clock_changes(healths: Sequence[Health]) -> list[str]:
    """Return what NTP has done to the kernel's clocks meanwhile, in sentences.

    A rate that stays as it is disturbs nobody: it is measured. So rates are compared with each other, over at least a second.
    """
    found = []
    for before, after in pairwise(healths):
        if abs(after.step_ns(before)) > _STEP_LIMIT_NS:
            step_ns = after.step_ns(before)
            found.append(f"the wall clock was stepped by {step_ns} ns, which moves no timestamp")
    slews, begin = [], healths[0]
    for health in healths:
        if health.monotonic_raw_ns - begin.monotonic_raw_ns >= _SLEW_SPAN_NS:
            slews.append(health.slew(begin) * 1e6)
            begin = health
    change_ppm = max((after - before for before, after in pairwise(slews)), key=abs, default=0.0)
    if abs(change_ppm) > _SLEW_LIMIT * 1e6:
        found.append(f"NTP has changed the rate of the clock, by up to {change_ppm:.1f} ppm")
    return found


def system_clock() -> RawClock:
    """Return CLOCK_MONOTONIC."""
    return RawClock(time.monotonic_ns, _identity())


def faulty_clock(offset_ns: int, drift_ppm: float) -> RawClock:
    """Return CLOCK_MONOTONIC with a known offset and drift, as a clock that no other rank reads."""
    base_ns, drift = time.monotonic_ns(), drift_ppm * 1e-6

    def of_monotonic(monotonic_ns: int) -> int:
        return monotonic_ns + offset_ns + round(drift * (monotonic_ns - base_ns))

    def read() -> int:
        return of_monotonic(time.monotonic_ns())

    return RawClock(read, _nobody_elses(), of_monotonic)


def machine() -> str:
    """Return what is equal on two ranks if they run on the same cores; the name of a host says nothing about it."""
    try:
        return _boot_id()
    except OSError:
        return socket.gethostname()


def _identity() -> str:
    try:
        boot, namespace = _boot_id(), os.readlink("/proc/self/ns/time")
    except OSError:  # nothing can be said, so nothing is assumed
        return _nobody_elses()
    return f"{boot} {namespace} monotonic"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _nobody_elses() -> str:
    return secrets.token_hex(16)
