"""`chronolog bench`: the main job as a command."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

from chronolog_hpc.bench import spec as limits
from chronolog_hpc.bench.spec import Spec, SpecError
from chronolog_hpc.cli.arguments import SIZE_HELP, size_bytes, whole_number

if TYPE_CHECKING:
    from chronolog_hpc.cli.outcome import Job

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
        "--payload", metavar="FILE", type=os.path.expanduser,
        help="log the lines of FILE, again and again, not generated records",
    )  # fmt: skip
    parser.add_argument(
        "--batch", metavar="K", type=whole_number(1, limits.MAX_BATCH), default=default.batch,
        help="log K events with each log_events; 1: use log_event (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--store",
        metavar="DIR",
        type=os.path.expanduser,
        help="use the store in DIR and keep the data, as a new story (default: a fresh one, removed)",
    )
    parser.add_argument(
        "--json", metavar="PATH", type=os.path.expanduser,
        help="write the results to PATH, which must not exist",
    )  # fmt: skip
    parser.add_argument(
        "--seed", metavar="S", type=whole_number(0, limits.MAX_SEED), default=default.seed,
        help="generated records depend on it (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--baseline-rounds", metavar="R", type=whole_number(0, 1000), default=default.baseline_rounds,
        help="rounds of the comparison with a plain buffered file; 0 leaves it out (default: %(default)s)",
    )  # fmt: skip
    parser.set_defaults(parser=parser, prepare=prepare)


def prepare(args: argparse.Namespace) -> Job:
    """Return the benchmark that was asked for.

    Raises:
        SpecError: what is asked for makes no sense.
    """
    spec = _spec(args)
    from chronolog_hpc.bench.job import run

    # What the client logs as an error is raised as well, and told below.
    logging.getLogger("py_chronolog_client").addFilter(lambda record: record.levelno < logging.ERROR)
    command = shlex.join(["chronolog", *sys.argv[1:]])
    return lambda comm: run(spec, comm, command)


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
