"""Bursts of ping-pongs along the edges of a tree, again and again for some time.

HCA3 finishes one edge before the next begins, so whoever learned early has to extrapolate while he teaches.
Here all edges are measured in every pass, and the passes spread over the whole span: every slope comes from
the whole span, and no window has grown when it is handed down. The stamps that travel are raw; what they mean follows
when the teacher's model is known (`teach`).

Where leaders outnumber the cores of a host, edges are measured one after another, and everybody else sleeps.
"""

from __future__ import annotations

import itertools
import math
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chronolog_hpc.clientlib import ClockModel, InvalidArgumentError
from chronolog_hpc.clocksync.bounds import Burst, Learned, about_rate, are_clean, best_of, learn
from chronolog_hpc.clocksync.tree import Edge
from chronolog_hpc.mpi import load_mpi, wait

if TYPE_CHECKING:
    from mpi4py import MPI

_STAMP, _STAMPS, _TURN, _MODEL = 1, 2, 3, 4
_MODEL_BYTES = len(ClockModel().pack())


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    bursts: int = 20
    """Bursts on each edge, at least; spread over the span."""
    exchanges: int = 100
    """Ping-pongs in each burst."""
    span_s: float = 1.0
    """How long the measurement takes at least: the longer, the better the slopes."""
    timeout_s: float = 5.0
    """After so long it ends, and what is not clean by then is marked degraded."""

    def __post_init__(self) -> None:
        """Refuse what cannot be done.

        Raises:
            InvalidArgumentError: bursts or exchanges are no positive integers, or a time is not finite or negative.
        """
        counts: dict[str, object] = {"bursts": self.bursts, "exchanges": self.exchanges}
        lengths_s: dict[str, object] = {"span_s": self.span_s, "timeout_s": self.timeout_s}
        for name, count in counts.items():
            if not isinstance(count, int) or count < 1:
                raise InvalidArgumentError(
                    f"{name} of an effort is {count!r}: it must be an integer from 1 on"
                )
        for name, length_s in lengths_s.items():
            if not (isinstance(length_s, (int, float)) and 0 <= length_s < math.inf):
                raise InvalidArgumentError(
                    f"{name} of an effort is {length_s!r}: it must be a number of seconds"
                )

    def is_clean(self, bursts: Sequence[Burst]) -> bool:
        """Tell whether bursts are good enough: enough of them are near the best, early ones and late ones."""
        clean = are_clean(bursts).tolist()
        third = max(1, len(clean) // 3)
        return sum(clean) >= min(10, (self.bursts + 1) // 2) and any(clean[:third]) and any(clean[-third:])


def ask(comm: MPI.Comm, teacher: int, exchanges: int, read: Callable[[], int], rate: float = 0.0) -> Burst:
    """Exchange messages with a teacher that runs `answer`; return the tightest bounds. `rate` as for `best_of`."""
    byte = load_mpi().BYTE
    send, receive = comm.Send, comm.Recv
    message, reply = [bytearray(8), byte], [bytearray(8), byte]
    before, after = [], []
    for _ in range(exchanges):
        before.append(read())
        send(message, teacher, _STAMP)
        receive(reply, teacher, _STAMP)
        after.append(read())
    there = np.empty((2, exchanges), np.int64)
    receive(there, teacher, _STAMPS)
    return best_of(np.array(before, np.int64), there[0], there[1], np.array(after, np.int64), rate)


def answer(comm: MPI.Comm, learner: int, exchanges: int, read: Callable[[], int]) -> None:
    """Answer a learner that runs `ask`.

    Both take two stamps, one behind the other: a clock that was just read is read faster, so with one stamp here, behind
    a wait, the way back would seem longer than the way there (by 150 ns).
    """
    byte = load_mpi().BYTE
    send, receive = comm.Send, comm.Recv
    message, reply = [bytearray(8), byte], [bytearray(8), byte]
    reached, answered = [], []
    wait(comm.Irecv(message, learner, _STAMP))  # asleep: it may not be his turn yet
    for number in range(exchanges):
        if number:
            receive(message, learner, _STAMP)
        reached.append(read())
        answered.append(read())
        send(reply, learner, _STAMP)
    send(np.array([reached, answered], np.int64), learner, _STAMPS)


def measure(
    comm: MPI.Comm, edges: Sequence[Edge], effort: Effort, read: Callable[[], int], *, in_turn: bool
) -> tuple[list[Burst], bool]:
    """Measure all edges, in passes, until they are clean or the time is over.

    Collective: over `comm`; synchronises.

    Args:
        comm: the leaders.
        edges: every rank learns on at most one of them.
        effort: how much.
        read: this rank's raw clock.
        in_turn: one edge at a time.

    Returns:
        This rank's bursts with its teacher, and whether they are clean.
    """
    start_s = time.monotonic()
    bursts: list[Burst] = []
    clean = not any(edge.learner == comm.rank for edge in edges)
    for number in itertools.count(1):
        _pass(comm, edges, effort, read, bursts, in_turn=in_turn)
        clean = not bursts or effort.is_clean(bursts)
        passed_s = time.monotonic() - start_s
        root_says = [number < effort.bursts, passed_s > effort.timeout_s] if not comm.rank else [False, False]
        mine, all_ = array("q", [not clean, *root_says]), array("q", [0] * 3)
        wait(comm.Iallreduce(mine, all_, load_mpi().MAX))
        unclean, early, over = all_
        if over or not (early or unclean):
            break
        pause_s = start_s + effort.span_s * number / max(1, effort.bursts - 1) - time.monotonic()
        time.sleep(max(0.0, min(pause_s, effort.span_s)))
    return bursts, clean


def _pass(
    comm: MPI.Comm,
    edges: Sequence[Edge],
    effort: Effort,
    read: Callable[[], int],
    bursts: list[Burst],
    *,
    in_turn: bool,
) -> None:
    """Measure this rank's edges once."""
    for place, edge in enumerate(edges):
        if edge.teacher == comm.rank:
            answer(comm, edge.learner, effort.exchanges, read)
        elif edge.learner == comm.rank:
            if in_turn and place:
                wait(comm.Irecv(bytearray(1), edges[place - 1].learner, _TURN))
            bursts.append(ask(comm, edge.teacher, effort.exchanges, read, about_rate(bursts)))
            if in_turn and place + 1 < len(edges):
                comm.Send(bytearray(1), edges[place + 1].learner, _TURN)


def teach(comm: MPI.Comm, edges: Sequence[Edge], bursts: Sequence[Burst], root_model: ClockModel) -> Learned:
    """Hand the models down the tree; return what this rank has learned.

    Collective: over `comm`.

    Args:
        comm: the leaders.
        edges: a teacher's own edge comes before those on which it teaches.
        bursts: this rank's.
        root_model: of the rank that knows the time.
    """
    learned = Learned(root_model, 0, True)
    for edge in edges:
        if edge.learner == comm.rank:
            packed = bytearray(_MODEL_BYTES)
            wait(comm.Irecv(packed, edge.teacher, _MODEL))
            learned = learn(bursts, ClockModel.unpack(memoryview(packed)))
        elif edge.teacher == comm.rank:
            comm.Send(learned.model.pack(), edge.learner, _MODEL)
    return learned
