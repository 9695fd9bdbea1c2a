"""`chronolog clock`: how far the clocks of a job can be trusted, as a command."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from chronolog_hpc import streams
from chronolog_hpc.cli.arguments import seconds

if TYPE_CHECKING:
    from mpi4py import MPI

    from chronolog_hpc.cli.outcome import Job

_LARGEST_OFFSET_NS = 10**15
_LARGEST_DRIFT_PPM = 400.0

_DESCRIPTION = """\
All ranks synchronise their clocks, wait, and synchronise again. The report says for every rank how far its clock
is from rank 0's, and how wrong a time may be at most. With --inject every rank's clock is made wrong by a known,
random amount, so that the true error is known as well."""

_EPILOG = """\
exit codes: 0 done, 1 failed, 2 cannot be done as asked, 3 two ranks disagree or a window missed the truth"""


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "clock",
        help="synchronise the ranks' clocks and say how wrong they may be",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--seconds", metavar="S", type=seconds, default=5.0,
        help="how long to wait between the synchronisations (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--inject", metavar="OFFSET_NS,DRIFT_PPM", type=_fault,
        help="make every rank's clock wrong by up to so much; all ranks must be on one host",
    )  # fmt: skip
    parser.add_argument(
        "--json", metavar="PATH", type=os.path.expanduser,
        help="write the results to PATH, which must not exist",
    )  # fmt: skip
    parser.set_defaults(parser=parser, prepare=prepare)


def prepare(args: argparse.Namespace) -> Job:
    """Return the trial that was asked for."""
    from chronolog_hpc.bench.report import check_json_path, write_json
    from chronolog_hpc.clocksync import report, trial
    from chronolog_hpc.mpi import Team

    fault = None if args.inject is None else trial.Fault(*args.inject)

    def job(comm: MPI.Comm | None) -> int:
        with Team(comm) as team:
            if args.json is not None:
                team.from_root(lambda: check_json_path(args.json))
            result = trial.run(comm, args.seconds, fault)

            def tell() -> None:
                if args.json is not None:
                    write_json(args.json, result)
                problem = streams.publish(report.text(result) + "\n")
                if problem:
                    raise OSError(problem)

            team.from_root(tell)
        missed = result["covered_fraction"] not in (None, 1.0)
        return 3 if missed or not all(check["agrees"] for check in result["checks"]) else 0

    return job


def _fault(text: str) -> tuple[int, float]:
    try:
        offset, drift = text.split(",")
        fault = int(offset), float(drift)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not OFFSET_NS,DRIFT_PPM: write 1000000000,50 for up to 1 s and 50 ppm"
        ) from None
    if not (0 <= fault[0] <= _LARGEST_OFFSET_NS and 0 <= fault[1] <= _LARGEST_DRIFT_PPM):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not within 0 to {_LARGEST_OFFSET_NS} ns and 0 to {_LARGEST_DRIFT_PPM:.0f} ppm"
        )
    return fault
