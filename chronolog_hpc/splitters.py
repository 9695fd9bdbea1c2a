"""Where to cut: every rank has a sorted run of events, and all runs together are to be cut into equal slices.

A cut is a place in the order (time, client id, sequence), which no two events share, so a cut can fall
between events of one time, and every slice gets exactly its number of events. Rank j looks for the beginning
of slice j, all ranks do so at once, and nobody sees more than a few keys of another:

1. Each rank knows a bracket in its own run that holds the cut (at first all of it), and sends rank j regular
   samples of the keys in bracket j, with the bracket's place and size.
2. Between two samples that follow each other in a rank's run lies a known number of its events. So rank j
   knows for every sample, of all ranks, at least and at most how many events are before it, and finds the
   closest samples that are certainly not behind the cut, and not before it (`narrow`).
3. Each rank looks these two keys up in its own run, and has a bracket that is smaller by a factor of about
   `SAMPLES / 4` or more. When the brackets are small enough to be sent whole, the cut is exact.

Two million events for each of eight ranks take four rounds. A round moves 1.5 KB between each two ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from chronolog_hpc.clientlib import around

if TYPE_CHECKING:
    from chronolog_hpc.clientlib import U64
    from chronolog_hpc.mpi import Team

SAMPLES = 64
"""Keys that a rank sends for one cut in one round."""

I64 = npt.NDArray[np.int64]


class Columns(NamedTuple):
    """The keys of a sorted run: three columns, uint64, shape (n,)."""

    times: U64
    client_ids: U64
    sequences: U64

    def take(self, places: I64) -> U64:
        """Return the keys at some places: uint64, shape (len(places), 3)."""
        return np.stack([column[places] for column in self], axis=1)

    def before(self, key: U64) -> int:
        """Return how many events are before a key, uint64, shape (3,)."""
        return around(self, key)[0]

    def up_to(self, key: U64) -> int:
        """Return how many events are before a key or have it."""
        return around(self, key)[1]


class Pivots(NamedTuple):
    """Two keys around a cut: it is not before the first, and not behind the second."""

    low: U64 | None
    """None: nothing is known."""
    high: U64 | None
    exact: bool
    """The cut is right before `high`; without one, behind everything."""


def narrow(target: int, lows: I64, counts: I64, samples: list[U64]) -> Pivots:
    """Find the closest keys around a cut.

    Args:
        target: how many events of all ranks are before the cut.
        lows: int64, shape (ranks,): where the bracket begins in each rank's run.
        counts: int64, shape (ranks,): events in the bracket of each rank.
        samples: for each rank the keys of its bracket at `sample_places`, uint64, shape (m, 3).
    """
    wanted = target - int(lows.sum())
    keys = np.concatenate(samples)
    order = np.lexsort((keys[:, 2], keys[:, 1], keys[:, 0]))
    keys = keys[order]
    if all(len(sample) == count for sample, count in zip(samples, counts, strict=True)):
        return Pivots(None, keys[wanted] if wanted < len(keys) else None, exact=True)
    at_least, at_most = [], []
    for sample, count in zip(samples, counts.tolist(), strict=True):
        places = sample_places(count, len(sample))
        known = places + 1  # whoever is behind a sample is behind so many events of its run
        at_least.append(np.diff(known, prepend=0))
        at_most.append(np.diff(places, append=count))
    before_least = _sums_before(np.concatenate(at_least)[order])
    before_most = _sums_before(np.concatenate(at_most)[order])
    low = int(np.searchsorted(before_most, wanted, "right")) - 1
    high = int(np.searchsorted(before_least, wanted))
    return Pivots(keys[low], keys[high] if high < len(keys) else None, exact=False)


def sample_places(count: int, samples: int) -> I64:
    """Return the places of regular samples among `count` events: the first event, then in equal steps."""
    return np.arange(samples, dtype=np.int64) * count // max(samples, 1)


def find_cuts(team: Team, columns: Columns, targets: I64) -> I64:
    """Return where the slices begin in this rank's run: int64, shape (size,).

    Collective: over the team; synchronises.

    Args:
        team: the ranks.
        columns: this rank's run, sorted.
        targets: int64, shape (size,), the same on all ranks: how many events are before each slice.
    """
    size, length = team.size, len(columns.times)
    lows, highs = np.zeros(size, np.int64), np.full(size, length, np.int64)
    done = False
    while not done:
        told = team.alltoall(_tell(columns, lows, highs))
        counts = told[:, 1].astype(np.int64)
        keys = told[:, 2:].reshape(size, SAMPLES, 3)
        samples = [row[: min(SAMPLES, int(count))] for row, count in zip(keys, counts, strict=True)]
        found = narrow(int(targets[team.rank]), told[:, 0].astype(np.int64), counts, samples)
        done = _apply(columns, lows, highs, team.alltoall(np.tile(_encode(found), (size, 1))))
    return lows


def _sums_before(numbers: I64) -> I64:
    return np.cumsum(numbers) - numbers


def _tell(columns: Columns, lows: I64, highs: I64) -> U64:
    """Return for each cut the begin and size of the bracket and the samples of its keys, one row each."""
    rows = np.zeros((len(lows), 2 + 3 * SAMPLES), np.uint64)
    rows[:, 0], rows[:, 1] = lows, highs - lows
    for row, low, count in zip(rows, lows.tolist(), (highs - lows).tolist(), strict=True):
        samples = min(SAMPLES, count)
        row[2 : 2 + 3 * samples] = columns.take(low + sample_places(count, samples)).ravel()
    return rows


def _encode(pivots: Pivots) -> U64:
    row = np.zeros(9, np.uint64)
    row[0] = pivots.exact
    for place, key in ((1, pivots.low), (5, pivots.high)):
        if key is not None:
            row[place], row[place + 1 : place + 4] = 1, key
    return row


def _apply(columns: Columns, lows: I64, highs: I64, told: U64) -> bool:
    """Narrow this rank's brackets by the pivots of every cut; return whether all cuts are exact."""
    for cut, row in enumerate(told):
        exact, has_low, has_high = (bool(row[place]) for place in (0, 1, 5))
        low, high = int(lows[cut]), int(highs[cut])
        if has_low:
            low = max(low, columns.before(row[2:5]))
        if has_high:
            high = min(high, columns.before(row[6:9]))
        if exact:
            low = high
        lows[cut], highs[cut] = low, high
    return bool(told[:, 0].all())
