"""How a command ends: the one place where what a user can mend becomes one sentence and an exit code.

What fails on all ranks alike is said once, by rank 0, and all ranks return the same code. What fails on one rank
alone ends the job, with one sentence too. Only a defect of this software has a traceback.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from chronolog_hpc import streams
from chronolog_hpc.bench.spec import SpecError
from chronolog_hpc.cli.arguments import USAGE
from chronolog_hpc.slurm import JobEnvironment

if TYPE_CHECKING:
    import argparse

    from mpi4py import MPI

    Job = Callable[[MPI.Comm | None], int]

FAILED = 1
INTERRUPTED = 130


def explain(error: Exception) -> tuple[int, str] | None:
    """Return exit code and sentence for an error that a user can mend; None for a defect."""
    if isinstance(error, SpecError):
        return USAGE, str(error)
    if isinstance(error, ModuleNotFoundError):
        return USAGE, f"{error}: install it for the Python that runs this command, {sys.executable}"
    if isinstance(error, ImportError):  # its sentence says what to do, and the client may be a foreign one
        return USAGE, str(error)
    if isinstance(error, MemoryError):
        return FAILED, "there is not enough memory: ask for fewer or smaller events, or start fewer ranks"
    from chronolog_hpc.clientlib import (
        ChronoLogError,
        InvalidArgumentError,
        NotAStoreError,
        NotAuthorizedError,
        NotConnectedError,
    )

    if isinstance(error, (InvalidArgumentError, NotAStoreError, NotAuthorizedError, NotConnectedError)):
        return USAGE, str(error)
    return (FAILED, str(error)) if isinstance(error, (ChronoLogError, OSError)) else None


def run_job(args: argparse.Namespace, launch: JobEnvironment, met: Callable[[], None]) -> int:
    """Prepare a command, run its job on all ranks and return its exit code.

    Collective: over all ranks that the launcher has started.

    Args:
        args: from the parser of the command: `prepare`, `parser`, and whether `mpi_may_be_missing`.
        launch: what the launcher says; MPI is imported only where it has started several ranks.
        met: is called as soon as the ranks have met, and the failure of one ends all.

    Raises:
        SpecError: MPI is missing, or what is asked for makes no sense.
        SystemExit: a rank failed alone; it has ended the job.
    """
    job: Job = args.prepare(args)
    comm = _communicator(launch, mpi_may_be_missing=args.mpi_may_be_missing)
    from chronolog_hpc.mpi import guard

    with guard(comm):
        met()
        return _concluded(args.parser.prog, job, comm, launch)


@contextlib.contextmanager
def interrupts_held() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until the block lets go, or ends.

    In the middle of an import it would look like a broken installation, and a rank that ends alone before
    MPI_Init leaves the others there for ever.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def let_go() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        yield let_go
    finally:
        let_go()


def _concluded(name: str, job: Job, comm: MPI.Comm | None, launch: JobEnvironment) -> int:
    """Return the exit code of a job; where it failed, say why."""
    from chronolog_hpc.mpi import is_shared

    try:
        return job(comm)
    except Exception as error:
        told = explain(error)
        if told is None:
            raise
        code, sentence = told
        alone = comm is None or comm.size == 1
        if not alone and not isinstance(error, SpecError) and not is_shared(error):
            raise SystemExit(f"{name}: {sentence}") from error
        if launch.speaks if comm is None or alone else comm.rank == 0:
            streams.complain(f"{name}: {sentence}")
        return code


def _communicator(launch: JobEnvironment, *, mpi_may_be_missing: bool) -> MPI.Comm | None:
    """Return all ranks, or None if this process runs alone: then MPI need not be there.

    Raises:
        SpecError: a launcher has started several ranks, and there is no MPI.
    """
    if launch.alone:
        return None
    from chronolog_hpc.mpi import MpiMissingError, load_mpi

    try:
        world: MPI.Comm = load_mpi().COMM_WORLD
    except MpiMissingError as error:
        if mpi_may_be_missing:
            return None
        raise SpecError(
            f"{launch.launcher} says that a launcher has started several ranks, but {error}"
        ) from error
    return world
