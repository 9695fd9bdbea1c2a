"""A clock that means the same on every rank, and says how wrong it may be.

All ranks make it together, and synchronise together when they say `sync`; in between nothing communicates. The
common time line is the clock of rank 0, counted from 1970 UTC as its wall clock showed it at the first
synchronisation. How far that is from UTC is not part of any window.

    clock = SyncedClock(MPI.COMM_WORLD)      # `open_story` makes one, as `story.clock`
    clock.sync("start")
    t = clock.now()
    ...
    clock.sync("end")
    times, halves = clock.correct(raw_times)
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from chronolog_hpc.clientlib import (
    TOLERANCE_NS,
    ClockModel,
    InvalidArgumentError,
    Reading,
    correct,
    offset_to_utc,
    surprise,
)
from chronolog_hpc.clocksync.bounds import I64, refine
from chronolog_hpc.clocksync.hlc import HybridClock
from chronolog_hpc.clocksync.measure import Effort, answer, ask, measure, teach
from chronolog_hpc.clocksync.online import online
from chronolog_hpc.clocksync.raw import Health, RawClock, clock_changes, machine, system_clock
from chronolog_hpc.clocksync.tree import edges, leaders_of
from chronolog_hpc.mpi import Team, load_mpi, wait

if TYPE_CHECKING:
    from mpi4py import MPI

QUICK = Effort(bursts=5, exchanges=100, span_s=0.0, timeout_s=1.0)
"""For a resynchronisation: the slope comes from the time since the last one."""

OFFSET_ONLY = Effort(bursts=1, exchanges=100, span_s=0.0, timeout_s=1.0)
"""For one in a place where time is dear: a few ms for each level of the tree, and nothing is tried again."""

_PROOF_EXCHANGES = 10
_TURN = 5


@dataclass(frozen=True)
class Knot:
    """What one synchronisation has found out about one rank's clock."""

    number: int
    label: str
    local_ns: int
    """Raw time at which the offset holds."""
    offset_ns: int
    """Time minus raw time at `local_ns`."""
    half_ns: int
    """Half-width of the hard window at `local_ns`."""
    rate: float
    """Seconds gained per second by the time line on the raw clock."""
    rate_half: float
    """Half-width of the window around `rate`."""
    shared: bool
    """Whether the rank reads the same clock as its leader, so that nothing had to be measured."""
    bursts: int
    clean: int
    degraded: bool
    """The time was over before enough of the measurement was clean: the window holds, but it is wide."""
    consistent: bool
    """Whether the clock ran at a constant rate as far as could be seen."""
    round_trip_ns: int
    """Shortest round trip to the teacher; 0 where nothing was measured."""
    surprise_ns: int
    """By how much the offset differs from what the model before had predicted; 0 for the first."""
    seconds: float
    health: Health


