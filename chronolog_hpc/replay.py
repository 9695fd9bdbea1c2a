"""Replaying a story on all ranks of a job: every rank gets its own slice of it.

1. Rank 0 lists the clients of the story, and the ranks deal them out (`deal`): every client's files are read
   by exactly one rank, on the client's own host where that is possible.
2. Every rank scans its share: a sorted run, of which it keeps the index columns.
3. The ranks agree where to cut, so that all slices have the same number of events (`splitters`).
4. Every event crosses the network once (`exchange`).

No rank opens more than four files for each client that it was dealt, and a constant number beside them.
"""

from __future__ import annotations

import heapq
import logging
import os
import socket
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from chronolog_hpc.clientlib import (
    MAX_TIME_NS,
    ClientFile,
    DamageError,
    EventList,
    InvalidArgumentError,
    ScanReport,
)
from chronolog_hpc.mpi import Team
from chronolog_hpc.places import Conf, Place, choose

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from mpi4py import MPI

    from chronolog_hpc.exchange import Run

logger = logging.getLogger("chronolog_hpc")


class _Request(NamedTuple):
    """What is replayed; the same on all ranks."""

    chronicle: str
    story: str
    start: int
    end: int
    root: int | None
    aligned: bool


def replay_story(
    comm: MPI.Comm | None,
    chronicle: str,
    story: str,
    *,
    store: str | os.PathLike[str] | None = None,
    conf: Conf | None = None,
    start: int = 0,
    end: int = MAX_TIME_NS,
    root: int | None = None,
    timeout_s: float | None = None,
    allow_damage: bool = False,
    aligned: bool = False,
) -> EventList:
    """Replay a story on all ranks; return this rank's slice of it.

    The slices, joined in rank order, are the events with times in `[start, end]`, both included, in the order
    (time, client id, sequence); their lengths differ by at most one. The story may be written to meanwhile:
    whatever was logged before the call is there.

    Collective: over `comm`, with the same arguments on all ranks; synchronises.

    Args:
        comm: the ranks; None for this process alone, without MPI.
        chronicle: name.
        story: name; of a session with `per_rank`, f"{story}.{rank}".
        store: directory of the store, as for `open_story`.
        conf: the two configurations of a deployment, as for `open_story`.
        start: first time, ns since 1970 UTC.
        end: last time, ns since 1970 UTC.
        root: gather everything on this rank, and nothing on the others; None to slice.
        timeout_s: give up after this time.
        allow_damage: deliver what can be believed, and put the damages of the whole story into
            `EventList.damages` on every rank, instead of raising the first.
        aligned: put every event where all synchronisations of its clock, also those behind it, say that it
            belongs: range, order and `EventList.time_window_ns` are those of `EventList.aligned_times`. For a
            finished job; the times of the events stay as they were logged.

    Returns:
        The events. On several ranks they are in memory; on one rank their records are read from the store,
        if there is one, when they are looked at.

    Raises:
        NotFoundError: there is no such story. All errors are raised on all ranks.
        NotAStoreError: there is no store.
        InvalidArgumentError: range or root make no sense, or the ranks do not agree on the arguments.
        LonelyRankError: several ranks were started, and MPI does not connect them.
        ReplayTimeoutError: it took longer than `timeout_s`.
        DamageError: a part of the store cannot be believed.
        StoreError: a rank does not see the store that rank 0 sees.
    """
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    request = _Request(chronicle, story, start, end, root, bool(aligned))
    with Team(comm) as team:
        place, clients = _begin(team, request, store, conf)
        own = _deal_out(team, place, request, clients) if team.size > 1 else None
        report = ScanReport()
        if own is None:
            events = _scan_alone(place, request, timeout_s, report)
        else:
            events = _slice(team, place, request, own, deadline_s, allow_damage, report)
        _conclude(team, request, events, report, allow_damage)
    return events


