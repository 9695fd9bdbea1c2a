"""A session: all ranks of an MPI job open a story together, log on their own, and close it together.

Opening and closing are collective; in between no call communicates. Every rank has a client of its own, whose
files nobody else writes, so ranks never wait for each other. The client ids of a session are
`prefix << 24 | rank`, where the prefix is 39 bits that rank 0 draws anew for each session: unique in the job
and across jobs. Who is behind an id stands in the store (`describe_clients`).

    with open_story(MPI.COMM_WORLD, "weather", "run-17") as story:
        story.log_event("step 1")
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from chronolog_hpc import clientlib
from chronolog_hpc.clientlib import (
    PORTAL_VARIABLE,
    STORE_VARIABLE,
    ChronoLogError,
    Client,
    Clock,
    Durability,
    ErrorCode,
    InvalidArgumentError,
    NotConnectedError,
    StoreError,
    StoryHandle,
    SystemClock,
    WriterStatistics,
    store_path,
)
from chronolog_hpc.mpi import Team, is_clean_exit
from chronolog_hpc.places import Conf, Deployment, Place, choose
from chronolog_hpc.slurm import JobEnvironment

if TYPE_CHECKING:
    from mpi4py import MPI

    from chronolog_hpc.clocksync import SyncedClock

logger = logging.getLogger("chronolog_hpc")

RANK_BITS = 24
"""The low bits of a client id of a session: the rank."""

_PREFIX_BITS = 63 - RANK_BITS
_PROOF_WAIT_S = 2.0
_PROOF_PAUSE_S = 0.05
_named: set[Path] = set()


@dataclass(frozen=True, eq=False)
class RankStory:
    """One rank's end of a session, from `open_story`.

    Thread safety: `log_event`, `log_events`, `flush` and `statistics` as for `StoryHandle`.
    """

    log_event: Callable[..., int]
    """Append one event, text or bytes; returns its time in ns, or 0 if it was refused. Never communicates."""
    handle: StoryHandle
    client: Client
    """This rank's client, which may also replay."""
    rank: int
    size: int
    chronicle: str
    story: str
    """Name of the story that this rank writes; with `per_rank` it ends in the rank."""
    store: Path | None
    """Directory of the store, absolute; None in a deployment."""
    clock: Clock
    """Where this rank's times come from: a `SyncedClock`, unless another one was given or there is no MPI."""

    @property
    def client_id(self) -> int:
        """The client id of the events of this rank."""
        return self.handle.client_id

    def log_events(self, batch: Sequence[str | bytes]) -> int:
        """Append a batch under one time and return it, or 0 if the batch was refused."""
        return self.handle.log_events(batch)

    def flush(self, timeout_s: float | None = None) -> int:
        """Bring this rank's events to the session's durability; return the acknowledged sequence number."""
        return self.handle.flush(timeout_s)

    def statistics(self) -> WriterStatistics:
        """Return how many events of this rank were logged, are acknowledged, and were lost, and why."""
        return self.handle.statistics()


@dataclass(frozen=True)
class ClientInfo:
    """Who is behind a client id."""

    client_id: int
    rank: int | None
    """None for a client that is of no session."""
    size: int | None
    host: str
    pid: int | None
    job: str
    """Job of the batch system; empty without one."""
    attempt: int
    """How often the batch system had restarted the job before."""
    description: Mapping[str, Any]
    """All that the client said of itself."""


class _Asked(NamedTuple):
    """What all ranks must ask for alike."""

    chronicle: str
    story: str
    per_rank: bool
    store: str | None
    conf: Conf | None
    durability: Durability
    clock: str | None
    """Its kind."""


class _Plan(NamedTuple):
    """What rank 0 tells the others."""

    place: Place
    prefix: int
    mark: str
    """What the others must see there; empty for one rank."""
    host: str


