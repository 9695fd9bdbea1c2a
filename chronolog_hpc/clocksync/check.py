"""An independent look at synchronised clocks: do ranks that never measured each other agree?

Rank 0 draws pairs of ranks at random, and as few as it can that the tree has measured; two ranks leave no choice. The two of a
pair exchange messages as for a
synchronisation, and compare what their synchronised clocks said: that gives an interval for the difference
of their clocks. A difference of 0, within both windows, must lie in it. The half-width of the interval is
printed beside its middle, because a check without one is worth nothing on a busy machine.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chronolog_hpc.clientlib import ClockModel
from chronolog_hpc.clocksync.measure import answer, ask
from chronolog_hpc.clocksync.tree import edges
from chronolog_hpc.mpi import wait

if TYPE_CHECKING:
    from chronolog_hpc.clocksync.synced import SyncedClock

_EXCHANGES = 200
_DRAWINGS = 100
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
    measured: bool
    """Whether the synchronisation has measured this pair too, so that the check is not quite independent."""

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
    measured = {frozenset(clock.leaders[rank] for rank in edge) for edge in edges(range(len(clock.leaders)))}
    pairs = team.bcast(_draw(team.size, measured, random.Random(seed)))
    found = None
    for place, (first, second) in enumerate(pairs):
        if team.rank == first:
            if place:
                wait(team.comm.Irecv(bytearray(1), pairs[place - 1][0], _TURN))
            found = _compare(clock, second, measured={first, second} in measured)
            if place + 1 < len(pairs):
                team.comm.Send(bytearray(1), pairs[place + 1][0], _TURN)
        elif team.rank == second:
            answer(team.comm, first, _EXCHANGES, clock.source.read)
            team.comm.Send(clock.models[-1].pack(), first, _MODEL)
    team.barrier()
    return [result for result in team.allgather(found) if result is not None]


def _draw(size: int, measured: Collection[frozenset[int]], chance: random.Random) -> list[tuple[int, int]]:
    """Return pairs of ranks, of several drawings the one with the fewest that were measured."""
    drawings = []
    for _ in range(_DRAWINGS):
        order = chance.sample(range(size), size)
        pairs = list(zip(order[::2], order[1::2], strict=False))
        drawings.append((sum(frozenset(pair) in measured for pair in pairs), pairs))
        if not drawings[-1][0]:
            break
    return min(drawings)[1]


def _compare(clock: SyncedClock, other: int, *, measured: bool) -> PairCheck:
    comm, own = clock.team.comm, clock.models[-1]
    assert comm is not None
    burst = ask(comm, other, _EXCHANGES, clock.source.read)
    packed = bytearray(own.pack())
    comm.Recv(packed, other, _MODEL)
    theirs = ClockModel.unpack(bytes(packed))
    upper = theirs.time_at(burst.reached_ns) - own.time_at(burst.before_ns)
    lower = theirs.time_at(burst.answered_ns) - own.time_at(burst.after_ns)
    windows_ns = own.half_at(burst.after_ns) + theirs.half_at(burst.answered_ns)
    return PairCheck((clock.team.rank, other), (upper + lower) / 2, (upper - lower) / 2, windows_ns, measured)