def deal(clients: Sequence[ClientFile], hosts: Sequence[str]) -> list[list[int]]:
    """Deal clients out to ranks: the largest first, to the rank with the least, if possible on its own host.

    No rank gets more than its share of the number of clients, rounded up.

    Args:
        clients: what is known of them.
        hosts: host of each rank.

    Returns:
        The client ids for each rank, sorted.
    """
    limit = -(-len(clients) // len(hosts))
    dealt: list[list[int]] = [[] for _ in hosts]
    loads = [0] * len(hosts)
    everywhere = [(0, rank) for rank in range(len(hosts))]
    by_host = defaultdict(list)
    for rank, host in enumerate(hosts):
        by_host[host].append((0, rank))

    def least_loaded(heap: list[tuple[int, int]]) -> int | None:
        while heap:
            load, rank = heap[0]
            if len(dealt[rank]) == limit:
                heapq.heappop(heap)
            elif load != loads[rank]:
                heapq.heapreplace(heap, (loads[rank], rank))
            else:
                return rank
        return None

    for client in sorted(clients, key=lambda client: (-client.size, client.client_id)):
        chosen = least_loaded(by_host.get(client.host, []))
        if chosen is None:
            chosen = least_loaded(everywhere)
        if chosen is not None:  # it never is None: there are as many places as clients
            dealt[chosen].append(client.client_id)
            loads[chosen] += client.size
    return [sorted(client_ids) for client_ids in dealt]


def _begin(
    team: Team, request: _Request, store: str | os.PathLike[str] | None, conf: Conf | None
) -> tuple[Place, list[ClientFile]]:
    """Find the story's clients on rank 0, and make sure that all ranks ask for the same."""

    def look() -> tuple[_Request, Place, list[ClientFile]]:
        _check(request, team.size)
        place, _ = choose(store, conf)
        return request, place, place.clients(request.chronicle, request.story)

    def compare() -> None:
        if asked != request:
            raise InvalidArgumentError(
                f"all ranks must ask for the same: rank 0 for {asked}, and not {request}"
            )

    asked, place, clients = team.from_root(look)
    team.together(compare)
    return place, clients


def _check(request: _Request, size: int) -> None:
    for name in ("start", "end"):
        value = getattr(request, name)
        if not isinstance(value, int):
            raise TypeError(f"{name} is a time, a whole number of ns, not {type(value).__name__}")
        if not 0 <= value <= MAX_TIME_NS:
            raise InvalidArgumentError(f"{name} {value} is not between 0 and 2**64 - 1")
    if request.start > request.end:
        raise InvalidArgumentError(f"the range starts at {request.start}, after its end {request.end}")
    if request.root is not None and not isinstance(request.root, int):
        raise TypeError(f"root is a rank, a whole number, or None, not {request.root!r}")
    if request.root is not None and not 0 <= request.root < size:
        raise InvalidArgumentError(f"root {request.root} is none of the ranks 0 to {size - 1}")


def _deal_out(team: Team, place: Place, request: _Request, clients: Sequence[ClientFile]) -> list[int]:
    """Return the clients that this rank reads."""
    share = clients[team.rank :: team.size]

    def describe() -> list[ClientFile]:
        return place.seen_from_here().described(request.chronicle, request.story, share)

    told = team.allgather((socket.gethostname(), team.together(describe)))
    everybody = [client for _, described in told for client in described]
    return deal(everybody, [host for host, _ in told])[team.rank]


def _scan_alone(place: Place, request: _Request, timeout_s: float | None, report: ScanReport) -> EventList:
    events = EventList()
    client = place.open_client()
    try:
        for page in client.replay(
            *request[:4], timeout_s=timeout_s, verify=True, aligned=request.aligned, report=report
        ):
            events.add_page(page)
    finally:
        client.Disconnect()
    return events


def _slice(
    team: Team,
    place: Place,
    request: _Request,
    own: list[int],
    deadline_s: float | None,
    verify: bool,
    report: ScanReport,
) -> EventList:
    """Scan this rank's share, and swap it for this rank's slice."""
    from chronolog_hpc.exchange import exchange

    events = EventList()
    run = team.together(lambda: _scan(place, request, own, deadline_s, verify, report))
    for page in exchange(team, run, _cuts(team, run, request.root), deadline_s):
        events.add_page(page)
    return events


def _scan(
    place: Place,
    request: _Request,
    own: list[int],
    deadline_s: float | None,
    verify: bool,
    report: ScanReport,
) -> Run:
    """Read the columns of this rank's share; with `verify` leave out what is damaged now, not when it is sent."""
    from chronolog_hpc.exchange import Run

    here = place.seen_from_here()
    here.require(request.chronicle, request.story, own)
    client = here.open_client()
    try:
        left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
        pages = client.replay(
            *request[:4],
            clients=own,
            timeout_s=left_s,
            verify=verify,
            aligned=request.aligned,
            report=report,
        )
        return Run(pages, aligned=request.aligned)
    finally:
        client.Disconnect()


def _cuts(team: Team, run: Run, root: int | None) -> npt.NDArray[np.int64]:
    """Return where in this rank's run the slices begin."""
    import numpy as np

    from chronolog_hpc.splitters import find_cuts

    ranks = np.arange(team.size, dtype=np.int64)
    if root is not None:
        return np.where(ranks <= root, 0, len(run))
    return find_cuts(team, run.columns, ranks * team.total(len(run)) // team.size)


def _conclude(
    team: Team, request: _Request, events: EventList, report: ScanReport, allow_damage: bool
) -> None:
    """Tell all ranks what the scans could not believe."""
    whole = ScanReport(disbelieved=team.total(report.disbelieved), unseen=team.total(report.unseen))
    for sentence in whole.left_out() if not team.rank else ():
        logger.warning("story %r of %r: %s", request.story, request.chronicle, sentence)
    if not team.total(len(report.damages)):
        return
    if not allow_damage:
        team.agree(report.damages[0] if report.damages else None)
    for found in team.allgather([(d.path, d.offset, d.reason) for d in report.damages]):
        events.damages += [DamageError(*damage) for damage in found]