@contextlib.contextmanager
def open_story(
    comm: MPI.Comm | None,
    chronicle: str,
    story: str,
    *,
    per_rank: bool = False,
    store: str | os.PathLike[str] | None = None,
    conf: Conf | None = None,
    attrs: Mapping[str, str] | None = None,
    durability: Durability = "process",
    clock: Clock | None = None,
    description: Mapping[str, Any] | None = None,
) -> Iterator[RankStory]:
    """Open a story on all ranks, for the time of the block.

    Rank 0 creates what is missing: store, chronicle, story. The store is the one of CHRONOLOG_STORE, else
    `store` or the deployment of `conf`, else the deployment of CHRONOLOG_PORTAL and CHRONOLOG_QUERY, else `chronolog_store`
    in rank 0's working directory, which rank 0 then names on stderr. Before anything is logged, every rank proves that
    it sees there what rank 0 has made.

    At the end of the block every rank flushes and releases its story; when the block has been left, every
    event of every rank is visible to all. Events that could not be stored are counted over all ranks and
    reported by rank 0, and so is what makes the times of a rank doubtful.

    `sys.exit(0)` and the like are no failure: the rank closes, and waits for the others to do so. Any other
    exception inside the block on one rank releases its story and ends the whole job, with this rank's
    traceback and a non-zero exit code. If all ranks fail within half a second of each other, each goes on
    with its own exception.

    Collective: over `comm`, at the beginning and at the end of the block; synchronises both times.

    Times are on one time line, which the ranks synchronise to at the beginning and once more at the end, so that
    an aligned replay can interpolate. That costs about a second where clocks are measured, and less than a
    millisecond where all ranks read the same one (docs/clock.md).

    Durability: an event whose `log_event` returned survives the death of its process; see `durability`.

    Args:
        comm: the ranks that take part; None for this process alone, without MPI, whatever else was started with it.
        chronicle: name.
        story: name.
        per_rank: a story for each rank, named f"{story}.{rank}", instead of one that all share.
        store: directory of the store.
        conf: the configurations of the portal and the query service of a deployment, as for `Client`, instead.
        attrs: attributes of the story, if it is created.
        durability: what an acknowledged event survives: the death of its "process", or a power cut of its
            "node".
        clock: where this rank's times come from: a `SyncedClock` over `comm`, which is synchronised at the
            beginning if it never was, and at the end, and stays open (whenever it is synchronised, this story takes its
            times from the new model at once); or `SystemClock()` or another clock, which
            is only read. None for a new `SyncedClock`, or without MPI for the system's clock.
        description: kept with this rank's events, beside rank, size, host, pid, job and attempt.

    Yields:
        This rank's end of the session.

    Raises:
        InvalidArgumentError: the ranks do not agree on what to open.
        LonelyRankError: several ranks were started, and MPI does not connect them.
        ChronoLogError: opening or closing failed on one rank; raised on all of them.
        MpiMissingError: `comm` needs an MPI that is not there.
    """
    job = JobEnvironment()
    with Team(comm) as team:
        name = f"{story}.{team.rank}" if per_rank else story
        described = {
            **(description or {}),
            "rank": team.rank,
            "size": team.size,
            "mode": "per-rank" if per_rank else "shared",
            "job": job.job,
            "attempt": job.restarts,
        }
        asked = _Asked(
            chronicle,
            story,
            per_rank,
            None if store is None else os.fsdecode(store),
            conf,
            durability,
            None if clock is None else type(clock).__name__,
        )
        _compare(team, asked)
        known = [] if clock is None else _doubts(clock)
        with _common_clock(team, clock) as common:
            opening = _Opening(
                chronicle, name, attrs, {"durability": durability, "clock": common, "description": described}
            )
            client, handle, place = _open(team, opening, asked)
            rank_story = RankStory(
                handle.log_event, handle, client, team.rank, team.size, chronicle, name, place.store, common
            )
            try:
                with _following(handle, common):
                    yield rank_story
            except BaseException as error:
                if is_clean_exit(error):
                    _close(team, rank_story, story, known)
                else:
                    _give_up(rank_story)
                    team.leave(error)
                raise
            _close(team, rank_story, story, known)


def describe_clients(client: Client, chronicle: str, story: str) -> dict[int, ClientInfo]:
    """Return who is behind the client ids of a story.

    Args:
        client: a connected client, for instance `RankStory.client`.
        chronicle: name.
        story: name; of a session with `per_rank`, f"{story}.{rank}".

    Raises:
        NotFoundError: there is no such story.
    """
    return {
        client_id: ClientInfo(
            client_id,
            _number(found.get("rank")),
            _number(found.get("size")),
            str(found.get("host", "")),
            _number(found.get("pid")),
            str(found.get("job", "")),
            _number(found.get("attempt")) or 0,
            found,
        )
        for client_id, found in client.clients(chronicle, story).items()
    }


