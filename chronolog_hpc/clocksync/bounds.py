"""What exchanged messages say about another clock: hard bounds, and the affine models that they leave.

Let theta(x) be reference time minus local time at the local time x. A message that left here at `before` and was
there at `reached` says theta(before) <= reached - before, because no message is faster than nothing. The answer
says theta(after) >= answered - after. Of a burst of exchanges only the best in each direction counts, each for
itself: that is the SKaMPI offset method, but the bounds are kept instead of thrown away.

Two clocks that run at constant rates have an affine theta, and every pair of bounds limits its slope: so all
bursts together leave a small set of lines (the constraint hull). The model is the least-squares line through the
middles of the clean bursts, moved into that set if it lies outside; its window is the distance to the farthest
line of the set. No symmetry of the network is assumed for the window, only for the model being near its middle.

Sources: S. Hunold and A. Carpen-Amarie, "Hierarchical clock synchronization in MPI", CLUSTER 2018 (HCA3); the
SKaMPI benchmark (best one-way delays); the window follows from the bounds alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from chronolog_hpc.clientlib import WANDER, ClockModel

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

CLEAN_FACTOR = 1.5
"""A burst is clean if its half-width is at most so many times the best of all."""
RATE_LIMIT = 1e-3
"""Two clocks of this world differ by less than this relative rate, also while NTP slews one of them."""

_ROUNDING_NS = 1.0


class Burst(NamedTuple):
    """The tightest bounds of several exchanges with a reference.

    Local times are raw, in ns; those of the reference are raw readings of its own clock.
    """

    before_ns: int
    """Local time before the message with the best way there left."""
    reached_ns: int
    """Time of the reference when that message was there."""
    answered_ns: int
    """Time of the reference before the answer with the best way back left."""
    after_ns: int
    """Local time when that answer was here."""
    round_trip_ns: int
    """Shortest round trip, without the teacher's time between message and answer."""


def best_of(before: I64, reached: I64, answered: I64, after: I64, rate: float = 0.0) -> Burst:
    """Return the tightest bounds of some exchanges.

    Args:
        rate: about the slope of theta, so that a burst that took long is not judged by its drift.
        before: int64, shape (n,), ns: local times before each message.
        reached: int64, shape (n,), ns: times of the reference when each message was there.
        answered: int64, shape (n,), ns: times of the reference before each answer.
        after: int64, shape (n,), ns: local times after each answer.
    """
    there = int(np.argmin(reached - before - rate * (before - before[0])))
    back = int(np.argmax(answered - after - rate * (after - before[0])))
    return Burst(
        int(before[there]),
        int(reached[there]),
        int(answered[back]),
        int(after[back]),
        int((after - before - (answered - reached)).min()),
    )


class Learned(NamedTuple):
    """What bursts say about a local clock."""

    model: ClockModel
    """From local raw time to the time line of the reference's own model, with the window of both."""
    clean: int
    """Number of clean bursts."""
    consistent: bool
    """Whether any line keeps all bounds; if not, a clock did not run at a constant rate meanwhile."""


def about_rate(bursts: Sequence[Burst]) -> float:
    """Return the middle of all slopes that the bounds admit; 0 for a single burst."""
    return sum(_rates(*_bounds(bursts, ClockModel())[:4])) / 2 if bursts else 0.0


def are_clean(bursts: Sequence[Burst]) -> npt.NDArray[np.bool_]:
    """Tell which bursts are about as tight as the best: bool, shape (n,)."""
    upper_x, upper, lower_x, lower, _ = _bounds(bursts, ClockModel())
    halves = (upper - lower - about_rate(bursts) * (upper_x - lower_x)) / 2
    best = max(float(halves.min()), 0.0)
    return np.asarray(halves <= CLEAN_FACTOR * best + _ROUNDING_NS)


