"""Ranks that fail together and wait politely: the little that `chronolog_hpc` needs beyond MPI itself.

* MPI is imported when it is first needed, never before, and its absence says which extra to install.
* What fails on one rank of a collective operation is raised on all of them (`Team.together`), so that nobody
  waits for somebody who has left. What fails on one rank alone ends the job with that rank's traceback
  (`guard`, `abort`).
* Ranks that do not see each other, because somebody else's launcher has started them, are told how to
  (`require_company`), before each of them does the work of all.
* Who waits for long sleeps (`wait`). MPI libraries spin, and with more ranks than cores the spinning ranks
  would hold up the one that all wait for.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import pickle
import signal
import socket
import stat
import sys
import termios
import time
import traceback
from array import array
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, final

from chronolog_hpc.clientlib import ChronoLogError, InvalidArgumentError
from chronolog_hpc.slurm import JobEnvironment

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from mpi4py import MPI

T = TypeVar("T")

LEAVE_GRACE_S = 0.5
"""How long a rank that failed waits to hear whether all others have failed too."""

_ABORTED_S = 30.0
_DRAIN_S = 5.0
_DRAIN_PAUSE_S = 0.01
_PASS_ON_S = 0.1
_SPIN_S = 0.002
_SHORTEST_PAUSE_S = 5e-5
_LONGEST_PAUSE_S = 0.01


class MpiMissingError(ImportError):
    """MPI is needed and cannot be used."""


class LonelyRankError(InvalidArgumentError):
    """Several ranks were started, and MPI does not connect them.

    Attributes:
        found: how many, and by whom.
        fix: how to start them.
    """

    def __init__(self, found: str, fix: str) -> None:
        """Say both in one sentence."""
        super().__init__(f"{found}: {fix}")
        self.found = found
        self.fix = fix


class RankError(ChronoLogError):
    """Another rank has failed, in a way that can only be told, not raised again."""


def load_mpi() -> Any:
    """Import and return `mpi4py.MPI`, which also initialises MPI.

    Raises:
        MpiMissingError: mpi4py or the MPI library is not there.
    """
    try:
        return importlib.import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:
        raise MpiMissingError(
            f'MPI cannot be used ({error}): pip install "chronolog-hpc[mpi]" brings mpi4py and an MPI library'
        ) from error


def require_company() -> None:
    """Make sure that this rank sees others, if others were started with it.

    A launcher of another MPI library, or another plugin of srun, starts ranks each of which believes to be all.

    Raises:
        LonelyRankError: MPI sees one rank where the launcher has started several.
    """
    if load_mpi().COMM_WORLD.size > 1:
        return
    environment = JobEnvironment()
    if environment.size in (None, 1):
        return
    started, fix = "the launcher has", "start them with the mpiexec that belongs to this library"
    if environment.under_srun:
        started, fix = f"srun --mpi={environment.plugin} has", f"use srun --mpi={srun_plugin()}"
    raise LonelyRankError(
        f"{started} started {environment.size} ranks and MPI sees 1, because {library_name()} does not understand it",
        fix,
    )


def library_name() -> str:
    """Return the MPI library and its version."""
    mpi = load_mpi()
    vendor, version = mpi.get_vendor()
    if vendor != "unknown":
        return f"{vendor} {'.'.join(map(str, version))}"
    return str(mpi.Get_library_version()).split("\n")[0].strip("\0 ")


def srun_plugin() -> str:
    """Return the plugin of srun that this MPI library understands."""
    return "pmix" if load_mpi().get_vendor()[0] == "Open MPI" else "pmi2"


def wait(request: MPI.Request, timeout_s: float | None = None) -> bool:
    """Complete a request without holding a core; return whether it was completed within `timeout_s`."""
    start_s = time.monotonic()
    while not request.Test():
        waited_s = time.monotonic() - start_s
        if timeout_s is not None and waited_s >= timeout_s:
            return False
        if waited_s < _SPIN_S:
            os.sched_yield()
        else:
            time.sleep(min(_LONGEST_PAUSE_S, max(_SHORTEST_PAUSE_S, waited_s / 20)))
    return True


def barrier(comm: MPI.Comm | None) -> None:
    """Wait for all ranks of `comm`, asleep.

    Collective: over `comm`; synchronises.
    """
    if comm is not None:
        wait(comm.Ibarrier())


def abort(error: BaseException) -> NoReturn:
    """Print the traceback of `error` under this rank's name, and end the whole job with its exit code.

    A SystemExit and a KeyboardInterrupt have a line in the place of the traceback.
    """
    world = load_mpi().COMM_WORLD
    name = f"rank {world.rank} of {world.size} on {socket.gethostname()} (pid {os.getpid()})"
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # somebody impatient shall not interrupt this
    if isinstance(error, KeyboardInterrupt):
        if world.rank:
            time.sleep(LEAVE_GRACE_S)  # a launcher interrupts all ranks: then rank 0 has spoken for them
        text = f"chronolog: {name} was interrupted\n"
    elif isinstance(error, SystemExit):
        said = "" if isinstance(error.code, int) else f": {error.code}"
        text = f"chronolog: {name} ends the job with exit code {_exit_code(error)}{said}\n"
    else:
        told = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        text = f"chronolog: {name} ends the job, because of\n{told}"
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()
        _await_readers(sys.stdout.fileno(), sys.stderr.fileno())
    world.Abort(_exit_code(error))
    os._exit(_exit_code(error))  # some MPI libraries only ask the launcher, and return


def _await_readers(*descriptors: int) -> None:
    """Wait until a launcher has read what is in its pipes: at an abort it throws away what it has not."""
    deadline_s = time.monotonic() + _DRAIN_S
    unread = array("i", [0])
    for descriptor in descriptors:
        while stat.S_ISFIFO(os.fstat(descriptor).st_mode) and time.monotonic() < deadline_s:
            fcntl.ioctl(descriptor, termios.FIONREAD, unread)
            if not unread[0]:
                break
            time.sleep(_DRAIN_PAUSE_S)
    time.sleep(_PASS_ON_S)


@contextlib.contextmanager
def guard(comm: MPI.Comm | None = None) -> Iterator[None]:
    """End the whole job when an exception leaves the block on one rank, so that no other rank waits for it.

    The rank's traceback is printed, and the exit code is 1. A SystemExit has its own code and a line in the
    place of the traceback, and so has a KeyboardInterrupt, with code 130. An error that was raised on all
    ranks is printed by one of them. On a communicator of one rank, and without MPI, the exception goes its
    way.

    Args:
        comm: whose ranks belong together; None for none.
    """
    try:
        yield
    except BaseException as error:
        if comm is None or comm.size == 1 or is_clean_exit(error):
            raise
        if getattr(error, "another_rank_tells", False):
            time.sleep(_ABORTED_S)  # until it has, and has ended the job
        abort(error)


def is_clean_exit(error: BaseException | None) -> bool:
    """Tell whether an exception says that all is well: none, or sys.exit(0)."""
    return error is None or (isinstance(error, SystemExit) and error.code in (None, 0))


def is_shared(error: BaseException) -> bool:
    """Tell whether `Team.agree` has raised an error on all ranks."""
    return hasattr(error, "another_rank_tells")


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code & 0xFF or 1
    return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1


@final
class Team:
    """The ranks that take part in a collective operation; without MPI nobody but this process.

    It has a communicator of its own (a duplicate), which is freed at the end of the `with` block. An
    exception that leaves the block on this rank alone ends the job.

    Collective: made, used and left by all ranks of `comm`.

    Attributes:
        rank: number of this rank in `comm`.
        size: number of ranks.
        comm: the duplicate; None if the size is 1.
    """

    def __init__(self, comm: MPI.Comm | None) -> None:
        """Gather the ranks of `comm`.

        Raises:
            InvalidArgumentError: this rank does not belong to `comm`, or it connects two groups.
            LonelyRankError: MPI does not connect the ranks that were started.
        """
        if comm is not None and not comm:
            raise InvalidArgumentError("comm is COMM_NULL: this rank is no member, and must not take part")
        if comm is not None and comm.Is_inter():
            raise InvalidArgumentError("comm connects two groups: merge it first, comm.Merge()")
        if comm is not None and comm.size == 1:
            require_company()
        self.rank = 0 if comm is None else comm.rank
        self.size = 1 if comm is None else comm.size
        self.comm: MPI.Comm | None = comm.Dup() if comm is not None and self.size > 1 else None
        self._shared_error: BaseException | None = None

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.comm is None:
            return
        if error is not None and error is not self._shared_error and not is_clean_exit(error):
            abort(error)
        self.comm.Free()

    # -- failing together --

    def together(self, action: Callable[[], T]) -> T:
        """Run an action on this rank; if it raises on one rank, raise that on all of them.

        Collective: synchronises, behind the action.
        """
        error: Exception | None = None
        result: T | None = None
        try:
            result = action()
        except Exception as caught:  # noqa: BLE001  it is raised again, on every rank
            error = caught
        self.agree(error)
        return result  # type: ignore[return-value]

    def from_root(self, action: Callable[[], T]) -> T:
        """Run an action on rank 0 and return its result on all ranks; if it raises, raise that on all.

        Collective: synchronises, behind the action.
        """
        error: Exception | None = None
        results: list[T] = []
        try:
            if not self.rank:
                results.append(action())
        except Exception as caught:  # noqa: BLE001  it is raised again, on every rank
            error = caught
        self.agree(error)
        return self.bcast(results)[0]

    def agree(self, error: Exception | None) -> None:
        """Raise the error of the first rank that has one on all ranks.

        Collective: synchronises.
        """
        if self.comm is None:
            if error is not None:
                raise error
            return
        first = self.least(self.size if error is None else self.rank)
        if first == self.size:
            return
        told = self.comm.bcast(_pack(error) if error is not None and first == self.rank else None, root=first)
        raised = _unpack(told, first)
        if error is not None and first == self.rank and type(raised) is type(error):
            raised = error
        self._shared_error = raised
        with contextlib.suppress(AttributeError):
            raised.another_rank_tells = self.rank > 0  # type: ignore[attr-defined]
        raise raised from (error if raised is not error else error.__cause__)

    def leave(self, error: BaseException | None) -> None:
        """Leave a block in which the ranks went ways of their own; return when all have left it.

        A rank that failed does not wait for others that are still busy: unless all fail at about the same
        time, the job ends with its traceback. If they do, its caller raises the error again.

        Collective: synchronises.
        """
        if self.comm is None:
            return
        failed, failures = array("q", [error is not None]), array("q", [0])
        request = self.comm.Iallreduce(failed, failures)
        if error is None:
            wait(request)
            if failures[0]:
                time.sleep(_ABORTED_S)  # until those that failed have ended the job
                abort(RankError(f"{failures[0]} of {self.size} ranks failed"))
        elif not wait(request, LEAVE_GRACE_S) or failures[0] < self.size:
            abort(error)
        self._shared_error = error

    # -- small values --

    def barrier(self) -> None:
        """Wait for all ranks, asleep."""
        barrier(self.comm)

    def bcast(self, value: T, root: int = 0) -> T:
        """Return the value of `root` on all ranks."""
        return value if self.comm is None else self.comm.bcast(value, root=root)

    def allgather(self, value: T) -> list[T]:
        """Return the values of all ranks, in rank order."""
        return [value] if self.comm is None else self.comm.allgather(value)

    def total(self, value: int) -> int:
        """Return the sum over all ranks; waits asleep."""
        return self._reduce(value, "SUM")

    def least(self, value: int) -> int:
        """Return the minimum over all ranks; waits asleep."""
        return self._reduce(value, "MIN")

    def _reduce(self, value: int, operation: str) -> int:
        if self.comm is None:
            return value
        result = array("q", [0])
        wait(self.comm.Iallreduce(array("q", [value]), result, getattr(load_mpi(), operation)))
        return result[0]

    # -- arrays --

    def alltoall(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Send row i to rank i, and return the rows that the ranks have sent here; waits asleep.

        Args:
            rows: shape (size, ...), the same on all ranks.
        """
        import numpy as np

        rows = np.ascontiguousarray(rows)
        if self.comm is None:
            return rows
        received = np.empty_like(rows)
        wait(self.comm.Ialltoall(rows, received))
        return received

    def alltoallv(
        self, data: npt.NDArray[Any], counts: npt.NDArray[np.int64], incoming: npt.NDArray[np.int64]
    ) -> npt.NDArray[Any]:
        """Send consecutive parts of an array to the ranks, and return the parts from them, one after another.

        The ranks should come at the same time: MPI libraries move large messages only while nobody sleeps.

        Args:
            data: shape (n,).
            counts: int64, shape (size,): elements for each rank.
            incoming: int64, shape (size,): elements from each rank.
        """
        import numpy as np

        if self.comm is None:
            return data
        received = np.empty(int(incoming.sum()), data.dtype)
        starts, places = (np.concatenate(([0], np.cumsum(part)[:-1])) for part in (counts, incoming))
        self.comm.Alltoallv([data, (counts, starts)], [received, (incoming, places)])
        return received