# -- opening --


def _compare(team: Team, asked: _Asked) -> None:
    """Make sure that all ranks open the same, before anything is done together."""
    of_root = team.bcast(asked)

    def compare() -> None:
        if asked != of_root:
            raise InvalidArgumentError(
                f"all ranks must open the same: rank 0 opens {of_root}, and not {asked}"
            )

    team.together(compare)


def _is_synced(clock: Clock) -> TypeGuard[SyncedClock]:
    if isinstance(clock, SystemClock):
        return False
    from chronolog_hpc.clocksync import SyncedClock

    return isinstance(clock, SyncedClock)


@contextlib.contextmanager
def _common_clock(team: Team, given: Clock | None) -> Iterator[Clock]:
    """Yield the clock of a session, synchronised if it is one that can be."""
    if team.comm is None and given is None:
        yield SystemClock()
        return
    if given is not None and not _is_synced(given):
        yield given
        return
    from chronolog_hpc.clocksync import SyncedClock

    with contextlib.ExitStack() as stack:
        clock = stack.enter_context(SyncedClock(team.comm)) if given is None else given

        def check() -> None:
            clock.require_open()
            if (clock.team.rank, clock.team.size) != (team.rank, team.size):
                raise InvalidArgumentError(
                    f"clock= is rank {clock.team.rank} of {clock.team.size} of its own ranks, and here this is rank "
                    f"{team.rank} of {team.size}: make it over the communicator of the story"
                )

        team.together(check)
        if not clock.models:
            clock.sync("open")
        yield clock


@contextlib.contextmanager
def _following(handle: StoryHandle, clock: Clock) -> Iterator[None]:
    """Let the times of a story follow each synchronisation of its clock at once."""
    if not _is_synced(clock):
        yield
        return

    def follow() -> None:
        # Where the story was released nothing follows, and on a full disk it does so later, by itself.
        with contextlib.suppress(OSError, ChronoLogError):
            handle.use_clock(clock)

    clock.followers.append(follow)
    try:
        yield
    finally:
        clock.followers.remove(follow)


@dataclass(frozen=True)
class _Opening:
    """What each rank opens, and how."""

    chronicle: str
    story: str
    attrs: Mapping[str, str] | None
    options: Mapping[str, Any]

    def acquire(self, place: Place, client_id: int, *, create: bool) -> tuple[Client, StoryHandle, Place]:
        """Return a client that has acquired the story, its handle, and where that is."""
        client = place.open_client(client_id=client_id, **self.options)
        try:
            if create:
                code = client.CreateChronicle(self.chronicle)
                clientlib.check(client, code, ErrorCode.CL_ERR_CHRONICLE_EXISTS)
            return client, clientlib.acquire(client, self.chronicle, self.story, self.attrs), place
        except BaseException:
            client.Disconnect()
            raise


def _open(team: Team, opening: _Opening, asked: _Asked) -> tuple[Client, StoryHandle, Place]:
    """Open the story on rank 0, then on the others; on all or on none."""
    with contextlib.ExitStack() as undo:
        acquired: list[tuple[Client, StoryHandle, Place]] = []

        def acquire(place: Place, prefix: int) -> None:
            client_id = prefix << RANK_BITS | team.rank
            acquired.append(opening.acquire(place, client_id, create=not team.rank))
            undo.callback(acquired[0][0].Disconnect)

        def begin() -> _Plan:
            if team.size > 2**RANK_BITS:
                raise InvalidArgumentError(
                    f"{team.size} ranks are over the limit of {2**RANK_BITS} for a session"
                )
            place = _chosen(asked)
            prefix = secrets.randbits(_PREFIX_BITS)
            acquire(place, prefix)
            return _Plan(place, prefix, place.mark() if team.size > 1 else "", socket.gethostname())

        plan = team.from_root(begin)

        def join() -> None:
            if team.rank:
                place = plan.place.seen_from_here()
                _require_mark(place, plan, team.rank)
                acquire(place, plan.prefix)

        try:
            team.together(join)
        finally:
            if plan.mark and not team.rank:
                plan.place.remove_mark(plan.mark)
        undo.pop_all()
        return acquired[0]


