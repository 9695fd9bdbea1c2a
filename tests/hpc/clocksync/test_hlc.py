"""Hybrid stamps: a receive is never before its send, stamps rise, and a good clock is not pushed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronolog_hpc.clocksync.hlc import HybridClock


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 50)), max_size=60))
def test_receives_come_after_sends_on_clocks_that_differ(steps: list[tuple[int, int, int]]) -> None:
    now_ns = [1000, 900, 1100, 1000]
    clocks = [HybridClock(lambda rank=rank: now_ns[rank]) for rank in range(4)]
    last = [0] * 4
    for sender, receiver, passed_ns in steps:
        sent = clocks[sender].send()
        assert sent > last[sender]
        last[sender] = sent
        received = clocks[receiver].receive(sent)
        assert received > max(sent, last[receiver])
        last[receiver] = received
        now_ns = [time_ns + passed_ns for time_ns in now_ns]
    assert all(clock.push_ns <= 200 + 2 * len(steps) + 1 for clock in clocks)


@pytest.mark.parametrize("stamp_ns", [-1, 2**63 - 1, 2**70])
def test_a_stamp_that_is_no_time_spoils_nothing(stamp_ns: int) -> None:
    clock = HybridClock(lambda: 1000)
    with pytest.raises(ValueError, match="which is no time of 63 bits"):
        clock.receive(stamp_ns)
    assert clock.receive(1500) == 1501


def test_a_good_clock_is_not_pushed() -> None:
    time_ns = 0

    def now() -> int:
        nonlocal time_ns
        time_ns += 10
        return time_ns

    one, other = HybridClock(now), HybridClock(now)
    for _ in range(100):
        other.receive(one.send())
    assert (one.push_ns, other.push_ns) == (0, 0)
