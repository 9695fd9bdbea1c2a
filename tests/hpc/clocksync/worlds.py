"""Two simulated clocks and the messages between them, of which the truth is known."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from chronolog_hpc.clientlib import ClockModel
from chronolog_hpc.clocksync.bounds import Burst, best_of


@dataclass(frozen=True)
class Affine:
    """A clock that shows offset_ns + (1 + drift) * t at the true time t."""

    offset_ns: int
    drift: float

    def at(self, true_ns: int) -> int:
        return true_ns + self.offset_ns + round(self.drift * true_ns)


def bursts(
    chance: random.Random,
    local: Affine,
    reference: Affine,
    count: int,
    *,
    exchanges: int = 20,
    span_ns: int = 1_000_000_000,
    slowest_ns: int = 100_000,
    begin_ns: int = 0,
) -> list[Burst]:
    """Exchange messages: each way takes what chance decides, in either direction for itself."""
    found = []
    for number in range(count):
        now_ns = begin_ns + number * span_ns // max(1, count - 1)
        stamps = []
        for _ in range(exchanges):
            before_ns = local.at(now_ns)
            now_ns += round(chance.uniform(500, 1000) + chance.expovariate(20 / slowest_ns))
            reached_ns = reference.at(now_ns)
            now_ns += chance.randrange(500)
            answered_ns = reference.at(now_ns)
            now_ns += round(chance.uniform(500, 1000) + chance.expovariate(20 / slowest_ns))
            stamps.append((before_ns, reached_ns, answered_ns, local.at(now_ns)))
        found.append(best_of(*np.array(stamps, np.int64).T))
    return found


def true_model(reference: Affine, number: int = 1) -> ClockModel:
    """Return the exact model of a reference: its time line is true time."""
    rate = 1 / (1 + reference.drift) - 1
    return ClockModel(number, reference.offset_ns, -reference.offset_ns, rate, 0, 0.0)
