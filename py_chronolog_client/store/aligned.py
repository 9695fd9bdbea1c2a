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
from py_chronolog_client.store.stretch import Span, Stretch
from py_chronolog_client.timeline import align


class AlignedSpan(Span):
    """A span whose keys are aligned times.

    Two blocks know the raw time of their events to within a few ns only, so no key is before `floor_ns`, the last one of
    the span before; windows are wider by that.
    """

    __slots__ = ("_floor_ns", "_models")

    def __init__(self, span: Span, models: Sequence[ClockModel], floor_ns: int) -> None:
        self._models = models
        self._floor_ns = np.uint64(floor_ns)
        self.first_sequence, self.end_sequence = span.first_sequence, span.end_sequence
        self.clock = span.clock
        bounds = np.array([span.first_time, span.last_time], np.uint64)
        self.first_time, self.last_time = self.keys(bounds).tolist()

    def keys(self, times: U64) -> U64:
        return np.maximum(align(self._models, self.clock, times)[0], self._floor_ns)

    def windows_ns(self, times: U64) -> U64:
        aligned, windows = align(self._models, self.clock, times)
        known = windows != UNKNOWN_WINDOW_NS
        moved = np.maximum(aligned, self._floor_ns) - aligned
        return np.where(known, windows + moved, windows)


class AlignedStretch(AlignedSpan, Stretch):
    """A stretch whose keys are aligned times."""

    __slots__ = ("_stretch",)

    def __init__(self, stretch: Stretch, models: Sequence[ClockModel], floor_ns: int) -> None:
        super().__init__(stretch, models, floor_ns)
        self._stretch = stretch

    def times(self) -> U64:
        return self._stretch.times()

    def check(self) -> None:
        self._stretch.check()

    def payload(self, start: int, stop: int) -> Payload:
        return self._stretch.payload(start, stop)


def aligned_spans(spans: Iterable[Span], models_at: Callable[[int], Sequence[ClockModel]]) -> list[Span]:
    """Return the spans of one client, in order, with aligned keys; stretches stay stretches.

    Args:
        spans: in the order of their sequence numbers.
        models_at: tells what is known of the clock of an event, by its sequence number.
    """
    aligned: list[Span] = []
    floor_ns = 0
    for span in spans:
        models = models_at(span.first_sequence)
        if isinstance(span, Stretch):
            aligned.append(AlignedStretch(span, models, floor_ns))
        else:
            aligned.append(AlignedSpan(span, models, floor_ns))
        floor_ns = aligned[-1].last_time
    return aligned
