"""Who learns from whom: HCA3's binomial tree over clock leaders.

Of the ranks that read the same clock the lowest leads; only leaders are measured. In each round the leaders that
know the time teach as many others, so there are about log2 rounds, and no path is longer.

Source: S. Hunold and A. Carpen-Amarie, "Hierarchical clock synchronization in MPI", CLUSTER 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Edge(NamedTuple):
    """A pair of ranks of which one learns from the other."""

    teacher: int
    learner: int


def edges(leaders: Sequence[int]) -> list[Edge]:
    """Return the edges of the tree in the order in which they are measured: a teacher has learned before.

    Args:
        leaders: ranks; the first knows the time.
    """
    size = len(leaders)
    power = 1 << (size.bit_length() - 1) if size else 0
    found = []
    stride = power
    while stride > 1:
        half = stride // 2
        found += [Edge(leaders[place], leaders[place + half]) for place in range(0, power, stride)]
        stride = half
    found += [Edge(leaders[place - power], leaders[place]) for place in range(power, size)]
    return found


def leaders_of(identities: Sequence[str]) -> list[int]:
    """Return for each rank the lowest rank with the same identity."""
    first: dict[str, int] = {}
    return [first.setdefault(identity, rank) for rank, identity in enumerate(identities)]
