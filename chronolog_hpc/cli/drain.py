"""`chronolog drain`: ship what dead clients have left in the spool of this machine."""

from __future__ import annotations

import argparse
import socket
from typing import TYPE_CHECKING, Any

from chronolog_hpc import streams
from chronolog_hpc.cli.arguments import seconds

if TYPE_CHECKING:
    from mpi4py import MPI

    from chronolog_hpc.cli.outcome import Job

_DESCRIPTION = """\
A client of a deployment writes into a spool on its own machine first, and ships from there. What a client that was
killed has left is shipped by the next one that writes there, or by this command: call it on every node before its
directories are wiped."""

_EPILOG = """\
exit codes: 0 nothing is left, 1 something is, and is named, 2 cannot be done as asked"""


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "drain",
        help="ship what dead clients have left in the spool of this machine",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--timeout", metavar="S", type=seconds, default=60.0,
        help="how long to try (default: %(default)s)",
    )  # fmt: skip
    parser.set_defaults(parser=parser, prepare=prepare)


def prepare(args: argparse.Namespace) -> Job:
    """Return the draining of this machine's spools."""
    from chronolog_hpc.clientlib import drain
    from chronolog_hpc.mpi import Team

    def job(comm: MPI.Comm | None) -> int:
        host = socket.gethostname()
        left = [
            f"not shipped: client {orphan.client_id:016x} of story {orphan.story!r} of {orphan.chronicle!r}, on {host} in "
            f"{orphan.directory}{why and ': '}{why}\n"
            for orphan, why in drain(args.timeout)
        ]
        with Team(comm) as team:
            lines = sorted({line for lines in team.allgather(left) for line in lines})
            team.from_root(lambda: _tell(lines))
        return 1 if lines else 0

    return job


def _tell(lines: list[str]) -> None:
    problem = streams.publish("".join(lines))
    if problem:
        raise OSError(problem)
