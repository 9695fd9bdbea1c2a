"""A node: its software and its clocks."""

from __future__ import annotations

import ctypes
import platform
import time
from pathlib import Path

import chronolog_hpc
from chronolog_hpc.doctor.finding import Finding, ok, warning

_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_SLOW_SOURCES = ("hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit")
_READINGS = 2000
_SLOW_READING_NS = 500
_COARSE_NS = 1000

_TIMEX_BYTES = 512
"""More than any kernel's `struct timex`."""
_STATUS = 5
"""The word of it, where words have eight bytes, in whose lower half the status is."""
_UNSYNCHRONISED = 0x40


def software() -> Finding:
    """Name what runs here, so that nodes that differ are seen."""
    return ok(
        "software",
        f"chronolog-hpc {chronolog_hpc.__version__}, {platform.python_implementation()} {platform.python_version()}, "
        f"{platform.system()} {platform.release()} {platform.machine()}",
    )


def clock_source() -> Finding:
    """Tell which hardware the kernel takes its time from."""
    try:
        source = _SOURCE.read_text().strip()
    except OSError:
        return ok("clock source", "the kernel does not say")
    if source in _SLOW_SOURCES:
        return warning(
            "clock source",
            f"{source}, which costs a system call or more for each event",
            "ask the administrator why the kernel does not use tsc (dmesg)",
        )
    return ok("clock source", source)


def clock_resolution() -> Finding:
    """Measure how fine the clock of timestamps is, and what reading it costs."""
    resolution_ns = round(time.get_clock_info("monotonic").resolution * 1e9)
    read = time.monotonic_ns
    costs = []
    for _ in range(_READINGS):
        begin_ns = read()
        costs.append(read() - begin_ns)
    cost_ns = sorted(costs)[_READINGS // 2]
    if resolution_ns > _COARSE_NS or cost_ns > _SLOW_READING_NS:
        found = f"{resolution_ns} ns, and a reading costs {cost_ns} ns"
        return warning("clock resolution", found, "expect log_event to cost more, and equal times")
    return ok("clock resolution", f"{resolution_ns} ns")


def time_of_day() -> Finding:
    """Tell whether something like NTP keeps the wall clock, as far as the kernel knows."""
    timex = (ctypes.c_int64 * (_TIMEX_BYTES // 8))()
    try:
        answer = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    except (OSError, AttributeError):
        answer = -1
    if answer < 0 or ctypes.sizeof(ctypes.c_long) != 8:
        return ok("time of day", "the kernel does not say whether it is synchronised")
    if timex[_STATUS] & _UNSYNCHRONISED:
        return warning(
            "time of day",
            "nothing synchronises it, as far as the kernel knows",
            "run chrony or ntpd: the ranks of a job agree anyway, times of several jobs only with it",
        )
    return ok("time of day", "synchronised")
