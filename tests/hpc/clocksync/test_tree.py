"""HCA3's tree: everybody learns once, from somebody who knows, along short paths."""

import pytest

from chronolog_hpc.clocksync.tree import edges, leaders_of


@pytest.mark.parametrize("size", [*range(1, 40), 128, 1000])
def test_everybody_learns_once_from_somebody_who_knows(size: int) -> None:
    leaders = [3 * number for number in range(size)]
    depth = {leaders[0]: 0}
    for teacher, learner in edges(leaders):
        assert learner not in depth
        depth[learner] = depth[teacher] + 1
    assert sorted(depth) == leaders
    assert max(depth.values()) <= size.bit_length()


def test_the_lowest_rank_of_an_identity_leads() -> None:
    assert leaders_of(["a", "b", "a", "c", "b", "a"]) == [0, 1, 0, 3, 1, 0]
