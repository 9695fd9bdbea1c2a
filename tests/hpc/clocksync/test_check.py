"""Which pairs of ranks are compared."""

import random

import pytest

from chronolog_hpc.clocksync.check import _draw
from chronolog_hpc.clocksync.tree import edges


@pytest.mark.parametrize("size", [*range(3, 12), 64])
def test_pairs_that_were_measured_are_not_drawn_where_there_are_others(size: int) -> None:
    measured = {frozenset(edge) for edge in edges(range(size))}
    for seed in range(20):
        pairs = _draw(size, measured, random.Random(seed))
        assert len({rank for pair in pairs for rank in pair}) == 2 * (size // 2)
        assert sum(frozenset(pair) in measured for pair in pairs) <= size // 32


def test_two_ranks_leave_no_choice() -> None:
    assert sorted(_draw(2, {frozenset((0, 1))}, random.Random(1))[0]) == [0, 1]
