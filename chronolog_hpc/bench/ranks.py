"""The ranks of a benchmark: one communicator, or one process without MPI.

Ranks that wait sleep instead of spinning, so that on a machine with fewer cores than ranks the waiting do
not slow down the working.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from chronolog_hpc.bench.spec import SpecError
from chronolog_hpc.clientlib import ChronoLogError

if TYPE_CHECKING:
    from mpi4py import MPI

    from chronolog_hpc.clocksync import SyncedClock

T = TypeVar("T")

_FIRST_NAP_S = 20e-6
_LONGEST_NAP_S = 500e-6


class RunError(ChronoLogError):
    """A run that was begun and cannot go on; raised on all ranks. Its sentence says what to do."""

    another_rank_tells = False


class Ranks:
    """The ranks of a communicator, or this process alone.

    Collective: every method, over all ranks, except `first`.

    Attributes:
        comm: the communicator, or None.
        rank: number of this rank.
        size: number of ranks.
        hosts: host name of every rank.
        clock: of all ranks, from `synchronise` on.
        elapsed_half_ns: half-width of the window around the least certain time that `elapsed_s` has returned.
    """

    clock: SyncedClock

    def __init__(self, comm: MPI.Comm | None) -> None:
        """Get to know each other.

        Collective: over `comm`.
        """
        self.comm = comm
        self.rank = 0 if comm is None else comm.Get_rank()
        self.size = 1 if comm is None else comm.Get_size()
        self.hosts: list[str] = self.all(socket.gethostname())
        self.elapsed_half_ns = 0

    @property
    def first(self) -> bool:
        """Whether this rank speaks for all."""
        return self.rank == 0

    @property
    def on_one_host(self) -> bool:
        """Whether all ranks share a host."""
        return len(set(self.hosts)) == 1

    @property
    def story_clock(self) -> SyncedClock | None:
        """The clock for stories: without MPI none, because then the story has the system's."""
        return None if self.comm is None else self.clock

    def synchronise(self) -> None:
        """Put all ranks on one time line."""
        from chronolog_hpc.clocksync import SyncedClock

        self.clock = SyncedClock(self.comm)
        self.clock.sync("bench")

    def elapsed_s(self, start_ns: int, end_ns: int) -> float:
        """Return the last end minus the first start of all ranks, on the common time line.

        Args:
            start_ns: when this rank began, by `clock.raw`.
            end_ns: when it ended.
        """
        import numpy as np

        times, halves = self.clock.correct(np.array([start_ns, end_ns], np.int64))
        spans = self.all((int(times[0]), int(times[1]), int(halves.max())))
        self.elapsed_half_ns = max(self.elapsed_half_ns, 2 * max(half for *_, half in spans))
        return (max(end for _, end, _ in spans) - min(start for start, *_ in spans)) * 1e-9

    def barrier(self) -> None:
        """Wait, asleep, until all ranks are here."""
        if self.comm is None:
            return
        request = self.comm.Ibarrier()
        nap_s = _FIRST_NAP_S
        while not request.Test():
            time.sleep(nap_s)
            nap_s = min(2 * nap_s, _LONGEST_NAP_S)

    def all(self, value: T) -> list[T]:
        """Return the values of all ranks, by rank."""
        if self.comm is None:
            return [value]
        self.barrier()
        values: list[T] = self.comm.allgather(value)
        return values

    def sum(self, value: T) -> T:
        """Return the sum of the values of all ranks; anything that can be added is a value."""
        if self.comm is None:
            return value
        self.barrier()
        total: T = self.comm.allreduce(value)
        return total

    def from_first(self, value: T) -> T:
        """Return the value of rank 0."""
        if self.comm is None:
            return value
        self.barrier()
        common: T = self.comm.bcast(value, root=0)
        return common

    def exchange(self, values: Sequence[T]) -> list[T]:
        """Send the value at place r to rank r; return what the others sent here, by rank."""
        if self.comm is None:
            return list(values)
        received: list[T] = self.comm.alltoall(values)
        return received

    def agree(self, problem: str | None, kind: type[Exception] = SpecError) -> None:
        """Go on if no rank has a problem.

        Raises:
            Exception: of this kind, on all ranks, with the problem of the first that has one.
        """
        problems = [found for found in self.all(problem) if found is not None]
        if problems:
            raise kind(problems[0])

    def describe_rank(self, rank: int) -> str:
        """Return a rank's number and host, for a message."""
        return f"rank {rank} on {self.hosts[rank]}"


def this_process() -> dict[str, Any]:
    """Return where this rank runs."""
    return {"host": socket.gethostname(), "pid": os.getpid()}