def _chosen(asked: _Asked) -> Place:
    """Return rank 0's place, and name it where nobody has chosen it."""
    place, chosen = choose(asked.store, asked.conf)
    if place.store is None:
        return place
    if not chosen and place.store not in _named:
        _named.add(place.store)
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"chronolog: store {place}\n")
            sys.stderr.flush()
    elif asked.store is not None and place.store != store_path(asked.store):
        logger.warning("%s=%s is used instead of the store %s", STORE_VARIABLE, place, asked.store)
    elif asked.conf is not None and os.environ.get(STORE_VARIABLE):
        logger.warning("%s=%s is used instead of %s", STORE_VARIABLE, place, Deployment(asked.conf))
    return place


def _require_mark(place: Place, plan: _Plan, rank: int) -> None:
    """Make sure that this rank sees what rank 0 has left. A network file system may show it late.

    Raises:
        StoreError: it does not see the store of rank 0.
        NotConnectedError: it does not reach the deployment of rank 0.
    """
    deadline_s = time.monotonic() + _PROOF_WAIT_S
    while not place.has_mark(plan.mark):
        if time.monotonic() >= deadline_s:
            what = f"rank {rank} on {socket.gethostname()} does not see here"
            if place.store is None:
                raise NotConnectedError(
                    f"{place}: {what} the deployment that rank 0 on {plan.host} has reached there: name an address that "
                    f"means the same on all hosts, with conf= or {PORTAL_VARIABLE}"
                )
            raise StoreError(
                place.store,
                f"{what} the store that rank 0 on {plan.host} has opened at {plan.place}: choose a directory that all "
                f"hosts share, with store= or {STORE_VARIABLE}",
            )
        time.sleep(_PROOF_PAUSE_S)


# -- closing --


def _give_up(rank_story: RankStory) -> None:
    """Release the story of a rank that failed; its own error is more important than one from here."""
    try:
        clientlib.release(rank_story.handle, "exception")
        rank_story.client.Disconnect()
    except Exception:
        logger.exception("rank %d could not release its story", rank_story.rank)
    lost = dict(rank_story.statistics().lost)
    if lost:
        _report([lost], rank_story.story, rank_story.chronicle)


def _close(team: Team, rank_story: RankStory, story: str, known: Sequence[str]) -> None:
    """Close on all ranks, and report what could not be stored on any of them, and what their clocks did.

    Args:
        known: what the clock's warnings were before.
    """
    error: Exception | None = None
    client, held = rank_story.client, (rank_story.chronicle, rank_story.story)

    def release() -> None:
        clientlib.check(client, client.ReleaseStory(*held), ErrorCode.CL_ERR_NOT_ACQUIRED)
        clientlib.check(client, client.Disconnect())

    for step in (functools.partial(_sync, rank_story.clock), release):
        try:
            step()
        except Exception as caught:  # noqa: BLE001  it is raised again, on every rank
            error = error or caught
    team.leave(None)
    lost = dict(rank_story.statistics().lost)
    if team.total(sum(lost.values())):
        losses = team.allgather(lost)
        if not team.rank:
            _report(losses, story, rank_story.chronicle)
    doubts = [warning for warning in _doubts(rank_story.clock) if warning not in known]
    if team.total(len(doubts)):
        for rank, warnings in enumerate(team.allgather(doubts)):
            for warning in warnings if not team.rank else ():
                logger.warning("clock of rank %d: %s", rank, warning)
    team.agree(error)


def _sync(clock: Clock) -> None:
    """Synchronise at the end, if this clock can be."""
    if _is_synced(clock):
        from chronolog_hpc.clocksync import QUICK

        clock.sync("close", QUICK)


def _doubts(clock: Clock) -> list[str]:
    """Return what a clock says against itself on this rank."""
    return clock.warnings() if _is_synced(clock) else []


def _report(losses: Sequence[Mapping[str, int]], story: str, chronicle: str) -> None:
    """Say how many events of how many ranks were lost, and why."""
    reasons: Counter[str] = Counter()
    for lost in losses:
        reasons.update(lost)
    logger.warning(
        "%d events on %d of %d ranks could not be stored in story %r of %r (%s)",
        sum(reasons.values()),
        sum(map(bool, losses)),
        len(losses),
        story,
        chronicle,
        ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()),
    )


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
