"""A histogram of durations from which percentiles are read, small enough to be summed over all ranks.

Values below 256 ns have a bin each; above, every power of two is cut into 128 bins, so a percentile is at
most 0.8 % too high. It is never too low: the upper edge of the bin is what counts, but at most the largest
value, which is kept.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_EXACT = 256
_BINS_PER_OCTAVE = 128
_OCTAVES = 36
"""Up to 2**44 ns, almost five hours."""

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}


class Histogram:
    """Counts of durations.

    Attributes:
        counts: int64, shape (n_bins,).
        max_ns: the largest value.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(_EXACT + _OCTAVES * _BINS_PER_OCTAVE, np.int64)
        self.max_ns = 0

    def add(self, values_ns: npt.NDArray[np.uint64]) -> None:
        """Count values: uint64, shape (n,)."""
        if not len(values_ns):
            return
        self.max_ns = max(self.max_ns, int(values_ns.max()))
        values = np.minimum(values_ns, np.uint64(2**44 - 1)).astype(np.int64)
        octaves = np.maximum(np.frexp(values.astype(np.float64))[1] - 9, 0)  # 256..511 is octave 0
        octaves = octaves.astype(np.int64)
        inside = (values >> (octaves + 1)) - _BINS_PER_OCTAVE
        bins = np.where(values < _EXACT, values, _EXACT + octaves * _BINS_PER_OCTAVE + inside)
        self.counts += np.bincount(bins, minlength=len(self.counts))

    def __add__(self, other: Histogram) -> Histogram:
        """Return the histogram of both: what MPI's SUM does with objects."""
        both = Histogram()
        both.counts = self.counts + other.counts
        both.max_ns = max(self.max_ns, other.max_ns)
        return both

    def percentile_ns(self, fraction: float) -> int:
        """Return the value that `fraction` (0 to 1) of all values do not exceed; 0 if there are none."""
        total = int(self.counts.sum())
        if not total:
            return 0
        rank = max(1, math.ceil(fraction * total))
        place = int(np.searchsorted(np.cumsum(self.counts), rank))
        return min(_upper_edge_ns(place), self.max_ns)

    def summary_ns(self) -> dict[str, int]:
        """Return p50, p90, p99, p99_9 and max."""
        return {name: self.percentile_ns(fraction) for name, fraction in PERCENTILES.items()} | {
            "max": self.max_ns
        }


def _upper_edge_ns(place: int) -> int:
    """Return the largest value that falls into a bin."""
    if place < _EXACT:
        return place
    octave, inside = divmod(place - _EXACT, _BINS_PER_OCTAVE)
    return ((inside + _BINS_PER_OCTAVE + 1) << (octave + 1)) - 1
