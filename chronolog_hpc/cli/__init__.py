"""The command `chronolog`: parse on every rank, speak on rank 0, exit with the same code everywhere.

Each command is a module of this package with a function `register`, which adds its parser. The parser names
two things: itself (`parser`), and a function (`prepare`) that checks the arguments, imports what the command
needs, and returns the job, a function of the communicator that returns the exit code. A command that can work without
the MPI that its launcher promises says `mpi_may_be_missing`. Nothing heavy is imported
before: `--help` costs no numpy and no MPI.

Exit codes: 0 done, 1 failed, 2 asked for something that cannot be done, 3 a check of the results failed,
128 + n ended by signal n.
"""

from __future__ import annotations

import contextlib
import io
import logging
import signal
from collections.abc import Iterator, Sequence

from chronolog_hpc import streams
from chronolog_hpc.cli import bench, clock, doctor, down, drain, status, up
from chronolog_hpc.cli.arguments import USAGE, Parser, ShowVersion
from chronolog_hpc.cli.outcome import FAILED, INTERRUPTED, explain, interrupts_held, run_job
from chronolog_hpc.slurm import JobEnvironment

COMMANDS = (bench, clock, doctor, up, status, down, drain)
"""The modules of the commands, in the order of `--help`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Collective: under an MPI launcher, over all ranks; they return the same code.

    Args:
        argv: arguments without the program's name; None for those of the process.

    Returns:
        The exit code.
    """
    streams.prepare()
    launch = JobEnvironment()
    name = "chronolog"
    try:
        with interrupts_held() as let_go:
            with _speaking(launch):
                args, unknown = _parser().parse_known_args(argv)
                name = args.parser.prog
                if unknown:
                    args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
            code = run_job(args, launch, let_go)
    except KeyboardInterrupt:
        code = _interrupted(name)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else USAGE
    except Exception as error:
        told = explain(error)
        if told is None:
            raise
        code, sentence = told
        if launch.speaks:
            streams.complain(f"{name}: {sentence}")
    problem = streams.publish("")
    if problem:
        streams.complain(f"{name}: {problem}")
    return code if problem is None else code or FAILED


def _interrupted(name: str) -> int:
    """Say that the user has ended the command; a second Ctrl-C ends it without another word."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    streams.complain(f"{name}: interrupted")
    logging.disable()  # of events in a temporary store that is gone by now
    return INTERRUPTED


def _parser() -> Parser:
    parser = Parser(
        prog="chronolog",
        description="One ordered log for all ranks of an MPI job, over the ChronoLog client API.",
        epilog="'chronolog COMMAND --help' shows the options of a command.",
    )
    parser.add_argument("--version", action=ShowVersion, help="show the version and exit")
    parser.set_defaults(mpi_may_be_missing=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for module in COMMANDS:
        module.register(commands)
    return parser


@contextlib.contextmanager
def _speaking(launch: JobEnvironment) -> Iterator[None]:
    """Let only rank 0 print."""
    if launch.speaks:
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
