"""The models of one clock over a job, and the best time that they give to a raw reading.

Between two synchronisations times are interpolated, which needs no slope: both ends are known within their
windows, so everything in between is, as far as the clock ran at a constant rate. Where it did not, as the
second model shows, nobody knows when it jumped: then the windows in between are wider by the whole jump. Before the
first and behind the last, times are extrapolated, and their windows grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from py_chronolog_client.clock import UNKNOWN_WINDOW_NS, WANDER, ClockModel

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_ROUNDING_NS = 1
_LATEST_NS = 2**62
_PIECE = 2**14


def align(models: Sequence[ClockModel], model: ClockModel, times: U64) -> tuple[U64, U64]:
    """Put the times of logged events where all synchronisations together say that they belong.

    Args:
        models: of the clock, by rising `base_ns`; `model` counts as one of them also where it is missing.
        model: under which the times were made.
        times: uint64, shape (n,), ns since 1970 UTC, never decreasing.

    Returns:
        Times (uint64, shape (n,), ns since 1970 UTC, never decreasing) and the half-widths of their hard windows (uint64,
        shape (n,), ns). Both are as before where nobody knows a window.
    """
    if model.window_ns == UNKNOWN_WINDOW_NS or not len(times) or int(times[-1]) > _LATEST_NS:
        return times, np.full(len(times), UNKNOWN_WINDOW_NS, np.uint64)
    known = {each.base_ns: each for each in models}
    named = next((each for each in models if each.model_id == model.model_id), None)
    if named is None:
        named = known[model.base_ns] = model
    passed = times.astype(np.int64) - (model.base_ns + model.offset_ns)
    raw = model.base_ns + passed - np.rint(passed * (model.rate / (1 + model.rate))).astype(np.int64)
    aligned, halves = correct([known[base_ns] for base_ns in sorted(known)], raw)
    # What refreshed offsets and keeping times from decreasing may have cost is in the window of the writer's model.
    beside_ns = max(0, model.window_ns - named.window_ns) + (_ROUNDING_NS if model.rate else 0)
    return aligned.astype(np.uint64), (halves + beside_ns).astype(np.uint64)


def correct(models: Sequence[ClockModel], raw: I64) -> tuple[I64, I64]:
    """Put raw times on the common time line.

    Args:
        models: of one clock, by rising `base_ns`, at least one.
        raw: int64, shape (n,), ns.

    Returns:
        Times (int64, shape (n,), ns), which rise where the raw times do, and the half-widths of their hard
        windows (int64, shape (n,), ns).
    """
    raw = np.asarray(raw, np.int64)
    times, halves = np.empty_like(raw), np.empty_like(raw)
    if len(raw) > 1 and bool(np.any(raw[1:] < raw[:-1])):
        order = np.argsort(raw, kind="stable")
        times[order], halves[order] = correct(models, raw[order])
        return times, halves
    spans = _spans(tuple(models))
    edges = [0, *np.searchsorted(raw, [span.from_ns for span in spans[1:]]).tolist(), len(raw)]
    for span, (first, stop) in zip(spans, pairwise(edges), strict=True):
        for start in range(first, stop, _PIECE):
            piece = slice(start, min(start + _PIECE, stop))
            span.correct(raw[piece], times[piece], halves[piece])
    return times, halves


def surprise(earlier: ClockModel, later: ClockModel) -> tuple[int, bool]:
    """Return by how much a model is not where the one before it had predicted, in ns, and whether both windows allow that."""
    base_ns = later.base_ns
    off_ns = later.time_at(base_ns) - earlier.time_at(base_ns)
    return off_ns, abs(off_ns) <= later.window_ns + earlier.half_at(base_ns)


class _Span(NamedTuple):
    """A part of raw time in which the time and its window are affine."""

    from_ns: int
    """Raw time where it begins; the first one has no beginning."""
    offset_ns: int
    """Time minus raw time at `origin_ns`."""
    rate: float
    """Growth of that for every ns of raw time."""
    half_ns: float
    """Half-width of the window at `origin_ns`."""
    growth: float
    """Growth of that."""
    origin_ns: int
    """Raw time to which all this refers."""

    def correct(self, raw: I64, times: I64, halves: I64) -> None:
        """Set `times` and `halves`: in place and in pieces that stay in the cache, as fresh memory costs more than sums."""
        passed = np.empty(len(raw))
        np.subtract(raw, self.origin_ns, out=passed)
        window = passed * self.growth
        window += self.half_ns
        np.ceil(window, out=window)
        halves[:] = window
        passed *= self.rate
        np.rint(passed, out=passed)
        times[:] = passed
        times += raw
        times += self.offset_ns


@lru_cache(maxsize=16)
def _spans(models: tuple[ClockModel, ...]) -> tuple[_Span, ...]:
    """Return the parts of raw time: before the first model, two between each and the next, behind the last."""
    first, last = models[0], models[-1]
    spans = [_extrapolated(first, -first.window_rate)]
    for left, right in pairwise(models):
        length_ns = right.base_ns - left.base_ns
        rate = (right.offset_ns - left.offset_ns) / length_ns
        slope = (right.window_ns - left.window_ns) / length_ns
        # The reference itself does not wander; any other clock may, the more the farther both models are.
        measured = bool(left.window_rate or right.window_rate)
        wander, half_ns = WANDER * measured, left.window_ns + _ROUNDING_NS * measured
        jump_ns, allowed = surprise(left, right)
        if not allowed:
            half_ns += abs(jump_ns) + right.window_ns + left.half_at(right.base_ns)
        line = left.offset_ns, rate
        spans.append(_Span(left.base_ns, *line, half_ns, slope + wander, left.base_ns))
        middle_ns = left.base_ns + length_ns // 2
        spans.append(_Span(middle_ns, *line, half_ns + wander * length_ns, slope - wander, left.base_ns))
    return (*spans, _extrapolated(last, last.window_rate))


def _extrapolated(model: ClockModel, growth: float) -> _Span:
    return _Span(model.base_ns, model.offset_ns, model.rate, model.window_ns, growth, model.base_ns)
