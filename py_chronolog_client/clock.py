"""Where timestamps come from, and how wrong they may be.

An appender asks its `Clock` for a `Reading` and then makes every timestamp as `tick() + offset_ns`: one call
into C and one addition, which is all that the hot path can afford. The reading carries the `ClockModel` under
which its times are made; the store keeps it beside them, so a later reader knows the window around every time
and can re-align a finished job.

Without MPI the clock is CLOCK_MONOTONIC plus an offset to UTC that is taken once: a step of the wall clock
moves no timestamp. It claims no window, because nobody knows how far the machine is from UTC.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

UNKNOWN_WINDOW_NS = 2**64 - 1
ALWAYS = 2**64
"""Behind every tick."""
WANDER = 1e-7
"""By how much the rate of a clock may wander while a model is in use, relative."""

TOLERANCE_NS = 50
"""How far times may leave the model before their offset is refreshed; part of the window."""

_REFRESH_NS = 1_000_000_000
_LAYOUT = struct.Struct("<QqqdQd")
MODEL_BYTES = _LAYOUT.size


@dataclass(frozen=True, slots=True)
class ClockModel:
    """An affine map from CLOCK_MONOTONIC to the time line of the story (docs/format.md, "The clock model")."""

    model_id: int = 0
    """0: the system's clock; else the number of the synchronisation that made the model."""
    base_ns: int = 0
    """Raw time at which the model was made."""
    offset_ns: int = 0
    """Time minus raw time at `base_ns`."""
    rate: float = 0.0
    """Relative rate: seconds gained per second after `base_ns`."""
    window_ns: int = UNKNOWN_WINDOW_NS
    """Half-width of the hard window at `base_ns`; `UNKNOWN_WINDOW_NS` where nobody knows."""
    window_rate: float = 0.0
    """Growth of the half-width for every nanosecond of distance from `base_ns`."""

    def time_at(self, raw_ns: int) -> int:
        """Return the time that the model gives to a raw time, in ns."""
        return raw_ns + self.offset_ns + round(self.rate * (raw_ns - self.base_ns))

    def half_at(self, raw_ns: int) -> int:
        """Return the half-width of the hard window around the time of a raw time, in ns."""
        if self.window_ns == UNKNOWN_WINDOW_NS:
            return UNKNOWN_WINDOW_NS
        grown_ns = math.ceil(self.window_rate * abs(raw_ns - self.base_ns))
        return min(self.window_ns + grown_ns, UNKNOWN_WINDOW_NS)

    def fresh_for_ns(self) -> int:
        """Return how long a constant offset stays within the tolerance; a second at most, to learn of a new model."""
        return int(min(_REFRESH_NS, TOLERANCE_NS / abs(self.rate))) if self.rate else _REFRESH_NS

    def pack(self) -> bytes:
        """Return the 48 bytes that block and tail headers hold."""
        return _LAYOUT.pack(
            self.model_id, self.base_ns, self.offset_ns, self.rate, self.window_ns, self.window_rate
        )

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> ClockModel:
        """Read the 48 bytes that `pack` made."""
        return cls(*_LAYOUT.unpack(data))


def pack_models(models: Iterable[ClockModel]) -> bytes:
    """Return the bytes of several models, one after another."""
    return b"".join(model.pack() for model in models)


def unpack_models(data: bytes) -> tuple[ClockModel, ...]:
    """Read the models that `pack_models` wrote.

    Raises:
        ValueError: the bytes are none.
    """
    if len(data) % MODEL_BYTES:
        raise ValueError(f"{len(data)} bytes are no clock models")
    return tuple(ClockModel(*fields) for fields in _LAYOUT.iter_unpack(data))


@dataclass(frozen=True, slots=True)
class Reading:
    """How to make timestamps until further notice: `tick() + offset_ns`, in ns since 1970 UTC."""

    tick: Callable[[], int]
    offset_ns: int
    model: ClockModel
    steady: bool = False
    """Whether `tick` is known never to decrease (a kernel's monotonic clock)."""
    until: int = ALWAYS
    """The last tick for which this is right; a writer then asks its clock again."""

    def refreshed(self) -> Reading:
        """Return a reading with the offset that the model gives now, and for as long as it is within the tolerance."""
        raw_ns = self.tick()
        offset_ns = self.model.time_at(raw_ns) - raw_ns
        return replace(self, offset_ns=offset_ns, until=raw_ns + self.model.fresh_for_ns())

    def not_before(self, last_ns: int) -> Reading:
        """Return a reading whose times never decrease and are at least `last_ns`.

        A steady one that is behind stands still until it has caught up, and then is over. How far it was behind is part
        of its window.
        """
        tick, offset_ns, model = self.tick, self.offset_ns, self.model
        until = self.until if self.until == ALWAYS else max(self.until + offset_ns, last_ns)
        if self.steady:
            behind_ns = last_ns - tick() - offset_ns
            if behind_ns <= 0:
                return self
            until = last_ns
            if model.window_ns != UNKNOWN_WINDOW_NS:
                model = replace(model, window_ns=model.window_ns + behind_ns)

        def never_back() -> int:
            nonlocal last_ns
            now_ns = tick() + offset_ns
            last_ns = max(last_ns, now_ns)
            return last_ns

        return Reading(never_back, 0, model, until=until)

    def bounded(self) -> Callable[[], int]:
        """Return `tick`, but raising `ReadingOver` when the reading is over, at the price of a call in Python."""
        tick, until = self.tick, self.until
        if until == ALWAYS:
            return tick

        def bounded_tick() -> int:
            raw_ns = tick()
            if raw_ns > until:
                raise ReadingOver
            return raw_ns

        return bounded_tick


class ReadingOver(Exception):  # noqa: N818 - not an error: it is time to ask the clock again
    """A reading was used after its last tick."""


class Clock(Protocol):
    """What an appender needs of a clock.

    Thread safety: `reading` may be called from any thread.
    """

    @property
    def models(self) -> Sequence[ClockModel]:
        """The models of all synchronisations so far, by rising `base_ns`: what an aligned replay interpolates between."""
        ...

    def reading(self) -> Reading:
        """Return how to make timestamps from now on."""
        ...


class SystemClock:
    """CLOCK_MONOTONIC plus the offset to UTC at construction."""

    models: Sequence[ClockModel] = ()

    def __init__(self) -> None:
        base_ns, offset_ns = offset_to_utc(time.monotonic_ns)
        model = ClockModel(base_ns=base_ns, offset_ns=offset_ns)
        self._reading = Reading(time.monotonic_ns, offset_ns, model, steady=True)

    def reading(self) -> Reading:
        """Return the one reading of this clock."""
        return self._reading


def offset_to_utc(read: Callable[[], int]) -> tuple[int, int]:
    """Return (raw time, UTC minus raw time) in ns, from the tightest of several brackets.

    Args:
        read: returns the raw time.
    """
    best: tuple[int, int, int] | None = None
    for _ in range(8):
        before_ns, utc_ns, after_ns = read(), time.time_ns(), read()
        middle_ns = (before_ns + after_ns) // 2
        if best is None or after_ns - before_ns < best[0]:
            best = (after_ns - before_ns, middle_ns, utc_ns - middle_ns)
    assert best is not None
    return best[1], best[2]