def learn(bursts: Sequence[Burst], reference: ClockModel) -> Learned:
    """Make a model of the local clock from bursts with a reference whose own model is known.

    Args:
        bursts: at least one, in the order of time.
        reference: from the reference's raw time to the common time line.
    """
    base_ns = bursts[-1].after_ns
    upper_x, upper, lower_x, lower, origin_ns = _bounds(bursts, reference)
    low_rate, high_rate = _rates(upper_x, upper, lower_x, lower)
    clean = are_clean(bursts)
    middle_x, middle = (upper_x + lower_x)[clean] / 2, (upper + lower)[clean] / 2
    rate = _slope(middle_x, middle)
    consistent = low_rate <= high_rate
    if consistent:
        rate = float(np.clip(rate, low_rate, high_rate))
        highest = float(np.min(upper + np.maximum(-low_rate * upper_x, -high_rate * upper_x)))
        lowest = float(np.max(lower + np.minimum(-low_rate * lower_x, -high_rate * lower_x)))
        theta = float(np.clip(np.mean(middle - rate * middle_x), lowest, max(lowest, highest)))
        half_ns = max(highest - theta, theta - lowest)
        rate_half = max(high_rate - rate, rate - low_rate)
    else:
        theta = float(np.mean(middle - rate * middle_x))
        above = float(np.max(lower - (theta + rate * lower_x)))
        below = float(np.max((theta + rate * upper_x) - upper))
        half_ns = float(np.max(upper - lower)) + max(above, below, 0.0)
        rate_half = RATE_LIMIT
    last = bursts[-1]
    latest_ns = last.reached_ns + max(0, math.ceil((last.after_ns - last.before_ns) * (1 + RATE_LIMIT)))
    wander_ns = WANDER * (base_ns - bursts[0].before_ns)  # no line need keep bounds that are so far apart
    reference_half_ns = max(reference.half_at(last.answered_ns), reference.half_at(latest_ns))
    model = ClockModel(
        model_id=reference.model_id,
        base_ns=base_ns,
        offset_ns=origin_ns + round(theta),
        rate=rate,
        window_ns=math.ceil(half_ns + wander_ns) + 1 + reference_half_ns,
        window_rate=rate_half + WANDER + reference.window_rate * (1 + RATE_LIMIT),
    )
    return Learned(model, int(clean.sum()), consistent)


def refine(model: ClockModel, earlier: ClockModel) -> ClockModel:
    """Return a model with a slope that is known better, because the clock was also measured earlier.

    Both windows together limit the slope between the two moments; the offset stays as it is.

    Args:
        model: the new one.
        earlier: another one of the same clock.
    """
    span_ns = model.base_ns - earlier.base_ns
    if span_ns <= 0:
        return model
    rise_ns = model.offset_ns - earlier.offset_ns
    slack_ns = model.window_ns + earlier.window_ns
    own_half = model.window_rate - WANDER
    low = max((rise_ns - slack_ns) / span_ns - WANDER, model.rate - own_half)
    high = min((rise_ns + slack_ns) / span_ns + WANDER, model.rate + own_half)
    if low > high:
        return model
    rate = min(max(rise_ns / span_ns, low), high)
    return ClockModel(
        model.model_id,
        model.base_ns,
        model.offset_ns,
        rate,
        model.window_ns,
        max(high - rate, rate - low) + WANDER,
    )


def _bounds(bursts: Sequence[Burst], reference: ClockModel) -> tuple[F64, F64, F64, F64, int]:
    """Return the upper and the lower bounds of theta, relative to the last burst's end and to a common origin."""
    base_ns = bursts[-1].after_ns
    uppers = [reference.time_at(burst.reached_ns) - burst.before_ns for burst in bursts]
    lowers = [reference.time_at(burst.answered_ns) - burst.after_ns for burst in bursts]
    origin_ns = uppers[-1]
    return (
        np.array([burst.before_ns - base_ns for burst in bursts], np.float64),
        np.array([upper - origin_ns for upper in uppers], np.float64) + _ROUNDING_NS,
        np.array([burst.after_ns - base_ns for burst in bursts], np.float64),
        np.array([lower - origin_ns for lower in lowers], np.float64) - _ROUNDING_NS,
        origin_ns,
    )


def _rates(upper_x: F64, upper: F64, lower_x: F64, lower: F64) -> tuple[float, float]:
    """Return the smallest and the largest slope of a line below all upper and above all lower bounds."""
    spans = upper_x[None, :] - lower_x[:, None]
    rises = upper[None, :] - lower[:, None]
    forward, backward = spans > 0, spans < 0
    high = np.min(rises[forward] / spans[forward], initial=RATE_LIMIT)
    low = np.max(rises[backward] / spans[backward], initial=-RATE_LIMIT)
    return float(low), float(high)


def _slope(x: F64, y: F64) -> float:
    """Return the slope of the least-squares line; 0 for a single x."""
    centred = x - x.mean()
    square = float(np.dot(centred, centred))
    return float(np.dot(centred, y - y.mean())) / square if square else 0.0
