"""`chronolog down`: end a deployment."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from chronolog_hpc import streams
from chronolog_hpc.cli.up import add_directory

if TYPE_CHECKING:
    from mpi4py import MPI

    from chronolog_hpc.cli.outcome import Job

_DESCRIPTION = """\
End the processes of a deployment that run on this machine, by what they wrote into its run directory, and wait until
they are gone. Files of processes that are gone already are removed."""

_EPILOG = """\
exit codes: 0 nothing runs any more, 1 something still does, 2 there is no such deployment"""


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "down",
        help="end a deployment",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_directory(parser)
    parser.set_defaults(parser=parser, prepare=prepare)


def prepare(args: argparse.Namespace) -> Job:
    """Return the end that was asked for."""
    from chronolog_hpc.mpi import Team
    from chronolog_hpc.services.ending import end
    from chronolog_hpc.services.rundir import RunDirectory

    def job(comm: MPI.Comm | None) -> int:
        with Team(comm) as team:
            left = team.from_root(lambda: end(RunDirectory(args.directory)))
        if team.rank == 0:
            for sentence in left:
                streams.complain(f"{args.parser.prog}: {sentence}")
        return 1 if left else 0

    return job
