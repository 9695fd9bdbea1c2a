"""`chronolog bench`: the main job as a command."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING, Any

from chronolog_hpc.bench import spec as limits
from chronolog_hpc.bench.spec import Spec, SpecError
from chronolog_hpc.cli.arguments import SIZE_HELP, USAGE, size_bytes, whole_number
from chronolog_hpc.cli.launch import Launch

if TYPE_CHECKING:
    from mpi4py import MPI

_INTERRUPTED = 130

_DESCRIPTION = """\
Every rank logs events into a story, the job replays the story in order, and verifies every byte, client id,
time and position. Run it as "mpiexec -n P chronolog bench", or alone. The report names its units and
parameters; lines
that begin with # are not figures."""

_EPILOG = """\
exit codes: 0 done and verified, 1 failed, 2 cannot be done as asked, 3 the verification failed"""


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "bench",
        help="measure and verify collective logging and replay",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Spec()
    parser.add_argument(
        "--events", metavar="N", type=whole_number(1, 2**48), default=default.events,
        help="events that each rank logs (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--size",
        metavar="B",
        type=size_bytes,
        help=f"size of a record: {SIZE_HELP} (default: {default.size_bytes})",
    )
    parser.add_argument(
        "--story", choices=("shared", "per-rank"), default=default.story,
        help="one story of all ranks, or one for each (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--payload", metavar="FILE", help="log the lines of FILE, again and again, not generated records"
    )
    parser.add_argument(
        "--batch", metavar="K", type=whole_number(1, limits.MAX_BATCH), default=default.batch,
        help="log K events with each log_events; 1: use log_event (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--store",
        metavar="DIR",
        help="use the store in DIR and keep the data, as a new story (default: a fresh one, removed)",
    )
    parser.add_argument("--json", metavar="PATH", help="write the results to PATH, which must not exist")
    parser.add_argument(
        "--seed", metavar="S", type=whole_number(0, limits.MAX_SEED), default=default.seed,
        help="generated records depend on it (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--baseline-rounds", metavar="R", type=whole_number(0, 1000), default=default.baseline_rounds,
        help="rounds of the comparison with a plain buffered file; 0 leaves it out (default: %(default)s)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, launch: Launch) -> int:
    """Run the benchmark.

    Collective: over all ranks that the launcher has started.

    Returns:
        The exit code, the same on all ranks.
    """
    try:
        spec = _spec(args)
        comm = _communicator(launch)
    except SpecError as error:
        return _refuse(error, launch)
    from chronolog_hpc.bench.job import run as run_job
    from chronolog_hpc.mpi import guard

    command = shlex.join(["chronolog", *sys.argv[1:]])
    try:
        with guard(comm):
            try:
                return run_job(spec, comm, command)
            except SpecError as error:  # on all ranks, so it is no reason to abort
                return _refuse(error, launch)
    except KeyboardInterrupt:
        print("chronolog bench: interrupted", file=sys.stderr)
        return _INTERRUPTED


def _refuse(error: SpecError, launch: Launch) -> int:
    """Let rank 0 say what cannot be done; return the exit code."""
    if launch.rank == 0:
        print(f"chronolog bench: {error}", file=sys.stderr)
    return USAGE


def _spec(args: argparse.Namespace) -> Spec:
    if args.size is not None and args.payload is not None:
        raise SpecError(
            "--size is the size of generated records, and --payload logs none: leave one of them out"
        )
    return Spec(
        events=args.events,
        size_bytes=limits.DEFAULT_SIZE_BYTES if args.size is None else args.size,
        story=args.story,
        payload=args.payload,
        batch=args.batch,
        store=args.store,
        json=args.json,
        seed=args.seed,
        baseline_rounds=args.baseline_rounds,
    )


def _communicator(launch: Launch) -> MPI.Comm | None:
    """Return all ranks, or None if this process runs alone: then MPI need not be there.

    Raises:
        SpecError: a launcher has started several ranks, and they cannot find each other.
    """
    if launch.alone:
        return None
    from chronolog_hpc.mpi import MpiMissingError, load_mpi

    try:
        comm: MPI.Comm = load_mpi().COMM_WORLD
    except MpiMissingError as error:
        raise SpecError(
            f"{launch.variable} says that a launcher has started several ranks, but {error}"
        ) from error
    if launch.size not in (None, comm.Get_size()):
        raise SpecError(
            f"the launcher has started {launch.size} ranks and MPI sees {comm.Get_size()}: use the launcher "
            "that belongs to this MPI library (with srun: --mpi=pmi2 or --mpi=pmix)"
        )
    return comm
