"""The order of a story on columns, against sorted lists."""

from bisect import bisect_left, bisect_right

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.order import around, story_order

NUMBERS = st.sampled_from([0, 1, 2, 2**53, 2**53 + 1, 2**64 - 2, 2**64 - 1])
PLACES = st.tuples(NUMBERS, NUMBERS, NUMBERS)


@given(st.lists(PLACES, max_size=30), PLACES)
def test_around_a_place(events: list[tuple[int, int, int]], place: tuple[int, int, int]) -> None:
    events.sort()
    columns = np.array(events, np.uint64).reshape(-1, 3).T
    assert around(list(columns), place) == (bisect_left(events, place), bisect_right(events, place))


@given(st.lists(PLACES, max_size=30))
def test_the_order_of_events(events: list[tuple[int, int, int]]) -> None:
    columns = np.array(events, np.uint64).reshape(-1, 3).T
    assert [events[number] for number in story_order(*columns)] == sorted(events)
