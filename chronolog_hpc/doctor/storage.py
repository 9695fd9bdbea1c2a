"""Where things are kept: the store, the tails, and the spools of deployments."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from chronolog_hpc.bench.environment import file_system
from chronolog_hpc.clientlib import (
    PORTAL_VARIABLE,
    ChronoLogError,
    NotAStoreError,
    require_store,
    spool_base,
    tail_directory,
)
from chronolog_hpc.doctor import directory
from chronolog_hpc.doctor.finding import Finding, Level, error, ok, told, warning
from chronolog_hpc.slurm import JobEnvironment

NETWORK = frozenset({
    *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "gfs2", "gpfs", "lustre", "nfs", "nfs4"),
    *("ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "wekafs"),
})  # fmt: skip
"""Types of file systems that several nodes may share."""

_MEMORY = ("tmpfs", "ramfs")


def existing(path: Path) -> Path:
    """Return a directory, or the nearest one above it that is there."""
    while not os.path.isdir(path) and path != path.parent:
        path = path.parent
    return path


def store_findings(store: Path, ranks: int) -> list[Finding]:
    """Check the directory of a store, or the one above it, in which it can be made.

    Args:
        store: directory, which may be missing.
        ranks: how many of this node will write to it.
    """
    place = store if os.path.isdir(store) else store.parent
    finding = _store(store, place)
    if finding.level != "ok":
        return [finding]
    trials = []
    try:
        with directory.trial_directory(place) as made:
            trials = [trial(made) for trial in directory.TRIALS]
    except OSError as problem:
        todo = "choose a directory in which you may make files, with --store"
        finding = error("store", f"nothing can be made in {place} ({problem.strerror})", todo)
    return [
        finding,
        store_type(place),
        *trials,
        directory.space(place, ranks),
        directory.inodes(place, ranks),
    ]


def _store(store: Path, place: Path) -> Finding:
    """Tell whether a path is a store, or could become one in `place`."""
    another = "choose an empty directory, or one that is not there yet, with --store"
    try:
        if place == store:
            if os.listdir(store):
                require_store(store)
            return ok("store", f"{store} is there")
    except NotAStoreError:
        return error(
            "store", f"{store} is not empty, and holds no store that this software understands", another
        )
    except ChronoLogError as problem:
        return told("store", problem)
    except OSError as problem:
        return error("store", f"{store} cannot be read ({problem.strerror})", another)
    if os.path.lexists(store):
        return error("store", f"{store} is no directory", another)
    if not os.path.isdir(place):
        return error("store", f"there is no directory {place}", "make it, or choose another one with --store")
    return ok("store", f"{store} can be made")


def store_type(place: Path) -> Finding:
    """Tell what kind of file system a store is on."""
    kind = file_system(os.fspath(place))
    if kind in _MEMORY:
        todo = "keep stores that shall last elsewhere, with --store"
        return warning(
            "file system", f"{kind}, which is gone when the node restarts, and is the job's memory", todo
        )
    if kind in NETWORK:
        return ok("file system", f"{kind}: other nodes see what was flushed")
    return ok("file system", f"{kind}: of this node alone" if kind != "unknown" else "of an unknown type")


def tails(store: Path, environment: JobEnvironment) -> Finding:
    """Check the directory of CHRONOLOG_TAIL_DIR."""
    try:
        chosen = tail_directory()
    except ChronoLogError as problem:
        return told("tail directory", problem)
    if chosen is None:
        kind = file_system(os.fspath(existing(store)))
        if kind not in NETWORK:
            return ok("tail directory", "tails are in the store (CHRONOLOG_TAIL_DIR is not set)")
        here = environment.scratch or Path("/tmp")  # noqa: S108  a proposal
        return warning(
            "tail directory", f"tails are in the store, on {kind}", f"set CHRONOLOG_TAIL_DIR={here}"
        )
    todo = "set CHRONOLOG_TAIL_DIR to another directory, on a disk of this node"
    return _local("tail directory", chosen, chosen, (directory.mapping, directory.reservation), "error", todo)


def spools() -> Finding:
    """Check the directory in which events wait for the keepers of a deployment."""
    base = spool_base()
    level: Level = "error" if os.environ.get(PORTAL_VARIABLE) else "warning"
    todo = "programs that use a deployment need CHRONOLOG_SPOOL, a directory on a disk of this node"
    return _local(
        "spool directory", base, existing(base), (directory.mapping, directory.hole_punching), level, todo
    )


def _local(
    check: str, path: Path, place: Path, trials: Sequence[Callable[[Path], Finding]], level: Level, todo: str
) -> Finding:
    """Check a directory that should be on this node.

    Args:
        check: its name.
        path: what is meant; it may be missing.
        place: the directory that is there.
        trials: what has to work in it.
        level: of the finding if nothing can be made there.
        todo: if anything is not as it should be.
    """
    kind = file_system(os.fspath(place))
    if kind in NETWORK:
        return warning(check, f"{path} is on {kind}, over the network", todo)
    try:
        with directory.trial_directory(place) as made:
            found = [trial(made) for trial in trials]
    except OSError as problem:
        return Finding(check, level, f"{path}: nothing can be made in {place} ({problem.strerror})", todo)
    for finding in found:
        if finding.level != "ok":
            return Finding(check, finding.level, f"{path}: {finding.check}: {finding.found}", todo)
    return ok(check, f"{path} on {kind}")