# -- errors that travel --


def _pack(error: Exception) -> tuple[str, Any]:
    """Return an error as something that another rank can raise."""
    where = socket.gethostname()
    if isinstance(error, ChronoLogError):
        kind = type(error)
        attributes = {name: value for name, value in vars(error).items() if _is_plain(value)}
        return where, (kind.__module__, kind.__qualname__, str(error), attributes)
    with contextlib.suppress(Exception):
        data = pickle.dumps(error)
        if type(pickle.loads(data)) is type(error):  # noqa: S301  what we have just written
            return where, data
    return where, f"{type(error).__name__}: {error}"


def _unpack(told: tuple[str, Any], rank: int) -> Exception:
    where, what = told
    name = f"rank {rank} on {where}"
    if isinstance(what, bytes):
        error: Exception = pickle.loads(what)  # noqa: S301  from a rank of this job
        if error.args and isinstance(error.args[0], str):
            error.args = (f"{name}: {error.args[0]}", *error.args[1:])
        return error
    if isinstance(what, tuple):
        module, kind_name, sentence, attributes = what
        kind = getattr(sys.modules.get(module), kind_name, None)
        if isinstance(kind, type) and issubclass(kind, ChronoLogError):
            known = kind.__new__(kind)  # their constructors take other things than a sentence
            known.args = (f"{name}: {sentence}",)
            vars(known).update(attributes)
            return known
        what = sentence
    return RankError(f"{name}: {what}")


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float, bytes))
