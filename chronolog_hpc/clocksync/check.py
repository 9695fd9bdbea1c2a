"""An independent look at synchronised clocks: do ranks that never measured each other agree?

Rank 0 draws pairs of ranks at random, whatever the tree was. The two of a pair exchange messages as for a
synchronisation, and compare what their synchronised clocks said: that gives an interval for the difference
of their clocks. A difference of 0, within both windows, must lie in it. The half-width of the interval is
printed beside its middle, because a check without one is worth nothing on a busy machine.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chronolog_hpc.clientlib import ClockModel
from chronolog_hpc.clocksync.measure import answer, ask
from chronolog_hpc.mpi import wait

if TYPE_CHECKING:
    from chronolog_hpc.clocksync.synced import SyncedClock

_EXCHANGES = 200
_TURN, _MODEL = 6, 7


@dataclass(frozen=True)
class PairCheck:
    """What two ranks saw of each other."""

    ranks: tuple[int, int]
    difference_ns: float
    """Middle of the interval of the second's clock minus the first's."""
    half_ns: float
    """Half-width of that interval."""
    windows_ns: int
    """Sum of the windows of both."""

    @property
    def agrees(self) -> bool:
        """Whether the clocks may differ by nothing, within their windows."""
        return abs(self.difference_ns) <= self.half_ns + self.windows_ns


def check_pairs(clock: SyncedClock, seed: int | None = None) -> list[PairCheck]:
    """Compare the clocks of ranks in random pairs; return the results on all ranks. An odd rank is left out.

    Collective: over the clock's ranks; synchronises. Pairs are measured one after another.

    Args:
        clock: synchronised.
        seed: of the pairs; rank 0's counts. None for any.
    """
    clock.require_open()
    team = clock.team
    if team.comm is None:
        return []
    order = list(range(team.size))
    random.Random(seed).shuffle(order)
    order = team.bcast(order)
    pairs = list(zip(order[::2], order[1::2], strict=False))
    found = None
    for place, (first, second) in enumerate(pairs):
        if team.rank == first:
            if place:
                wait(team.comm.Irecv(bytearray(1), pairs[place - 1][0], _TURN))
            found = _compare(clock, second)
            if place + 1 < len(pairs):
                team.comm.Send(bytearray(1), pairs[place + 1][0], _TURN)
        elif team.rank == second:
            answer(team.comm, first, _EXCHANGES, clock.source.read)
            team.comm.Send(clock.models[-1].pack(), first, _MODEL)
    team.barrier()
    return [result for result in team.allgather(found) if result is not None]


def _compare(clock: SyncedClock, other: int) -> PairCheck:
    comm, own = clock.team.comm, clock.models[-1]
    assert comm is not None
    burst = ask(comm, other, _EXCHANGES, clock.source.read)
    packed = bytearray(own.pack())
    comm.Recv(packed, other, _MODEL)
    theirs = ClockModel.unpack(bytes(packed))
    upper = theirs.time_at(burst.reached_ns) - own.time_at(burst.before_ns)
    lower = theirs.time_at(burst.answered_ns) - own.time_at(burst.after_ns)
    windows_ns = own.half_at(burst.after_ns) + theirs.half_at(burst.answered_ns)
    return PairCheck((clock.team.rank, other), (upper + lower) / 2, (upper - lower) / 2, windows_ns)
