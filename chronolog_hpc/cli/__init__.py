"""The command `chronolog`: parse on every rank, speak on rank 0, exit with the same code everywhere.

Each command is a module of this package with a function `register`, which adds its parser and names the
function that runs it. Nothing heavy is imported before a command needs it: `--help` costs no numpy and no
MPI.

Exit codes: 0 done, 1 failed, 2 asked for something that cannot be done, 3 a check of the results failed,
128 + n ended by signal n.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence

from chronolog_hpc.cli import bench
from chronolog_hpc.cli.arguments import USAGE, Parser, ShowVersion
from chronolog_hpc.cli.launch import Launch, detect

COMMANDS = (bench,)
"""The modules of the commands, in the order of `--help`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Collective: under an MPI launcher, over all ranks; they return the same code.

    Args:
        argv: arguments without the program's name; None for those of the process.

    Returns:
        The exit code.
    """
    launch = detect()
    try:
        with _speaking(launch):
            args = _parser().parse_args(argv)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else USAGE
    code: int = args.run(args, launch)
    return code


def _parser() -> Parser:
    parser = Parser(
        prog="chronolog",
        description="One ordered log for all ranks of an MPI job, over the ChronoLog client API.",
        epilog="'chronolog COMMAND --help' shows the options of a command.",
    )
    parser.add_argument("--version", action=ShowVersion, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for module in COMMANDS:
        module.register(commands)
    return parser


@contextlib.contextmanager
def _speaking(launch: Launch) -> Iterator[None]:
    """Let only rank 0 print."""
    if launch.rank == 0:
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