class SyncedClock:
    """The synchronised clock of one rank.

    Collective: made, synchronised, checked, reported and closed by all ranks of `comm`. Reading it is not.

    Thread safety: `now`, `window`, `correct` and `reading` from any thread.

    Attributes:
        team: the ranks.
        now: returns the time on the common time line, ns since 1970 UTC; never decreases. A closure: it is called often.
        models: of this rank's clock, one for each synchronisation.
        knots: likewise.
        hlc: stamps for messages.
        followers: called after each synchronisation. A writer alone notices a new model when its reading is over.
        origin_ns: what rank 0's raw clock is behind the common time line.
        leader: the rank whose model this one shares; its own number if it is measured itself.
        leaders: all ranks that are measured, and rank 0.
        in_turn: whether they are measured one after another, because a machine has fewer cores than clocks.
        closed: whether `close` was called.
        crowded: whether a machine has fewer cores than ranks.
    """

    now: Callable[[], int]

    def __init__(
        self,
        comm: MPI.Comm | None,
        *,
        effort: Effort | None = None,
        share: bool = True,
        source: RawClock | None = None,
    ) -> None:
        """Find out which ranks read the same clock. Nothing is synchronised yet.

        Args:
            comm: the ranks; None for this process alone, without MPI.
            effort: how much to measure.
            share: whether ranks that read the same clock share its model; otherwise all are measured.
            source: what this rank reads; None for CLOCK_MONOTONIC.
        """
        self.source = source or system_clock()
        self.effort = effort or Effort()
        self.models: list[ClockModel] = []
        self.knots: list[Knot] = []
        self.followers: list[Callable[[], None]] = []
        self.closed = False
        self.team = Team(comm)
        self._started = Health.now()
        self.origin_ns = self.team.bcast(offset_to_utc(self.source.read)[1])
        self._group(share)
        self.now, self._steer = online(self.source.read)
        self.hlc = HybridClock(self.now)

    # -- who reads which clock --

    def _group(self, share: bool) -> None:
        """Find the leaders, and give them and each leader's group a communicator."""
        team = self.team
        told = team.allgather((self.source.identity if share else str(team.rank), machine(), _cores()))
        leaders = leaders_of([identity for identity, _, _ in told])
        self._prove_sameness(leaders)
        self.leader = leaders[team.rank]
        leaders = team.allgather(self.leader)
        self.leaders = sorted(set(leaders))
        cores: dict[str, int] = {}
        for _, where, usable in told:
            cores[where] = cores.get(where, 0) | usable
        self.in_turn = _is_crowded(cores, [told[leader][1] for leader in self.leaders])
        self.crowded = _is_crowded(cores, [where for _, where, _ in told])
        self._leader_comm: MPI.Comm | None = None
        self._group_comm: MPI.Comm | None = None
        if team.comm is not None and len(self.leaders) > 1:
            leads = self.leader == team.rank
            self._leader_comm = team.comm.Split(0 if leads else load_mpi().UNDEFINED, team.rank)
            self._group_comm = team.comm.Split(self.leader, team.rank)

    def _prove_sameness(self, leaders: list[int]) -> None:
        """Exchange a few messages with the leader, which must not show any difference; who sees one leads himself."""
        team = self.team
        own = leaders[team.rank]
        if team.comm is None:
            return
        if own == team.rank:
            for member in (rank for rank, leader in enumerate(leaders) if leader == own != rank):
                team.comm.Send(bytearray(1), member, _TURN)
                answer(team.comm, member, _PROOF_EXCHANGES, self.source.read)
        else:
            wait(team.comm.Irecv(bytearray(1), own, _TURN))
            burst = ask(team.comm, own, _PROOF_EXCHANGES, self.source.read)
            if not burst.answered_ns - burst.after_ns <= 0 <= burst.reached_ns - burst.before_ns:
                leaders[team.rank] = team.rank
        team.barrier()

    # -- synchronising --

    def sync(self, label: str = "sync", effort: Effort | None = None) -> Knot:
        """Synchronise all ranks; return what was found out about this one.

        Collective: synchronises, unless all ranks read the same clock; then nothing communicates, and nobody learns that
        a rank is missing.

        Args:
            label: for the report; the same on all ranks.
            effort: how much to measure; None for the clock's own. The same on all ranks.

        Raises:
            InvalidArgumentError: the ranks are not at the same synchronisation, raised on all of them; or this clock was
                closed.
        """
        self.require_open()
        effort, start_s, number = effort or self.effort, time.monotonic(), len(self.models) + 1
        learned = _Found(ClockModel(number, self.source.read(), self.origin_ns, 0.0, 0, 0.0))
        if len(self.leaders) > 1:
            self._agree(_Asked(number, label, effort))
        if self._leader_comm is not None and self._group_comm is not None:
            if self.leader == self.team.rank:
                learned = self._measure(effort, learned.model)
            learned = learned.share(self._group_comm)
        model = learned.model
        surprise_ns = 0
        if self.models:
            surprise_ns, allowed = surprise(self.models[-1], model)
            if allowed:
                model = refine(model, self.models[-1])
            else:  # a slope across a jump would be none
                learned = replace(learned, consistent=False)
        knot = Knot(
            number,
            label,
            model.base_ns,
            model.offset_ns,
            model.window_ns,
            model.rate,
            model.window_rate,
            self.leader != self.team.rank or self.leader == 0,
            learned.bursts,
            learned.clean,
            learned.degraded,
            learned.consistent,
            learned.round_trip_ns,
            surprise_ns,
            time.monotonic() - start_s,
            Health.now(),
        )
        self.models.append(model)
        self.knots.append(knot)
        self._steer(model)
        for follow in list(self.followers):
            follow()
        return knot

    def _agree(self, asked: _Asked) -> None:
        """Make sure that all ranks are about to do the same; wait for them asleep, as measuring spins."""
        self.team.barrier()
        of_root = self.team.bcast(asked)

        def compare() -> None:
            if asked != of_root:
                raise InvalidArgumentError(
                    f"all ranks must synchronise together: rank 0 is at {of_root}, and this one at {asked}"
                )

        self.team.together(compare)

    def maybe_resync(self, interval_s: float = 30.0, effort: Effort = QUICK) -> bool:
        """Synchronise if the last time was longer ago than `interval_s` by rank 0's clock; tell whether it was done.

        Collective: synchronises.

        Raises:
            InvalidArgumentError: the interval is no number from 0 on, or as for `sync`.
        """
        self.require_open()
        if not interval_s >= 0:
            raise InvalidArgumentError(
                f"interval_s is {interval_s!r}: it must be a number of seconds from 0 on"
            )
        age_ns = self.source.read() - self.models[-1].base_ns if self.models else 2**62
        due = self.team.bcast(age_ns > interval_s * 1e9)
        if due:
            self.sync("resync", effort)
        return due

    def _measure(self, effort: Effort, root_model: ClockModel) -> _Found:
        comm = self._leader_comm
        assert comm is not None
        tree = edges(range(comm.size))
        bursts, clean = measure(comm, tree, effort, self.source.read, in_turn=self.in_turn)
        if not comm.rank:
            root_model = replace(root_model, base_ns=self.source.read())
        learned = teach(comm, tree, bursts, root_model)
        if not bursts:
            return _Found(learned.model)
        round_trip_ns = min(burst.round_trip_ns for burst in bursts)
        return _Found(learned.model, len(bursts), learned.clean, not clean, learned.consistent, round_trip_ns)

    # -- reading --

    def raw(self) -> int:
        """Return this rank's raw time, ns; `correct` puts it on the time line later."""
        return self.source.read()

    def window(self, raw_ns: int | None = None) -> tuple[int, int]:
        """Return the earliest and the latest time that a raw time may mean; now, if none is given. ns.

        Raises:
            InvalidArgumentError: nothing was synchronised yet, or it does not fit 64 bits.
        """
        raw_ns = self.raw() if raw_ns is None else raw_ns
        if not -(2**63) <= raw_ns < 2**63:
            raise InvalidArgumentError(f"{raw_ns} is no raw time: it must fit 64 bits")
        times, halves = self.correct(np.array([raw_ns], np.int64))
        return int(times[0] - halves[0]), int(times[0] + halves[0])

    def correct(self, raw: I64) -> tuple[I64, I64]:
        """Put raw times on the common time line, interpolated between synchronisations.

        Args:
            raw: integers, shape (n,), ns, from `raw`.

        Returns:
            Times (int64, shape (n,), ns since 1970 UTC) and the half-widths of their hard windows (int64, shape
            (n,), ns).

        Raises:
            InvalidArgumentError: nothing was synchronised yet, or these are no integers of 64 bits with a sign in one row.
        """
        if not self.models:
            raise InvalidArgumentError("this clock was never synchronised: call sync() on all ranks first")
        given = np.asarray(raw)
        fits = given.dtype.kind == "i" or (given.dtype.kind == "u" and given.max(initial=0) < 2**63)
        if given.ndim != 1 or (given.size and not fits):
            raise InvalidArgumentError(
                f"raw times of type {given.dtype} and shape {given.shape} cannot be corrected: give one row of int64, from "
                "raw()"
            )
        return correct(self.models, given.astype(np.int64, copy=False))

    def reading(self) -> Reading:
        """Return how a writer makes timestamps for now, and how long it may.

        Raises:
            InvalidArgumentError: nothing was synchronised yet.
        """
        if not self.models:
            raise InvalidArgumentError("this clock was never synchronised: call sync() on all ranks first")
        model = self.models[-1]
        if not model.window_rate:  # the reference itself, which nothing can correct
            return Reading(self.source.read, model.offset_ns, model, steady=True)
        if model.rate:
            model = replace(model, window_ns=model.window_ns + TOLERANCE_NS)
        return Reading(self.source.read, model.offset_ns, model, steady=True).refreshed()

    # -- messages --

    def hlc_send(self) -> int:
        """Return the stamp that goes with a message that is sent now. See `HybridClock`."""
        return self.hlc.send()

    def hlc_recv(self, stamp_ns: int) -> int:
        """Return the stamp of receiving a message that came with `stamp_ns`. See `HybridClock`."""
        return self.hlc.receive(stamp_ns)

    # -- reporting --

    def warnings(self) -> list[str]:
        """Return what should make somebody doubt this rank's times, in sentences. `report` has those of the job."""
        found = []
        for knot in self.knots:
            if knot.degraded:
                found.append(
                    f"sync {knot.number} ({knot.label}): its time was over with {knot.clean} of {knot.bursts} bursts "
                    "clean, which are too few, or at one end only"
                )
            if not knot.consistent:
                found.append(f"sync {knot.number} ({knot.label}): the clock did not run at a constant rate")
        found += clock_changes([self._started, *(knot.health for knot in self.knots)])
        return found

    def report(self) -> dict[str, Any]:
        """Return what is known about all ranks' clocks, as plain values for JSON, on all ranks.

        Collective: synchronises.
        """
        self.require_open()
        own: dict[str, Any] = {
            "rank": self.team.rank,
            "host": socket.gethostname(),
            "leader": self.leader,
            "knots": [
                {
                    **asdict(knot),
                    "health": knot.health._asdict(),
                    "from_rank_0_ns": self.origin_ns - knot.offset_ns,
                }
                for knot in self.knots
            ],
            "hlc_push_ns": self.hlc.push_ns,
            "warnings": self.warnings(),
        }
        per_rank = self.team.allgather(own)
        said = [f"rank {rank['rank']}: {warning}" for rank in per_rank for warning in rank["warnings"]]
        if self.crowded:
            turns = ", and clocks are measured one after another" if self.in_turn else ""
            said.append(f"a machine has more ranks than cores: messages take long there{turns}")
        return {"ranks": self.team.size, "clocks": len(self.leaders), "per_rank": per_rank, "warnings": said}

    def require_open(self) -> None:
        """Make sure that the ranks can still speak to each other.

        Raises:
            InvalidArgumentError: the clock was closed.
        """
        if self.closed:
            raise InvalidArgumentError(
                "this clock was closed: it can be read, and nothing else; make a new one"
            )

    def close(self) -> None:
        """Free the communicators. The clock can still be read. Closing it twice is harmless.

        Collective: over all ranks.
        """
        if self.closed:
            return
        self.closed = True
        for comm in (self._leader_comm, self._group_comm):
            if comm is not None and comm:
                comm.Free()
        self._leader_comm = self._group_comm = None
        self.team.__exit__(None, None, None)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a SyncedClock belongs to its rank and cannot be copied: send times, or models, instead"
        )

    def __enter__(self) -> SyncedClock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()


