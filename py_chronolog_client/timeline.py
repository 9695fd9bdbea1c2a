"""The models of one clock over a job, and the best time that they give to a raw reading.

Between two synchronisations times are interpolated, which needs no slope: both ends are known within their
windows, so everything in between is, as far as the clock ran at a constant rate. Before the first and behind
the last, times are extrapolated, and their windows grow.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    edges = [0, *np.searchsorted(raw, [model.base_ns for model in models]).tolist(), len(raw)]
    for number in range(len(models) + 1):
        part = slice(edges[number], edges[number + 1])
        left, right = models[max(0, number - 1)], models[min(number, len(models) - 1)]
        for start in range(part.start, part.stop, _PIECE):
            piece = slice(start, min(start + _PIECE, part.stop))
            _correct(left, right, raw[piece], times[piece], halves[piece])
    return times, halves


def _correct(left: ClockModel, right: ClockModel, raw: I64, times: I64, halves: I64) -> None:
    """Interpolate between two models, or extrapolate one, into `times` and `halves`.

    In place and in pieces that stay in the cache: on memory that nobody has touched before, each temporary array would
    cost more than everything else.
    """
    passed = (raw - left.base_ns).astype(np.float64)
    np.add(raw, left.offset_ns, out=times)
    span_ns = right.base_ns - left.base_ns
    if span_ns:
        turn = (right.offset_ns - left.offset_ns) / span_ns
        window = passed * ((right.window_ns - left.window_ns) / span_ns)
        if left.window_rate or right.window_rate:  # else it is the reference itself
            window += WANDER * np.minimum(passed, span_ns - passed)
            window += _ROUNDING_NS
    else:
        turn = left.rate
        window = np.abs(passed)
        window *= left.window_rate
    window += left.window_ns
    np.ceil(window, out=window)
    halves[:] = window
    passed *= turn
    np.rint(passed, out=passed)
    times += passed.astype(np.int64)
