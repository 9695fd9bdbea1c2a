"""Events where all synchronisations of their clock together say that they belong.

A block's times were made with what was known when they were logged: the synchronisations before them. A
replay knows those behind them too, and interpolates. Only keys and windows change; the times that `log_event`
returned stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from py_chronolog_client.clock import UNKNOWN_WINDOW_NS, ClockModel
from py_chronolog_client.page import U64, Payload
from py_chronolog_client.store.stretch import Stretch
from py_chronolog_client.timeline import align


class AlignedStretch(Stretch):
    """A stretch whose keys are aligned times.

    Two blocks know the raw time of their events to within a few ns only, so no key is before `floor_ns`, the last one of
    the stretch before; windows are wider by that.
    """

    __slots__ = ("_floor_ns", "_models", "_stretch")

    def __init__(self, stretch: Stretch, models: Sequence[ClockModel], floor_ns: int) -> None:
        self._stretch = stretch
        self._models = models
        self._floor_ns = np.uint64(floor_ns)
        self.first_sequence, self.end_sequence = stretch.first_sequence, stretch.end_sequence
        self.clock = stretch.clock
        bounds = np.array([stretch.first_time, stretch.last_time], np.uint64)
        self.first_time, self.last_time = self.keys(bounds).tolist()

    def times(self) -> U64:
        return self._stretch.times()

    def keys(self, times: U64) -> U64:
        return np.maximum(align(self._models, self.clock, times)[0], self._floor_ns)

    def check(self) -> None:
        self._stretch.check()

    def payload(self, start: int, stop: int) -> Payload:
        return self._stretch.payload(start, stop)

    def windows_ns(self, times: U64) -> U64:
        aligned, windows = align(self._models, self.clock, times)
        known = windows != UNKNOWN_WINDOW_NS
        moved = np.maximum(aligned, self._floor_ns) - aligned
        return np.where(known, windows + moved, windows)


def aligned_stretches(
    stretches: Iterable[Stretch], models_at: Callable[[int], Sequence[ClockModel]]
) -> list[Stretch]:
    """Return the stretches of one client, in order, with aligned keys.

    Args:
        stretches: in the order of their sequence numbers.
        models_at: tells what is known of the clock of an event, by its sequence number.
    """
    aligned: list[Stretch] = []
    floor_ns = 0
    for stretch in stretches:
        aligned.append(AlignedStretch(stretch, models_at(stretch.first_sequence), floor_ns))
        floor_ns = aligned[-1].last_time
    return aligned
