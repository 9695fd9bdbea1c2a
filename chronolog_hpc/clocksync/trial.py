"""The job of `chronolog clock`: synchronise, wait, synchronise again, and report how far that can be trusted.

With injected faults every rank reads a clock that is known to be wrong, all made of the one clock of their
host. So the true error of every time is known, and whether its window covered it.
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from chronolog_hpc.clientlib import InvalidArgumentError
from chronolog_hpc.clocksync.bounds import I64
from chronolog_hpc.clocksync.check import check_pairs
from chronolog_hpc.clocksync.raw import RawClock, faulty_clock, system_clock
from chronolog_hpc.clocksync.synced import SyncedClock
from chronolog_hpc.mpi import Team

if TYPE_CHECKING:
    from mpi4py import MPI

SCHEMA = "chronolog-clock/1"

_NEAR_NS = 1_000_000
_NEAR_STEP_NS = 10_000
_MOMENTS = 1000


@dataclass(frozen=True)
class Fault:
    """What is injected: every rank's clock is off by up to so much, in either direction."""

    offset_ns: int
    drift_ppm: float


def run(comm: MPI.Comm | None, seconds: float, fault: Fault | None) -> dict[str, Any]:
    """Synchronise the clocks of all ranks, wait for `seconds`, synchronise them again; return what came out.

    Collective: over `comm`; synchronises.

    Args:
        comm: the ranks; None for this process alone.
        seconds: how long to wait.
        fault: what to inject; None for nothing.

    Returns:
        The result as plain values for JSON, the same on all ranks.

    Raises:
        InvalidArgumentError: faults cannot be injected, because the ranks read different clocks.
    """
    with Team(comm) as team:
        identities = set(team.allgather(system_clock().identity))
    if fault is not None and len(identities) > 1:
        raise InvalidArgumentError(
            f"--inject compares with one clock that all ranks read, and there are {len(identities)} (hosts, or time "
            "namespaces): start all ranks on one host, or leave --inject out"
        )
    with SyncedClock(comm, source=_source(fault)) as clock:
        samples = {}
        clock.sync("start")
        start_ns = _together(clock, time.monotonic_ns())
        samples["after_sync"] = _sample(clock, np.arange(start_ns, start_ns + _NEAR_NS, _NEAR_STEP_NS))
        checks = check_pairs(clock)
        time.sleep(seconds)
        end_ns = _together(clock, time.monotonic_ns())
        samples["after_wait"] = _sample(clock, np.arange(end_ns - _NEAR_NS, end_ns, _NEAR_STEP_NS))
        clock.sync("end")
        samples["interpolated"] = _sample(clock, np.linspace(start_ns, end_ns, _MOMENTS, dtype=np.int64))
        own = {name: (sample.halves, sample.errors) for name, sample in samples.items()}
        told = clock.team.allgather(own)
        report = clock.report()
    # Rank 0 and who reads its clock cannot err: with them the figures would look better than the clocks are.
    told = [own for own, rank in zip(told, report["per_rank"], strict=True) if rank["leader"]] or told
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "spec": {"seconds": seconds, "inject": None if fault is None else asdict(fault)},
        **report,
        "sync_seconds": max(rank["knots"][0]["seconds"] for rank in report["per_rank"]),
        "window_ns": _summary([rank["interpolated"][0] for rank in told], "median", "max"),
        "window_after_wait_ns": _summary([rank["after_wait"][0] for rank in told], "median", "max"),
        "true_error_ns": None,
        "covered_fraction": None,
        "checks": [asdict(check) | {"agrees": check.agrees} for check in checks],
    }
    if fault is not None:
        result["true_error_ns"] = {
            name: _summary([rank[name][1] for rank in told], "median", "p99", "max") for name in samples
        }
        covered = [errors <= halves for rank in told for halves, errors in rank.values()]
        result["covered_fraction"] = float(np.mean(np.concatenate(covered)))
    return result


class _Sample(NamedTuple):
    """Windows and true errors of one rank's clock at some moments, int64, ns; no errors where nobody knows them."""

    halves: I64
    errors: I64


def _source(fault: Fault | None) -> RawClock:
    if fault is None:
        return system_clock()
    chance = random.SystemRandom()
    drift_ppm = chance.uniform(-fault.drift_ppm, fault.drift_ppm)
    return faulty_clock(chance.randint(-fault.offset_ns, fault.offset_ns), drift_ppm)


def _together(clock: SyncedClock, monotonic_ns: int) -> int:
    """Return rank 0's time where all faulty clocks are made of one, else this rank's own."""
    return clock.team.bcast(monotonic_ns) if _is_faulty(clock) else monotonic_ns


def _is_faulty(clock: SyncedClock) -> bool:
    return clock.source.of_monotonic is not int


def _sample(clock: SyncedClock, monotonic: I64) -> _Sample:
    """Look at a clock at some times of CLOCK_MONOTONIC."""
    raw = np.array([clock.source.of_monotonic(time_ns) for time_ns in monotonic.tolist()], np.int64)
    times, halves = clock.correct(raw)
    if not _is_faulty(clock):
        return _Sample(halves, np.empty(0, np.int64))
    return _Sample(halves, np.abs(times - (clock.team.bcast(raw) + clock.origin_ns)))


def _summary(parts: list[I64], *names: str) -> dict[str, float]:
    values = np.concatenate(parts)
    quantiles = {"median": 0.5, "p99": 0.99, "max": 1.0}
    return {name: float(np.quantile(values, quantiles[name])) for name in names}