def before(a: tuple[int, int], b: tuple[int, int]) -> bool | None:
    """Tell whether what happened in window `a` came before what happened in window `b`; None if they overlap."""
    if a[1] < b[0]:
        return True
    return False if b[1] < a[0] else None


class _Asked(NamedTuple):
    """What all ranks must mean when they synchronise."""

    number: int
    label: str
    effort: Effort

    def __str__(self) -> str:
        return f"synchronisation {self.number}, {self.label!r}, with {self.effort}"


@dataclass(frozen=True)
class _Found:
    """What a leader tells its group."""

    model: ClockModel
    bursts: int = 0
    clean: int = 0
    degraded: bool = False
    consistent: bool = True
    round_trip_ns: int = 0

    def share(self, group: MPI.Comm) -> _Found:
        """Return what the group's rank 0 has found; wait asleep."""
        numbers = np.array(
            [self.bursts, self.clean, self.degraded, self.consistent, self.round_trip_ns], np.int64
        )
        data = bytearray(self.model.pack() + numbers.tobytes())
        wait(group.Ibcast(data, 0))
        numbers = np.frombuffer(data, np.int64)[-len(numbers) :]
        bursts, clean, degraded, consistent, round_trip_ns = numbers.tolist()
        model = ClockModel.unpack(bytes(data[: -numbers.nbytes]))
        return _Found(model, bursts, clean, bool(degraded), bool(consistent), round_trip_ns)


def _cores() -> int:
    """Return the cores that this rank may use, each of them a bit."""
    return sum(1 << core for core in os.sched_getaffinity(0))


def _is_crowded(cores: Mapping[str, int], places: Sequence[str]) -> bool:
    """Tell whether a machine has more ranks than cores."""
    return any(count > cores[where].bit_count() for where, count in Counter(places).items())
