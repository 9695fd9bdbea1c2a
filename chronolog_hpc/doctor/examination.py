"""All checks, over the ranks of a job: the first rank of each node checks it, and rank 0 collects what was found."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chronolog_hpc.clientlib import StoreError
from chronolog_hpc.doctor import job, limits, node, storage
from chronolog_hpc.doctor.finding import Finding, error, ok
from chronolog_hpc.mpi import Team
from chronolog_hpc.places import Directory
from chronolog_hpc.slurm import JobEnvironment

if TYPE_CHECKING:
    from mpi4py import MPI

SCHEMA = "chronolog-doctor/1"

_SEEN_WITHIN_S = 2.0
_PAUSE_S = 0.05


def examine(comm: MPI.Comm | None, store: Path) -> dict[str, Any]:
    """Check the nodes of a job.

    Collective: over `comm`.

    Args:
        comm: all ranks that see each other; None without MPI.
        store: directory of the store, which may be missing; rank 0's counts.

    Returns:
        What was found, as it stands in JSON; the findings are the same on all ranks.
    """
    environment = JobEnvironment()
    with Team(comm if comm is not None and comm.size > 1 else None) as team:
        store = team.bcast(store)
        of_job = team.from_root(lambda: job.findings(environment, comm))
        names = team.allgather(environment.node or socket.gethostname())
        leads = names.index(names[team.rank]) == team.rank
        of_node = _node(store, environment, names.count(names[team.rank])) if leads else []
        if len(set(names)) > 1:
            of_node += _shared(team, store, leads=leads)
        team.barrier()
        everywhere = zip(names, team.allgather(of_node), strict=True)
        nodes = list(dict.fromkeys(names))
        merged: dict[Finding, list[str]] = dict.fromkeys(of_job, nodes)
        for name, found in everywhere:
            for finding in found:
                merged.setdefault(finding, []).append(name)
    levels = [finding.level for finding in merged]
    return {
        "schema": SCHEMA,
        "store": str(store),
        "ranks": team.size,
        "nodes": nodes,
        "job": environment.facts(),
        "errors": levels.count("error"),
        "warnings": levels.count("warning"),
        "findings": [{**finding._asdict(), "nodes": where} for finding, where in merged.items()],
    }


def _node(store: Path, environment: JobEnvironment, ranks: int) -> list[Finding]:
    """Check this node, on which there are so many ranks."""
    return [
        node.software(),
        node.clock_source(),
        node.clock_resolution(),
        node.time_of_day(),
        *storage.store_findings(store, ranks),
        storage.tails(store, environment),
        storage.spools(),
        *(limit() for limit in limits.LIMITS),
    ]


def _shared(team: Team, store: Path, *, leads: bool) -> list[Finding]:
    """See whether this node has the same directory there as rank 0's node.

    Collective: over all ranks; synchronises.
    """
    place = Directory(store if store.is_dir() else store.parent)
    mark = ""
    if not team.rank:
        try:
            mark = place.mark()
        except StoreError:
            mark = ""  # the check of the store says it
    mark = team.bcast(mark)
    if not mark:
        return []
    seen = leads and _sees(place, mark)
    team.barrier()
    if not team.rank:
        place.remove_mark(mark)
    if not leads:
        return []
    if seen:
        return [ok("shared store", f"all nodes see the same {place}")]
    todo = "choose a directory that all nodes share, with --store"
    return [error("shared store", f"{place} is not the directory that the first rank's node has there", todo)]


def _sees(place: Directory, mark: str) -> bool:
    """Tell whether a mark is there. A network file system may show it late."""
    deadline_s = time.monotonic() + _SEEN_WITHIN_S
    while not place.has_mark(mark):
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(_PAUSE_S)
    return True
