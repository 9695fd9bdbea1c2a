"""`chronolog doctor`: whether nodes can do what this software needs, as a command."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from chronolog_hpc import streams

if TYPE_CHECKING:
    from mpi4py import MPI

    from chronolog_hpc.cli.outcome import Job

_DESCRIPTION = """\
Check this node, or under mpiexec and srun each node of the job: MPI and whether the ranks see each other, clocks, what
the file system of the store can do (tried in a directory that is removed again), limits, tails, spools, Slurm. Every line
says ok, warning or error, and what to do."""

_EPILOG = """\
exit codes: 0 there is no error, 1 there is one, 2 cannot be done as asked"""


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "doctor",
        help="check MPI, clocks, file system and limits of the nodes",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--store", metavar="DIR", type=os.path.expanduser,
        help="directory of the store, which may be missing (default: the one that a program would use here)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print an object, for programs")
    parser.set_defaults(parser=parser, prepare=prepare, mpi_may_be_missing=True)


def prepare(args: argparse.Namespace) -> Job:
    """Return the examination that was asked for.

    Raises:
        ChronoLogError: there can be no such directory.
    """
    from chronolog_hpc.clientlib import store_directory
    from chronolog_hpc.doctor.examination import examine
    from chronolog_hpc.slurm import JobEnvironment

    store, _ = store_directory(args.store)

    def job(comm: MPI.Comm | None) -> int:
        found = examine(comm, store)
        speaks = JobEnvironment().speaks if comm is None or comm.size == 1 else comm.rank == 0
        text = json.dumps(found, indent=1) + "\n" if args.json else _text(found)
        problem = streams.publish(text) if speaks else None
        if problem:
            raise OSError(problem)
        return 1 if found["errors"] else 0

    return job


def _text(found: dict[str, Any]) -> str:
    nodes = found["nodes"]
    lines = []
    for finding in found["findings"]:
        where = "" if finding["nodes"] == nodes else f" on {', '.join(finding['nodes'])}"
        todo = f": {finding['todo']}" if finding["todo"] else ""
        lines.append(f"{finding['level']:<8} {finding['check']}{where}: {finding['found']}{todo}")
    counts = ", ".join(_count(found[level], level[:-1]) for level in ("errors", "warnings"))
    lines.append(f"# {_count(len(nodes), 'node')}, {_count(found['ranks'], 'rank')}: {counts}")
    return "\n".join(lines) + "\n"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
